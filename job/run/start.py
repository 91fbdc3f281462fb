"""How a run begins: the ranks meet, agree on data, folder and position, and share out the work."""

import contextlib
import gc
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

import horovod_keras
from horovod_keras import Collectives, elastic
from horovod_keras.elastic import KerasState
from horovod_keras.environment import is_elastic
from horovod_keras.watchdog import Watchdog
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
from job.run.callbacks import HalvedError
from job.run.checkpoints import Arrays, Position
from job.run.folder import RunFolder, environment

T = TypeVar("T")

SETUP_TIMEOUT = 900.0  # seconds: a slow download is the longest of what comes before the first step
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
    """Meet the other ranks and set this process up as one of them: threads, determinism, log."""
    ranks = horovod_keras.join()
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
    except (tf.errors.UnknownError, tf.errors.AbortedError) as error:
        if ranks.size == 1 or not elastic.is_lost_rank(error):
            raise
        raise LostRankError(
            f"rank {ranks.rank} on {socket.gethostname()} lost another rank while it waited for {watchdog.what}. "
            "The same command goes on from the last checkpoint."
        ) from error


def load(config: Config, ranks: Collectives) -> Data:
    """The data set and its splits. Raises InputError: no data, or a batch that the ranks can't share."""
    # Elastic ranks may be any number: their shares then differ by one image.
    shares = config.accumulate if is_elastic() else ranks.size * config.accumulate
    if config.global_batch % shares:
        raise InputError(
            f"--global-batch can't be shared equally: received {config.global_batch} for {ranks.size} rank(s) with "
            f"{config.accumulate} batch(es) per update. Choose a multiple of {shares}."
        )
    data = dataset(config.dataset, config.data_dir)
    found = splits(data, limit_train=config.limit_train, limit_eval=config.limit_eval, protocol=config.protocol)
    if min(len(found.validation), len(found.test)) < ranks.size:
        raise InputError(f"--limit-eval is too small: received {config.limit_eval} for {ranks.size} ranks.")
    return Data(data, found)


def steps_per_epoch(config: Config, data: Data) -> int:
    """Batches of an epoch: forward and backward passes, of which `accumulate` make an update."""
    return pipeline.steps_per_epoch(len(data.splits.train), config.global_batch // config.accumulate)


def restore(
    model: TrainingModel, folder: RunFolder | None, ranks: Collectives, kept: KerasState
) -> tuple[Position, Arrays]:
    """Set rank 0's model to the last checkpoint; the others get it with the broadcast of the initial state.

    Args:
        kept: what this process has in memory from a world before this one; it may be newer than the checkpoint.

    Returns:
        The position on all ranks, and on rank 0 the metrics of the epoch that it stands in.
    """
    position = Position(epoch=0)
    metrics: Arrays = {}
    if folder:
        if found := folder.checkpoints.last():
            metrics, position = found
            state.restore(model, metrics)
        if kept.saved and position.place <= kept.values["position"].place:
            kept.restore()
            metrics, position = kept.values["metrics"], kept.values["position"]
        # The best weights may be of an epoch that is trained again, or damaged: what is there counts.
        best = folder.checkpoints.best()
        accuracy, epoch = (best[1].best_accuracy, best[1].best_epoch) if best else (-1.0, 0)
        position = replace(position, best_accuracy=accuracy, best_epoch=epoch)
        folder.keep_metrics_before(position.epoch + 1)
    halvings = broadcast(ranks, len(folder.halvings()) if folder else 0)
    model.at_rate(0.5**halvings)
    return Position(**broadcast(ranks, asdict(position))), metrics


def in_each_world(ranks: Collectives, story: Callable[[Watchdog, KerasState], T]) -> T:
    """Tell a run's story under a watchdog's eye.

    It is told again, from where the run stands, when an elastic launcher changes the ranks or the rate was halved.

    Raises LostRankError where ranks have gone and the launcher is not elastic.
    """
    kept = KerasState(ranks)
    with Watchdog(ranks.rank, "the data", SETUP_TIMEOUT) as watchdog, others_may_go(ranks, watchdog):

        def told() -> T:
            watchdog.rank = ranks.rank
            while True:
                try:
                    return story(watchdog, kept)
                except HalvedError as reason:
                    say(ranks, str(reason))
                # The model of the story goes, and the folder that it held, before it is told anew.
                kept.model = None
                gc.collect()

        return elastic.run(told, kept, lambda: watchdog.expect("the other ranks", SETUP_TIMEOUT))


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
