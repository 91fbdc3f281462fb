"""`python -m job.evaluate`."""

import json
import shutil

import numpy as np
import pytest
import yaml

from job import evaluate
from job.errors import InputError
from job.run.saved import load_model, probabilities
from job.run.scores import score

pytestmark = pytest.mark.usefixtures("own_cache")


def printed(capsys, *arguments):
    assert evaluate.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the finished run to change."""
    return shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))


def test_the_test_split_is_measured_by_default(finished_run, capsys):
    data = np.load(finished_run / "data.npz")
    expected = score(data["y_test"], probabilities(load_model(finished_run), data["x_test"]))
    found = printed(capsys, finished_run)
    assert found["split"] == "test"
    assert found["images"] == 100
    assert found["accuracy"] == pytest.approx(expected.accuracy)
    assert found["standard_error"] == pytest.approx(expected.standard_error)
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert found["flip_tta"] is None


def test_the_validation_split_is_the_run_s_own(finished_run, capsys):
    assert printed(capsys, finished_run, "--split", "validation")["images"] == 100
    assert evaluate.main([str(finished_run)]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_limits_and_protocol_of_the_run_count(run, capsys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(
        yaml.safe_dump(config | {"limit_eval": 40, "protocol": "original", "select": "best"})
    )
    assert printed(capsys, run, "--split", "validation") == printed(capsys, run) | {"split": "validation"}
    found = printed(capsys, run)
    assert (found["images"], found["protocol"]) == (40, "original")
    assert evaluate.main([str(run), "--split", "validation"]) == 0
    assert capsys.readouterr().out.startswith("test images (protocol original chose the epoch by them) as they are")


def test_mirror_images_are_told_apart(finished_run, capsys):
    data = np.load(finished_run / "data.npz")
    model = load_model(finished_run)
    both = probabilities(model, data["x_test"]) + probabilities(model, data["x_test"][:, :, ::-1])
    found = printed(capsys, finished_run, "--flip-tta")
    assert found["flip_tta"]["loss"] == pytest.approx(score(data["y_test"], both / 2).loss, rel=1e-5)
    assert found["flip_tta"]["loss"] != found["loss"]
    assert evaluate.main([str(finished_run), "--flip-tta"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "test images as they are",
        "test images with mirror images",
    ]


def test_the_report_is_written_only_when_asked_for(run, capsys):
    printed(capsys, run)
    assert not (run / "report.html").exists()
    printed(capsys, run, "--split", "validation", "--report")
    assert "images of the validation split" in (run / "report.html").read_text()


def test_other_images_than_the_run_s_are_noted(run, capsys):
    with (run / "config.yaml").open("a") as file:
        file.write("data: 0123456789\n")
    assert evaluate.main([str(run)]) == 0
    assert "holds other images than the run was trained with" in capsys.readouterr().err


def test_another_data_folder_wins(run, capsys, tmp_path):
    data = dict(np.load(run / "data.npz"))
    moved = tmp_path / "moved.npz"
    np.savez(moved, **data | {"x_test": data["x_test"][:30], "y_test": data["y_test"][:30]})
    assert printed(capsys, run, "--data-dir", moved)["images"] == 30


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(InputError, match="no run there"):
        evaluate.main([str(tmp_path)])
