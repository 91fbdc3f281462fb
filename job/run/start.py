"""How a run begins: data, folder and position."""

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from horovod_keras import Collectives
from horovod_keras.elastic import KerasState
from horovod_keras.environment import is_elastic
from job.config import DIGEST, Config
from job.data.arrow import dataset
from job.data.pipeline import checked_steps
from job.data.splits import splits
from job.environment import environment
from job.errors import InputError
from job.model import kernels
from job.model.training import TrainingModel
from job.model.weights import imagenet_weights
from job.run import profile, state
from job.run.checkpoints import Position, Tensors
from job.run.context import Context
from job.run.epochs import Data, steps_per_epoch
from job.run.folder import PATIENCE, BusyError, RunFolder
from job.run.world import agreed, broadcast, in_touch, prepared, say, stop_if_told

FOLDER_TRIES = 5
"""For a folder in use, of `PATIENCE` seconds each."""
FOLDER_TRIES_LOST = 120
"""The same where its holder may be a machine that was lost."""


def load(context: Context) -> Data:
    """The data set and its splits, the same on all ranks.

    Raises:
        InputError: on all ranks; no data, other data or options on one rank, or a batch that the ranks can't share.
        PreemptedError: on all ranks; one was told to stop.
    """
    config, ranks = context.config, context.ranks

    def work() -> Data:
        refuse_unfit(config, ranks)
        data = dataset(config.dataset, config.data_dir)
        found = splits(data, limit_train=config.limit_train, limit_eval=config.limit_eval, protocol=config.protocol)
        checked_steps(len(found.train), config.global_batch, ranks.size, config.accumulate)
        if min(len(found.validation), len(found.test)) < ranks.size:
            raise InputError(
                f"{ranks.size} ranks can't share the evaluation: received {len(found.validation)} validation and "
                f"{len(found.test)} test images. Give more data, a larger --limit-eval, or fewer ranks."
            )
        return Data(data, found)

    data = prepared(ranks, context.stop, work)
    mine = config.identity() | {"on_nan": config.on_nan, DIGEST: data.set.digest}
    _refuse_unlike(ranks.gather(mine, "identity"))
    return data


def _refuse_unlike(told: list[dict[str, Any]]) -> None:
    # Horovod adds up whatever it is given. Initial weights are rank 0's alone.
    for rank, theirs in enumerate(told):
        for name in sorted(told[0].keys() - {"weights"}):
            if theirs.get(name) != told[0][name]:
                raise InputError(
                    f"the ranks were given different values of {name}: received {theirs.get(name)} on rank {rank}, "
                    f"{told[0][name]} on rank 0. Start all with the same options and data."
                )


def initial_weights(context: Context, folder: RunFolder | None) -> Path | None:
    """Rank 0's file of the initial weights; None where there are none, for the other ranks, which get rank 0's, and
    where the run goes on from a checkpoint.

    Raises:
        InputError: on all ranks; the weights can't be downloaded.
        PreemptedError: on all ranks; one was told to stop.
    """

    weights = context.config.weights

    def work() -> Path | None:
        if not folder or folder.checkpoints.any() or weights == "none":
            return None
        return imagenet_weights() if weights == "imagenet" else Path(weights)

    return prepared(context.ranks, context.stop, work)


def refuse_unfit(config: Config, ranks: Collectives) -> None:
    """Raises InputError if so many ranks can't train this, whatever the machine."""
    if config.xla and ranks.size > 1:
        raise InputError(
            f"--xla needs one process, as XLA can't call Horovod: received {ranks.size} ranks. Leave it out."
        )
    # Elastic ranks may be any number: their shares then differ by one image.
    shares = config.accumulate if is_elastic() else ranks.size * config.accumulate
    if config.global_batch % shares:
        raise InputError(
            f"--global-batch can't be shared equally: received {config.global_batch} for {ranks.size} rank(s) with "
            f"{config.accumulate} batch(es) per update. Choose a multiple of {shares}."
        )


def announce(context: Context, data: Data, position: Position) -> None:
    """Say once what begins, and after which step it goes on."""
    config, ranks = context.config, context.ranks
    within = f"step {position.step} of epoch {position.epoch + 1}" if position.step else f"epoch {position.epoch}"
    where = f"; going on after {within}" if position.place > (0, 0) else ""
    say(ranks, f"training in {config.folder()} on {ranks.size} rank(s), {data.set.source}{where}")
    announce_kernels(ranks)
    left = (config.epochs - position.epoch) * steps_per_epoch(config, data) - position.step
    if config.profile and left < profile.FIRST:
        say(ranks, f"--profile will write nothing: it begins with step {profile.FIRST}, and {left} step(s) are left")
    if config.protocol == "original":
        say(ranks, "protocol of 2017: the best epoch is chosen on the test images, which flatters the result")


def announce_kernels(ranks: Collectives) -> None:
    """Say where training is slower than it could be: without our operations, or on a rank with others than rank 0's."""
    used = ranks.gather([kernels.variant(), kernels.status()], "kernels")
    if kernels.load() is None:
        say(ranks, used[0][1])
    if others := [rank for rank, (variant, _) in enumerate(used) if variant != used[0][0]]:
        compared = f"Rank 0: {used[0][1]} Rank {others[0]}: {used[others[0]][1]}"
        say(ranks, f"{len(others)} of {ranks.size} ranks don't compute as rank 0. {compared}")


