"""The command line of a search, and the rule that one folder holds one search."""

import subprocess
import sys
from pathlib import Path

import pytest

from job.errors import InputError
from tune.settings import parse


def test_a_fixed_option_is_not_searched() -> None:
    search = parse(["--resolution", "48", "--dataset", "garments"])
    assert set(search.space.parameters) == {"dropout", "learning_rate"}
    assert search.space.config({"dropout": 0.1, "learning_rate": 0.01}).resolution == 48


def test_flags_vary_what_the_file_does_not(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("global-batch: [32, 64]\ndropout: 0..0.3\n")
    search = parse(["--space", str(tmp_path / "space.yaml"), "--vary", "dropout=0..0.6", "--vary", "flip=true,false"])
    assert search.space.texts() == {"dropout": "0..0.6", "flip": [True, False], "global_batch": [32, 64]}


def test_trials_get_the_searchs_epochs_and_seed_and_an_absolute_data_folder() -> None:
    search = parse(["--epochs", "3", "--seed", "7", "--data-dir", "data"])
    assert search.space.fixed == {"epochs": 3, "seed": 7, "data_dir": str(Path("data").absolute())}


def test_weights_in_a_space_are_found_from_any_folder() -> None:
    found = parse(["--vary", "weights=none,mine.h5"]).space.texts()["weights"]
    assert found == ["none", str(Path("mine.h5").absolute())]


def test_the_clock_alone_ends_a_trial_by_seconds() -> None:
    assert parse(["--budget", "seconds"]).settings.epochs == 10_000
    assert parse(["--budget", "seconds", "--epochs", "7"]).settings.epochs == 7
    assert parse([]).settings.epochs == 10


def test_a_population_takes_the_last_weights() -> None:
    assert parse(["--scheduler", "pbt", "--vary", "recipe=original,best"]).space.fixed["select"] == "last"


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--trials", "0"], "option trials"),
        (["--search", "luck"], "option search"),
        (["--vary", "learning_rate=1..2", "--learning-rate", "1"], "both fixed"),
        (["--vary", "0..1"], "NAME=VALUES"),
        (["--vary", 'flip=["true","false"]'], "error parsing value for field .vary"),
        (["--vary", "epochs=1,2"], "can't be searched"),
        (["--vary", "protocol=original"], "can't be searched"),
        (["--protocol", "original"], "unrecognized arguments: --protocol"),
        (["--dropuot", "0.5"], "unrecognized arguments: --dropuot"),
        (["--dropout", "7"], "option dropout"),
        (["--scheduler", "pbt", "--trials", "1"], "2 or more trials"),
        (["--budget", "seconds", "--recipe", "fast"], "--schedule constant"),
        (["--budget", "seconds", "--vary", "schedule=constant,cosine"], "received schedule cosine"),
        (["--budget", "seconds", "--vary", "recipe=original,fast"], "received schedule linear"),
        (["--budget", "seconds", "--vary", "warmup=0..0.2"], "received warmup 0.2"),
        (["--budget", "seconds", "--vary", "stages=[],[[0.4,32]]"], "of which stages is a share"),
        (["--budget", "seconds", "--vary", "clean=0..0.2"], "of which clean is a share"),
        (["--scheduler", "pbt", "--select", "best"], "judged by its last weights"),
        (["--scheduler", "pbt", "--search", "tpe"], "changes settings itself"),
        (["--budget", "seconds", "--seconds", "inf"], "option seconds"),
        (["--memory-per-rank", "inf"], "option memory_per_rank"),
        (["--seconds", "60"], "without --budget seconds"),
        (["--storage", ""], "--storage needs a path"),
        (["--vary", "limit_train=1000,2000"], "can't be searched"),
        (["--vary", "limit_eval=1000,2000"], "can't be searched"),
        (["--timeline", "t.json"], "unrecognized arguments: --timeline"),
        (["--space", "no-such-file.yaml"], "can't be read"),
        (["--resume", "no-such-folder"], "no sweep.yaml"),
    ],
)
def test_wrong_options_are_refused_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        parse(argv)
    assert "\n" not in str(raised.value)


def test_the_command_line_ends_with_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "tune.sweep", "--vary", "resolution=64..32"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: the range of resolution is upside down") and ended.stderr.count("\n") == 1


def test_help_is_quick_and_imports_neither_ray_nor_tensorflow() -> None:
    code = (
        "import sys, tune.sweep\n"
        "try: tune.sweep.parse(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'ray', 'tensorflow'} & sys.modules.keys()))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=Path(__file__).parents[2], check=False
    )
    assert ended.returncode == 0
    assert b"--ranks-per-trial" in ended.stdout
