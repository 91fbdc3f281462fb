"""How long a search takes: an epoch costs about as much for each pixel of its inputs, whatever the resolution."""

from collections.abc import Sequence

from job.config import Config
from tune.records import Summary
from tune.settings import Search

TRAINING_IMAGES = 55_000
# Validation images are a tenth of the training images at most, and need no gradient.
_WITH_VALIDATION = 1.04


class Estimate:
    """Time left, as if no trial were stopped early: an upper bound.

    Args:
        search: of which all trials count.
        slots: trials at a time.
        speed: images per second of a trial's ranks together; None if nothing has been measured.
        at: the configuration that was measured.
    """

    def __init__(self, search: Search, slots: int, speed: float | None, at: Config | None) -> None:
        self._search, self._slots = search, slots
        self._pixels = search.space.pixels()
        self._measured: float | None = None
        if speed and at:
            images = at.limit_train or TRAINING_IMAGES
            self._measured = images * _WITH_VALIDATION / speed / at.resolution**2

    def left(self, trials: Sequence[Summary]) -> float | None:
        """Seconds that the rest will take; None before anything is known about the speed."""
        settings, space = self._search.settings, self._search.space
        rate = self._rate(trials)
        if rate is None:
            return None
        to_come = max(0, self._search.count() - len(trials))
        if settings.budget == "seconds":
            spent = [t.rows[-1]["training_seconds"] or 0.0 for t in trials if t.status == "running"]
            total = sum(max(0.0, settings.seconds - s) for s in spent) + to_come * settings.seconds
        else:
            running = ((settings.epochs - t.epochs) * space.pixels(t.settings) for t in trials if t.status == "running")
            total = rate * (sum(running) + to_come * settings.epochs * self._pixels)
        return total / self._slots

    def _rate(self, trials: Sequence[Summary]) -> float | None:
        """Seconds of an epoch for each pixel of its inputs."""
        rows = [
            (row["seconds"], self._search.space.pixels(t.settings)) for t in trials for row in t.rows if row["seconds"]
        ]
        if not rows:
            return self._measured
        return sum(seconds for seconds, _ in rows) / sum(pixels for _, pixels in rows)
