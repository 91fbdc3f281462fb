"""The original recipe in the stock model's own `fit`: what its 20 epochs take, from some measured steps.

    python -m benchmarks.stock --json benchmarks/records/stock.json

`keras.applications.MobileNet` at 56×56 with dropout 0.5 and softmax, Adam, batch 64, on drawn images that are resized
beforehand, as in 2017. Its time does not depend on what is on the images. The first epoch's tracing is left out.
"""

import datetime
import json
import os
import shlex
import statistics
import sys
import time
from pathlib import Path

import keras
import numpy as np

from benchmarks.accuracy import count, known
from job.command_line import Parser
from job.errors import run_main
from job.run.checkpoints import write_atomically
from job.run.folder import environment

RESOLUTION, BATCH, EPOCHS, IMAGES, VALIDATION = 56, 64, 20, 55_000, 5_000


def main() -> int:
    parser = Parser("python -m benchmarks.stock", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=count, default=60, help="steps of a turn (60)")
    parser.add_argument("--turns", type=count, default=5, help="turns (5); the quickest counts")
    parser.add_argument("--json", type=Path, help="write the record here, beside those of other processors")
    args = parser.parse_args()
    record = known(args.json, "machines") if args.json else {"machines": []}
    base = keras.applications.MobileNet(
        input_shape=(RESOLUTION, RESOLUTION, 3), include_top=False, weights=None, pooling="avg"
    )
    dropped = keras.layers.Dropout(0.5)(base.output)
    model = keras.Model(base.input, keras.layers.Dense(10, activation="softmax")(dropped))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    numbers = np.random.default_rng(2017)
    images = numbers.random((args.steps * BATCH, RESOLUTION, RESOLUTION, 3), np.float32)
    labels = numbers.integers(0, 10, len(images))
    model.fit(images, labels, batch_size=BATCH, verbose=0)
    model.evaluate(images, labels, batch_size=BATCH, verbose=0)
    training, evaluation = [], []
    for _ in range(args.turns):
        start = time.perf_counter()
        model.fit(images, labels, batch_size=BATCH, verbose=0)
        middle = time.perf_counter()
        model.evaluate(images, labels, batch_size=BATCH, verbose=0)
        training.append(middle - start)
        evaluation.append(time.perf_counter() - middle)
    # The quickest turn: other work on the machine can only make the original look slower than it is.
    epoch = min(training) * IMAGES / len(images) + min(evaluation) * VALIDATION / len(images)
    machine = {
        **environment(ranks=1, threads=len(os.sched_getaffinity(0)), kernels="of TensorFlow, in stock Keras"),
        "command": shlex.join(sys.orig_argv[1:]),
        "date": datetime.date.today().isoformat(),
        "images_per_second": round(len(images) / min(training), 1),
        "images_per_second_median": round(len(images) / statistics.median(training), 1),
        "images_per_second_by_turn": [round(len(images) / seconds, 1) for seconds in training],
        "seconds_an_epoch": round(epoch, 1),
        "seconds_for_20_epochs_extrapolated": round(EPOCHS * epoch, 1),
    }
    print(json.dumps(machine, indent=1))
    if args.json:
        others = [other for other in record["machines"] if other["processor"] != machine["processor"]]
        write_atomically(args.json, (json.dumps({"machines": [*others, machine]}, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    run_main(main)
