"""How a run begins: the ranks meet, agree on data, folder and position, and share out the work."""

import contextlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

import horovod_keras
from horovod_keras import Collectives
from horovod_keras.environment import launched_rank
from horovod_keras.watchdog import Watchdog
from job import allocator
from job.config import Config
from job.data import pipeline
from job.data.arrays import SIDE, UInt8
from job.data.arrow import DataSet, dataset
from job.data.augmentation import Augmentation
from job.data.splits import Splits, splits
from job.errors import InputError, LostRankError
from job.machine import usable_cores
from job.model import kernels
from job.model.training import TrainingModel
from job.run import state
from job.run.checkpoints import Arrays, Position
from job.run.folder import PATIENCE, BusyError, RunFolder, environment

SETUP_TIMEOUT = 900.0  # seconds: a slow download is the longest of what comes before the first step
FOLDER_TRIES = 24
"""For a folder in use, of `PATIENCE` seconds each, where the ranks are on several machines."""
EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Data:
    """The images and which of them are for what."""

    set: DataSet
    splits: Splits


@dataclass(frozen=True)
class Part:
    """Consecutive epochs, or the rest of one, that one call of `fit` trains at one resolution."""

    epoch: int
    """First epoch, from 0."""
    end: int
    """Epoch after the last."""
    first_step: int
    """Batches of the first epoch that are done already."""
    steps: int
    """Batches of each epoch in this part."""
    resolution: int


