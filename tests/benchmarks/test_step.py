"""The record of benchmarks.step: its keys, and the change against an earlier one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import step

ROOT = Path(__file__).parents[2]


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.step", *options]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--torch-python", "/nowhere/python"], "--torch-python /nowhere/python"),
        (["--quick", "--compare", "/nowhere.json"], "--compare /nowhere.json"),
        (["--turns", "0"], "--turns"),
    ],
)
def test_wrong_options_are_told_before_anything_is_measured(options: list[str], named: str) -> None:
    done = _run(*options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and named in done.stderr


def test_the_change_against_another_processor_s_record_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    earlier = {"date": "2026-01-01", "cpu": "A", "images_per_second": 100.0, "ratio_to_pytorch": 2.0, "bfloat16": None}
    now = earlier | {"cpu": "B", "images_per_second": 150.0, "ratio_to_pytorch": None}
    step._compare(now, earlier)
    said = capsys.readouterr().out
    assert "A, another processor" in said and "images_per_second: 100.0 → 150.0 (+50 %)" in said
    assert "ratio_to_pytorch" not in said


@pytest.mark.slow
def test_a_quick_measurement_has_what_scripts_rely_on(tmp_path: Path) -> None:
    done = _run("--quick", "--steps", "1", "--json", str(tmp_path / "step.json"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "step.json").read_text())
    assert record["ratio_to_pytorch"] is None  # it takes no part
    for name in ("ratio_to_stock_keras", "share_of_matmul_rate", "images_per_second"):
        assert record[name] > 0
    assert record["cpu"] and record["commit"] and len(record["contenders"]["ours"]["turns_ms"]) == 5
