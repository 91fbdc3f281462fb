"""What runs in the ranks' processes: the training job itself, in a run folder of the rank's own that ends with it."""

import gc
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.errors import InputError
from tune.member import Member

if TYPE_CHECKING:
    from horovod_keras import Collectives
    from job.config import Config

Files = dict[str, bytes]
Options = Mapping[str, Any]

# Of a measurement: enough steps that the first one of an epoch doesn't decide.
_STEPS = 4


class RefusedError(InputError):
    """The options can't be used together, on this machine or another."""


class Stop(threading.Event):
    """What the job asks before each step: set when the group is told to end, or when the time is up.

    Args:
        told: that the group is told to end.
        seconds: from now; None: no limit.
    """

    def __init__(self, told: threading.Event, seconds: float | None) -> None:
        super().__init__()
        self._told, self._start, self._seconds = told, time.monotonic(), seconds

    def is_set(self) -> bool:
        return self._told.is_set() or (self._seconds is not None and self.seconds() >= self._seconds)

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start


def train(member: Member, options: Options, files: Files, seconds: float | None) -> float | None:
    """Train to the last epoch, or until told to stop; rank 0 reports each epoch's (record, checkpoint files).

    Args:
        options: of the job; `run` is a folder that is made, and removed again.
        files: the checkpoint to start from, by relative path, of a run that may have had other options; or nothing.
        seconds: after which the ranks stop, within an epoch too; None: no limit.

    Returns:
        The seconds that it took if it was stopped; None if the last epoch was trained.

    Raises:
        RefusedError: the options can't be used together.
        InputError: the data, the weights or the folder can't be used.
    """
    with _run(options, files) as (config, ranks):
        # One clock decides for all ranks: the job has them agree.
        stop = Stop(member.stop, seconds if member.rank == 0 else None)
        result = _job()(
            config,
            ranks,
            stop=stop,
            on_epoch=lambda record: member.report((record, _checkpoint(config.folder()))),
            test=False,
        )
        return stop.seconds() if result["status"] == "preempted" else None


def finish(member: Member, options: Options, files: Files) -> Files:
    """Go on from a checkpoint to the run's end, and see the test set once.

    Returns:
        On rank 0 the run folder's files by relative path, without its checkpoints: model, result, report, metrics;
        nothing on the others, which may not read what rank 0 writes.
    """
    with _run(options, files) as (config, ranks):
        _job()(config, ranks, stop=member.stop)
        if member.rank:
            return {}
        folder = config.folder()
        left = [p for p in folder.rglob("*") if p.is_file() and not {"checkpoints", "tensorboard"} & {*p.parts}]
        return {str(p.relative_to(folder)): p.read_bytes() for p in left if p.name != ".lock"}


def measure(member: Member, options: Options) -> float:
    """Train for a few steps, and then for as many again, which are not the first.

    Returns:
        On rank 0 the images per second of all ranks together, at the resolution of the last epoch.
    """
    records: list[dict[str, Any]] = []
    few = {"limit_train": max(10, _STEPS * int(options["global_batch"])), "limit_eval": max(10, 2 * member.size)}
    with _run({**options, **few, "epochs": 2, "stages": ()}, {}) as (config, ranks):
        _job()(config, ranks, stop=member.stop, on_epoch=records.append, test=False)
    return records[-1]["images_per_second"] if records else 0.0


@contextmanager
def _run(options: Options, files: Files) -> Iterator[tuple["Config", "Collectives"]]:
    """A configuration and the ranks; rank 0's folder holds the checkpoint, and nothing of an earlier attempt."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    from job.config import resolve
    from job.run import start, world

    # A trial before this one in the same process may have had another.
    keras.config.set_dtype_policy("float32")
    try:
        config = resolve([options])
        ranks = world.join(config)
        start.refuse_unfit(config, ranks)
    except InputError as error:
        raise RefusedError(str(error)) from None
    folder = config.folder()
    if ranks.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "checkpoints").mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    try:
        yield config, ranks
        with world.leaving(ranks):
            ranks.leave()
    finally:
        if ranks.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        keras.backend.clear_session()
        gc.collect()


def _checkpoint(folder: Path) -> Files:
    """The newest position, the best weights, metrics and halvings so far of a run folder, by relative path."""
    kinds = ("checkpoints/step-*.safetensors", "checkpoints/best-*.safetensors", "metrics.jsonl", "halvings.json")
    found = [path for kind in kinds for path in sorted(folder.glob(kind))[-1:]]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def _job() -> Callable[..., dict[str, Any]]:
    # TensorFlow comes with it, which the processes that only schedule must not import.
    from job.train import train as train_job

    return train_job