def open_folder(context: Context, source: str) -> RunFolder | None:
    """Rank 0's run folder; None on the others.

    A file server keeps the lock of a machine that was lost for a while (NFS 4: 90 s). The ranks meet after each try,
    because Horovod takes a longer silence for a stall.

    Raises:
        InputError: on all ranks.
        PreemptedError: on all ranks; one was told to stop while the folder was in use.
    """
    config, ranks = context.config, context.ranks
    # An elastic rank that is left alone may wait for a lost machine's lock, too, and so may a pod that replaces one.
    elsewhere = ranks.size > ranks.local_size or is_elastic() or "KUBERNETES_SERVICE_HOST" in os.environ
    tries = most = FOLDER_TRIES_LOST if elsewhere else FOLDER_TRIES
    while True:
        folder, tries = None, tries - 1
        with agreed(ranks):
            try:
                folder = RunFolder(config, source) if ranks.rank == 0 else None
            except BusyError as error:
                if not tries:
                    raise
                if tries == FOLDER_TRIES_LOST - 1:
                    say(ranks, f"{error} Trying for {most * PATIENCE:.0f} s: a lost machine may have held it.")
        if broadcast(ranks, folder is not None):
            return folder
        stop_if_told(ranks, context.stop, "before the first step")


Saved = tuple[Tensors, Position] | None
"""A checkpoint, if there is one."""


@dataclass(frozen=True)
class Place:
    """Where a run goes on, as rank 0 finds it in the run folder; on the others the beginning."""

    position: Position = field(default_factory=lambda: Position(epoch=0))
    metrics: Tensors = field(default_factory=dict)
    """Of the epoch that the position stands in."""
    halvings: int = 0


def restore(model: TrainingModel, folder: RunFolder | None, kept: KerasState) -> Place:
    """Set rank 0's model to the last checkpoint; the others get it with the broadcast of the initial state.

    All ranks call this, and keep in touch while rank 0 reads; whatever is wrong in the folder is raised on it alone.

    Args:
        kept: what this process has in memory from a world before this one; it may be newer than the checkpoint.

    Raises:
        InputError or OSError: something in the folder is damaged or can't be read.
    """
    last, best = in_touch(kept.ranks, lambda: _on_disk(folder, kept))
    if not folder:
        return Place()
    metrics, position = last or ({}, Position(epoch=0))
    if last:
        state.restore(model, metrics)
    # The best weights may be of an epoch that is trained again, or damaged: what is there counts.
    accuracy, epoch = (best[1].best_accuracy, best[1].best_epoch) if best else (-1.0, 0)
    if kept.saved:
        held: Position = kept.values["position"]
        # A lost rank 0 may have taken its best weights along: their epoch is then trained again, from the disk. Where
        # there is nothing on it, what this process has is all that there is, if only the beginning.
        if not last or (position.place < held.place and held.best_epoch == epoch):
            kept.restore()
            metrics, position = kept.values["metrics"], held
    position = replace(position, best_accuracy=accuracy, best_epoch=epoch)
    folder.keep_metrics_before(position.epoch + 1)
    return Place(position, metrics, len(folder.halvings()))


def _on_disk(folder: RunFolder | None, kept: KerasState) -> tuple[Saved, Saved]:
    """The last checkpoint and the best weights; none of the last where all are damaged but this process has kept one.

    Raises InputError, or OSError, where it hasn't.
    """
    if not folder:
        return None, None
    try:
        last = folder.checkpoints.last()
    except (InputError, OSError):
        if not kept.saved:
            raise
        last = None
    return last, folder.checkpoints.best()


def at_one_place(model: TrainingModel, place: Place, ranks: Collectives) -> tuple[Position, Tensors]:
    """Have all ranks go on where rank 0 does, at its learning rate: the position, and on rank 0 the metrics there."""
    position, halvings = broadcast(ranks, [asdict(place.position), place.halvings])
    model.at_rate(0.5**halvings)
    return Position(**position), place.metrics


def note_environment(folder: RunFolder, ranks: Collectives, position: Position) -> None:
    """Write `environment.json`: what the result depends on beside the configuration; say where that has changed.

    Of a run that was interrupted it has the last part's values, its number as `part`, and as `earlier` what was
    otherwise in the parts before.
    """
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    now = environment(ranks.size, threads, kernels.status())
    # What ended before its first checkpoint is no part of this run.
    before = folder.environment() if position.place > (0, 0) else {}
    if folder.config.deterministic:
        for name in ("processor", "ranks", "threads_per_rank"):
            if before.get(name, now[name]) != now[name]:
                before_and_now = f"{before[name]!r:.80} before, {now[name]!r} now"
                say(ranks, f"{name} changed ({before_and_now}): the run does not end bit-identical to one of a piece")
    if before:
        part, earlier = before.pop("part", 1), before.pop("earlier", [])
        now["part"] = part + 1 if isinstance(part, int) else 2
        changed = {name: value for name, value in before.items() if now.get(name) != value}
        now["earlier"] = [*(earlier if isinstance(earlier, list) else []), *([changed] if changed else [])]
    folder.write_json("environment.json", now)
