"""The model as it is trained: raw images in, augmentation keys beside them, one update out.

It holds the fast network (``job.model.mobilenet.backbone``) and a classifier. What is saved is the stock network with
the same weights (:meth:`TrainingModel.serving_model`).
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from horovod_keras import Collectives, distribute
from horovod_keras.batch_norm import moving_statistics, synchronise
from horovod_keras.optimizer import Exchange
from job.config import Config
from job.model import kernels, mobilenet, optimizer
from job.model.weights import load_imagenet

CLASSES = 10
RANGES = {"0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0)}
LOSS_SCALE = 128.0  # lifts float16 gradients over the smallest number that float16 can hold, and not over the largest


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to the peak, then constant, or down to 0 linearly or along a cosine.

    Args:
        peak: learning rate after the warm-up.
        steps: updates in all.
        warmup: share of the updates in which the rate rises from 0.
        shape: ``constant``, ``linear`` or ``cosine``.
        batches: of an update; the optimizer counts these.
    """

    def __init__(self, peak: float, steps: int, warmup: float, shape: str, batches: int = 1) -> None:
        self.factor = 1.0
        """What the rate is multiplied by; read when a step is traced."""
        self.peak, self.steps, self.warmup, self.shape, self.batches = peak, steps, warmup, shape, batches

    def __call__(self, step: Any) -> tf.Tensor:
        done = tf.cast(step // self.batches, tf.float32)
        rising = self.warmup * self.steps
        left = tf.clip_by_value((self.steps - done) / max(self.steps - rising, 1.0), 0.0, 1.0)
        fall = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * tf.cos(np.pi * left)}[self.shape]
        rise = tf.minimum((done + 1.0) / rising, 1.0) if rising else 1.0
        return self.factor * self.peak * rise * fall

    def get_config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("peak", "steps", "warmup", "shape", "batches")}


def dropout_mask(keys: tf.Tensor, features: int, rate: float) -> tf.Tensor:
    """Inverted dropout drawn per image from its key, so that it doesn't depend on batches and ranks.

    Args:
        keys: int64 [b], one hash per image and epoch.
        features: columns of the mask.
        rate: share of zeros.

    Returns:
        float32 [b, features], each 0 or 1 / (1 - rate).

    The key of an image and the number of the feature are mixed by two rounds of multiplying and shifting (constants of
    MurmurHash3's 64-bit finaliser, Austin Appleby).
    """
    columns = tf.range(1, features + 1, dtype=tf.int64) * -7046029254386353131
    bits = keys[:, None] + columns[None, :]
    for multiplier in (-49064778989728563, -4265267296055464877):
        bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, 33)) * multiplier
    # The 24 high bits, made non-negative: a uniform number with the precision of a float32.
    uniform = tf.cast(tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, 40), 0xFFFFFF), tf.float32) / float(1 << 24)
    return tf.where(uniform >= rate, 1.0 / (1.0 - rate), 0.0)


