"""What is printed must not end a run, nor change its exit code."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from horovod_keras.voice import tell

FULL = Path("/dev/full")
SPEAKS = """
import sys
from horovod_keras.voice import tell
tell("first")
sys.stdin.read()
tell("second")
tell("third")
print("still here", file=sys.stderr)
"""


def speaks(target: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SPEAKS], stdin=subprocess.PIPE, stdout=target, stderr=subprocess.PIPE
    )


def ends_well(process: subprocess.Popen[bytes]) -> bool:
    _, said = process.communicate(timeout=60)
    return (process.returncode, said) == (0, b"still here\n")


def test_nobody_reads_any_more() -> None:
    process = speaks(subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stdout = None
    assert ends_well(process)


def test_the_terminal_has_gone() -> None:
    ours, theirs = pty.openpty()
    process = speaks(theirs)
    os.close(theirs)
    assert os.read(ours, 5) == b"first"
    os.close(ours)
    assert ends_well(process)


def test_the_log_is_on_a_full_disk() -> None:
    with FULL.open("wb") as full:
        assert ends_well(speaks(full.fileno()))


def test_what_others_could_not_print_does_not_change_the_exit_code() -> None:
    code = "from job.errors import run_main\ndef main():\n  import logging\n  logging.warning('x')\n  return 75\n"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with FULL.open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code + "run_main(main)"], stdout=full, stderr=full, env=environment, check=False
        )
    assert done.returncode == 75


def test_ranks_whose_launcher_can_not_write_go_on() -> None:
    much = [sys.executable, "-c", "for _ in range(2000): print('x' * 99)"]  # more than a pipe holds
    command = [sys.executable, "-m", "horovod_keras.launch", "--ranks-per-pod", "2", "--", *much]
    with FULL.open("wb") as full:
        assert subprocess.run(command, stdout=full, stderr=full, timeout=60, check=False).returncode == 0


def test_a_path_may_be_any_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    tell("runs/\udcff")
    assert capsys.readouterr().out == "runs/\\udcff\n"
