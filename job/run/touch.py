"""Ranks that keep in touch while one of them is busy."""

from collections.abc import Callable
from concurrent.futures import wait
from typing import TypeVar

from horovod_keras import Collectives
from horovod_keras.background import begin

T = TypeVar("T")

IN_TOUCH = 1.0
"""Seconds between two meetings of ranks that wait for something long."""


def in_touch(ranks: Collectives, work: Callable[[], T], meanwhile: Callable[[], None] = lambda: None) -> T:
    """What `work` gives, which may take long on some of the ranks; all of them call this, and meet every second.

    So a rank that is lost or stands still ends the others soon, and Horovod, which takes a longer silence for a stall,
    sees none where a disk or a network is slow.

    Args:
        ranks: that keep in touch.
        work: done on a thread of its own.
        meanwhile: called on all ranks at each meeting.

    Raises whatever `work` raises, on its own rank, and `meanwhile`.
    """
    outcome = begin("in touch", work)
    while True:
        wait([outcome], timeout=IN_TOUCH)
        meanwhile()
        if not any(ranks.gather(not outcome.done(), "in touch")):
            return outcome.result()
