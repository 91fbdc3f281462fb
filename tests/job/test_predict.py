"""`python -m job.predict`."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from job import predict
from job.data import garments
from job.data.arrays import CLASS_NAMES
from job.run.saved import load_model, probabilities

IMAGES = garments.draw(train=10, test=10).test_images


@pytest.fixture
def pictures(tmp_path):
    """A garment as the data set has it, and another as a photograph on white."""
    Image.fromarray(IMAGES[0]).save(tmp_path / "small.png")
    Image.fromarray(255 - IMAGES[1]).resize((280, 280), Image.Resampling.NEAREST).save(
        tmp_path / "photo.jpg", quality=95
    )
    return [str(tmp_path / "small.png"), str(tmp_path / "photo.jpg")]


def test_each_picture_gets_a_line_with_its_best_classes(finished_run, pictures, capsys):
    assert predict.main([str(finished_run), *pictures]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = probabilities(load_model(finished_run), IMAGES[:2])
    for line, picture, row in zip(lines, pictures, expected, strict=True):
        best = CLASS_NAMES[row.argmax()]
        assert line.startswith(picture)
        assert f"   {best} " in line
        assert line.count("%") == 3
    assert "inverted" not in lines[0]
    assert "inverted: light border" in lines[1]


def test_json_holds_every_class_the_best_first(finished_run, pictures, capsys):
    assert predict.main([str(finished_run / "model.keras"), *pictures, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    row = probabilities(load_model(finished_run), IMAGES[:1])[0]
    assert first["image"] == pictures[0]
    assert first["class"] == next(iter(first["probabilities"])) == CLASS_NAMES[row.argmax()]
    np.testing.assert_allclose([first["probabilities"][name] for name in CLASS_NAMES], row, atol=1e-6)
    assert (first["inverted"], second["inverted"]) == (False, True)


def test_no_invert_takes_a_light_picture_as_it_is(finished_run, pictures, capsys):
    assert predict.main([str(finished_run), pictures[1], "--no-invert", "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)[0]["inverted"]


def test_one_wrong_file_is_one_line_and_two_before_anything_long(finished_run, pictures, tmp_path):
    (tmp_path / "words.png").write_text("not a picture")
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "job.predict",
        str(finished_run),
        *pictures,
        str(tmp_path / "words.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, done.stdout) == (2, "")
    assert said == [f"error: {tmp_path / 'words.png'} is not a PNG or JPEG file. Convert it to one of them."]
    assert "tensorflow" not in done.stderr
