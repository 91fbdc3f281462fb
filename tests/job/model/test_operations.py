"""The C++ operations against the same mathematics in TensorFlow, for every kind of kernel that runs here."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import tensorflow as tf

from job.errors import InputError
from job.model import kernels
from job.model.kernels import library

Values = list[tf.Tensor]

POINTWISE = [  # map, input channels, filters: one pixel, tails of all kinds, many rows, large kernels
    ((1, 1, 1), 3, 5),
    ((1, 1, 1), 64, 32),
    ((2, 5, 3), 8, 33),
    ((3, 7, 7), 17, 16),
    ((5, 16, 16), 24, 40),
    ((4, 16, 16), 33, 70),
    ((7, 3, 3), 260, 300),
    ((10, 16, 16), 260, 300),
    ((64, 1, 1), 40, 513),
    ((6, 7, 7), 300, 260),
    ((16, 16, 16), 40, 48),  # rows enough for several units of work in bfloat16 too
]
DEPTHWISE = [  # map, channels, stride
    ((1, 1, 1), 5, 1),
    ((2, 2, 2), 8, 2),
    ((1, 3, 3), 16, 2),
    ((3, 5, 8), 33, 1),
    ((2, 8, 5), 20, 2),
    ((2, 7, 7), 64, 2),
    ((4, 3, 3), 48, 1),
    ((1, 40, 60), 40, 1),
    ((1, 61, 44), 40, 2),
    # More units than items of work, as in batches of real runs: sums and pivots are carried from one to the next.
    ((70, 3, 3), 16, 1),
    ((70, 4, 6), 20, 2),
    ((20, 2, 2), 1024, 2),
    ((30, 40, 60), 40, 1),
]
GREY = [((1, 1, 1), 3), ((2, 5, 8), 8), ((1, 32, 33), 24), ((3, 9, 9), 40), ((2, 16, 16), 32)]


def _normal(*shape: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(sum(shape)).normal(size=shape).astype("float32"))


def _pending(shape: tuple[int, ...]) -> Values:
    # Scales of both signs; shifts that leave some values below 0, some above 6.
    return [_normal(*shape), _normal(shape[-1]) * 2, _normal(shape[-1] + 1)[1:] * 2 + 1]


def _moments(y: tf.Tensor) -> Values:
    return [y, *tf.nn.moments(y, [0, 1, 2])]


def _active(inputs: Values) -> tf.Tensor:
    z, scale, shift, *_ = inputs
    return tf.nn.relu6(z * scale + shift)


def _agree(
    ours: Callable[[Values], Values],
    theirs: Callable[[Values], Values],
    inputs: Values,
    tolerance: float = 2e-5,
) -> None:
    """Outputs, and gradients of a sum over all outputs with random weights, against float64."""
    results = []
    for function, precision in ((ours, tf.float32), (theirs, tf.float64)):
        given = [tf.cast(value, precision) for value in inputs]
        with tf.GradientTape() as tape:
            tape.watch(given)
            outputs = list(function(given))
            weights = [tf.cast(_normal(*output.shape), precision) for output in outputs]
            total = tf.add_n([tf.reduce_sum(o * w) for o, w in zip(outputs, weights, strict=True)])
        results.append([*outputs, *tape.gradient(total, given)])
    for mine, exact in zip(*results, strict=True):
        scale = float(tf.reduce_max(tf.abs(exact))) + 1e-3
        np.testing.assert_allclose(mine, exact, rtol=tolerance, atol=tolerance * scale)


@tf.custom_gradient
def _rounded_product(left: tf.Tensor, right: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Values]]:
    """The product of matrices, in both directions with factors that are rounded to bfloat16."""

    def rounded(values: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.cast(tf.cast(values, tf.float32), tf.bfloat16), values.dtype)

    def gradient(d_product: tf.Tensor) -> Values:
        d_rounded = rounded(d_product)
        return [
            tf.matmul(d_rounded, rounded(right), transpose_b=True),
            tf.matmul(rounded(left), d_rounded, transpose_a=True),
        ]

    return tf.matmul(rounded(left), rounded(right)), gradient


def _rounded_pointwise(given: Values) -> Values:
    active, kernel = _active(given), given[3]
    product = _rounded_product(tf.reshape(active, [-1, active.shape[-1]]), kernel[0, 0])
    return _moments(tf.reshape(product, [*active.shape[:3], kernel.shape[-1]]))


@pytest.mark.parametrize("variant", library.BFLOAT16_FLAGS)
@pytest.mark.parametrize(("shape", "channels", "filters"), POINTWISE, ids=str)
def test_pointwise_in_bfloat16(
    compiled: None,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int, int],
    channels: int,
    filters: int,
    variant: str,
) -> None:
    monkeypatch.setenv("FASHION_KERNELS", variant)
    try:
        operations = kernels.load()
    except InputError as error:
        pytest.skip(str(error))
    assert operations is not None and kernels.in_bfloat16()
    inputs = [*_pending((*shape, channels)), _normal(1, 1, channels, filters)]
    # A value of float32 and its like of float64 may be rounded to different neighbours.
    _agree(lambda given: operations.fashion_pointwise(*given), _rounded_pointwise, inputs, tolerance=4e-3)


def test_a_traced_function_multiplies_in_float32_once_it_is_told_to(
    compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_KERNELS", "")
    monkeypatch.setattr(kernels, "_bfloat16", False)  # and so again for the tests after this one
    kernels.allow(None, bfloat16=True)
    operations = kernels.load()
    if not kernels.in_bfloat16():
        pytest.skip("this processor multiplies no bfloat16")
    assert operations is not None
    inputs = [*_pending((3, 7, 7, 64)), _normal(1, 1, 64, 96)]
    traced = tf.function(lambda: operations.fashion_pointwise(*inputs)[0])
    exact = tf.nn.conv2d(_active(inputs), inputs[3], 1, "SAME")

    def error() -> float:
        return float(tf.reduce_max(tf.abs(traced() - exact)))

    assert error() > 1e-3
    kernels.multiply_in_float32()
    assert error() < 1e-4
    assert not kernels.in_bfloat16()
    kernels.multiply_as_allowed()
    assert error() > 1e-3


def test_moments_of_many_values_keep_their_digits(operations: ModuleType) -> None:
    # Equal numbers are all rounded the same way: this one would lose its last bit from a sum of 2^14 on.
    value = 1 + 2**-10
    z = np.zeros((1, 2048, 2048, 1), "float32")
    z[:, :, 1::2] = value
    _, mean, variance = operations.fashion_pointwise(z, tf.ones(1), tf.zeros(1), tf.ones((1, 1, 1, 1)))
    np.testing.assert_allclose(mean, [value / 2], rtol=1e-5)
    np.testing.assert_allclose(variance, [value**2 / 4], rtol=1e-5)


def test_moments_of_a_uniform_map_with_edges_keep_their_digits(operations: ModuleType) -> None:
    z, kernel = tf.ones((1, 600, 1000, 8)), _normal(3, 3, 8, 1)
    y, mean, variance = operations.fashion_depthwise(z, tf.ones(8), tf.zeros(8), kernel, stride=1)
    exact = y.numpy().reshape(-1, 8).astype("float64")
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance, exact.var(0), rtol=1e-3)


@pytest.mark.parametrize(("shape", "channels", "filters"), POINTWISE, ids=str)
def test_pointwise(operations: ModuleType, shape: tuple[int, int, int], channels: int, filters: int) -> None:
    inputs = [*_pending((*shape, channels)), _normal(1, 1, channels, filters)]
    _agree(
        lambda given: operations.fashion_pointwise(*given),
        lambda given: _moments(tf.nn.conv2d(_active(given), given[3], 1, "SAME")),
        inputs,
    )


@pytest.mark.parametrize(("shape", "channels", "stride"), DEPTHWISE, ids=str)
def test_depthwise(operations: ModuleType, shape: tuple[int, int, int], channels: int, stride: int) -> None:
    def theirs(given: Values) -> Values:
        active = _active(given)
        if stride == 2:
            active = tf.pad(active, [[0, 0], [0, 1], [0, 1], [0, 0]])
        padding = "SAME" if stride == 1 else "VALID"
        return _moments(tf.nn.depthwise_conv2d(active, given[3], [1, stride, stride, 1], padding))

    inputs = [*_pending((*shape, channels)), _normal(3, 3, channels, 1)]
    _agree(lambda given: operations.fashion_depthwise(*given, stride=stride), theirs, inputs)


@pytest.mark.parametrize(("shape", "filters"), GREY, ids=str)
def test_grey(operations: ModuleType, shape: tuple[int, int, int], filters: int) -> None:
    _agree(
        lambda given: operations.fashion_grey(*given),
        lambda given: _moments(tf.nn.conv2d(tf.repeat(given[0], 3, axis=-1), given[1], 2, "SAME")),
        [_normal(*shape, 1), _normal(3, 3, 3, filters)],
    )


def test_normalise(operations: ModuleType) -> None:
    def ours(given: Values) -> Values:
        zeros = tf.zeros_like(given[0])
        return operations.fashion_normalise(*given, zeros, zeros, epsilon=1e-3, momentum=0.9)[:2]

    def theirs(given: Values) -> Values:
        mean, variance, gamma, beta = given
        scale = gamma / tf.sqrt(variance + 1e-3)
        return [scale, beta - mean * scale]

    _agree(ours, theirs, [_normal(19), tf.abs(_normal(19)), _normal(19), _normal(19)])


def _vector(*sizes: int) -> Values:
    return [tf.ones(size) for size in sizes]


def _pointwise(operations: ModuleType, z: tf.Tensor, kernel: tf.Tensor, scale: int = 8) -> Values:
    return operations.fashion_pointwise(z, *_vector(scale, 8), kernel)


def _depthwise(operations: ModuleType, z: tf.Tensor, side: int = 3, stride: int = 1) -> Values:
    return operations.fashion_depthwise(z, *_vector(8, 8), _normal(side, side, 8, 1), stride=stride)


def _pointwise_gradient(operations: ModuleType, dy: tf.Tensor, moments: int = 4) -> Values:
    inputs = [_normal(1, 2, 2, 8), *_vector(8, 8), _normal(1, 1, 8, 4)]
    return operations.fashion_pointwise_gradient(*inputs, _normal(1, 2, 2, 4), dy, *_vector(moments, 4, 4))


def _depthwise_gradient(operations: ModuleType, dy: tf.Tensor, moments: int = 8) -> Values:
    z = _normal(1, 5, 5, 8)
    return operations.fashion_depthwise_gradient(
        z, *_vector(8, 8), _normal(3, 3, 8, 1), z, dy, *_vector(8, moments, 8), stride=1
    )


def _grey_gradient(operations: ModuleType, mean: int) -> tf.Tensor:
    y = _normal(1, 2, 2, 8)
    return operations.fashion_grey_gradient(_normal(1, 4, 4, 1), _normal(3, 3, 3, 8), y, y, *_vector(mean, 8, 8))


def _adam(operations: ModuleType, *, moment: int = 8, gradient: int = 8, decayed: int = 1, handles: int = 1) -> None:
    made = [tf.Variable(tf.ones(size)) for size in (8, moment, 8)]
    operations.fashion_adam(
        *([tf.stack([variable.handle])[:handles]] for variable in made),
        [tf.ones(gradient)],
        tf.constant(1, tf.int64),
        0.1,
        0.0,
        decayed=[True] * decayed,
        beta_1=0.9,
        beta_2=0.99,
        one_minus_beta_1=0.1,
        one_minus_beta_2=0.01,
        epsilon=1e-7,
    )


INVALID: dict[str, Callable[[ModuleType], object]] = {
    "pointwise: kernel of other channels": lambda o: _pointwise(o, _normal(1, 2, 2, 8), _normal(1, 1, 7, 4)),
    "pointwise: kernel of 3×3": lambda o: _pointwise(o, _normal(1, 2, 2, 8), _normal(3, 3, 8, 4)),
    "pointwise: short scale": lambda o: _pointwise(o, _normal(1, 2, 2, 8), _normal(1, 1, 8, 4), scale=7),
    "pointwise: matrix": lambda o: _pointwise(o, _normal(4, 8), _normal(1, 1, 8, 4)),
    "pointwise: empty": lambda o: _pointwise(o, tf.zeros((0, 2, 2, 8)), _normal(1, 1, 8, 4)),
    "pointwise gradient: other map": lambda o: _pointwise_gradient(o, _normal(1, 1, 2, 4)),
    "depthwise: stride 3": lambda o: _depthwise(o, _normal(1, 5, 5, 8), stride=3),
    "depthwise: stride 0": lambda o: _depthwise(o, _normal(1, 5, 5, 8), stride=0),
    "depthwise: map of one row": lambda o: _depthwise(o, _normal(1, 1, 5, 8), stride=2),
    "depthwise: kernel 5×5": lambda o: _depthwise(o, _normal(1, 5, 5, 8), side=5),
    "depthwise gradient: other map": lambda o: _depthwise_gradient(o, _normal(1, 4, 5, 8)),
    "grey: three channels": lambda o: o.fashion_grey(_normal(1, 5, 5, 3), _normal(3, 3, 3, 8)),
    "grey: kernel 1×1": lambda o: o.fashion_grey(_normal(1, 5, 5, 1), _normal(1, 1, 3, 8)),
    "grey gradient: short mean": lambda o: _grey_gradient(o, mean=7),
    "pointwise gradient: short moments": lambda o: _pointwise_gradient(o, _normal(1, 2, 2, 4), moments=3),
    "depthwise gradient: short moments": lambda o: _depthwise_gradient(o, _normal(1, 5, 5, 8), moments=7),
    "normalise gradient: lengths differ": lambda o: o.fashion_normalise_gradient(*_vector(8, 8, 8, 8, 7), epsilon=1e-3),
    "adam: no variable": lambda o: _adam(o, handles=0),
    "adam: another moment": lambda o: _adam(o, moment=7),
    "adam: another gradient": lambda o: _adam(o, gradient=9),
    "adam: decay of other variables": lambda o: _adam(o, decayed=2),
    "normalise: lengths differ": lambda o: o.fashion_normalise(*_vector(8, 8, 8, 7, 8, 8), epsilon=1e-3, momentum=0.9),
}


@pytest.mark.parametrize("what", INVALID)
def test_wrong_shapes_are_invalid_arguments(operations: ModuleType, what: str) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        INVALID[what](operations)


def test_shapes_are_known_before_anything_runs(operations: ModuleType) -> None:
    @tf.function(input_signature=[tf.TensorSpec((None, None, 7, 8)), tf.TensorSpec((3, 3, 8, 1))])
    def trace(z: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        y, mean, _ = operations.fashion_depthwise(z, *_vector(8, 8), kernel, stride=2)
        assert y.shape.as_list() == [None, None, 3, 8]
        assert mean.shape.as_list() == [8]
        return y

    assert trace(_normal(2, 9, 7, 8), _normal(3, 3, 8, 1)).shape == (2, 4, 3, 8)


def test_nan_passes_through_the_activation(operations: ModuleType) -> None:
    z = np.zeros((1, 3, 3, 40), "float32")
    z[0, 1, 1, :] = np.nan
    for y, *_ in (
        operations.fashion_depthwise(z, *_vector(40, 40), _normal(3, 3, 40, 1), stride=1),
        operations.fashion_pointwise(z, *_vector(40, 40), _normal(1, 1, 40, 40)),
    ):
        assert np.isnan(y[0, 1, 1]).all()


_ONE_STEP = """
import hashlib, sys, numpy as np, tensorflow as tf, keras
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
from job.model import mobilenet, optimizer
keras.utils.set_random_seed(1)
model = mobilenet.backbone()
adam = optimizer.Adam(1e-3)
adam.build(model.trainable_variables)
images = np.random.default_rng(1).normal(size=(9, 48, 48, 1)).astype("float32")
@tf.function
def step():
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, training=True) ** 2)
    adam.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
step(), step()
print(hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.weights)).hexdigest())
"""


def test_results_are_the_same_bits_for_any_number_of_threads(compiled: None) -> None:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "FASHION_KERNELS": ""}
    digests = set()
    for threads in (1, 2, 5):
        command = [sys.executable, "-c", _ONE_STEP, str(threads)]
        digests.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(digests) == 1
    assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2
