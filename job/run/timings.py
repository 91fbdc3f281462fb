"""Where a run's time went."""

import contextlib
import time
from collections.abc import Iterator

import psutil


class Timings:
    """Seconds by what they were spent on, in `seconds`.

    Args:
        since_process_start: whether the process began for this run: then what it took to get here counts as import.

    Attributes:
        start: when the run began, on the clock of `time.monotonic`.
        to_first_step: seconds from then to the end of the first step; None before that.
    """

    def __init__(self, *, since_process_start: bool) -> None:
        before = time.time() - psutil.Process().create_time() if since_process_start else 0.0
        self.start = time.monotonic() - before
        self.seconds = {"import": before} if since_process_start else {}
        self.to_first_step: float | None = None
        self._earlier: float | None = None

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the time spent inside as `name`, and take it off what surrounds it."""
        start, inner = time.monotonic(), sum(self.seconds.values())
        try:
            yield
        finally:
            within = sum(self.seconds.values()) - inner
            self.add(name, time.monotonic() - start - within)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds as `name`, and take them off what surrounds the call."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def went_before(self, seconds: float) -> None:
        """Note what the run had taken before this process took it up: the first word counts.

        Later ones come from ranks that met anew, whose position tells of this process's own time too.
        """
        if self._earlier is None:
            self._earlier = seconds
            if seconds:
                self.add("earlier", seconds)

    def elapsed(self) -> float:
        """Wall time of the run so far in seconds, all its parts together."""
        return (self._earlier or 0.0) + time.monotonic() - self.start

    def stepped(self) -> None:
        """Note that a step has ended."""
        if self.to_first_step is None:
            self.to_first_step = time.monotonic() - self.start
