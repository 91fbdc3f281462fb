"""What each part of a recipe is worth: one change at a time, judged on the validation split; the test set stays unseen.

    python -m benchmarks.ablation --recipe best --epochs 6 --weights FILE --json benchmarks/records/ablation_best.json

Each variant is a run of `job.train.train` in a process of its own and a folder of its own: stop this command and repeat
it, and it goes on. What a record holds of other variants and seeds stays in it; one of another recipe, or of the same
with other values, is refused.
"""

import itertools
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks import record
from benchmarks.accuracy import ended, history, spread
from job.command_line import Parser, count
from job.config import Config, plain, resolve
from job.environment import processor
from job.errors import InputError, run_main, stop_when_told
from job.recipes import Recipe

AS_IT_IS = "as it is"
VALUES = {field.name for field in fields(Recipe)} - {"weights"}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "fast": {
        AS_IT_IS: {},
        "half the rate": {"learning_rate": 0.001},
        "a quarter of the rate": {"learning_rate": 0.0005},
        "no dropout": {"dropout": 0.0},
        "no label smoothing": {"label_smoothing": 0.0},
        "cosine": {"schedule": "cosine"},
        "four times the decay": {"weight_decay": 0.2},
        "shifts of ±1 px": {"shift": 1},
        "4 epochs": {"epochs": 4},
        "all epochs at 48 px": {"stages": []},
    },
    "best": {
        AS_IT_IS: {},
        "half the rate": {"learning_rate": 0.001},
        "no erasing": {"erase": 0.0},
        "no shifts": {"shift": 0},
        "cosine": {"schedule": "cosine"},
        "all epochs at 56 px": {"stages": []},
        "no clean epochs": {"clean": 0.0},
        "shifts of ±4 px": {"shift": 4},
        "half the erasing": {"erase": 0.25},
        "no dropout": {"dropout": 0.0},
        "no label smoothing": {"label_smoothing": 0.0},
    },
}
"""Changes of a recipe by name; each is compared with the recipe as it is."""


def main() -> int:
    parser = Parser("python -m benchmarks.ablation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", choices=VARIANTS, required=True)
    parser.add_argument("--variant", action="append", help="only these, by name")
    parser.add_argument("--seeds", type=count, default=1, help="how many, from 1 on (1)")
    parser.add_argument("--epochs", type=count, help="in place of the recipe's")
    parser.add_argument("--weights", default="imagenet", help="as for job.train")
    parser.add_argument("--precision", default="float32", help="as for job.train")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"), help="where the runs are kept")
    parser.add_argument("--json", type=Path, help="write the record here")
    args = parser.parse_args()
    common = {"recipe": args.recipe, "weights": args.weights, "precision": args.precision}
    common |= {"epochs": args.epochs} if args.epochs else {}
    if unknown := {*(args.variant or [])} - VARIANTS[args.recipe].keys():
        raise InputError(f"no such --variant: received {min(unknown)}. Use of {', '.join(VARIANTS[args.recipe])}.")
    weights = Path(args.weights).resolve().name  # where the file lay is nobody's business
    settings = {
        "processor": processor(),
        "recipe": args.recipe,
        "values": {name: value for name, value in plain(resolve([common])).items() if name in VALUES},
        "weights": weights,
        "precision": args.precision,
    }
    earlier_rows(args.json, settings)  # what is wrong with them is told before anything is trained
    stop, rows = stop_when_told(), []
    for name, seed in itertools.product(args.variant or VARIANTS[args.recipe], range(1, args.seeds + 1)):
        config = resolve([common, VARIANTS[args.recipe][name], {"seed": seed}])
        config = replace(config, run=args.folder / config.folder().name)
        if code := trained(config, stop):
            return code
        rows.append({"variant": name, "seed": seed, **summary(config)})
        print(f"{name}, seed {seed}: validation {100 * rows[-1]['val_accuracy']:.2f}", flush=True)
        every = together(earlier_rows(args.json, settings), rows, [*VARIANTS[args.recipe]])
        record.write(args.json, {**settings, "rows": every})
    print(table(rows))
    return 0


def earlier_rows(path: Path | None, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a record. Raises InputError if it is none, or was made with other settings."""
    found = record.read(path, "rows")
    for name in settings if found["rows"] else ():
        if found.get(name) != settings[name]:
            raise InputError(f"{path} was made with other {name}. Name another file with --json.")
    return found["rows"]


def together(
    earlier: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], order: Sequence[str]
) -> list[dict[str, Any]]:
    """These rows, and the earlier ones of other variants and seeds, by the variants' order."""
    mine = {(row["variant"], row["seed"]) for row in rows}
    every = [row for row in earlier if (row["variant"], row["seed"]) not in mine] + [*rows]
    place = {name: number for number, name in enumerate(order)}
    return sorted(every, key=lambda row: (place.get(row["variant"], len(order)), row["seed"]))


def trained(config: Config, stop: Event) -> int:
    """Train one variant to its end, or find that it has been; the exit code."""
    if len(history(config.folder())) == config.epochs:
        return 0
    process = multiprocessing.get_context("spawn").Process(target=train, args=(config,))
    process.start()
    while process.exitcode is None:
        process.join(timeout=1)
        if stop.is_set():
            process.terminate()
    return ended(process.exitcode)


def train(config: Config) -> None:
    """One run in this process, without a look at the test set; 75 if it was stopped."""

    def run() -> int:
        stop = stop_when_told()
        from job import quiet

        quiet.import_tensorflow()
        from job.run import world
        from job.train import train as train_one

        result = train_one(config, world.join(config), stop=stop, test=False, whole_process=True)
        return 75 if result["status"] == "preempted" else 0

    run_main(run)


def summary(config: Config) -> dict[str, Any]:
    """What a trained variant did on the validation split."""
    epochs = history(config.folder())
    return {
        "val_accuracy": epochs[-1]["val_accuracy"],
        "train_accuracy": epochs[-1]["accuracy"],
        "epochs": config.epochs,
        "resolutions": config.resolutions(),
        "seconds": epochs[-1]["elapsed"],
        "commit": json.loads((config.folder() / "environment.json").read_text())["commit"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown line a variant: means over seeds, and the difference from the recipe as it is, seed by seed."""
    validation = {(row["variant"], row["seed"]): 100 * row["val_accuracy"] for row in rows}
    heads = "change | seeds | validation | against the recipe (seeds in common) | training | minutes"
    lines = [f"| {heads} |", "| --- " * 6 + "|"]
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        seeds = [row["seed"] for row in mine if (AS_IT_IS, row["seed"]) in validation]
        changes = [validation[name, seed] - validation[AS_IT_IS, seed] for seed in seeds]
        cells = [
            spread([validation[name, row["seed"]] for row in mine]),
            f"{spread(changes, sign='+')} ({len(changes)})" if changes and name != AS_IT_IS else "–",
            spread([100 * row["train_accuracy"] for row in mine]),
            spread([row["seconds"] / 60 for row in mine]),
        ]
        lines.append(f"| {name} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
