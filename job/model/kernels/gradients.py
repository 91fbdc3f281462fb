"""Gradients of our C++ operations, made of our C++ operations."""

import functools
from types import ModuleType
from typing import Any

import tensorflow as tf

Gradients = list[Any]


@functools.cache
def register(operations: ModuleType) -> None:
    """Tell TensorFlow the gradients of `operations`, once for each library."""

    @tf.RegisterGradient("FashionPointwise")
    def pointwise(op: tf.Operation, dy: tf.Tensor, d_mean: tf.Tensor, d_variance: tf.Tensor) -> Gradients:
        y, mean, _ = op.outputs
        return operations.fashion_pointwise_gradient(*op.inputs, y, dy, mean, d_mean, d_variance)

    @tf.RegisterGradient("FashionDepthwise")
    def depthwise(op: tf.Operation, dy: tf.Tensor, d_mean: tf.Tensor, d_variance: tf.Tensor) -> Gradients:
        y, mean, _ = op.outputs
        stride = op.get_attr("stride")
        return operations.fashion_depthwise_gradient(*op.inputs, y, dy, mean, d_mean, d_variance, stride=stride)

    @tf.RegisterGradient("FashionGrey")
    def grey(op: tf.Operation, dy: tf.Tensor, d_mean: tf.Tensor, d_variance: tf.Tensor) -> Gradients:
        image, kernel = op.inputs
        y, mean, _ = op.outputs
        # Nobody trains images: outside a function this costs a little, inside one it is pruned.
        rows = tf.cast(tf.size(y, tf.int64) // tf.size(mean, tf.int64), tf.float32)
        whole = dy + d_mean / rows + 2 * d_variance / rows * (y - mean)
        folded = tf.reduce_sum(kernel, axis=2, keepdims=True)
        d_image = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(image), filter=folded, out_backprop=whole, strides=[1, 2, 2, 1], padding="SAME"
        )
        return [d_image, operations.fashion_grey_gradient(image, kernel, y, dy, mean, d_mean, d_variance)]

    @tf.RegisterGradient("FashionNormalise")
    def normalise(op: tf.Operation, d_scale: tf.Tensor, d_shift: tf.Tensor, *_: tf.Tensor) -> Gradients:
        mean, variance, gamma, *_ = op.inputs
        epsilon = op.get_attr("epsilon")
        return [
            *operations.fashion_normalise_gradient(mean, variance, gamma, d_scale, d_shift, epsilon=epsilon),
            None,
            None,
        ]
