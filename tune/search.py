"""The search in Ray Tune's terms: what is tried, who stops it, what is kept, and how it goes on."""

import logging
import math
import os
import random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune import Callback, CheckpointConfig, TuneError
from ray.tune.experiment import Experiment
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from horovod_keras.voice import tell
from tune.estimate import Estimate
from tune.folder import BOOKS, CONFIRMED, decided, has_state, keep_state, put_back, storage, won
from tune.live import Display
from tune.proposals import Listed, Searched
from tune.prune import Prune
from tune.records import Journal, Row, Summary, candidates, groups_of_seeds, ranked, summaries
from tune.settings import Search, Settings
from tune.space import Choice, Point, Space
from tune.trial import Task, Trial

# Newest checkpoints of a trial; each holds its last position and its best weights.
_KEPT = 2
# Of a population: a trial may save twice between two of Tune's notes, and go on from the one noted.
_KEPT_OF_POPULATION = 4
_PERTURBATIONS = 5
SEEDS = 2**31  # how many the job has


def prepare(folder: Path) -> None:
    """Before Ray and Tune start: give them a log file, and the environment where the user has set nothing else."""
    log = logging.getLogger("ray")
    log.handlers, log.propagate = [logging.FileHandler(folder / "ray.log")], False
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Seconds between Tune's checkpoints of the whole search: what may be lost when its process is killed.
        "TUNE_GLOBAL_CHECKPOINT_S": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "TUNE_WARN_THRESHOLD_S": "30",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@dataclass(frozen=True)
class Outcome:
    """What a phase of the search came to."""

    ranking: list[Summary]
    """Trials that are fit to win, the best first."""
    trials: Mapping[str, TuneTrial]
    """By id; with their checkpoints."""
    interrupted: bool
    """Whether some trials have not ended."""
    problem: str
    """What the first that failed said; empty if none did."""
    seeds: Sequence[Summary] = ()
    """The best settings' confirmed trials, the one in the ranking first; none before they are confirmed."""


def explore(search: Search, work: Task, slots: int, estimate: Estimate) -> Outcome:
    """Make all trials of the search, or go on with those that are unfinished.

    Ctrl-C ends it early, with everything kept. Raises InputError: the storage can't be used.
    """
    settings, space = search.settings, search.space
    scheduler = _scheduler(settings, space)
    points = first_points(settings, space)
    proposals: ConcurrencyLimiter | Sequence[Point] = points
    if settings.search == "tpe":
        # Optuna is to learn from trials before it proposes more.
        proposals = ConcurrencyLimiter(_tpe(settings, space, points), slots)
    if isinstance(scheduler, ASHAScheduler):
        remember(scheduler, Journal(settings.out / BOOKS, "search").rows)
    pruning = [Prune(scheduler, _KEPT_OF_POPULATION)] if isinstance(scheduler, PopulationBasedTraining) else []
    return _run(
        search,
        work,
        "search",
        search.count(),
        estimate,
        pruning,
        proposals,
        scheduler=scheduler,
        # A population's checkpoints are someone else's start: `Prune` bounds them.
        checkpoints=_checkpoints(None if pruning else _KEPT),
    )


def confirm(search: Search, work: Task, explored: Outcome, estimate: Estimate) -> Outcome:
    """Train the best settings again, with each of the seeds and to the end; their means rank them.

    Raises as :func:`explore` does.
    """
    # Once and for all: Tune, going on, takes no others, and a failed trial may have been made good meanwhile.
    points = decided(search.settings.out, CONFIRMED, lambda: candidates(explored.ranking, search.settings.confirm))
    seeds = [(search.settings.seed + 1 + index) % SEEDS for index in range(search.settings.seeds)]
    wanted = [{**point, "seed": seed} for point in points for seed in seeds]
    tell(f"the best {len(points)} again, with {len(seeds)} seeds each")
    outcome = _run(
        search,
        work,
        "confirm",
        len(wanted),
        estimate.of_confirmation(explored.ranking, points),
        [],
        wanted,
        scheduler=FIFOScheduler(),
        checkpoints=_checkpoints(_KEPT),
    )
    groups = groups_of_seeds(outcome.ranking)
    trials = {**explored.trials, **outcome.trials}
    if not groups or outcome.interrupted:
        return replace(outcome, ranking=explored.ranking, trials=trials)
    return replace(outcome, ranking=groups[0], trials=trials, seeds=groups[0])


