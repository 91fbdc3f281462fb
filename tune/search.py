"""The search in Ray Tune's terms: what is tried, who stops it, what is kept, and how it goes on after an interruption."""

import contextlib
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, ResultGrid, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, Searcher
from ray.tune.search.optuna import OptunaSearch

from job.errors import InputError
from tune.prune import Prune
from tune.settings import Search, Settings
from tune.space import Point, Range, Space
from tune.trial import Task, Trial

# Newest checkpoints of a trial; each holds its last position and its best weights.
_KEPT = 2
# Seconds between the search's own checkpoints: so much of the books may be lost when its process is killed.
_PERIOD = "1"


def set_defaults() -> None:
    """What Tune reads from the environment; before it starts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", _PERIOD)
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


def run(search: Search, work: Task, slots: int, callbacks: Sequence[Callback]) -> ResultGrid:
    """Make all trials of the search, or go on with those that are unfinished. Raises InputError: unusable storage."""
    settings, space = search.settings, search.space
    scheduler = _scheduler(settings, space)
    points, searcher = _points(settings, space), None
    if points is None:
        searcher = _tpe(settings, space)
    tuner = _restored(search, work, "search") or Tuner(
        tune.with_parameters(Trial, task=work),
        tune_config=TuneConfig(
            metric="score",
            mode="max",
            scheduler=scheduler,
            search_alg=searcher or BasicVariantGenerator(points_to_evaluate=points),
            num_samples=settings.trials if points is None else len(points),
            # Optuna is to learn from trials before it proposes more; a population lives all at once.
            max_concurrent_trials=slots if searcher else None,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=_run_config(search, "search", [*callbacks, *([Prune(scheduler, _KEPT)] if _is_pbt(scheduler) else [])]),
    )
    return tuner.fit()
