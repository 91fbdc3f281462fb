"""What is done outside of trials: the measurement before them, and the winner's end after them."""

import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.tune.experiment import Trial

from job.config import Config, plain
from job.errors import InputError, RunError
from job.recipes import Recipe
from job.run.checkpoints import write_atomically
from tune import cluster, runs
from tune.folder import command
from tune.group import GroupError, ProcessGroup
from tune.records import Summary, told
from tune.settings import Search
from tune.space import as_options
from tune.trial import Task, read_checkpoint

_MEASURED = 3  # points at most: one that the job refuses is only marked, as in the search


def measure(search: Search, work: Task) -> tuple[float, Config]:
    """Train some steps of the first trial's settings, so that wrong options and missing data show before the search.

    Returns:
        Images per second of a trial's ranks together, and with which configuration.

    Raises:
        InputError: the job refused the options, and those of the trials after it too; or data or weights are missing.
        RunError: it failed in another way.
    """
    refusal: InputError | None = None
    for point in search.space.random_points(_MEASURED, search.settings.seed):
        try:
            config = search.space.config(point)
        except InputError as error:
            refusal = error
            continue
        options = plain(config) | {"threads": work.cpus, "run": str(Path(work.folder) / "measurement")}
        try:
            return in_group(work, runs.measure, options), config
        except runs.RefusedError as error:
            refusal = error
    assert refusal is not None
    raise refusal


def finish(search: Search, work: Task, best: Summary, trial: Trial) -> dict[str, Any]:
    """Take the winner to its end: the test set is seen now, and only now. Its run's files go to `DIR/best`.

    Returns:
        The content of its `result.json`.

    Raises:
        InputError: its checkpoint is damaged.
        RunError: the run failed; the search's other results are kept.
    """
    assert trial.checkpoint is not None
    with trial.checkpoint.as_directory() as folder:
        try:
            _, files = read_checkpoint(Path(folder))
        except ValueError as error:
            raise InputError(
                f"the winner's checkpoint is damaged: {trial.checkpoint.path} ({error}). Restore it, or train the "
                f"winner from its beginning: {train_command(search.settings.out / 'best.yaml', work.ranks)}"
            ) from None
    # By seconds, the run ends with the last epoch for which there was time.
    options = {**work.fixed, **as_options(best.settings), "threads": work.cpus, "run": str(Path(work.folder) / "best")}
    if best.whole or work.seconds is not None:
        options["epochs"] = best.epochs
    left = in_group(work, runs.finish, options, files)
    target = search.settings.out / "best"
    # Who finds a result takes the rest for there.
    for name, data in sorted(left.items(), key=lambda item: item[0] == "result.json"):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    return json.loads(left["result.json"])


def in_group(work: Task, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function on the ranks of a group of its own; what rank 0 returned. Raises InputError, RunError."""
    with cluster.reserved(work) as bundles:
        try:
            group = ProcessGroup(bundles, ranks=work.ranks, first_bundle=1, cpus=work.cpus, gpus=work.gpus)
            try:
                group.run(function, *args)
                while not group.finished:
                    group.poll(60.0)
                return group.results[0]
            finally:
                group.shutdown()
        except (GroupError, ray.exceptions.RayError) as error:
            if isinstance(error, GroupError):
                if refusal := error.find("RefusedError"):
                    raise runs.RefusedError(refusal.message) from None
                if refusal := error.find("InputError"):
                    raise InputError(refusal.message) from None
            logging.getLogger("ray").exception("outside of trials")
            raise RunError(f"the ranks failed: {error}. See ray.log.") from error


def write_best(search: Search, best: Summary, seeds: Sequence[Summary]) -> Path:
    """Write `best.yaml`, which `python -m job.train --config` takes: the recipe, without limits for tries.

    Args:
        seeds: the confirmed trials of the same settings; none if there are none.
    """
    config = search.space.config(best.settings)
    recipe = set(Recipe.__pydantic_fields__)  # type: ignore[attr-defined]
    kept = recipe | {"recipe", "dataset", "seed", "compression", "sync_batch_norm", "accumulate", "precision", "on_nan"}
    values: Mapping[str, Any] = {name: value for name, value in plain(config).items() if name in kept}
    if "data_dir" in search.space.fixed:
        values = {**values, "data_dir": search.space.fixed["data_dir"]}
    if search.settings.budget == "seconds":
        values = {**values, "epochs": best.epochs}
    ranks = search.settings.ranks_per_trial
    path = search.settings.out / "best.yaml"
    notes = (
        f"# Found by: {command(search.settings.out)}\n"
        f"# Trial {best.number} ({best.phase}): {told(seeds or [best])} on the validation split after "
        f"{best.epochs} epoch(s), "
        f"{ranks} rank(s), limit_train {config.limit_train or 'none'}.\n"
        f"# Train it: {train_command(path, ranks)}\n"
        + ("# A population's: its weights had other settings before these.\n" * (search.settings.scheduler == "pbt"))
    )
    write_atomically(path, (notes + yaml.safe_dump(dict(values), sort_keys=False)).encode())
    return path


def train_command(path: Path, ranks: int) -> str:
    """The command that trains what `best.yaml` says."""
    start = f"horovodrun -np {ranks} " if ranks > 1 else ""
    return f"{start}python -m job.train --config {shlex.quote(str(path))}"
