"""Where a run's time went."""

import contextlib
import time
from collections.abc import Iterator

import psutil


class Timings:
    """Seconds by what they were spent on, in `seconds`; starts with what it took from the process's start to here."""

    def __init__(self) -> None:
        self.seconds = {"import": time.time() - psutil.Process().create_time()}

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the time spent inside as `name`, and take it off what surrounds it."""
        start, inner = time.monotonic(), sum(self.seconds.values())
        try:
            yield
        finally:
            within = sum(self.seconds.values()) - inner
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start - within
