"""The training layers on our C++ operations for CPUs.

They pass on no activations but [z, scale, shift]: whoever reads z forms the activation relu6(z · scale + shift). A
convolution gives [y, mean, variance]: the moments of its output are gathered while it is written. So normalisation and
activation take no pass over a map of their own on the way forward, and batch normalisation works on vectors alone.
"""

from types import ModuleType
from typing import Any

import keras
import tensorflow as tf

from job.model.layers import Depthwise, GreyConv, NormRelu, Pointwise, synchronise

Shape = tuple[int | None, ...]


class _Fused:
    """What the layers below share: inputs and outputs that are lists of a map and two vectors over its channels."""

    def __init__(self, *arguments: Any, operations: ModuleType, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._operations = operations
        self.input_spec = None  # Keras would insist on one input

    def build(self, input_shape: Any) -> None:
        super().build(input_shape[0])  # type: ignore[misc]
        self.input_spec = None

    def compute_output_shape(self, input_shape: Any) -> Any:
        if not isinstance(input_shape[0], tuple | list):  # Keras' own build asks about the map alone
            return super().compute_output_shape(input_shape)  # type: ignore[misc]
        map_shape = super().compute_output_shape(input_shape[0])  # type: ignore[misc]
        return [map_shape, (map_shape[-1],), (map_shape[-1],)]


class FusedGreyConv(_Fused, GreyConv):
    """float32 [B, H, W, 1] → [y, mean, variance]."""

    def build(self, input_shape: Any) -> None:
        super().build([input_shape])

    def compute_output_shape(self, input_shape: Any) -> Any:
        return super().compute_output_shape([input_shape] if self.built else input_shape)

    def call(self, inputs: tf.Tensor) -> list[tf.Tensor]:
        return list(self._operations.fashion_grey(inputs, tf.convert_to_tensor(self.kernel)))


class FusedDepthwise(_Fused, Depthwise):
    """[z, scale, shift] → [y, mean, variance]."""

    def call(self, inputs: list[tf.Tensor]) -> list[tf.Tensor]:
        kernel = tf.convert_to_tensor(self.kernel)
        return list(self._operations.fashion_depthwise(*inputs, kernel, stride=self.strides[0]))


class FusedPointwise(_Fused, Pointwise):
    """[z, scale, shift] → [y, mean, variance]."""

    def call(self, inputs: list[tf.Tensor]) -> list[tf.Tensor]:
        return list(self._operations.fashion_pointwise(*inputs, tf.convert_to_tensor(self.kernel)))


class FusedNormRelu(_Fused, NormRelu):
    """[y, mean, variance] → [y, scale, shift]."""

    def call(self, inputs: list[tf.Tensor], training: bool | None = None) -> list[tf.Tensor]:
        z, mean, variance = inputs
        moving = [tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)]
        learns = training and self.trainable
        mean, variance = synchronise(self.sync, mean, variance) if learns else moving
        scale, shift, *moved = self._operations.fashion_normalise(
            mean,
            variance,
            tf.convert_to_tensor(self.gamma),
            tf.convert_to_tensor(self.beta),
            *moving,
            epsilon=self.epsilon,
            momentum=self.momentum,
        )
        if learns:
            self.moving_mean.assign(moved[0])
            self.moving_variance.assign(moved[1])
        return [z, scale, shift]


class FusedPool(keras.layers.Layer):
    """[z, scale, shift] → the mean of the activation over its map: float32 [B, C]."""

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        z, scale, shift = inputs
        return tf.reduce_mean(tf.nn.relu6(z * scale + shift), axis=[1, 2])

    def compute_output_shape(self, input_shape: list[Shape]) -> Shape:
        return (input_shape[0][0], input_shape[0][-1])
