"""A search's folder without a search: books with figures that a formula gives."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tune.folder import claim
from tune.records import Row, write
from tune.settings import parse

ARGS = ("--vary", "global_batch=64,128", "--vary", "resolution=32..96", "--trials", "24", "--epochs", "6")


def make_folder(folder: Path, *, confirmed: int = 2) -> list[Row]:
    """Write `sweep.yaml`, `trials.parquet` and the winner's result; three of four trials stop early."""
    search = parse([*ARGS, "--out", str(folder)])
    claim(search)
    rows: list[Row] = []
    points = search.space.random_points(24, seed=5)
    for number, point in enumerate(points, start=1):
        whole = number % 4 == 1
        rows += epochs("search", number, point, 6 if whole else 1 + number % 3, "done" if whole else "stopped")
    rows += [row("search", 25, points[3], 0, "diverged", problem="the loss became nan")]
    for number, point in enumerate(points[:confirmed]):
        for seed in range(3):
            rows += epochs("confirm", 3 * number + seed + 1, {**point, "seed": seed}, 6, "done", 0.002 * seed)
    write(folder / "trials.parquet", rows)
    (folder / "best").mkdir(exist_ok=True)
    (folder / "best" / "result.json").write_text(json.dumps({"test_accuracy": 0.9012}))
    (folder / "best.yaml").write_text(yaml.safe_dump({"dropout": 0.5}))
    return rows


def epochs(phase: str, number: int, point: dict[str, Any], count: int, status: str, plus: float = 0.0) -> list[Row]:
    """The rows of one trial."""
    best = 0.93 - 0.05 * math.log10(point["learning_rate"] / 1e-3) ** 2 - 0.04 * point["dropout"] + plus
    best -= 0.3 / math.sqrt(point["resolution"])
    found = []
    for epoch in range(1, count + 1):
        found.append(row(phase, number, point, epoch, status, val_accuracy=best - 0.3 * math.exp(-epoch)))
    return found


def row(phase: str, number: int, point: dict[str, Any], epoch: int, status: str, **values: Any) -> Row:
    """One row; the score is the accuracy, and an epoch costs as its pixels do."""
    seconds = point["resolution"] ** 2 / 200
    return {
        "phase": phase,
        "trial": f"{phase}-{number}",
        "number": number,
        "epoch": epoch,
        "status": status,
        "score": values.get("val_accuracy", 0.0),
        "val_accuracy": None,
        "val_loss": None,
        "accuracy": None,
        "loss": None,
        "images_per_second": None,
        "seconds": seconds if epoch else None,
        "training_seconds": seconds * epoch,
        "cost": seconds * epoch,
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "settings": json.dumps(point),
        "problem": None,
        **values,
    }
