"""What stopping hopeless trials early is worth: ASHA against no scheduler, at the same total budget.

python -m benchmarks.search [--data-dir DIR] [--json FILE] [--picture FILE]

For each seed two random searches over learning rate and dropout run one after the other: one without a scheduler, and
one with ASHA and three times as many trials. Both are then cut at the cost (rank-seconds of training) that the cheaper
of the two had in all, and what counts is the best validation accuracy that was reached by then.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from job.run.folder import processor
from tune.records import Row, read

TRIALS = 5
EPOCHS = 9
SEEDS = (1, 2, 3)
OPTIONS = (
    f"--epochs {EPOCHS} --limit-train 2500 --limit-eval 2000 --resolution 32 --weights none --global-batch 64"
    " --input-range=-1..1 --batch-norm-momentum 0.9 --search random --no-measure"
).split()
SCHEDULERS = {"none": TRIALS, "asha": 3 * TRIALS}


def main() -> None:
    """Run both searches for each seed, print and record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description="Measure ASHA against none.")
    parser.add_argument("--data-dir", type=Path, help="where Fashion-MNIST is")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/records/search/asha.json"), help="the record")
    parser.add_argument("--picture", type=Path, help="draw the record as a picture too (PNG or SVG)")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in SEEDS:
            books = {name: _search(Path(scratch), name, seed, options.data_dir) for name in SCHEDULERS}
            runs.append({"seed": seed} | compare(books))
            print(json.dumps({name: value for name, value in runs[-1].items() if name != "curves"}), flush=True)
    gains = [run["asha"]["score"] - run["none"]["score"] for run in runs]
    record = {
        "command": "python -m benchmarks.search",
        "options": " ".join(OPTIONS),
        "trials": SCHEDULERS,
        "cores": os.cpu_count(),
        "processor": processor(),
        "mean_gain": statistics.mean(gains),
        "standard_deviation_of_gain": statistics.stdev(gains),
        "runs": runs,
    }
    print(f"ASHA against none at the same budget: {100 * record['mean_gain']:+.2f} points, seeds {gains}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1) + "\n")
    if options.picture:
        _draw(record, options.picture)


def _search(scratch: Path, scheduler: str, seed: int, data_dir: Path | None) -> list[Row]:
    out = scratch / f"{scheduler}-{seed}"
    data = ["--data-dir", str(data_dir)] if data_dir else []
    command = [sys.executable, "-m", "tune.sweep", *OPTIONS, *data, "--out", str(out)]
    command += ["--scheduler", scheduler, "--trials", str(SCHEDULERS[scheduler]), "--seed", str(seed)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read(out / "trials.parquet")


def compare(books: dict[str, list[Row]]) -> dict[str, Any]:
    """Best score of each search at the largest cost that both reached, and its curve of (cost, best so far)."""
    curves = {name: _curve(rows) for name, rows in books.items()}
    budget = min(curve[-1][0] for curve in curves.values())
    found: dict[str, Any] = {"budget": round(budget, 1), "curves": curves}
    for name, curve in curves.items():
        within = [score for cost, score in curve if cost <= budget]
        found[name] = {"score": within[-1], "trials": len({row["trial"] for row in books[name]})}
    return found


def _curve(rows: list[Row]) -> list[tuple[float, float]]:
    """Cost of all trials together and the best score, after each epoch of any trial."""
    cost, best, curve = 0.0, 0.0, []
    for row in sorted((row for row in rows if row["seconds"]), key=lambda row: row["time"]):
        cost += row["seconds"]  # of one rank a trial
        best = max(best, row["score"])
        curve.append((round(cost, 2), best))
    return curve


def _draw(record: dict[str, Any], picture: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    colours = {"none": "#8a8f98", "asha": "#356a9c"}
    for run in record["runs"]:
        for name, curve in run["curves"].items():
            shown = [point for point in curve if point[0] <= run["budget"]]
            label = name if run is record["runs"][0] else None
            axes.step(*zip(*shown, strict=True), where="post", color=colours[name], label=label, alpha=0.9)
    axes.set_xlabel(f"cost of all trials together, rank-seconds ({record['processor']})")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.1f} %")
    axes.set_ylabel("best validation accuracy so far")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
