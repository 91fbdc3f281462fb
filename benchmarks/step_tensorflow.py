"""The TensorFlow contenders of benchmarks.step: ours, stock Keras in its own fit, and the machine's matrix product.

python -m benchmarks.step_tensorflow CONTENDER --resolution 56 --batch 64 --threads 2 --steps 10
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from benchmarks.step import MATRIX
from job import allocator
from job.model import kernels, mobilenet, optimizer


def ours(resolution: int, batch: int, steps: int, *, xla: bool = False) -> Callable[[], float]:
    """The job's step: fast backbone, classifier, gradient, our Adam, in one compiled function."""
    backbone = mobilenet.backbone()
    model = keras.Model(backbone.input, keras.layers.Dense(10)(backbone.output))
    adam = optimizer.Adam(1e-3)
    variables = model.trainable_variables
    adam.build(variables)
    images, labels = _batch(resolution, batch, channels=1)

    @tf.function(jit_compile=xla)
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = tf.cast(model(images, training=True), tf.float32)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        adam.apply(tape.gradient(loss, variables), variables)
        return loss

    return _mean(lambda: step().numpy(), steps)


def stock(resolution: int, batch: int, steps: int, *, xla: bool | Literal["auto"] = "auto") -> Callable[[], float]:
    """`keras.applications.MobileNet` in `fit`: from the end of the first batch to the end of the last.

    With "auto", its default, Keras compiles the step with XLA on a GPU, and not on a CPU.
    """
    base = keras.applications.MobileNet(
        input_shape=(resolution, resolution, 3), include_top=False, weights=None, pooling="avg"
    )
    model = keras.Model(base.input, keras.layers.Dense(10)(base.output))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=xla)
    images, labels = (np.repeat(part, steps + 1, axis=0) for part in _batch(resolution, batch, channels=3))
    ends: list[float] = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter()))

    def turn() -> float:
        ends.clear()
        model.fit(images, labels, batch_size=batch, shuffle=False, verbose=0, callbacks=[clock])
        return (ends[-1] - ends[0]) / steps

    return turn


def matmul(resolution: int, batch: int, steps: int) -> Callable[[], float]:
    """One product of large square float32 matrices: 2 · MATRIX³ operations."""
    left, right = (tf.random.normal((MATRIX, MATRIX)) for _ in range(2))
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(left, right)[0]))
    return _mean(lambda: product().numpy(), steps)


def _batch(resolution: int, batch: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(1)
    images = numbers.normal(size=(batch, resolution, resolution, channels)).astype("float32")
    return images, numbers.integers(0, 10, batch).astype("int32")


def _mean(step: Callable[[], object], steps: int) -> Callable[[], float]:
    def turn() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start) / steps

    return turn


CONTENDERS: dict[str, Callable[[int, int, int], Callable[[], float]]] = {
    "ours": ours,
    "ours bfloat16": ours,
    "ours mixed": ours,
    "ours xla": partial(ours, xla=True),
    "stock": stock,
    "stock mixed": stock,
    "stock without xla": partial(stock, xla=False),
    "matmul": matmul,
}
"""Mixed: Keras' policy mixed_bfloat16. The contender in bfloat16 has our kernels, on a CPU."""


def main() -> None:
    """Make one contender ready, then time one turn for every line on standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=CONTENDERS)
    for name in ("resolution", "batch", "threads", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--allocator-as-is", action="store_true", help="leave the C library's allocator alone")
    options = parser.parse_args()
    if not options.allocator_as_is:
        allocator.keep_freed_memory()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # the others are there, too
    if options.contender.endswith("mixed"):
        keras.config.set_dtype_policy("mixed_bfloat16")
    kernels.allow(
        "XLA compiles no others" if options.contender == "ours xla" else None,
        bfloat16=options.contender == "ours bfloat16",
    )
    turn = CONTENDERS[options.contender](options.resolution, options.batch, options.steps)
    turn()
    found = {"tensorflow": tf.__version__, "keras": keras.__version__}
    if gpus:
        found["gpu"] = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "unknown")
    if options.contender.startswith("ours"):
        found[options.contender] = kernels.status().partition(" (")[0]
    print(json.dumps(found), flush=True)
    for _ in sys.stdin:
        print(json.dumps(turn()), flush=True)


if __name__ == "__main__":
    main()