class Retries(Callback):
    """Gives every trial the number of retries that is wanted, from now on: one that Tune restores has used some."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._before: dict[str, int] = {}

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        for trial in trials:
            trial.max_failures = self._most + self._before.setdefault(trial.trial_id, trial.num_failures)


def first_points(settings: Settings, space: Space) -> list[Point]:
    """What is tried in any case: all points of a grid or of a random search, and those known to work for Optuna."""
    if settings.search == "grid":
        return space.grid_points(settings.grid_points)
    if settings.search == "tpe":
        return space.known()[: settings.trials]
    return space.random_points(settings.trials, settings.seed)


def _run(
    search: Search,
    work: Task,
    phase: str,
    wanted: int,
    estimate: Estimate,
    callbacks: Sequence[Callback],
    proposals: ConcurrencyLimiter | Sequence[Point],
    *,
    scheduler: TrialScheduler,
    checkpoints: CheckpointConfig,
) -> Outcome:
    settings = search.settings
    goes_on = has_state(settings, phase)
    if goes_on:
        put_back(settings, phase)
    listed = not isinstance(proposals, ConcurrencyLimiter)
    names = [*search.space.parameters, *(["seed"] if phase == "confirm" else [])]
    experiment: Any = Experiment(  # `tune.run` takes it, but its signature doesn't say so
        phase,
        tune.with_parameters(Trial, task=work),
        # Listed points only replace what is there already; Optuna brings its own space.
        config=dict.fromkeys(names) if listed else None,
        num_samples=wanted,
        resources_per_trial=work.resources(),
        storage_path=storage(settings),
        checkpoint_config=checkpoints,
        trial_name_creator=_name,
        trial_dirname_creator=_name,
        max_failures=settings.max_failures,
    )
    generator: Any = Listed if listed else Searched
    journal = Journal(settings.out / BOOKS, phase)
    display = Display(journal, estimate, wanted, settings.epochs if settings.budget == "epochs" else None)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        analysis = tune.run(
            experiment,
            metric="score",
            mode="max",
            resources_per_trial=work.resources(),  # of trials that wait when the search goes on
            search_alg=generator(experiment, partial(keep_state, settings, phase), proposals),
            scheduler=scheduler,
            # Who goes on has mended what trials failed of, or wants to see it again; but not once there is a winner.
            resume=("AUTO" if won(settings.out) else "AUTO+ERRORED") if goes_on else False,
            reuse_actors=True,
            raise_on_failed_trial=False,
            callbacks=[journal, display, Retries(settings.max_failures), *callbacks],
            verbose=0,
        )
    except TuneError:
        if journal.problem:
            raise journal.problem from None
        raise
    finally:
        display.on_experiment_end([])  # Tune doesn't call it when it is interrupted again
        # Tune leaves its own handler, which would swallow the next Ctrl-C.
        signal.signal(signal.SIGINT, interrupt)
    if journal.problem:
        raise journal.problem
    found = summaries(journal.rows, phase)
    return Outcome(
        ranking=ranked(found),
        trials={trial.trial_id: trial for trial in analysis.trials},
        interrupted=sum(trial.status != "running" for trial in found) < wanted,
        problem=next((str(row["problem"]) for trial in found for row in trial.rows if row["problem"]), ""),
    )


def _tpe(settings: Settings, space: Space, points: Sequence[Point]) -> OptunaSearch:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna's default of ten random trials first is half of a small search.
    sampler = optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=max(4, min(10, settings.trials // 3)))
    distributions = {name: parameter.distribution() for name, parameter in space.parameters.items()}
    return OptunaSearch(distributions, metric="score", mode="max", points_to_evaluate=list(points), sampler=sampler)


def _scheduler(settings: Settings, space: Space) -> TrialScheduler:
    if settings.scheduler == "none":
        return FIFOScheduler()
    by_epochs = settings.budget == "epochs"
    time_attr = "epoch" if by_epochs else "training_seconds"
    most = settings.epochs if by_epochs else math.ceil(settings.seconds)
    if settings.scheduler == "pbt":
        random.seed(settings.seed)  # Tune's own draws come from there
        return PopulationBasedTraining(
            time_attr=time_attr,
            perturbation_interval=settings.perturb_every or max(1, most // _PERTURBATIONS),
            hyperparam_mutations={
                name: list(p.values) if isinstance(p, Choice) else _draw(p) for name, p in space.parameters.items()
            },
            custom_explore_fn=space.nearest,
        )
    return ASHAScheduler(
        time_attr=time_attr,
        max_t=most,
        # Rungs after a ninth of the budget and at its multiples by the factor, short of the budget. Rounded up, so that
        # none comes just before the end and stops trials that have all but used it.
        grace_period=-(-most // settings.reduction**2),
        reduction_factor=settings.reduction,
    )


def remember(scheduler: ASHAScheduler, rows: Sequence[Row]) -> None:
    """Tell a new scheduler what earlier trials had reached: Tune restores trials and searchers, but no scheduler."""
    (bracket,) = scheduler._brackets
    for row in sorted(rows, key=lambda row: row["time"]):
        if row["phase"] == "search" and row["epoch"]:
            trial: Any = SimpleNamespace(trial_id=row["trial"])
            bracket.on_result(trial, row[scheduler._time_attr], row["score"])


def _draw(parameter: Any) -> Any:
    return lambda: parameter.sample(random)


def _checkpoints(kept: int | None) -> CheckpointConfig:
    return CheckpointConfig(checkpoint_frequency=1, checkpoint_at_end=True, num_to_keep=kept)


def _name(trial: TuneTrial) -> str:
    return str(trial.trial_id)
