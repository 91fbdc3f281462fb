"""Who proposes trials to Ray Tune: its own generators, which go on as they were, but make trials as this session does.

Tune restores them with the first session's resources, storage and number of trials at a time. And it notes trials and
generator in several files, which are of one moment only while it writes them: that is when they are kept.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.experiment import Experiment
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
from ray.tune.search.search_generator import SearchGenerator

from job.errors import InputError
from tune.space import Point

Keep = Callable[[str, str], None]
"""Takes the folder of Tune's notes, and the session that their names end with."""


class Searched(SearchGenerator):
    """Trials that a searcher proposes."""

    def __init__(self, experiment: Experiment, keep: Keep, limiter: ConcurrencyLimiter) -> None:
        super().__init__(limiter)
        self._now, self._keep = experiment, keep
        self._limiter, self._most = limiter, limiter.max_concurrent

    def save_to_dir(self, dirpath: str, session_str: str) -> None:  # type: ignore[override]  # of Ray's own base
        super().save_to_dir(dirpath, session_str)
        self._keep(dirpath, session_str)

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state({**state, "experiment": self._now})
        self._limiter.max_concurrent = self._most  # Tune has restored the limiter by now

    def add_configurations(self, experiments: Any) -> None:
        # Tune begins anew where it can't restore the searcher, and has restored the limiter before.
        if self._limiter.live_trials:
            raise InputError("Tune can't go on with its own files: see ray.log. Use the packages that it began with.")
        super().add_configurations(experiments)


class Listed(BasicVariantGenerator):
    """Trials of points that are known beforehand."""

    def __init__(self, experiment: Experiment, keep: Keep, points: Sequence[Point]) -> None:
        super().__init__(points_to_evaluate=list(points))
        self._now, self._keep = experiment, keep

    def save_to_dir(self, dirpath: str, session_str: str) -> None:  # type: ignore[override]  # of Ray's own base
        super().save_to_dir(dirpath, session_str)
        self._keep(dirpath, session_str)

    def get_state(self) -> dict[str, Any]:
        return {name: value for name, value in super().get_state().items() if name not in ("_now", "_keep")}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        for iterator in self._iterators:
            iterator.unresolved_spec = self._now.spec
