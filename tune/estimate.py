"""How long a search takes: an epoch costs about as much for each pixel of its inputs, whatever the resolution."""

import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from job.config import Config
from job.errors import InputError
from tune.records import Summary
from tune.settings import Search

TRAINING_IMAGES = 55_000
VALIDATION_IMAGES = 5_000
# Of a training step's time, that of an image that needs no gradient.
_FORWARD = 1 / 3


class Estimate:
    """Time left, as if no trial were stopped early.

    Args:
        search: of which all trials count, and the confirmations.
        slots: trials at a time.
        speed: images per second of a trial's ranks together; None if nothing has been measured.
        at: the configuration that was measured.
    """

    def __init__(self, search: Search, slots: int, speed: float | None, at: Config | None) -> None:
        self._search, self._slots = search, slots
        self._count, self._again = search.count(), search.settings.confirm * search.settings.seeds
        self._mean_pixels = search.space.pixels()
        self._pixels_of: dict[str, float] = {}
        self._measured: float | None = None
        if speed and at:
            validation = min(at.limit_eval or VALIDATION_IMAGES, VALIDATION_IMAGES)
            images = (at.limit_train or TRAINING_IMAGES) + _FORWARD * validation
            self._measured = images / speed / at.resolution**2

    def of_confirmation(self, explored: Sequence[Summary], points: Sequence[Mapping[str, Any]]) -> "Estimate":
        """The same for the phase in which these points of the explored trials are trained again."""
        settings = self._search.settings
        other = Estimate(self._search, self._slots, None, None)
        other._measured = self._rate(explored)
        other._count, other._again = len(points) * settings.seeds, 0
        other._mean_pixels = sum(map(self._search.space.pixels, points)) / len(points)
        return other

    def left(self, trials: Sequence[Summary]) -> float | None:
        """Seconds that the rest will take; None before anything is known about the speed."""
        settings = self._search.settings
        running = [t for t in trials if t.status == "running"]
        if settings.budget == "seconds":
            whole = settings.seconds
            rests = [whole - (t.rows[-1]["training_seconds"] or 0.0) for t in running]
        elif (rate := self._rate(trials)) is not None:
            whole = rate * settings.epochs * self._mean_pixels
            rests = [rate * (settings.epochs - t.epochs) * self._pixels(t) for t in running]
        else:
            return None
        to_come = self._count - len(trials)
        return self._one_after_another([*rests, *[whole] * to_come]) + self._one_after_another([whole] * self._again)

    def _one_after_another(self, seconds: Iterable[float]) -> float:
        """Seconds until the last has ended, where each begins as soon as a slot is free."""
        ends = [0.0] * self._slots
        for each in seconds:
            heapq.heapreplace(ends, ends[0] + max(0.0, each))
        return max(ends)

    def _rate(self, trials: Sequence[Summary]) -> float | None:
        """Seconds of an epoch for each pixel of its inputs."""
        epochs = [(row["seconds"], self._pixels(t)) for t in trials for row in t.rows if row["seconds"]]
        if not epochs:
            return self._measured
        return sum(seconds for seconds, _ in epochs) / sum(pixels for _, pixels in epochs)

    def _pixels(self, trial: Summary) -> float:
        """Kept, since a table asks for all trials twice a second."""
        key = json.dumps(trial.settings)
        if key not in self._pixels_of:
            try:
                self._pixels_of[key] = self._search.space.pixels(trial.settings)
            except InputError:  # the job has refused it, and it takes no time
                self._pixels_of[key] = 0.0
        return self._pixels_of[key]
