"""A limit on every wait: a rank that makes no progress in time says what it waited for, and ends."""

import contextlib
import os
import socket
import sys
import threading
import time
from typing import Self

BEAT = 0.5
"""Seconds between two looks at the time."""


class Watchdog:
    """Ends this process with exit code 1 when the main thread doesn't report in time.

    Waits inside Horovod and TensorFlow can't be interrupted from Python, but they leave other threads running, so a
    thread that ends the process bounds them all. The launcher then ends the other ranks. Time in which the whole
    process was stopped doesn't count.

    Args:
        rank: named in the last line.
        what: what is waited for first.
        seconds: for so long.
    """

    def __init__(self, rank: int, what: str, seconds: float) -> None:
        self.rank = rank
        self._paused = 0.0
        self.expect(what, seconds)
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def expect(self, what: str, seconds: float) -> None:
        """The main thread goes on to ``what``, which may take so many seconds."""
        self._state = (what, seconds, self._clock() + seconds)

    @property
    def what(self) -> str:
        """What the main thread is at."""
        return self._state[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        # However it ended: a process that goes on to other work must not be ended for this one.
        self._ended.set()

    def _clock(self) -> float:
        """Seconds in which this process has run."""
        return time.monotonic() - self._paused

    def _watch(self) -> None:
        woke = time.monotonic()
        while not self._ended.wait(BEAT):
            slept, woke = time.monotonic() - woke, time.monotonic()
            # Far too long: somebody stopped the whole process (SIGSTOP, docker pause), and let it go on now.
            if slept > 4 * BEAT:
                self._paused += slept - BEAT
            what, seconds, deadline = self._state
            if self._clock() > deadline:
                line = f"error: rank {self.rank} on {socket.gethostname()} waited {seconds:.0f} s for {what}: giving up"
                with contextlib.suppress(OSError):  # nobody reads it any more
                    print(line, file=sys.stderr, flush=True)
                os._exit(1)
