"""What a search prints where nobody looks at a terminal."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tune.books import row
from tune.estimate import Estimate
from tune.live import Display
from tune.records import Journal, write
from tune.settings import parse

POINT = {"resolution": 32, "dropout": 0.5, "learning_rate": 1e-3}


def test_an_epoch_is_told_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = parse(["--out", str(tmp_path), "--trials", "1", "--epochs", "3"])
    write(tmp_path / "trials.parquet", [row("search", 1, POINT, 2, "running", val_accuracy=0.875)])
    display = Display(Journal(tmp_path / "trials.parquet", "search"), Estimate(search, 1, None, None), 1, 3)
    trial: Any = SimpleNamespace(trial_id="search-1")
    for epoch in (2, 2):  # again with the trial's end
        display.on_trial_result(1, [trial], trial, {"epoch": epoch, "val_accuracy": 0.875})
    assert capsys.readouterr().out.count("trial 1, epoch 2/3: 87.50\xa0% on the validation split") == 1
