"""Callbacks in one process: what a second `fit` and a resumed one make of them."""

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import horovod_keras
from horovod_keras.callbacks import AgreedStop, WarmUp

X, Y = np.ones((32, 3), "float32"), np.zeros((32, 1), "float32")


def compiled(optimizer: keras.Optimizer) -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def batches(model: keras.Model, *callbacks: keras.callbacks.Callback) -> int:
    count: list[int] = []
    counting = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: count.append(batch))
    model.fit(X, Y, batch_size=4, verbose=0, callbacks=[*callbacks, counting])
    return len(count)


def test_a_warm_up_that_is_resumed_halfway_ends_at_the_same_rate() -> None:
    four: Any = SimpleNamespace(size=4)
    model = compiled(keras.optimizers.SGD(0.1))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.learning_rate = 0.25  # as a checkpoint from the middle of the warm-up has it
    model.optimizer.iterations.assign(4)
    assert batches(model, WarmUp(four, learning_rate=0.1, steps=8)) == 8
    assert float(model.optimizer.learning_rate) == pytest.approx(0.4)


def test_a_warm_up_of_a_schedule_is_refused() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    one: Any = SimpleNamespace(size=1)
    with pytest.raises(ValueError, match="can be set: received a schedule"):
        batches(compiled(keras.optimizers.SGD(schedule)), WarmUp(one, learning_rate=0.1, steps=0))


def test_a_stop_is_for_the_fit_that_it_ends() -> None:
    model = compiled(horovod_keras.distribute(keras.optimizers.SGD(0.1), horovod_keras.join()))
    stop = AgreedStop(model.optimizer.exchange)
    stop.request()  # perhaps by a signal, before training has begun
    assert batches(model, stop) == 1 and stop.agreed
    assert batches(model, stop) == 8 and not stop.agreed
