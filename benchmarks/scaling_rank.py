"""One rank of benchmarks.scaling: takes its turns when it is told to.

horovodrun -np 2 python -m benchmarks.scaling_rank SOCKET

It connects to the Unix socket, says who it is, and answers each line {"what": …} with a line of what it measured.
"""

import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from job import quiet

quiet.import_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from horovod_keras import Collectives  # noqa: E402
from horovod_keras.collectives import SingleProcess  # noqa: E402
from horovod_keras.optimizer import ALONE  # noqa: E402
from job.config import resolve  # noqa: E402
from job.model import kernels, training  # noqa: E402
from job.run import world  # noqa: E402

CONFIG = resolve([{"recipe": "fast", "weights": "none", "stages": (), "resolution": 56}])


class Steps:
    """The job's training step on a fixed batch; without exchange each rank is on its own."""

    def __init__(self, ranks: Collectives, *, share: bool = True) -> None:
        self._model = training.build(CONFIG, ranks, 1_000_000)
        self._model.optimizer.exchange.share = share
        self._size = ranks.size
        self._step = tf.function(self._model.train_step, jit_compile=False)

    def turn(self, batch: int, steps: int) -> dict[str, float]:
        """Mean seconds of a step of so many images, and of its waiting for the exchange."""
        numbers = np.random.default_rng(1)
        data = (
            tf.constant(numbers.integers(0, 256, (batch, 28, 28), dtype="uint8")),
            tf.constant(numbers.integers(0, 10, batch, dtype="int32")),
            tf.range(batch, dtype=tf.int64),
            tf.constant(batch * self._size),
        )
        waited = self._model.optimizer.exchange.waited
        waited.assign(0.0)
        begun = time.perf_counter()
        for _ in range(steps):
            self._step(data)["loss"].numpy()
        seconds = time.perf_counter() - begun
        return {"seconds": seconds / steps, "waited": float(waited) / steps}

    def gradients(self) -> dict[str, int]:
        """Bytes and messages of one exchange."""
        sizes = [int(np.prod(v.shape)) for v in self._model.trainable_variables]
        # The small ones travel together, and so do the moving statistics.
        return {"bytes": 4 * sum(sizes), "messages": sum(size >= ALONE for size in sizes) + 2}


def message(ranks: Collectives, size: int, repeats: int) -> dict[str, float]:
    """Mean seconds of an all-reduce of so many bytes."""
    tensor = tf.zeros(size // 4)
    begun = time.perf_counter()
    for _ in range(repeats):
        ranks.sum(tensor, f"message/{size}").numpy()
    return {"seconds": (time.perf_counter() - begun) / repeats}


def main() -> None:
    """Join the others, then take turns until the socket is closed."""
    ranks = world.join(CONFIG)
    together, by_messages, alone = Steps(ranks), Steps(ranks, share=False), Steps(SingleProcess())
    turns: dict[str, Callable[..., dict[str, float]]] = {
        "step": together.turn,
        "step by messages": by_messages.turn,
        "step alone": alone.turn,
        "message": lambda size, repeats: message(ranks, size, repeats),
        "memory": lambda: {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024},
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        lines = connection.makefile("rw")

        def say(answer: dict[str, Any]) -> None:
            lines.write(json.dumps(answer) + "\n")
            lines.flush()

        versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
        facts = {"threads": tf.config.threading.get_intra_op_parallelism_threads(), "gradients": together.gradients()}
        versions["kernels"] = kernels.status().partition(" (")[0]
        say({"rank": ranks.rank, "pid": os.getpid(), "versions": versions, **facts})
        for line in lines:
            request = json.loads(line)
            say(turns[request.pop("what")](**request))
    ranks.leave()


if __name__ == "__main__":
    main()
