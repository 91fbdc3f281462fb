"""The training layers: the same weights and the same mathematics as Keras' own layers, in fewer passes over memory."""

from collections.abc import Callable

import keras
import tensorflow as tf

Synchronise = Callable[[tf.Tensor, str], tf.Tensor]


class GreyConv(keras.layers.Conv2D):
    """The first convolution of a grey image that stock MobileNet would see as three equal channels.

    The kernel keeps its three input channels, as ImageNet's weights have them; it is summed over them before use,
    so that the gradient reaches all three. float [B, H, W, 1] → [B, ⌈H/2⌉, ⌈W/2⌉, filters].
    """

    def __init__(self, filters: int, *, channels: int = 3, **options: object) -> None:
        super().__init__(filters, 3, strides=2, padding="same", use_bias=False, **options)
        self.channels = channels

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build((*input_shape[:-1], self.channels))
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: 1})

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        folded = tf.reduce_sum(tf.convert_to_tensor(self.kernel), axis=2, keepdims=True)
        return tf.nn.conv2d(inputs, folded, 2, "SAME")


class Depthwise(keras.layers.DepthwiseConv2D):
    """Depthwise 3×3 convolution; with stride 2 it pads one row below and one column to the right, as MobileNet does."""

    def __init__(self, *, stride: int, **options: object) -> None:
        super().__init__(3, strides=stride, padding="same", use_bias=False, **options)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        stride = self.strides[0]
        kernel = tf.convert_to_tensor(self.kernel)
        if stride == 1:
            return tf.nn.depthwise_conv2d(inputs, kernel, [1, 1, 1, 1], "SAME")
        padded = tf.pad(inputs, [[0, 0], [0, 1], [0, 1], [0, 0]])
        return tf.nn.depthwise_conv2d(padded, kernel, [1, stride, stride, 1], "VALID")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        if self.strides[0] == 1:
            return tuple(input_shape)
        batch, height, width, channels = input_shape
        return (batch, None if height is None else height // 2, None if width is None else width // 2, channels)


class Pointwise(keras.layers.Conv2D):
    """1×1 convolution as one matrix product over all pixels."""

    def __init__(self, filters: int, **options: object) -> None:
        super().__init__(filters, 1, padding="same", use_bias=False, **options)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernel)
        rows = tf.reshape(inputs, [-1, kernel.shape[2]])
        product = tf.matmul(rows, kernel[0, 0])
        return tf.reshape(product, tf.concat([tf.shape(inputs)[:3], [self.filters]], axis=0))


class NormRelu(keras.layers.BatchNormalization):
    """Batch normalisation over all but the channels, with ReLU6 behind it, as one layer.

    `sync`, when set, averages a float32 [C] vector over the ranks (its second argument names which: "mean" or
    "variance"); it must be differentiable. Moving statistics follow Keras on TensorFlow: biased variance, one momentum
    for both.
    """

    sync: Synchronise | None = None

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if not (training and self.trainable):
            mean, variance = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
            normalised, *_ = tf.compat.v1.nn.fused_batch_norm(
                inputs, gamma, beta, mean, variance, epsilon=self.epsilon, is_training=False
            )
            return tf.nn.relu6(normalised)
        if self.sync is not None:
            return self._synchronised(inputs, gamma, beta)
        normalised, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, gamma, beta, epsilon=self.epsilon, is_training=True
        )
        # TensorFlow reports the unbiased variance; Keras keeps the biased one.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
        self._move(mean, variance * tf.maximum(count - 1, 1) / count)
        return tf.nn.relu6(normalised)

    def _synchronised(self, inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(inputs, tf.float32)
        mean, variance = synchronise(self.sync, *tf.nn.moments(wide, [0, 1, 2]))
        self._move(mean, variance)
        normalised = tf.nn.batch_normalization(wide, mean, variance, beta, gamma, self.epsilon)
        return tf.nn.relu6(tf.cast(normalised, inputs.dtype))

    def _move(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + tf.stop_gradient(new) * (1.0 - self.momentum))


def synchronise(sync: Synchronise | None, mean: tf.Tensor, variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and biased variance over all ranks, from those of this rank (both float32 [C]).

    In two exchanges, because a mean of squares less the square of the mean would lose the digits that matter.
    """
    if sync is None:
        return mean, variance
    common = sync(mean, "mean")
    return common, sync(variance + tf.square(mean - common), "variance")
