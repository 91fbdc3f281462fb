"""What is saved: stock layers only, the same numbers as in training, loadable without our code."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.model import mobilenet


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, 28, 28), dtype=np.uint8)


def _serving(alpha: float = 0.25, resolution: int = 40) -> keras.Model:
    return mobilenet.serving_model(resolution=resolution, input_range=(-1.0, 1.0), dropout=0.2, alpha=alpha)


def test_it_predicts_what_the_fast_network_predicts(way: str, images: np.ndarray) -> None:
    serving, fast = _serving(), mobilenet.backbone(alpha=0.25)
    head = serving.get_layer("predictions")
    serving.set_weights([*fast.get_weights(), *head.get_weights()])
    features = fast(mobilenet.prepare(images, 40, (-1.0, 1.0)), training=False)
    kernel, bias = head.get_weights()
    expected = tf.nn.softmax(tf.matmul(features, kernel) + bias)
    np.testing.assert_allclose(serving(images, training=False), expected, rtol=1e-4, atol=1e-6)


def test_prepare_covers_the_input_range_and_keeps_the_grey_channel(images: np.ndarray) -> None:
    images[0, :14], images[0, 14:] = 0, 255
    prepared = mobilenet.prepare(images, 33, (0.0, 1.0))
    assert prepared.shape == (5, 33, 33, 1)
    assert prepared.dtype == tf.float32
    assert float(prepared[0, 0, 0, 0]) == pytest.approx(0.0, abs=1e-6)
    assert float(prepared[0, -1, -1, 0]) == pytest.approx(1.0, abs=1e-6)


def test_it_takes_bytes_and_gives_probabilities(images: np.ndarray) -> None:
    model = _serving()
    assert model.input_shape == (None, 28, 28)
    assert model.inputs[0].dtype == "uint8"
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    output = model(images)
    assert output.shape == (5, 10)
    np.testing.assert_allclose(tf.reduce_sum(output, axis=-1), np.ones(5), rtol=1e-5)


def test_it_stays_float32_under_mixed_precision(images: np.ndarray) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = _serving()
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert model(images).dtype == tf.float32
    assert {layer.compute_dtype for layer in model.get_layer("backbone").layers} == {"float32"}


def test_the_saved_model_loads_in_plain_keras_in_safe_mode(images: np.ndarray, tmp_path: Path) -> None:
    model = _serving()
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    script = (
        "import sys, numpy as np, keras; assert not any('job' in name.split('.') for name in sys.modules); "
        "model = keras.saving.load_model('model.keras', safe_mode=True); "
        "np.save('output.npy', model.predict(np.load('images.npy'), verbose=0))"
    )
    # -I: neither the working folder nor PYTHONPATH is searched, so our code can't be found.
    subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, check=True, capture_output=True)
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "output.npy"), expected, rtol=1e-5, atol=1e-7)
