"""One interface to the other ranks, and its two makers: Horovod, and a single process.

Every operation takes and returns tensors, in eager code and inside ``tf.function`` alike, and carries an explicit name:
Horovod matches the ranks' calls by name, so the same name must come up on every rank.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import tensorflow as tf

from horovod_keras import warden
from horovod_keras.environment import is_elastic, launched_rank, set_defaults
from horovod_keras.watchdog import Watchdog

MEETING_TIMEOUT = 900.0
"""Seconds for an elastic launcher to find as many slots as it needs; its own limit is 600."""

# Horovod's operations know neither of these; each is carried by one that holds all its values.
CARRIERS = {tf.bfloat16: tf.float32, tf.uint32: tf.int64}


class Collectives(Protocol):
    """What the rest of the package needs of the other ranks."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    world: int
    """How often these ranks have met anew: 0 until an elastic launcher changes them."""

    def sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """The element-wise sum over ranks: same shape and dtype."""

    def mean(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """The element-wise mean over ranks: same shape and dtype; differentiable."""

    def broadcast(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """Rank 0's tensor on every rank: same shape and dtype."""

    def gather(self, value: Any, name: str) -> list[Any]:
        """Each rank's value (anything that JSON can hold), in the order of ranks. Eager only."""

    def rejoin(self) -> None:
        """Leave, and meet those that the launcher has now: rank and size may be others. Elastic launchers only."""

    def leave(self) -> None:
        """Take leave of the other ranks; no operation may follow."""


class SingleProcess:
    """A world of one rank: every operation is the identity. Needs no Horovod."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    world = 0

    def sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return tf.convert_to_tensor(tensor)

    def mean(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return tf.convert_to_tensor(tensor)

    def broadcast(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return tf.convert_to_tensor(tensor)

    def gather(self, value: Any, name: str) -> list[Any]:
        return [value]

    def rejoin(self) -> None:
        """Nobody else."""

    def leave(self) -> None:
        """Nobody to leave."""


class Horovod:
    """The ranks of a Horovod world. Raises what ``hvd.init`` raises when the others can't be met.

    Args:
        timeline: where rank 0 writes Horovod's timeline.
    """

    def __init__(self, timeline: Path | None = None) -> None:
        set_defaults()
        if timeline:
            os.environ["HOROVOD_TIMELINE"] = str(timeline)
        import horovod.tensorflow as hvd

        self._hvd = hvd
        self.world = 0
        self.rank = launched_rank() or 0
        if is_elastic():  # the others give a rank up after the same time
            warden.start(float(os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"]), lambda: self.rank)
        self._meet()

    def _meet(self) -> None:
        # Gloo ends the process when its time is up, without a word about who waited: ours is up before.
        limit = float(os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"]) - 1
        with Watchdog(self.rank, "the other ranks", MEETING_TIMEOUT if is_elastic() else limit):
            self._hvd.init()
        self.rank = self._hvd.rank()
        self.size: int = self._hvd.size()
        self.local_rank: int = self._hvd.local_rank()
        self.local_size: int = self._hvd.local_size()

    def sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return _carried(tensor, lambda value: self._hvd.allreduce(value, op=self._hvd.Sum, name=name))

    def mean(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return _carried(tensor, lambda value: self._hvd.allreduce(value, op=self._hvd.Average, name=name))

    def broadcast(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return _carried(tensor, lambda value: self._hvd.broadcast(value, root_rank=0, name=name))

    def gather(self, value: Any, name: str) -> list[Any]:
        data = tf.io.decode_raw(json.dumps(value), tf.uint8)
        lengths = self._hvd.allgather(tf.reshape(tf.size(data), [1]), name=f"{name}/lengths").numpy()
        joined = self._hvd.allgather(data, name=f"{name}/bytes").numpy().tobytes()
        ends = lengths.cumsum()
        return [json.loads(joined[end - length : end]) for end, length in zip(ends, lengths, strict=True)]

    def rejoin(self) -> None:
        self._hvd.shutdown()
        self.world += 1
        self._meet()

    def leave(self) -> None:
        self._hvd.shutdown()


def _carried(tensor: tf.Tensor, operation: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    value = tf.convert_to_tensor(tensor)
    wide = CARRIERS.get(value.dtype)
    return tf.cast(operation(tf.cast(value, wide)), value.dtype) if wide else operation(value)


def join(timeline: Path | None = None) -> Collectives:
    """Meet the other ranks if a launcher started this process as one of several, else be a single process.

    Args:
        timeline: where rank 0 writes Horovod's timeline, in Chrome's trace format; without Horovod nothing is written.
    """
    return SingleProcess() if launched_rank() is None else Horovod(timeline)
