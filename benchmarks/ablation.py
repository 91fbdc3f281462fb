"""What each part of a recipe is worth: one change at a time, judged on the validation split; the test set stays unseen.

    python -m benchmarks.ablation --recipe fast --weights FILE --json benchmarks/records/ablation.json

Each variant is a run of `job.train.train` in a process of its own and a folder of its own: stop this command and repeat
it, and it goes on.
"""

import argparse
import json
import multiprocessing
import shlex
import sys
from pathlib import Path
from typing import Any

from job.config import Config, resolve

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "fast": {
        "as it is": {},
        "shifts of ±2 px": {"shift": 2},
        "8 epochs: 4 at 32 px, 2 at 40, 2 at 48": {"epochs": 8, "stages": [[0.5, 32], [0.25, 40]]},
        "4 epochs": {"epochs": 4},
        "half the rate": {"learning_rate": 0.001},
        "no dropout": {"dropout": 0.0},
        "no label smoothing": {"label_smoothing": 0.0},
        "cosine": {"schedule": "cosine"},
    },
    "best": {
        "as it is": {},
        "no erasing": {"erase": 0.0},
        "no shifts": {"shift": 0},
        "cosine": {"schedule": "cosine"},
        "all epochs at 56 px": {"stages": []},
    },
}
"""Changes of a recipe by name; each is compared with the recipe as it is."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=VARIANTS, required=True)
    parser.add_argument("--variant", action="append", help="only these, by name")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 1 on (1)")
    parser.add_argument("--epochs", type=int, help="fewer or more than the recipe's")
    parser.add_argument("--weights", default="imagenet", help="as for job.train")
    parser.add_argument("--precision", default="float32", help="as for job.train")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"), help="where the runs are kept")
    parser.add_argument("--json", type=Path, help="write the record here")
    args = parser.parse_args()
    names = args.variant or list(VARIANTS[args.recipe])
    rows = []
    for name in names:
        for seed in range(1, args.seeds + 1):
            folder = args.folder / f"{args.recipe}-{name.replace(' ', '-')}-{seed}"
            options = {"recipe": args.recipe, "seed": seed, "run": str(folder)}
            options |= {"weights": args.weights, "precision": args.precision}
            options |= ({"epochs": args.epochs} if args.epochs else {}) | VARIANTS[args.recipe][name]
            rows.append({"variant": name, "seed": seed, **trained(resolve([options]))})
            print(f"{name}, seed {seed}: validation {100 * rows[-1]['val_accuracy']:.2f}", flush=True)
    print(table(rows))
    if args.json:
        record = {
            "command": shlex.join(sys.orig_argv),
            "recipe": args.recipe,
            "weights": Path(args.weights).name,
            "precision": args.precision,
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


def trained(config: Config) -> dict[str, Any]:
    """Train one variant to its end, or find that it has been, and say how it did on the validation split."""
    folder = config.folder()
    if len(epochs(folder)) < config.epochs:
        process = multiprocessing.get_context("spawn").Process(target=train, args=(config,))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"error: the run in {folder} ended with exit code {process.exitcode}. Repeat the command.")
    history = epochs(folder)
    return {
        "val_accuracy": history[-1]["val_accuracy"],
        "best_val_accuracy": max(epoch["val_accuracy"] for epoch in history),
        "train_accuracy": history[-1]["accuracy"],
        "epochs": config.epochs,
        "resolutions": config.resolutions(),
        "seconds": round(sum(epoch["seconds"] for epoch in history), 1),
    }


def train(config: Config) -> None:
    """One run in this process, without a look at the test set."""
    from job import quiet

    quiet.import_tensorflow()
    from job.run import world
    from job.train import train as run

    run(config, world.join(config), test=False)


def epochs(folder: Path) -> list[dict[str, Any]]:
    """The epochs' records of a run, none if it hasn't begun."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown line a variant: means over seeds, and the difference from the recipe as it is."""
    means = {}
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        means[name] = [100 * sum(row[key] for row in mine) / len(mine) for key in ("val_accuracy", "train_accuracy")]
    lines = ["| change | validation | against the recipe | training |", "| --- | --- | --- | --- |"]
    for name, (validation, training) in means.items():
        change = f"{validation - means['as it is'][0]:+.2f}" if "as it is" in means else ""
        lines.append(f"| {name} | {validation:.2f} | {change} | {training:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
