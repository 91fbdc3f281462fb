"""The watchdog, in processes of their own: it ends them."""

import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import sys, time
from horovod_keras.watchdog import Watchdog
try:
    with Watchdog(3, "the first step", 0.5) as watchdog:
        if sys.argv[1] == "late":
            time.sleep(30)
        if sys.argv[1] == "raises":
            raise LookupError
except LookupError:
    pass
time.sleep(2)
print("went on")
"""


def test_a_rank_that_waits_too_long_ends_and_says_for_what() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "late"], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 1
    assert "rank 3 on" in done.stderr and "for the first step: giving up" in done.stderr


@pytest.mark.parametrize("how", ["returns", "raises"])
def test_a_process_that_goes_on_to_other_work_is_left_alone(how) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "went on\n"


PAUSED = """
import time
from horovod_keras.watchdog import Watchdog
with Watchdog(3, "the first step", 4.0):
    print("begun", flush=True)
    time.sleep(1)
    time.sleep(2)  # the second before it is over when the pause is
print("went on")
"""


def test_a_process_that_was_stopped_and_goes_on_is_given_the_time_that_it_lost() -> None:
    with subprocess.Popen([sys.executable, "-c", PAUSED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == "went on\n"
    assert process.returncode == 0
