"""Batch normalisation over several ranks: moving statistics that agree, and batch statistics of the global batch."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from horovod_keras.collectives import Collectives

MeanOverRanks = Callable[[tf.Tensor, str], tf.Tensor]


def normalisation_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """All layers of the model, nested ones too, that keep moving statistics."""
    layers = model._flatten_layers(include_self=False)
    return [layer for layer in layers if hasattr(layer, "moving_mean") and hasattr(layer, "moving_variance")]


def moving_statistics(model: keras.Model) -> list[tf.Variable]:
    """The moving means and variances, each [channels], in the order of layers."""
    return [v.value for layer in normalisation_layers(model) for v in (layer.moving_mean, layer.moving_variance)]


def average_statistics(model: keras.Model, ranks: Collectives) -> None:
    """Set the moving statistics of all ranks to their mean over ranks (eager)."""
    if ranks.size == 1:
        return
    of_dtype: dict[tf.DType, list[tf.Variable]] = {}
    for variable in moving_statistics(model):
        of_dtype.setdefault(variable.dtype, []).append(variable)
    for dtype, variables in of_dtype.items():
        mean = ranks.mean(tf.concat(variables, axis=0), f"moving_statistics/{dtype.name}")
        for variable, part in zip(variables, tf.split(mean, [v.shape[0] for v in variables]), strict=True):
            variable.assign(part)


def synchronise(model: keras.Model, mean_over_ranks: MeanOverRanks) -> None:
    """Make Keras' ``BatchNormalization`` layers use the mean and variance of the global batch in training.

    Keras' own ``synchronized=True`` knows ``tf.distribute`` alone. The layers stay what they are, so a saved model
    is not changed.

    Args:
        model: whose layers, nested ones too, are changed.
        mean_over_ranks: ``ranks.mean``, or a weighted mean where ranks have different numbers of examples.
    """
    for index, layer in enumerate(normalisation_layers(model)):
        # Subclasses may have their own idea of moments; they are left alone.
        if type(layer) is keras.layers.BatchNormalization:
            layer._moments = global_moments(layer, mean_over_ranks, f"moments/{index}")


def global_moments(layer: Any, mean_over_ranks: MeanOverRanks, name: str) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """A replacement for ``BatchNormalization._moments``: mean and variance over the batches of all ranks."""

    def moments(inputs: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        if mask is not None:
            raise ValueError(f"{layer.name}: masks are not supported with statistics over ranks.")
        axes = [axis for axis in range(len(inputs.shape)) if axis != layer.axis % len(inputs.shape)]
        # Half precision would lose the variance.
        values = inputs if inputs.dtype == tf.float64 else tf.cast(inputs, tf.float32)
        local_mean, local_variance = tf.nn.moments(values, axes)
        mean = mean_over_ranks(local_mean, f"{name}/mean")
        # In two exchanges: a mean of squares less the square of the mean would lose the digits that matter.
        variance = mean_over_ranks(local_variance + tf.square(local_mean - mean), f"{name}/variance")
        return tf.cast(mean, inputs.dtype), tf.cast(variance, inputs.dtype)

    return moments