class TrainingModel(keras.Model):
    """MobileNet with a classifier, trained on batches of (images, labels, keys, global count).

    Images are uint8 [b, 28, 28], labels int32 [b], keys int64 [b]; the global count is the scalar number of images in
    the batch over all ranks. The model gives logits, float32 [b, 10].
    """

    def __init__(self, config: Config, ranks: Collectives) -> None:
        super().__init__(name="training_model")
        self.config = config
        self.ranks = ranks
        self.resolution = config.resolution
        # The dtype of weights, statistics and loss; activations may be narrower.
        self.wide = keras.config.floatx()
        fast = config.precision != "float64"
        self.backbone = mobilenet.backbone(batch_norm_momentum=config.batch_norm_momentum, fast=fast)
        self.classifier = keras.layers.Dense(CLASSES, name="predictions", dtype=self.wide)
        self.classifier.build((None, self.backbone.output_shape[-1]))
        self.loss_mean = keras.metrics.Mean(name="loss")
        self.accuracy_mean = keras.metrics.Mean(name="accuracy")
        # The loss of the latest batch over all ranks: the same on each of them, so all see a NaN after the same update.
        self.batch_loss = tf.Variable(tf.zeros((), self.wide), trainable=False, name="batch_loss")
        self.built = True

    def at_resolution(self, resolution: int) -> None:
        """Feed the network images of this side from now on; the next step is traced anew."""
        if resolution != self.resolution:
            self.resolution = resolution
            self.train_function = self.test_function = self.predict_function = None

    def at_rate(self, factor: float) -> None:
        """Multiply the schedule's learning rate by a factor from now on; the next step is traced anew."""
        self.optimizer._learning_rate.factor = factor
        self.train_function = None

    def call(self, images: tf.Tensor, keys: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        inputs = mobilenet.prepare(images, self.resolution, RANGES[self.config.input_range])
        features = tf.cast(self.backbone(tf.cast(inputs, self.wide), training=training), self.wide)
        if training and keys is not None and self.config.dropout:
            mask = dropout_mask(keys, features.shape[-1], self.config.dropout)
            features = features * tf.cast(mask, features.dtype)
        return self.classifier(features)

    @property
    def metrics(self) -> list[keras.Metric]:
        return [self.loss_mean, self.accuracy_mean]

    def train_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        images, labels, keys, global_count = data
        # This rank's share of the batch, relative to an equal share: weighs its statistics and its loss.
        self.share = tf.cast(tf.size(labels) * self.ranks.size, self.wide) / tf.cast(global_count, self.wide)
        with tf.GradientTape() as tape:
            logits = self(images, keys, training=True)
            smoothing = self.config.label_smoothing
            targets = tf.one_hot(labels, CLASSES, dtype=self.wide) * (1 - smoothing) + smoothing / CLASSES
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            # Shares of a batch differ by up to one image: so weighted, the mean over ranks is the mean over images.
            loss = tf.reduce_mean(losses) * self.share
            scaled = self.optimizer.scale_loss(loss)
        self.batch_loss.assign(loss)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        return self._score(losses, logits, labels)

    def test_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        images, labels = data
        logits = self(images, training=False)
        return self._score(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits), logits, labels)

    def _score(self, losses: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        self.loss_mean.update_state(losses)
        self.accuracy_mean.update_state(tf.argmax(logits, -1, output_type=labels.dtype) == labels)
        return {metric.name: metric.result() for metric in self.metrics}

    def predict_step(self, data: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(self(data, training=False))

    def serving_model(self) -> keras.Model:
        """The stock network with this model's weights: raw uint8 [b, 28, 28] → probabilities float32 [b, 10]."""
        config = self.config
        model = mobilenet.serving_model(
            resolution=config.resolution,
            input_range=RANGES[config.input_range],
            dropout=config.dropout,
            classes=CLASSES,
        )
        model.set_weights(self.backbone.get_weights() + self.classifier.get_weights())
        return model


def build(config: Config, ranks: Collectives, steps: int, weights: Path | None = None) -> TrainingModel:
    """A compiled model at the start of its training: initial weights, optimizer, schedule.

    Args:
        config: of the run.
        ranks: to train on.
        steps: batches of the whole run, which the schedule covers.
        weights: file of the backbone's initial weights; None: random ones.

    Raises:
        InputError: the weights aren't there, or aren't a MobileNet's.
    """
    keras.utils.set_random_seed(config.seed)
    keras.config.set_floatx("float64" if config.precision == "float64" else "float32")
    mixed = config.precision in ("bfloat16", "float16") and not kernels.in_bfloat16()
    keras.config.set_dtype_policy(f"mixed_{config.precision}" if mixed else keras.config.floatx())
    if mixed and kernels.load():
        kernels.allow(f"ours have no {config.precision} here, and on a CPU TensorFlow's is slower than float32")
    model = TrainingModel(config, ranks)
    if weights:
        load_imagenet(model.backbone, weights)
    # The optimizer scales the loss itself, by a constant: Keras' own scale would be another one on each rank.
    model.compile(_optimizer(config, ranks, steps, model), jit_compile=config.xla, auto_scale_loss=False)
    model.optimizer.build(model.trainable_variables)
    exchange: Exchange = model.optimizer.exchange
    exchange.common = [*moving_statistics(model.backbone), model.batch_loss]
    if config.sync_batch_norm:
        _synchronise(model, ranks)
    return model


def _optimizer(config: Config, ranks: Collectives, steps: int, model: TrainingModel) -> keras.Optimizer:
    updates = steps // config.accumulate
    schedule = Schedule(config.learning_rate, updates, config.warmup, config.schedule, config.accumulate)
    options = {"learning_rate": schedule, "beta_2": config.beta_2}
    if config.precision == "float16":
        options["loss_scale_factor"] = LOSS_SCALE
    if config.optimizer == "adamw":
        plain = optimizer.AdamW(weight_decay=config.weight_decay, **options)
    else:
        plain = optimizer.Adam(**options)
    result = distribute(plain, ranks, accumulation_steps=config.accumulate, compression=config.compression)
    if config.weight_decay:
        result.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if len(v.shape) < 2])
    return result


def _synchronise(model: TrainingModel, ranks: Collectives) -> None:
    def weighed_mean(vector: tf.Tensor, name: str) -> tf.Tensor:
        return ranks.mean(vector * model.share, name)

    synchronise(model.backbone, weighed_mean)
    for layer in model.backbone.layers:
        if hasattr(layer, "sync"):
            layer.sync = lambda vector, what, name=layer.name: weighed_mean(vector, f"{name}/{what}")
