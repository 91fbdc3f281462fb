"""What stopping hopeless trials early is worth, and what a trial costs beyond its training.

python -m benchmarks.search [--data-dir DIR] [--records DIR] [--picture FILE]
python -m benchmarks.search --only overhead    # about two minutes

Overhead: trials of one epoch each run one after another on all cores; what lies between the ends of two epochs, less
the epoch, is Tune's, the group's and the job's own. The first trial's has the start of Ray and TensorFlow's import too.

ASHA against no scheduler, at the same total budget: for each seed two random searches over learning rate and dropout,
one without a scheduler, and one with ASHA and three times as many trials. Both are then cut at the cost (rank-seconds
of training) that the cheaper of the two had in all, and what counts is the best validation accuracy reached by then.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from job.environment import environment
from tune.records import Row, read, summaries

TRIALS = 5
EPOCHS = 9
SEEDS = (1, 2, 3)
IMAGES = 2500
OPTIONS = (
    f"--limit-train {IMAGES} --limit-eval 2000 --resolution 32 --weights none --global-batch 64"
    " --input-range=-1..1 --batch-norm-momentum 0.9 --search random --no-measure"
).split()
SCHEDULERS = {"none": TRIALS, "asha": 3 * TRIALS}
CORES = os.cpu_count() or 1
ONE_BY_ONE = ["--epochs", "1", "--trials", "6", "--scheduler", "none"]
RANKS = (1, 2)
"""Of each trial, when what it costs beyond its training is measured."""


def main() -> None:
    """Run the searches, print and record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description="Measure searches.")
    parser.add_argument("--data-dir", type=Path, help="where Fashion-MNIST is")
    parser.add_argument("--only", choices=["overhead", "asha"], help="which of the two; default both")
    parser.add_argument("--records", type=Path, default=Path("benchmarks/records/search"), help="folder of the records")
    parser.add_argument("--picture", type=Path, help="draw ASHA's record as a picture too (PNG or SVG)")
    options = parser.parse_args()
    options.records.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        if options.only != "asha":
            by_ranks = {}
            for ranks in RANKS:
                started = datetime.now(UTC)
                who = ["--ranks-per-trial", str(ranks), "--cpus-per-rank", str(max(1, CORES // ranks))]
                rows = _search(Path(scratch) / f"overhead-{ranks}", options.data_dir, *ONE_BY_ONE, *who)
                by_ranks[ranks] = overhead(rows, started)
                print(f"with {ranks} rank(s): {by_ranks[ranks]}", flush=True)
            _write(options.records / "overhead.json", ONE_BY_ONE, {"by_ranks": by_ranks})
        if options.only != "overhead":
            record = measure_asha(Path(scratch), options.data_dir)
            _write(options.records / "asha.json", [f"--epochs {EPOCHS}"], record)
            if options.picture:
                _draw(record, options.picture)


def overhead(rows: list[Row], started: datetime) -> dict[str, Any]:
    """Seconds of each trial beyond its epochs, of a search that started then and made one after another."""
    trials = summaries(rows, "search")
    ends = [started, *(trial.rows[-1]["time"] for trial in trials)]
    beyond = [
        (end - start).total_seconds() - trial.rows[-1]["training_seconds"]
        for trial, start, end in zip(trials, ends, ends[1:], strict=False)
    ]
    later = beyond[1:]
    return {
        "mean": statistics.mean(later),
        "standard_deviation": statistics.stdev(later),
        "first_with_start_and_import": beyond[0],
        "seconds": [round(seconds, 2) for seconds in beyond],
    }


def measure_asha(scratch: Path, data_dir: Path | None) -> dict[str, Any]:
    """Both searches for each seed, and what ASHA gained."""
    runs = []
    for seed in SEEDS:
        books = {
            name: _search(
                scratch / f"{name}-{seed}",
                data_dir,
                *("--epochs", str(EPOCHS), "--scheduler", name, "--trials", str(trials), "--seed", str(seed)),
            )
            for name, trials in SCHEDULERS.items()
        }
        runs.append({"seed": seed} | compare(books))
        print(json.dumps({name: value for name, value in runs[-1].items() if name != "curves"}), flush=True)
    gains = [run["asha"]["score"] - run["none"]["score"] for run in runs]
    print(f"ASHA against none at the same budget: {100 * statistics.mean(gains):+.2f} points, seeds {gains}")
    return {
        "trials": SCHEDULERS,
        "mean_gain": statistics.mean(gains),
        "standard_deviation_of_gain": statistics.stdev(gains),
        "runs": runs,
    }


def _search(out: Path, data_dir: Path | None, *args: str) -> list[Row]:
    data = ["--data-dir", str(data_dir)] if data_dir else []
    command = [sys.executable, "-m", "tune.sweep", *OPTIONS, *data, "--out", str(out), *args]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read(out / "trials.parquet")


def _write(path: Path, args: list[str], record: dict[str, Any]) -> None:
    machine = environment(1, 1, "as each rank finds them")
    del machine["ranks"], machine["threads_per_rank"]  # by search
    path.write_text(json.dumps({"options": " ".join([*OPTIONS, *args]), **machine, **record}, indent=1) + "\n")


def compare(books: dict[str, list[Row]]) -> dict[str, Any]:
    """Best score of each search at the largest cost that both reached, and its curve of (cost, best so far)."""
    curves = {name: _curve(rows) for name, rows in books.items()}
    budget = min(curve[-1][0] for curve in curves.values())
    found: dict[str, Any] = {"budget": round(budget, 1), "curves": curves}
    for name, curve in curves.items():
        within = [score for cost, score in curve if cost <= budget]
        rows = sorted((row for row in books[name] if row["seconds"]), key=lambda row: row["time"])[: len(within)]
        found[name] = {"score": within[-1], "trials": len({row["trial"] for row in rows})}
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
    axes.set_xlabel("cost of all trials together, rank-seconds")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.1f} %")
    axes.set_ylabel("best validation accuracy so far")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
