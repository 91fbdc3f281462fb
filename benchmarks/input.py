"""How many images a second the input pipeline delivers at batch 64, so that the model never waits for it.

python -m benchmarks.input [--json FILE] [--picture FILE]
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record as records
from job.command_line import Parser
from job.data import garments
from job.data.augmentation import Augmentation
from job.data.pipeline import Batch, as_tf_dataset, batches
from job.environment import processor
from job.errors import run_main

BATCH = 64
REPEATS = 7
ALL = Augmentation(flip=True, shift=2, erase=0.5)


def main() -> int:
    """Measure, print and record."""
    parser = Parser("python -m benchmarks.input", description="Measure the input pipeline.")
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--picture", type=Path, help="draw the record as a picture too (PNG or SVG)")
    options = parser.parse_args()
    records.check(options.json)
    count = 20_000
    data = garments.draw(train=count, test=1)
    given: tuple[Any, ...] = (data.train_images, data.train_labels, np.arange(count))
    run: dict[str, Any] = {"seed": 2017, "global_batch": BATCH, "rank": 0, "size": 1}

    def plain(augmentation: Augmentation) -> Callable[[], Iterator[Batch]]:
        return lambda: batches(*given, **run, epoch=0, augmentation=augmentation)

    cases = {
        "plain": plain(Augmentation()),
        "flips": plain(Augmentation(flip=True)),
        "flips, shifts, erasing": plain(ALL),
        "the same through tf.data": lambda: iter(as_tf_dataset(plain(ALL))),
    }
    results = {name: _rates(make, count) for name, make in cases.items()}
    record = {
        **records.made(),
        "unit": "images per second",
        "batch": BATCH,
        "cores": os.cpu_count(),
        "processor": processor(),
        "numpy": np.__version__,
        "results": results,
    }
    for name, result in results.items():
        print(f"{name:26} {result['median']:>10,} images/s (best {result['best']:,})")
    records.write(options.json, record)
    if options.picture:
        _draw(record, options.picture)
    return 0


def _rates(make: Callable[[], Iterator[object]], count: int) -> dict[str, int | list[int]]:
    """Images a second of wall-clock time in each of some passes over all images, after one to warm up."""
    rates = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        for _element in make():
            pass
        rates.append(round(count / (time.perf_counter() - start)))
    return {"median": round(statistics.median(rates[1:])), "best": max(rates[1:]), "each": rates[1:]}


def _draw(record: dict, picture: Path) -> None:
    import matplotlib.pyplot as plt

    results = record["results"]
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    bars = axes.barh(list(results), [result["median"] for result in results.values()], color="#356a9c")
    axes.bar_label(bars, fmt="{:,.0f}", padding=4)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(f"images per second, batch {record['batch']}, {record['processor']}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture)


if __name__ == "__main__":
    run_main(main)
