"""The Prometheus exporter, run as its container runs it."""

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

EXPORTER = Path(__file__).parents[2] / "k8s/components/prometheus/exporter.py"


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(EXPORTER), str(tmp_path), str(port)])
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/metrics", process
    process.kill()
    process.wait()


def test_the_last_complete_line_of_each_run_is_served(
    tmp_path: Path, exporter: tuple[str, subprocess.Popen[bytes]]
) -> None:
    for run, text in {
        "a": '{"epoch": 1, "val loss": 2.0}\n{"epoch": 2, "val loss": 1.5, "name": "x", "done": true}\n{"epoch": 3, "v',
        'b"': '{"epoch": 7}\n',
        "damaged": '{"epoch": 1}\n{"epoch\n',
        "empty": "",
    }.items():
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.jsonl").write_text(text)
    with urllib.request.urlopen(exporter[0], timeout=5) as reply:
        lines = reply.read().decode().splitlines()
    assert lines == ['fashion_epoch{run="a"} 2', 'fashion_val_loss{run="a"} 1.5', 'fashion_epoch{run="b_"} 7']
    assert all(re.fullmatch(r'[a-z_]+\{run="[^"]*"\} [\d.]+', line) for line in lines)


def test_it_ends_at_once_when_it_is_told_to(exporter: tuple[str, subprocess.Popen[bytes]]) -> None:
    exporter[1].send_signal(signal.SIGTERM)
    assert exporter[1].wait(3) == 0
