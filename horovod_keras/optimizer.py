"""An optimizer that averages gradients over ranks before it uses them.

Keras 3 offers one place where a gradient passes exactly once per update, after local accumulation and before clipping
and weight decay: ``_clip_gradients``. Averaging there means that accumulated steps cost no communication and that
clipping sees the gradient of the global batch.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf
from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

from horovod_keras.collectives import Collectives
from horovod_keras.shared_memory import SharedMemory, shared_memory

# Gradients from this size on travel alone and start as soon as they are ready, while the backward pass goes on; smaller
# ones are copied together, because each message costs its latency. In elements.
ALONE = 1 << 17


class Exchange:
    """What one rank sends to the others with each update: gradients, requests, and values that must stay equal.

    Attributes:
        requests: variable [3] of Keras' floatx; a rank that wants all to stop sets element STOP to 1, to save SAVE, to
            meet anew MEET.
        agreed: the like; above 0 on all ranks, after the same update, once any rank has requested it.
        total: variable [], the sum of the latest averaged gradients: the same on all ranks, and not finite where any of
            them isn't.
        common: variables of Keras' floatx that become their mean over ranks at each update, as moving statistics do.
        share: whether gradients may go through shared memory where all ranks are on one host; set before any step.
        waited: variable, float64, seconds so far between this rank's last gradient and the last mean over ranks: the
            part of the exchange that the backward pass does not hide, waiting for slower ranks included.
    """

    STOP, SAVE, MEET = 0, 1, 2

    def __init__(self, ranks: Collectives, compression: Literal["none", "fp16"]) -> None:
        self.ranks = ranks
        self.compression = compression
        nothing = tf.zeros(3, keras.config.floatx())
        self.requests = tf.Variable(nothing, trainable=False, name="requests")
        self.agreed = tf.Variable(nothing, trainable=False, name="agreed")
        self.total = tf.Variable(nothing[0], trainable=False, name="total")
        self.common: list[tf.Variable] = []
        self.share = True
        self.waited = tf.Variable(0.0, trainable=False, dtype=tf.float64, name="waited")
        self._memories: dict[tuple[Any, ...], SharedMemory | None] = {}

    def average(self, gradients: Sequence[tf.Tensor | tf.IndexedSlices]) -> list[tf.Tensor]:
        """The mean over ranks of each gradient (same shapes and dtypes), dense."""
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
        if self.ranks.size == 1:
            self.agreed.assign(self.requests)
            self._add_up(dense)
            return dense
        begun = _time_after(dense)
        memory = self._shared_memory(dense)
        means, common, agreed = self._through_memory(memory, dense) if memory else self._by_message(dense)
        for variable, value in zip(self.common, common, strict=True):
            variable.assign(value)
        self.agreed.assign(agreed)
        self.waited.assign_add(_time_after([*means, *common, agreed]) - begun)
        return means

    def _by_message(self, dense: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor]:
        """The means of the gradients and of what is common, and what is agreed, by Horovod."""
        results: dict[int, tf.Tensor] = {}
        together: dict[tf.DType, list[int]] = {}
        for index, gradient in enumerate(dense):
            if gradient.shape.num_elements() >= ALONE:
                mean = self.ranks.mean(self._compress(gradient), f"gradient/{index}")
                results[index] = tf.cast(mean, gradient.dtype)
            else:
                together.setdefault(gradient.dtype, []).append(index)
        for dtype, indices in together.items():
            parts = self._mean_together([self._compress(dense[i]) for i in indices], f"gradients/{dtype.name}")
            results |= {i: tf.cast(part, dtype) for i, part in zip(indices, parts, strict=True)}
        # Never compressed: moving statistics are sums of small differences.
        *common, agreed = self._mean_together([*self.common, self.requests], "common")
        means = [results[index] for index in range(len(dense))]
        self._add_up(means)
        return means, common, agreed

    def _shared_memory(self, dense: Sequence[tf.Tensor]) -> SharedMemory | None:
        """For gradients like these; made at the first update of a world with such, which all ranks trace."""
        if not self.share or self.compression != "none":
            return None
        key = (self.ranks.world, *((str(gradient.shape), gradient.dtype) for gradient in dense))
        if key not in self._memories:
            # What earlier worlds used, nobody does any more.
            self._memories = {known: memory for known, memory in self._memories.items() if known[0] == key[0]}
            with tf.init_scope():
                self._memories[key] = shared_memory(self.ranks, dense)
        return self._memories[key]

    def _through_memory(
        self, memory: SharedMemory, dense: Sequence[tf.Tensor]
    ) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor]:
        """The like, gradients by shared memory: all are written when the exchange of what is common is done."""
        written = tf.numpy_function(memory.write, dense, tf.float32)
        with tf.control_dependencies([written]):
            *common, agreed = self._mean_together([*self.common, tf.identity(self.requests)], "common")
        with tf.control_dependencies([agreed]):
            dtypes = [*(gradient.dtype for gradient in dense), tf.float64]
            *means, total = tf.numpy_function(memory.means, [], dtypes)
        self.total.assign(tf.cast(tf.ensure_shape(total, ()), self.total.dtype))
        for mean, gradient in zip(means, dense, strict=True):
            mean.set_shape(gradient.shape)
        return means, common, agreed

    def _add_up(self, gradients: Iterable[tf.Tensor]) -> None:
        self.total.assign(tf.add_n([tf.cast(tf.reduce_sum(gradient), self.total.dtype) for gradient in gradients]))

    def _compress(self, tensor: tf.Tensor) -> tf.Tensor:
        return tf.cast(tensor, tf.float16) if self.compression == "fp16" and tensor.dtype.is_floating else tensor

    def _mean_together(self, tensors: Sequence[Any], name: str) -> list[tf.Tensor]:
        flat = self.ranks.mean(tf.concat([tf.reshape(t, [-1]) for t in tensors], axis=0), name)
        parts = tf.split(flat, [t.shape.num_elements() for t in tensors])
        return [tf.reshape(part, t.shape) for part, t in zip(parts, tensors, strict=True)]


def _time_after(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """The time, in seconds, when all of them are there."""
    # Python's clock: TensorFlow refuses its own where determinism is asked for.
    with tf.control_dependencies(tensors):
        return tf.numpy_function(time.perf_counter, [], tf.float64)


def distribute(
    optimizer: keras.Optimizer,
    ranks: Collectives,
    *,
    accumulation_steps: int = 1,
    compression: Literal["none", "fp16"] = "none",
) -> keras.Optimizer:
    """The same kind of optimizer, averaging its gradients over ranks before each update.

    The result is of a subclass that keeps the class's name, config and slots, so a model saved with it loads where
    neither this package nor Horovod is installed.

    Args:
        optimizer: not yet built; its config is taken, the object itself is left alone. For the policy mixed_float16
            give ``LossScaleOptimizer(...)``: the one that ``compile`` puts around others knows nothing of ranks.
        ranks: the ranks to average over.
        accumulation_steps: batches whose gradients are added up locally between two exchanges.
        compression: ``fp16`` halves the bytes sent; sums are then rounded to half precision.

    Returns:
        The optimizer; its ``exchange`` attribute (:class:`Exchange`) carries requests to stop and to save.

    Raises:
        ValueError: if the optimizer is already built or ``accumulation_steps`` is below 1.
    """
    if optimizer.built:
        raise ValueError(f"optimizer {optimizer.name!r} is already built: distribute it before the first step.")
    if accumulation_steps < 1:
        raise ValueError(f"accumulation_steps must be 1 or more: received {accumulation_steps}.")
    config = optimizer.get_config()
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        inner = distribute(
            optimizer.inner_optimizer, ranks, accumulation_steps=accumulation_steps, compression=compression
        )
        result = _subclass(type(optimizer), check_finite=_finite_on_all(ranks))(**config | {"inner_optimizer": inner})
        result.exchange = inner.exchange
        return result
    base: Any = type(optimizer)

    def _clip_gradients(self: Any, grads: Sequence[tf.Tensor]) -> Any:
        return base._clip_gradients(self, self.exchange.average(grads))

    if not isinstance(optimizer._learning_rate, keras.Variable):
        # A schedule is taken as it is: its class need not be one that Keras can make again from a config.
        config["learning_rate"] = optimizer._learning_rate
    if accumulation_steps > 1:
        config["gradient_accumulation_steps"] = accumulation_steps
    result = _subclass(base, _clip_gradients=_clip_gradients).from_config(config)
    result.exchange = Exchange(ranks, compression)
    for excluded in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):  # in no config
        if hasattr(optimizer, excluded):
            setattr(result, excluded, getattr(optimizer, excluded))
    return result


def _subclass(base: type, **changed: Any) -> Any:
    """A class with some methods changed that a saved model calls by the name of its base."""
    # The public module path is what Keras writes into a saved model for a class that it exports itself.
    module = "keras.optimizers" if getattr(keras.optimizers, base.__name__, None) is base else base.__module__
    subclass = type(base.__name__, (base,), {"__module__": module, **changed})
    if base in GLOBAL_CUSTOM_NAMES:
        GLOBAL_CUSTOM_NAMES[subclass] = GLOBAL_CUSTOM_NAMES[base]
    return subclass


def _finite_on_all(ranks: Collectives) -> Callable[..., tf.Tensor]:
    """A replacement for `LossScaleOptimizer.check_finite`: a rank that skips an update alone would hang the others."""

    def check_finite(self: Any, grads: Sequence[Any]) -> tf.Tensor:
        finite = keras.optimizers.LossScaleOptimizer.check_finite(self, grads)
        return ranks.mean(tf.cast(finite, tf.float32), "finite") > 1 - 0.5 / ranks.size

    return check_finite
