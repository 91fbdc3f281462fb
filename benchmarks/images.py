"""What images take, and of what they are made: `python -m benchmarks.images --image fashion-job:cpu --json FILE`.

Looks at images that are built already, one `--image` each; what the record holds of others stays in it. Their tables in
docs/images.md are written by `python -m benchmarks.tables`.
"""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

from benchmarks import record as records
from job.command_line import Parser
from job.errors import run_main

SIZES = Path(__file__).parents[1] / "docker/sizes.py"
LIMIT = 600.0
"""Seconds for one look at an image."""


def main() -> int:
    parser = Parser("python -m benchmarks.images", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", action="append", required=True, help="name:TARGET; may be given several times")
    parser.add_argument("--engine", default="docker", help="docker or podman, or a command that stands for it (docker)")
    parser.add_argument("--json", type=Path, help="write the record here")
    args = parser.parse_args()
    records.check(args.json)
    record = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for image in args.image:
        target = image.rpartition(":")[2]
        record[target] = look(shlex.split(args.engine), image)
        print(f"{image}: {record[target]['bytes'] / 1e9:.2f} GB\n{record[target]['shares']}")
    records.write(args.json, record)
    return 0


def look(engine: list[str], image: str) -> dict[str, Any]:
    """The facts about one image. Raises CalledProcessError where the engine refuses."""

    def ask(*arguments: str, script: Path | None = None) -> str:
        text = script.read_text() if script else None
        done = subprocess.run(
            [*engine, *arguments], input=text, check=True, stdout=subprocess.PIPE, text=True, timeout=LIMIT
        )
        return done.stdout.strip()

    [facts] = json.loads(ask("image", "inspect", image))
    packages = ask("run", "--rm", image, "sh", "-c", "cat /usr/local/share/fashion-job/debian-packages.txt")
    return {
        **records.made(),
        "engine": ask("--version"),
        "revision": facts["Config"]["Labels"]["org.opencontainers.image.revision"],
        "bytes": facts["Size"],
        "shares": ask("run", "--rm", "--interactive", image, "python", "-", script=SIZES),
        "debian_packages": packages.splitlines(),
    }


if __name__ == "__main__":
    run_main(main)
