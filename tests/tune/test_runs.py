"""What stops a trial's ranks."""

import threading
import time

from tune.runs import Stop


def test_ranks_stop_when_told_or_when_the_time_is_up() -> None:
    told = threading.Event()
    unlimited, limited = Stop(told, None), Stop(told, 0.05)
    assert not unlimited.is_set() and not limited.is_set()
    time.sleep(0.1)
    assert limited.is_set() and limited.seconds() >= 0.05
    assert not unlimited.is_set()
    told.set()
    assert unlimited.is_set()
