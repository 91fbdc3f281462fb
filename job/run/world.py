"""The ranks of a run: how they meet, agree, speak once, and go on when the launcher changes them."""

import contextlib
import gc
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any, TypeVar

import tensorflow as tf

import horovod_keras
from horovod_keras import Collectives, elastic
from horovod_keras.background import begin
from horovod_keras.elastic import KerasState
from horovod_keras.environment import launched_rank
from horovod_keras.voice import tell
from horovod_keras.watchdog import Watchdog
from job import allocator
from job.config import Config
from job.errors import HalvedError, InputError, LostRankError, PreemptedError
from job.machine import usable_cores
from job.model import kernels

T = TypeVar("T")

SETUP_TIMEOUT = 900.0  # seconds: a slow download is the longest of what comes before the first step
LEAVING_TIMEOUT = 60.0  # seconds
IN_TOUCH = 1.0
"""Seconds between two meetings of ranks that wait for something long."""


def join(config: Config) -> Collectives:
    """Meet the other ranks and set this process up as one of them: threads, determinism, log.

    Raises InputError: a timeline that nobody would write, or no GPU where one is asked for.
    """
    allocator.keep_freed_memory()
    against = "XLA compiles no others" if config.xla else None
    if config.precision == "float64":
        against = "the precision is float64"
    kernels.allow(against, bfloat16=config.precision == "bfloat16")
    if config.timeline:
        _check_timeline(config.timeline)
    ranks = horovod_keras.join(config.timeline)
    logging.basicConfig(format="%(message)s", level=logging.WARNING if ranks.rank == 0 else logging.ERROR)
    threads = config.threads or max(1, int(usable_cores()) // ranks.local_size)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    gpus = tf.config.list_physical_devices("GPU")
    if os.environ.get("FASHION_NEEDS_GPU") == "1" and not gpus:
        raise InputError("TensorFlow sees no GPU here, and FASHION_NEEDS_GPU=1 asks for one. See python -m job.doctor.")
    if gpus:
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
        tell(line)


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


def in_touch(ranks: Collectives, work: Callable[[], T], meanwhile: Callable[[], None] = lambda: None) -> T:
    """What `work` gives, which may take long on some of the ranks; all of them call this, and meet every second.

    So a rank that is lost or stands still ends the others soon, and Horovod, which takes a longer silence for a stall,
    sees none where a disk or a network is slow.

    Args:
        ranks: that keep in touch.
        work: done on a thread of its own.
        meanwhile: called on all ranks at each meeting.

    Raises whatever `work` raises, on its own rank, and `meanwhile`.
    """
    outcome = begin("in touch", work)
    while True:
        wait([outcome], timeout=IN_TOUCH)
        meanwhile()
        if not any(ranks.gather(not outcome.done(), "in touch")):
            return outcome.result()


def prepared(ranks: Collectives, stop: threading.Event, work: Callable[[], T]) -> T:
    """What a function gives that may take long, such as a download; the ranks keep in touch meanwhile.

    Raises InputError or OSError, on all ranks, if any meets one; PreemptedError, on all, if `stop` is set on any.
    """
    with agreed(ranks):
        return in_touch(ranks, work, lambda: stop_if_told(ranks, stop, "before the first step"))


def stop_if_told(ranks: Collectives, stop: threading.Event, when: str) -> None:
    """End all ranks here if any of them was told to stop. Raises PreemptedError, on all."""
    if any(ranks.gather(stop.is_set(), "stop")):
        raise PreemptedError(f"stopped {when}")


def broadcast(ranks: Collectives, value: Any) -> Any:
    """Rank 0's value (anything that JSON can hold) on all ranks."""
    return ranks.gather(value if ranks.rank == 0 else None, "broadcast")[0]


def leaving(ranks: Collectives) -> Watchdog:
    """From here on this process may take `LEAVING_TIMEOUT` to end, or to leave the block that this is the context of:
    Horovod, and what Python waits for, may hang."""
    return Watchdog(ranks.rank, "the other ranks to leave", LEAVING_TIMEOUT)


@contextlib.contextmanager
def others_may_go(ranks: Collectives, watchdog: Watchdog) -> Iterator[None]:
    """Turn Horovod's failure inside, because another rank has gone, into one line. Raises LostRankError."""
    try:
        yield
    except (tf.errors.UnknownError, tf.errors.AbortedError) as error:
        if ranks.size == 1 or not elastic.is_lost_rank(error):
            raise
        raise LostRankError(
            f"rank {ranks.rank} on {socket.gethostname()} lost another rank while it waited for {watchdog.what}, "
            "or waited too long for one (Horovod's lines then name it). "
            "The same command goes on from the last checkpoint."
        ) from error


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
