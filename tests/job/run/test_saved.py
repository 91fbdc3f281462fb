"""A run's model is loaded, or refused in a line."""

import contextlib

import keras
import numpy as np
import pytest

from job.errors import InputError
from job.run.saved import load_model, probabilities


def test_a_run_and_its_model_file_are_the_same_model(finished_run):
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    found = probabilities(load_model(finished_run), images)
    assert found.shape == (7, 10)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found, probabilities(load_model(finished_run / "model.keras"), images))


def test_what_is_no_model_is_named(tmp_path):
    (tmp_path / "model.txt").write_text("no model")
    (tmp_path / "a.keras").write_text("no archive")
    for path in (tmp_path, tmp_path / "none", tmp_path / "model.txt", tmp_path / "a.keras"):
        with pytest.raises(InputError, match=str(path)):
            load_model(path)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_model_is_one_line(finished_run, tmp_path, damage):
    data = bytearray((finished_run / "model.keras").read_bytes())
    middle = len(data) // 2
    if damage == "cut":
        del data[middle:]
    else:
        data[middle : middle + 400] = bytes(400)
    (tmp_path / "model.keras").write_bytes(data)
    with pytest.raises(InputError) as refusal:
        load_model(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_damaged_table_of_contents_is_one_line(finished_run, tmp_path):
    data = bytearray((finished_run / "model.keras").read_bytes())
    begin = data.rindex(b"PK\x01\x02")
    for place in range(begin, begin + 40):
        (tmp_path / "model.keras").write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        with contextlib.suppress(InputError):  # some bytes, such as the time, may be any
            load_model(tmp_path)


def test_code_in_a_model_is_not_executed(tmp_path):
    layer = keras.layers.Lambda(lambda images: images, output_shape=(28, 28))
    keras.Sequential([keras.Input((28, 28), dtype="uint8"), layer]).save(tmp_path / "model.keras")
    with pytest.raises(InputError, match="can't be loaded"):
        load_model(tmp_path)


def test_a_model_of_another_task_is_refused(tmp_path):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(10)]).save(tmp_path / "model.keras")
    with pytest.raises(InputError, match=r"received shapes .*4"):
        load_model(tmp_path)
