"""What the stock model's time is made of, and a real, short measurement that is added to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import stock

ROOT = Path(__file__).parents[2]


def test_the_quickest_turns_count_and_the_median_ones_are_told() -> None:
    turns = [{"training": 100.0, "evaluation": 500.0}, {"training": 400.0, "evaluation": 250.0}]
    found = stock.summary([*turns, {"training": 200.0, "evaluation": 300.0}])
    assert found["seconds_for_20_epochs_extrapolated"] == round(20 * (55_000 / 400 + 5_000 / 500), 1)
    assert found["seconds_for_20_epochs_by_median_turns"] == round(20 * (55_000 / 200 + 5_000 / 300), 1)


@pytest.mark.slow
def test_turns_of_the_same_day_and_machine_are_added(tmp_path: Path) -> None:
    record = tmp_path / "stock.json"
    other = {"processor": "another", "cores": 2, "seconds_for_20_epochs_extrapolated": 1.0}
    record.write_text(json.dumps({"machines": [other]}))
    for _ in range(2):
        command = ["benchmarks.stock", "--steps", "2", "--turns", "1", "--json", str(record)]
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, timeout=120)
    kept, machine = json.loads(record.read_text())["machines"]
    assert kept == other
    assert len(machine["turns"]) == 2 and machine["seconds_for_20_epochs_extrapolated"] > 0
