"""MobileNet v1 (Howard et al. 2017, arXiv:1704.04861) for grey garments: to train fast, and to serve anywhere."""

from collections.abc import Callable
from functools import partial

import keras
import tensorflow as tf

from job.data.arrays import SIDE
from job.model import kernels
from job.model.fused import FusedDepthwise, FusedGreyConv, FusedNormRelu, FusedPointwise, FusedPool
from job.model.layers import Depthwise, GreyConv, NormRelu, Pointwise

keras.config.set_image_data_format("channels_last")  # whatever keras.json says: the operations know no other

BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
"""Output channels (at width 1.0) and stride of each depthwise-separable block."""


def backbone(*, alpha: float = 1.0, batch_norm_momentum: float = 0.99, fast: bool = True) -> keras.Model:
    """MobileNet without its classifier: float32 [B, H, W, 1], scaled, H and W ≥ 32 → [B, int(1024·alpha)].

    With `fast` it is made of our training layers, else of Keras' own over three equal channels. Both have the weights
    of `keras.applications.MobileNet(include_top=False, pooling="avg")`, in its order, under its layers' names.
    """
    image = keras.Input((None, None, 1), name="image")
    if not fast:
        stock = _stock(keras.layers.Concatenate(name="grey_to_colour")([image] * 3), alpha)
        for layer in stock.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = batch_norm_momentum
        return stock
    grey, depthwise, pointwise, norm, pool = _training_layers()
    x = norm(momentum=batch_norm_momentum, name="conv1_bn")(grey(int(32 * alpha), name="conv1")(image))
    for number, (filters, stride) in enumerate(BLOCKS, start=1):
        x = depthwise(stride=stride, name=f"conv_dw_{number}")(x)
        x = norm(momentum=batch_norm_momentum, name=f"conv_dw_{number}_bn")(x)
        x = pointwise(int(filters * alpha), name=f"conv_pw_{number}")(x)
        x = norm(momentum=batch_norm_momentum, name=f"conv_pw_{number}_bn")(x)
    x = pool(name="pool")(x)
    return keras.Model(image, x, name=f"mobilenet_{alpha:0.2f}")


def _training_layers() -> tuple[Callable[..., keras.Layer], ...]:
    """The makers of first convolution, depthwise, pointwise, normalisation and pooling layers for this process."""
    operations = kernels.load()
    if operations is None or keras.config.dtype_policy().compute_dtype != "float32":
        return GreyConv, Depthwise, Pointwise, NormRelu, keras.layers.GlobalAveragePooling2D
    convolutions = [partial(kind, operations=operations) for kind in (FusedGreyConv, FusedDepthwise, FusedPointwise)]
    return *convolutions, partial(FusedNormRelu, operations=operations), FusedPool


def serving_model(
    *,
    resolution: int,
    input_range: tuple[float, float],
    dropout: float,
    alpha: float = 1.0,
    classes: int = 10,
) -> keras.Model:
    """The whole network from stock layers only: uint8 [B, 28, 28] → float32 [B, classes] probabilities.

    Its backbone is the layer "backbone" (set its weights from `backbone(...)`), its classifier "predictions".
    Saved as model.keras it loads in plain Keras, in safe mode.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        low, high = input_range
        images = keras.Input((SIDE, SIDE), dtype="uint8", name="image")
        x = keras.layers.Reshape((SIDE, SIDE, 1), name="channel")(images)
        x = keras.layers.Rescaling((high - low) / 255, low, name="scale")(x)
        resize = keras.layers.Resizing(resolution, resolution, interpolation="bilinear", name="resize")
        # Said outright: Keras would take this layer's default for all later ones and normalise by the batch.
        x = resize(x, training=False)
        x = keras.layers.Concatenate(name="grey_to_colour")([x] * 3)
        x = _stock(keras.Input((resolution, resolution, 3)), alpha, name="backbone")(x)
        x = keras.layers.Dropout(dropout, name="dropout")(x)
        x = keras.layers.Dense(classes, activation="softmax", name="predictions")(x)
        return keras.Model(images, x, name="garments")
    finally:
        keras.config.set_dtype_policy(policy)


def evaluation_batch(resolution: int) -> int:
    """Images to evaluate at a time: 250 at 56 px and below, fewer at larger sizes, for about the same memory."""
    return max(1, min(250, 250 * 56**2 // resolution**2))


def prepare(images: tf.Tensor, resolution: int, input_range: tuple[float, float]) -> tf.Tensor:
    """What `serving_model` does before its network: uint8 [B, 28, 28] → float32 [B, resolution, resolution, 1]."""
    low, high = input_range
    scaled = tf.cast(images, tf.float32)[..., tf.newaxis] * ((high - low) / 255) + low
    return tf.image.resize(scaled, (resolution, resolution), "bilinear")


def _stock(colour: keras.KerasTensor, alpha: float, name: str | None = None) -> keras.Model:
    return keras.applications.MobileNet(
        input_tensor=colour,
        input_shape=tuple(colour.shape[1:]),
        alpha=alpha,
        include_top=False,
        weights=None,
        pooling="avg",
        name=name or f"mobilenet_{alpha:0.2f}",
    )