def join(config: Config) -> Collectives:
    """Meet the other ranks and set this process up as one of them: threads, determinism, log.

    Raises InputError: a timeline that nobody would write.
    """
    allocator.keep_freed_memory()
    if config.timeline:
        _check_timeline(config.timeline)
    ranks = horovod_keras.join(config.timeline)
    logging.basicConfig(format="%(message)s", level=logging.WARNING if ranks.rank == 0 else logging.ERROR)
    threads = config.threads or max(1, int(usable_cores()) // ranks.local_size)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus := tf.config.list_physical_devices("GPU"):
        tf.config.set_visible_devices(gpus[ranks.local_rank % len(gpus)], "GPU")
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    return ranks


def _check_timeline(path: Path) -> None:
    rank = launched_rank()
    if rank is None:
        raise InputError(
            f"--timeline {path} shows what Horovod does: received a run in one process. Start it with horovodrun."
        )
    if rank == 0:
        try:
            path.touch()
        except OSError as error:
            raise InputError(f"--timeline {path} can't be written: {error.strerror}. Give another file.") from None


def say(ranks: Collectives, line: str) -> None:
    """Print a line once, from rank 0."""
    if ranks.rank == 0:
        print(line, flush=True)


@contextlib.contextmanager
def agreed(ranks: Collectives) -> Iterator[None]:
    """Whatever input error, or refusal of the file system, any rank meets inside, all ranks raise.

    Raises InputError or OSError.
    """
    found: dict[str, Any] | None = None
    try:
        yield
    except InputError as raised:
        found = {"input": str(raised)}
    except OSError as raised:
        if raised.errno is None:  # not the file system's
            raise
        found = {"os": [raised.errno, raised.strerror, raised.filename and str(raised.filename)]}
    errors = [error for error in ranks.gather(found, "errors") if error]
    if errors:
        raise InputError(errors[0]["input"]) if "input" in errors[0] else OSError(*errors[0]["os"])


def broadcast(ranks: Collectives, value: Any) -> Any:
    """Rank 0's value (anything that JSON can hold) on all ranks."""
    return ranks.gather(value if ranks.rank == 0 else None, "broadcast")[0]


@contextlib.contextmanager
def others_may_go(ranks: Collectives, watchdog: Watchdog) -> Iterator[None]:
    """Turn Horovod's failure inside, because another rank has gone, into one line. Raises LostRankError."""
    try:
        yield
    # The kinds that Horovod gives; others, such as exhausted memory, are faults of this rank's own.
    except (tf.errors.UnknownError, tf.errors.AbortedError) as error:
        if ranks.size == 1 or "horovod" not in str(error).lower():
            raise
        raise LostRankError(
            f"rank {ranks.rank} on {socket.gethostname()} lost another rank while it waited for {watchdog.what}. "
            "The same command goes on from the last checkpoint."
        ) from error


def load(config: Config, ranks: Collectives) -> Data:
    """The data set and its splits. Raises InputError: no data, or options that don't fit the ranks or the machine."""
    shares = ranks.size * config.accumulate
    if config.global_batch % shares:
        raise InputError(
            f"--global-batch can't be shared equally: received {config.global_batch} for {ranks.size} rank(s) with "
            f"{config.accumulate} batch(es) per update. Choose a multiple of {shares}."
        )
    if config.xla and (ranks.size > 1 or kernels.load() is not None):
        raise InputError(
            f"--xla compiles neither the exchange between ranks nor our C++ operations: received {ranks.size} rank(s), "
            f"{kernels.status()} Leave it out, or use one process with a GPU."
        )
    data = dataset(config.dataset, config.data_dir)
    found = splits(data, limit_train=config.limit_train, limit_eval=config.limit_eval, protocol=config.protocol)
    if min(len(found.validation), len(found.test)) < ranks.size:
        raise InputError(f"--limit-eval is too small: received {config.limit_eval} for {ranks.size} ranks.")
    return Data(data, found)


def open_folder(config: Config, source: str, ranks: Collectives) -> RunFolder | None:
    """Rank 0's run folder; None on the others. Raises InputError on all ranks.

    A file server keeps the lock of a machine that was lost for a while (NFS 4: 90 s). The ranks meet after each try,
    because Horovod takes a longer silence for a stall.
    """
    tries = FOLDER_TRIES if ranks.size > ranks.local_size else 1
    while True:
        folder, tries = None, tries - 1
        with agreed(ranks):
            try:
                folder = RunFolder(config, source) if ranks.rank == 0 else None
            except BusyError as error:
                if not tries:
                    raise
                if tries == FOLDER_TRIES - 1:
                    say(ranks, f"{error} Trying for {FOLDER_TRIES * PATIENCE:.0f} s: a lost machine may have held it.")
        if broadcast(ranks, folder is not None):
            return folder


def steps_per_epoch(config: Config, data: Data) -> int:
    """Batches of an epoch: forward and backward passes, of which `accumulate` make an update."""
    return pipeline.steps_per_epoch(len(data.splits.train), config.global_batch // config.accumulate)


def restore(model: TrainingModel, folder: RunFolder | None, ranks: Collectives) -> tuple[Position, Arrays]:
    """Set rank 0's model to the last checkpoint; the others get it with the broadcast of the initial state.

    Returns:
        The position on all ranks, and on rank 0 the metrics of the epoch that it stands in.
    """
    found = folder.checkpoints.last() if folder else None
    if found:
        state.restore(model, found[0])
    position = Position(**broadcast(ranks, asdict(found[1] if found else Position(epoch=0))))
    if folder:
        folder.keep_metrics_before(position.epoch + 1)
    return position, found[0] if found else {}


def share(count: int, ranks: Collectives) -> tuple[int, int]:
    """The first of this rank's contiguous share of so many items, and the one after its last."""
    return count * ranks.rank // ranks.size, count * (ranks.rank + 1) // ranks.size


def training_batches(config: Config, data: Data, ranks: Collectives, part: "Part") -> tf.data.Dataset:
    """This rank's batches of a part: (images, labels, keys, global count)."""
    return pipeline.as_tf_dataset(
        data.set.images,
        data.set.labels,
        data.splits.train,
        seed=config.seed,
        epochs=part.end,
        global_batch=config.global_batch // config.accumulate,
        rank=ranks.rank,
        size=ranks.size,
        augmentation=Augmentation(flip=config.flip, shift=config.shift, erase=config.erase),
        start_epoch=part.epoch,
        start_step=part.first_step,
    )


def validation_batches(
    config: Config, data: Data, ranks: Collectives, model: TrainingModel, steps: int
) -> tf.data.Dataset:
    """This rank's share of the validation split: (images, labels); mirrored at random only by the protocol of 2017."""

    def elements() -> Iterator[tuple[UInt8, npt.NDArray[np.int32]]]:
        for batch in pipeline.evaluation_batches(
            data.set.images,
            data.set.labels,
            data.splits.validation,
            batch=EVALUATION_BATCH,
            rank=ranks.rank,
            size=ranks.size,
            flip_seed=config.seed if config.protocol == "original" and config.flip else None,
            epoch=int(model.optimizer.iterations) // steps,
        ):
            yield batch.images, batch.labels

    signature = (tf.TensorSpec((None, SIDE, SIDE), tf.uint8), tf.TensorSpec((None,), tf.int32))
    first, last = share(len(data.splits.validation), ranks)
    batches = tf.data.Dataset.from_generator(elements, output_signature=signature).prefetch(2)
    return batches.apply(tf.data.experimental.assert_cardinality(-(-(last - first) // EVALUATION_BATCH)))


def parts(config: Config, position: Position, steps: int) -> list[Part]:
    """The rest of a run from a position, cut where the resolution changes."""
    resolutions = config.resolutions()
    result, epoch = [], position.epoch
    if position.step:
        result.append(Part(epoch, epoch + 1, position.step, steps - position.step, resolutions[epoch]))
        epoch += 1
    while epoch < config.epochs:
        end = epoch
        while end < config.epochs and resolutions[end] == resolutions[epoch]:
            end += 1
        result.append(Part(epoch, end, 0, steps, resolutions[epoch]))
        epoch = end
    return result


def note_environment(folder: RunFolder, ranks: Collectives) -> None:
    """Write `environment.json`: what the result depends on beside the configuration."""
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    folder.write_json("environment.json", environment(ranks.size, threads, kernels.status()))
