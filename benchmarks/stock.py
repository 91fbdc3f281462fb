"""The original recipe in the stock model's own `fit`: what its 20 epochs take, from some measured steps.

    python -m benchmarks.stock --json benchmarks/records/stock.json

`keras.applications.MobileNet` at 56×56 with dropout 0.5 and softmax, Adam, batch 64, on drawn images that are resized
beforehand, as in 2017. Its time does not depend on what is on the images. The first epoch's tracing is left out. Turns
are added to those that the record has of the same day, machine, versions and steps: call this between the runs that it
is compared with. What the record has of this processor otherwise is replaced.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks import record
from benchmarks.record import place
from job.command_line import Parser, count
from job.environment import environment
from job.errors import run_main

RESOLUTION, BATCH, EPOCHS, IMAGES, VALIDATION = 56, 64, 20, 55_000, 5_000
SAME = ("host", "processor", "threads_per_rank", "libraries", "date", "steps")
"""What turns must have in common to count as one measurement."""


def main() -> int:
    parser = Parser("python -m benchmarks.stock", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=count, default=60, help="steps of a turn (60)")
    parser.add_argument("--turns", type=count, default=5, help="turns (5)")
    parser.add_argument("--json", type=Path, help="write the record here, beside those of other processors")
    args = parser.parse_args()
    machines = record.read(args.json, "machines")["machines"]
    machine = {
        **environment(ranks=1, threads=len(os.sched_getaffinity(0)), kernels="of TensorFlow, in stock Keras"),
        "steps": args.steps,
    }
    earlier = [other for other in machines if all(other.get(name) == machine[name] for name in SAME)]
    machine |= summary([*(turn for other in earlier for turn in other["turns"]), *measured(args.steps, args.turns)])
    print(json.dumps(machine, indent=1))
    others = [other for other in machines if place(other) != place(machine)]
    if dropped := len(machines) - len(others) - len(earlier):
        print(f"warning: replaced {dropped} earlier measurement(s) of another day, host or version", file=sys.stderr)
    record.write(args.json, {"machines": [*others, machine]})
    return 0


def measured(steps: int, turns: int) -> list[dict[str, float]]:
    """Images a second in training and in evaluation, a turn each."""
    base = keras.applications.MobileNet(
        input_shape=(RESOLUTION, RESOLUTION, 3), include_top=False, weights=None, pooling="avg"
    )
    dropped = keras.layers.Dropout(0.5)(base.output)
    model = keras.Model(base.input, keras.layers.Dense(10, activation="softmax")(dropped))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    numbers = np.random.default_rng(2017)
    images = numbers.random((steps * BATCH, RESOLUTION, RESOLUTION, 3), np.float32)
    labels = numbers.integers(0, 10, len(images))

    def rate(work: Callable[..., Any]) -> float:
        start = time.perf_counter()
        work(images, labels, batch_size=BATCH, verbose=0)
        return round(len(images) / (time.perf_counter() - start), 1)

    rate(model.fit)
    rate(model.evaluate)
    return [{"training": rate(model.fit), "evaluation": rate(model.evaluate)} for _ in range(turns)]


def summary(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    """What 20 epochs take by the quickest turns, and by the median ones.

    The quickest are the strict baseline: other work on the machine can only make the original look slower than it is.
    """

    def seconds(of: Callable[[list[float]], float]) -> float:
        training, evaluation = (of([turn[name] for turn in turns]) for name in ("training", "evaluation"))
        return round(EPOCHS * (IMAGES / training + VALIDATION / evaluation), 1)

    return {
        "seconds_for_20_epochs_extrapolated": seconds(max),
        "seconds_for_20_epochs_by_median_turns": seconds(statistics.median),
        "turns": turns,
    }


if __name__ == "__main__":
    run_main(main)
