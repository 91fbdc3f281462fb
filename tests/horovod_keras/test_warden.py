"""The warden: it kills the process that it watches, and no other."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil

from tests.horovod_keras.pods import until

# By its path, so that the test needs no TensorFlow.
PACKAGE = find_spec("horovod_keras")
assert PACKAGE is not None and PACKAGE.submodule_search_locations is not None
WARDEN = f"{PACKAGE.submodule_search_locations[0]}/warden.py"
SCRIPT = f"""
import importlib.util, time
spec = importlib.util.spec_from_file_location("warden", {WARDEN!r})
warden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(warden)
warden.start(2.0, lambda: 3)
print("started", flush=True)
time.sleep(60)
"""


def begin() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


def wardens(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if child.cmdline()[-1] == "2.0"]


def test_a_process_that_stands_still_is_killed_and_its_rank_named() -> None:
    process = begin()
    time.sleep(1.5)
    process.send_signal(signal.SIGSTOP)
    _, said = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert "error: rank 3 on " in said and said.endswith("stood still for 2 s: killed\n")


def test_it_kills_whether_or_not_anybody_reads_what_it_says() -> None:
    process = begin()
    assert process.stderr is not None
    process.stderr.close()
    process.send_signal(signal.SIGSTOP)
    assert process.wait(20) == -signal.SIGKILL


def test_a_process_that_lives_is_left_alone_and_its_warden_ends_with_it() -> None:
    process = begin()
    time.sleep(5)
    assert process.poll() is None
    (warden,) = wardens(process)
    process.terminate()
    until("the warden's end", lambda: not warden.is_running(), 10)
    assert process.communicate(timeout=10)[1] == ""


def test_neither_ctrl_c_nor_the_end_of_its_warden_ends_a_process() -> None:
    process = begin()
    (warden,) = wardens(process)
    until("the warden's start", lambda: _ignores(warden, signal.SIGINT), 10)
    os.kill(warden.pid, signal.SIGINT)
    time.sleep(1)
    assert warden.is_running()
    warden.kill()
    time.sleep(3)
    assert process.poll() is None
    process.kill()
    process.communicate(timeout=10)


def _ignores(process: psutil.Process, number: signal.Signals) -> bool:
    line = next(x for x in Path(f"/proc/{process.pid}/status").read_text().splitlines() if x.startswith("SigIgn"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)
