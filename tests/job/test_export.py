"""`python -m job.export`."""

import dataclasses
import sys

import keras
import numpy as np
import pytest

from job import export
from job.data import garments
from job.errors import InputError
from job.model.mobilenet import serving_model
from job.run.saved import load_model


@pytest.mark.parametrize("name", export.FORMATS)
def test_an_export_gives_the_model_s_answers(finished_run, tmp_path, capsys, name):
    out = tmp_path / "new" / export.FORMATS[name].file_name
    assert export.main([str(finished_run), "--format", name, "--out", str(out)]) == 0
    assert "largest difference from the model" in capsys.readouterr().out
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    np.testing.assert_allclose(export.FORMATS[name].run(out, images).sum(axis=1), 1, atol=1e-4)
    assert list(out.parent.iterdir()) == [out]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The job's own network as training saves it, small, with weights that make its answers differ."""
    folder = tmp_path_factory.mktemp("network")
    keras.utils.set_random_seed(0)
    model = serving_model(resolution=32, input_range=(-1, 1), dropout=0.5, alpha=0.25)
    images = garments.draw(train=100, test=10).train_images
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(8):  # moving statistics of real activations, so that answers differ
        model(images, training=True)
    model.save(folder / "model.keras")
    return folder


@pytest.mark.parametrize("name", export.FORMATS)
def test_the_job_s_own_network_is_exported(network, tmp_path, name):
    """Its batch normalisation and dropout must not be in training mode, in which Keras' Resizing once left them."""
    out = tmp_path / export.FORMATS[name].file_name
    assert export.main([str(network), "--format", name, "--out", str(out)]) == 0
    images = garments.draw(train=10, test=10).test_images
    answers = export.FORMATS[name].run(out, images)
    assert np.ptp(answers, axis=0).max() > 0.01
    np.testing.assert_allclose(answers, load_model(network)(images), atol=export.TOLERANCE)


def test_the_usual_place_is_in_the_run_and_is_not_written_twice(finished_run, capsys):
    arguments = [str(finished_run / "model.keras"), "--format", "saved_model"]
    assert export.main(arguments) == 0
    assert (finished_run / "export" / "saved_model" / "saved_model.pb").is_file()
    with pytest.raises(InputError, match="is there already and stays as it is"):
        export.main(arguments)


@pytest.mark.parametrize("fault", [0.001, np.nan])
def test_an_export_that_answers_otherwise_leaves_nothing(finished_run, tmp_path, fault):
    def wrong(path, images):
        assert path.exists()
        return usual.run(path, images) + fault

    usual = export.FORMATS["saved_model"]
    difference = export.export(finished_run, dataclasses.replace(usual, run=wrong), tmp_path / "out" / "model")
    assert difference == pytest.approx(fault, rel=1e-3, nan_ok=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_main_tells_such_a_difference_by_its_exit_code(finished_run, tmp_path, monkeypatch, capsys):
    usual = export.FORMATS["saved_model"]
    wrong = dataclasses.replace(usual, run=lambda path, images: usual.run(path, images) + 0.5)
    monkeypatch.setitem(export.FORMATS, "saved_model", wrong)
    assert export.main([str(finished_run), "--format", "saved_model", "--out", str(tmp_path / "model")]) == 1
    assert "no export: largest difference from the model 5.0e-01" in capsys.readouterr().err


def test_missing_packages_are_named(finished_run, tmp_path, monkeypatch):
    for module in ("tf2onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"tf2onnx, onnxruntime\. .*requirements/export.txt"):
        export.main([str(finished_run), "--format", "onnx", "--out", str(tmp_path / "model.onnx")])
