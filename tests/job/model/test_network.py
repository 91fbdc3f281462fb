"""The fast network is the stock network: outputs, gradients, moving statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.model import mobilenet
from job.model.fused import FusedDepthwise
from job.model.layers import Depthwise, NormRelu

# Width multiplier, height, width, batch: maps of 1×1 at the end, odd maps on the way, one that is not square.
CASES = [(0.25, 32, 32, 5), (0.25, 33, 33, 1), (0.25, 48, 48, 5), (0.25, 40, 57, 3), (0.5, 63, 63, 2), (1.0, 56, 56, 5)]


def _stock(alpha: float, precision: str) -> keras.Model:
    keras.config.set_dtype_policy(precision)
    model = keras.applications.MobileNet(
        input_shape=(None, None, 3), alpha=alpha, include_top=False, weights=None, pooling="avg"
    )
    keras.config.set_dtype_policy("float32")
    return model


def _random_weights(model: keras.Model) -> list[np.ndarray]:
    """Weights in which nothing is zero or one: so that nothing cancels out unseen."""
    numbers = np.random.default_rng(1)
    return [
        array + np.abs(numbers.normal(size=array.shape)).astype("float32") * (0.2 if array.ndim == 1 else 0)
        for array in model.get_weights()
    ]


def _run(model: keras.Model, images: np.ndarray, weight: np.ndarray) -> dict[str, list[np.ndarray]]:
    images = tf.cast(images, model.compute_dtype)
    before = model(images, training=False)
    with tf.GradientTape() as tape:
        output = model(images, training=True)
        loss = tf.reduce_sum(output * tf.cast(weight, output.dtype))
    return {
        "inference": [before.numpy()],
        "output": [output.numpy()],
        "gradients": [gradient.numpy() for gradient in tape.gradient(loss, model.trainable_variables)],
        "moving": [variable.numpy() for variable in model.non_trainable_variables],
    }


def _error(result: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """The largest distance of an array from the truth, relative to all of them: some gradients are zero."""
    whole = np.sqrt(sum(np.square(array).sum() for array in truth) / len(truth))
    return max(
        float(np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-3 * whole + 1e-30))
        for a, b in zip(result, truth, strict=True)
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fast_network_is_as_close_to_exact_arithmetic_as_the_stock_network(
    way: str, case: tuple[float, int, int, int]
) -> None:
    # An activation that lies at a bend of ReLU6 falls to either side of it by its rounding, in either network, and then
    # gradients are far off. A mistake would show with every draw, that with some.
    assert any(not _far_off(case, draw) for draw in range(4))


def _far_off(case: tuple[float, int, int, int], draw: int) -> list[str]:
    """What of the fast network is farther from exact arithmetic than rounding explains."""
    alpha, height, width, batch = case
    keras.utils.set_random_seed(draw)
    numbers = np.random.default_rng(draw)
    images = numbers.uniform(-1, 1, (batch, height, width, 1)).astype("float32")
    weight = numbers.normal(size=(batch, int(1024 * alpha)))
    fast, stock, exact = mobilenet.backbone(alpha=alpha), _stock(alpha, "float32"), _stock(alpha, "float64")
    weights = _random_weights(fast)
    for model in (fast, stock, exact):
        model.set_weights(weights)
    colour = np.repeat(images, 3, axis=-1)
    ours, theirs, truth = (
        _run(model, data, weight) for model, data in ((fast, images), (stock, colour), (exact, colour))
    )
    # Normalising over a handful of pixels magnifies rounding: in both networks alike.
    return [w for w, expected in truth.items() if _error(ours[w], expected) > 8 * _error(theirs[w], expected) + 2e-6]


def test_both_backbones_have_the_stock_network_s_names_and_shapes(way: str) -> None:
    stock = [(variable.path, tuple(variable.shape)) for variable in _stock(0.5, "float32").weights]
    for fast in (True, False):
        assert [(v.path, tuple(v.shape)) for v in mobilenet.backbone(alpha=0.5, fast=fast).weights] == stock


def test_momentum_reaches_every_normalisation(way: str) -> None:
    for fast in (True, False):
        model = mobilenet.backbone(alpha=0.25, batch_norm_momentum=0.5, fast=fast)
        norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert len(norms) == 27
        assert {layer.momentum for layer in norms} == {0.5}


def test_a_frozen_normalisation_uses_and_keeps_its_moving_statistics(way: str) -> None:
    fast, stock = mobilenet.backbone(alpha=0.25), mobilenet.backbone(alpha=0.25, fast=False)
    stock.set_weights(_random_weights(fast))
    fast.set_weights(stock.get_weights())
    images = np.random.default_rng(1).uniform(-1, 1, (4, 32, 32, 1)).astype("float32")
    for model in (fast, stock):
        model.trainable = False
    before = fast.get_weights()
    np.testing.assert_allclose(fast(images, training=True), stock(images, training=True), rtol=1e-4, atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, fast.get_weights(), strict=True))


def test_fit_trains_at_changing_resolutions_with_an_incomplete_last_batch(way: str) -> None:
    backbone = mobilenet.backbone(alpha=0.25)
    model = keras.Model(backbone.input, keras.layers.Dense(3)(backbone.output))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    labels = np.arange(22) % 3
    for side in (32, 40):
        images = np.random.default_rng(1).normal(size=(22, side, side, 1)) + labels[:, None, None, None]
        history = model.fit(images.astype("float32"), labels, batch_size=8, epochs=6, verbose=0).history["loss"]
        assert np.isfinite(history).all()
    assert history[-1] < history[0]


def test_a_nan_in_one_image_stays_visible(way: str) -> None:
    images = np.zeros((2, 32, 32, 1), "float32")
    images[0, 5, 5] = np.nan
    output = mobilenet.backbone(alpha=0.25)(images, training=True).numpy()
    assert np.isnan(output).any()


def test_shared_statistics_of_one_rank_change_nothing(way: str) -> None:
    images = np.random.default_rng(1).uniform(-1, 1, (6, 32, 32, 1)).astype("float32")
    alone, shared = mobilenet.backbone(alpha=0.25), mobilenet.backbone(alpha=0.25)
    weights = alone.get_weights()
    shared.set_weights(weights)
    asked: list[tuple[str, int]] = []

    def keep(vector: tf.Tensor, what: str) -> tf.Tensor:
        asked.append((what, vector.shape.rank))
        return tf.identity(vector)

    for layer in shared.layers:
        if isinstance(layer, NormRelu):
            layer.sync = keep
    expected, result = (_run(model, images, np.ones((6, 256))) for model in (alone, shared))
    assert asked == [("mean", 1), ("variance", 1)] * 27
    for what, arrays in expected.items():
        assert _error(result[what], arrays) < 1e-3, what


def test_the_shared_statistics_are_the_ones_used_and_kept(way: str) -> None:
    backbone = mobilenet.backbone(alpha=0.25, batch_norm_momentum=0.0)
    norm = backbone.get_layer("conv1_bn")
    assert isinstance(norm, NormRelu)
    norm.sync = lambda vector, what: vector + 1
    backbone(np.zeros((2, 32, 32, 1), "float32"), training=True)
    # A mean of 0 becomes 1; the variance about that mean, 1, becomes 2.
    np.testing.assert_allclose(norm.moving_mean, np.ones(8), rtol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, np.full(8, 2.0), rtol=1e-6)


def test_the_kernels_are_used_where_they_can_be(way: str) -> None:
    layer = mobilenet.backbone(alpha=0.25).get_layer("conv_dw_1")
    assert type(layer) is (FusedDepthwise if way == "kernels" else Depthwise)


def test_mixed_precision_falls_back_to_tensorflow_and_trains(way: str) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    backbone = mobilenet.backbone(alpha=0.25)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.cast(backbone(tf.ones((2, 32, 32, 1)), training=True), tf.float32))
    gradients = tape.gradient(loss, backbone.trainable_variables)
    assert type(backbone.get_layer("conv_dw_1")) is Depthwise
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_an_evaluation_takes_no_more_memory_at_a_larger_resolution() -> None:
    assert [mobilenet.evaluation_batch(side) for side in (32, 56, 112, 224, 2048)] == [250, 250, 62, 15, 1]
