"""Callbacks for ``model.fit`` on several ranks. All of them do nothing harmful in a single process.

Put them first in the list and in this order, so that what later callbacks log and save is common to all ranks:
:class:`BroadcastInitialState`, :class:`BatchNormStatistics`, :class:`MetricAverage`, then the others.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.utils.python_utils import pythonify_logs

from horovod_keras.batch_norm import average_statistics
from horovod_keras.collectives import Collectives
from horovod_keras.optimizer import Exchange


class BroadcastInitialState(keras.callbacks.Callback):
    """Give all ranks rank 0's weights, optimizer slots and seeds when training begins.

    A model whose layers are built by their first batch gets them right after it. Seeds of random layers are rank 0's,
    moved on by the rank: ranks that drew the same dropout for different images would average less noise away.

    Raises:
        ValueError: when training begins, if ``compile`` has put a ``LossScaleOptimizer`` around a distributed one.
    """

    def __init__(self, ranks: Collectives) -> None:
        super().__init__()
        self.ranks = ranks
        self._done = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        optimizer = self.model.optimizer
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if self.ranks.size > 1 and scaled and not hasattr(optimizer, "exchange"):
            raise ValueError(
                "a loss scale of one rank would hang the others: distribute LossScaleOptimizer(optimizer)."
            )
        if all(layer.built for layer in self.model._flatten_layers()):
            self._broadcast()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._broadcast()

    def _broadcast(self) -> None:
        # Once is enough, also when training goes on in a second `fit`: the ranks stay equal.
        if self.ranks.size == 1 or self._done:
            return
        self._done = True
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        for index, variable in enumerate([*self.model.variables, *optimizer.variables]):
            value = self.ranks.broadcast(variable.value, f"initial/{index}")
            if variable.path.endswith("seed_generator_state"):
                value = tf.tensor_scatter_nd_add(value, [[0]], [tf.cast(self.ranks.rank, value.dtype)])
            variable.assign(value)


class WarmUp(keras.callbacks.Callback):
    """Raise the learning rate linearly from that of one rank to ``size`` times that, then leave it alone.

    Goyal et al. 2017, "Accurate, Large Minibatch SGD" (arXiv:1706.02677), section 2.2: N ranks see N times the batch,
    so the rate is N times as large, reached gradually.

    Args:
        ranks: whose number scales the rate.
        learning_rate: of one rank. Not read from the optimizer, which has another one after a resume.
        steps: updates until the full rate is reached; 0 scales at once.

    Raises:
        ValueError: when training begins, if the optimizer's rate is a schedule: put the warm-up into that instead.
    """

    def __init__(self, ranks: Collectives, *, learning_rate: float, steps: int) -> None:
        super().__init__()
        self.ranks, self.learning_rate, self.steps = ranks, learning_rate, steps

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not isinstance(self.model.optimizer._learning_rate, keras.Variable):
            raise ValueError("WarmUp needs a learning rate that can be set: received a schedule. Put it in there.")

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        done = int(self.model.optimizer.iterations)
        if done <= self.steps:
            progress = 1.0 if self.steps == 0 else done / self.steps
            self.model.optimizer.learning_rate = self.learning_rate * (1 + (self.ranks.size - 1) * progress)


class BatchNormStatistics(keras.callbacks.Callback):
    """Average batch normalisation's moving statistics over ranks before evaluation and at the end of each epoch."""

    def __init__(self, ranks: Collectives) -> None:
        super().__init__()
        self.ranks = ranks

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        average_statistics(self.model, self.ranks)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        average_statistics(self.model, self.ranks)


class MetricAverage(keras.callbacks.Callback):
    """Replace the metrics of each epoch by those over all ranks' examples: by count, not by rank.

    A metric's state (for example total and count) is summed over ranks and its result computed from that; right for
    all metrics whose state adds up, which Keras' means, accuracies, counts and confusion matrices do.
    """

    def __init__(self, ranks: Collectives) -> None:
        super().__init__()
        self.ranks = ranks
        self._training: dict[str, Any] = {}
        self._validation: dict[str, Any] = {}
        self._in_fit = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._in_fit = True
        self._training, self._validation = {}, {}

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        # `fit` evaluates before it ends the epoch, and evaluation resets the metrics: this is the last moment.
        if self._in_fit:
            self._training = self._over_ranks("training")

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._validation = self._over_ranks("validation")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._in_fit = False
        if logs is not None:
            logs.update(self._training or self._over_ranks("training"))
            logs.update({f"val_{name}": value for name, value in self._validation.items()})

    def _over_ranks(self, what: str) -> dict[str, Any]:
        states = [variable for metric in self.model.metrics for variable in metric.variables]
        local = [np.array(variable) for variable in states]
        for index, variable in enumerate(states):
            variable.assign(self.ranks.sum(variable.value, f"metrics/{what}/{index}"))
        # As Keras gives them to callbacks: numbers, and arrays of metrics that have a value for each class.
        results = pythonify_logs(self.model.get_metrics_result())
        for variable, value in zip(states, local, strict=True):
            variable.assign(value)
        return results


class AgreedStop(keras.callbacks.Callback):
    """Stop all ranks after the same update, once any of them has called :meth:`request`.

    The request travels with the gradients, so agreement costs no message of its own.

    Args:
        exchange: the ``exchange`` of a distributed optimizer.
    """

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange
        self._request = 0.0

    def request(self) -> None:
        """Ask all ranks to stop; safe in a signal handler, since it only notes the wish for the next step."""
        self._request = 1.0

    @property
    def agreed(self) -> bool:
        """Whether the ranks have agreed to stop."""
        return float(self.exchange.agreed[Exchange.STOP]) > 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.exchange.requests[Exchange.STOP].assign(self._request)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.agreed:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.agreed:  # done: another `fit` is not to end after its first update
            self._request = 0.0
