"""How accurate a recipe is, over several seeds: `python -m benchmarks.accuracy --recipe fast --seeds 3`.

Each seed is a run of `job.train` of its own, in a folder of its own: stop this command and repeat it, and it goes on.
Options behind `--` are handed to `job.train`. What a record holds of other recipes and precisions stays in it.

    python -m benchmarks.accuracy --recipe fast --seeds 3 --json FILE --picture FILE [-- --weights FILE --precision …]
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job.config import parse
from job.recipes import RECIPES

GOAL = 0.945
FIRST_SEED = 2017


def main() -> int:
    argv = sys.argv[1:]
    end = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, action="append", required=True, help="may be given several times")
    parser.add_argument("--seeds", type=int, default=3, help=f"how many, from {FIRST_SEED} on")
    parser.add_argument("--ranks", type=int, default=1, help="ranks under horovodrun; 1 is a single process")
    parser.add_argument("--folder", type=Path, default=Path("runs/accuracy"), help="where the runs are kept")
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--picture", type=Path, help="write validation accuracy against minutes here")
    args = parser.parse_args(argv[:end])
    options = argv[end + 1 :]
    precision = parse(options).precision
    runs = []
    for recipe in args.recipe:
        for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
            folder = args.folder / f"{recipe}-{precision}-{seed}"
            train(recipe, seed, folder, args.ranks, options)
            runs.append({"precision": precision} | summary(recipe, seed, folder))
    print(table(runs))
    if args.json:
        if args.json.exists():
            known = json.loads(args.json.read_text())["runs"]
            mine = {(recipe, precision) for recipe in args.recipe}
            runs = [run for run in known if (run["recipe"], run["precision"]) not in mine] + runs
        args.json.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    if args.picture:
        draw(runs, args.picture)
    return 0


def train(recipe: str, seed: int, folder: Path, ranks: int, options: Sequence[str]) -> None:
    """Finish one run. Raises CalledProcessError if it fails."""
    launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(ranks)] if ranks > 1 else []
    job = ["-m", "job.train", "--recipe", recipe, "--seed", str(seed), "--run", str(folder), *options]
    subprocess.run([*launcher, sys.executable, *job], check=True)


def epochs(folder: Path) -> list[dict[str, Any]]:
    """The epochs' records of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def summary(recipe: str, seed: int, folder: Path) -> dict[str, Any]:
    """One run's line of the record; `seconds_to_94_5` counts epochs with their evaluation, None if never reached."""
    result = json.loads((folder / "result.json").read_text())
    environment = json.loads((folder / "environment.json").read_text())
    del environment["command"]  # it holds paths of the machine; this one makes the run again
    environment["kernels"] = environment["kernels"].partition(" (")[0]
    seconds, reached = 0.0, None
    for epoch in epochs(folder):
        seconds += epoch["seconds"]
        if reached is None and epoch["val_accuracy"] >= GOAL:
            reached = round(seconds, 1)
    names = (
        "val_accuracy",
        "test_accuracy",
        "test_accuracy_with_flips",
        "seconds",
        "epochs",
        "weights",
        "ranks",
        "protocol",
    )
    named = {name: result[name] for name in names}
    named["weights"] = Path(result["weights"]).resolve().name  # where the file lay is nobody's business
    how = {"command": shlex.join(sys.orig_argv[1:]), "environment": environment}
    return {"recipe": recipe, "seed": seed, "seconds_to_94_5": reached} | named | how | {"history": epochs(folder)}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Mean ± standard deviation over seeds, a Markdown line a recipe."""
    lines = ["| recipe | seeds | validation | test | test with flips | minutes | minutes to 94.5 % validation |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(title(run) for run in runs):
        mine = [run for run in runs if title(run) == name]
        accuracies = [spread([100 * run[name] for run in mine]) for name in
                      ("val_accuracy", "test_accuracy", "test_accuracy_with_flips")]  # fmt: skip
        reached = [run["seconds_to_94_5"] / 60 for run in mine if run["seconds_to_94_5"] is not None]
        goal = f"{spread(reached)} ({len(reached)} of {len(mine)})" if reached else f"not reached (0 of {len(mine)})"
        minutes = spread([run["seconds"] / 60 for run in mine])
        lines.append(f"| {name} | {len(mine)} | {' | '.join(accuracies)} | {minutes} | {goal} |")
    return "\n".join(lines)


def title(run: dict[str, Any]) -> str:
    """Recipe and precision, as a table names them."""
    return run["recipe"] if run["precision"] == "float32" else f"{run['recipe']}, {run['precision']}"


def spread(values: Sequence[float]) -> str:
    """Mean, and the sample's standard deviation where there are two values or more."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def draw(runs: Sequence[dict[str, Any]], picture: Path) -> None:
    """Validation accuracy against minutes, a line a run, a colour a recipe; broken in bfloat16."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    colours = dict(zip(RECIPES, ("#767676", "#0b7285", "#c2410c"), strict=True))
    for run in runs:
        minutes, accuracies = [0.0], []
        for epoch in run["history"]:
            minutes.append(minutes[-1] + epoch["seconds"] / 60)
            accuracies.append(100 * epoch["val_accuracy"])
        label = title(run) if run["seed"] == FIRST_SEED else None
        style = "-" if run["precision"] == "float32" else "--"
        axes.plot(minutes[1:], accuracies, style, marker=".", color=colours[run["recipe"]], label=label)
    axes.axhline(100 * GOAL, color="#999999", linewidth=0.8, linestyle="--")
    axes.set(xlabel="minutes", ylabel="validation accuracy, %", ylim=(80, None))
    axes.legend()
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
