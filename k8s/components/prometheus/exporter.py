"""Serve the last line of each run's metrics.jsonl to Prometheus: every number as ``fashion_NAME{run="…"}``.

python exporter.py RUNS PORT
"""

import json
import re
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LINE = 65536
"""Bytes from the end of a file within which its last line is looked for."""


def last_line(file: Path) -> dict[str, object]:
    """The last complete line of a JSON-lines file; empty if there is none."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - LINE))
        lines = opened.read().splitlines(keepends=True)
    complete = [line for line in lines if line.endswith(b"\n")]
    values = json.loads(complete[-1]) if complete else {}
    return values if isinstance(values, dict) else {}


def exposition(runs: Path) -> str:
    """All runs' numbers in Prometheus's text format, version 0.0.4."""
    lines = []
    for file in sorted(runs.glob("*/metrics.jsonl")):
        run = re.sub(r'["\\\n]', "_", file.parent.name)
        try:
            values = last_line(file)
        except (OSError, ValueError):  # one damaged run must not hide the others
            continue
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                lines.append(f'fashion_{re.sub(r"[^a-zA-Z0-9_]", "_", name)}{{run="{run}"}} {value}')
    return "".join(f"{line}\n" for line in lines)


class Handler(BaseHTTPRequestHandler):
    timeout = 5

    def do_GET(self) -> None:
        body = exposition(Path(sys.argv[1])).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A line every few seconds would bury the rest of the log."""


if __name__ == "__main__":
    # The first process of a container has no default handler: without one the pod would wait out its grace period.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    ThreadingHTTPServer(("", int(sys.argv[2])), Handler).serve_forever()
