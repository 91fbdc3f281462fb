"""The command line of a search, and the rule that one folder holds one search."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from job.errors import InputError
from tune.settings import claim, parse


def test_a_fixed_option_is_not_searched() -> None:
    search = parse(["--resolution", "48", "--dataset", "garments"])
    assert set(search.space.parameters) == {"dropout", "learning_rate"}
    assert search.space.config({"dropout": 0.1, "learning_rate": 0.01}).resolution == 48


def test_flags_vary_what_the_file_does_not(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("global-batch: [32, 64]\ndropout: 0..0.3\n")
    search = parse(["--space", str(tmp_path / "space.yaml"), "--vary", "dropout=0..0.6", "--vary", "flip=true,false"])
    assert search.space.texts() == {"dropout": "0..0.6", "flip": "[True, False]", "global_batch": "[32, 64]"}


def test_trials_get_the_searchs_epochs_and_seed_and_an_absolute_data_folder() -> None:
    search = parse(["--epochs", "3", "--seed", "7", "--data-dir", "data"])
    assert search.space.fixed == {"epochs": 3, "seed": 7, "data_dir": str(Path("data").absolute())}


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--trials", "0"], "option trials"),
        (["--search", "luck"], "option search"),
        (["--vary", "learning_rate=1..2", "--learning-rate", "1"], "both fixed"),
        (["--vary", "0..1"], "NAME=VALUES"),
        (["--vary", "epochs=1,2"], "can't be searched"),
        (["--vary", "protocol=original"], "can't be searched"),
        (["--protocol", "original"], "unrecognized arguments: --protocol"),
        (["--dropuot", "0.5"], "unrecognized arguments: --dropuot"),
        (["--dropout", "7"], "option dropout"),
        (["--scheduler", "pbt", "--trials", "1"], "2 or more trials"),
        (["--budget", "seconds", "--recipe", "fast"], "--schedule constant"),
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


def test_a_folder_of_another_search_is_refused_and_left_alone(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "s")]
    assert not claim(parse([*out, "--trials", "3"]))
    before = (tmp_path / "s" / "sweep.yaml").read_bytes()
    for argv, named in (
        (["--trials", "4"], "trials is 3 there, 4 now"),
        (["--trials", "3", "--vary", "dropout=0..0.1"], "dropout is '0..0.8' there"),
        (["--trials", "3", "--dataset", "garments"], "dataset is None there, 'garments' now"),
    ):
        with pytest.raises(InputError, match=named):
            claim(parse([*out, *argv]))
    assert (tmp_path / "s" / "sweep.yaml").read_bytes() == before


def test_the_same_search_is_known_and_resume_reads_it_back(tmp_path: Path) -> None:
    argv = ["--out", str(tmp_path / "s"), "--vary", "global_batch=32,64", "--limit-train", "100", "--epochs", "3"]
    claim(parse(argv))
    assert claim(parse(argv))
    again = parse(["--resume", str(tmp_path / "s"), "--max-failures", "5"])
    assert again.identity() == parse(argv).identity()
    assert again.settings.max_failures == 5
    with pytest.raises(InputError, match="received --trials with --resume"):
        parse(["--resume", str(tmp_path / "s"), "--trials", "9"])


def test_sweep_yaml_is_plain_yaml(tmp_path: Path) -> None:
    claim(parse(["--out", str(tmp_path / "s"), "--data-dir", str(tmp_path)]))
    kept = yaml.safe_load((tmp_path / "s" / "sweep.yaml").read_text())
    assert kept["space"]["learning_rate"] == "0.0001..0.01 log"
    assert kept["job"]["data_dir"] == str(tmp_path)
