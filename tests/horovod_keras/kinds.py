"""What each rank does in test_kinds.py: models and optimizers that are less usual, and what became of them.

    horovodrun -np 2 python tests/horovod_keras/kinds.py FOLDER

Rank r leaves FOLDER/r.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

import horovod_keras
from horovod_keras.batch_norm import moving_statistics
from horovod_keras.callbacks import BatchNormStatistics, BroadcastInitialState, MetricAverage

GLOBAL_BATCH = 16
numbers = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
labels = np.random.default_rng(1).integers(0, 3, 64)
ranks = horovod_keras.join()


@keras.saving.register_keras_serializable("kinds")
class Registered(keras.optimizers.SGD):
    """An optimizer of a user's own."""


def network(seed: int = 5) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)])


def fit(model: keras.Model, *callbacks: keras.callbacks.Callback, epochs: int = 2) -> list[float]:
    """Train on this rank's share of each global batch, and return the weights."""
    share = GLOBAL_BATCH // ranks.size
    mine = [start + ranks.rank * share + k for start in range(0, 64, GLOBAL_BATCH) for k in range(share)]
    start = BroadcastInitialState(ranks)
    options = {"batch_size": share, "epochs": epochs, "shuffle": False, "verbose": 0}
    model.fit(numbers[mine], np.eye(3, dtype="float32")[labels[mine]], callbacks=[start, *callbacks], **options)
    return weights(model)


def compiled(model: keras.Model, optimizer: keras.Optimizer, **options) -> keras.Model:
    optimizer = horovod_keras.distribute(optimizer, ranks)
    model.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True), jit_compile=False, **options)
    return model


def weights(model: keras.Model) -> list[float]:
    return np.concatenate([np.asarray(v.numpy(), float).ravel() for v in model.trainable_variables]).tolist()


found: dict[str, Any] = {}
f1 = keras.metrics.F1Score(name="f1")  # a value for each class
model = compiled(network(), keras.optimizers.SGD(0.1), metrics=[f1])
fit(model, MetricAverage(ranks))
found["plain"], found["f1"] = weights(model), np.asarray(model.history.history["f1"][-1]).tolist()

# Without the exclusion this decay would leave nothing of the weights.
optimizer = keras.optimizers.SGD(0.1, weight_decay=5.0)
optimizer.exclude_from_weight_decay(var_names=["kernel", "bias"])
found["undecayed"] = fit(compiled(network(), optimizer))

model = compiled(network(), keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
found["scaled"] = fit(model)
scale = float(model.optimizer.dynamic_scale)
overflow = [np.full(v.shape, np.inf if ranks.rank == 0 else 1.0, "float32") for v in model.trainable_variables]
model.optimizer.apply(overflow, model.trainable_variables)
found["skipped"] = [weights(model) == found["scaled"], float(model.optimizer.dynamic_scale) / scale]

model = network()
model.compile(keras.optimizers.LossScaleOptimizer(horovod_keras.distribute(keras.optimizers.SGD(0.1), ranks)), "mse")
try:
    fit(model)
except ValueError as error:
    found["scale_of_one_rank"] = str(error)

# Layers that only their first batch builds, each rank with a seed of its own; statistics of two dtypes.
keras.utils.set_random_seed(ranks.rank)
layers = [keras.layers.BatchNormalization(dtype="float64"), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
model = compiled(keras.Sequential([keras.layers.Dense(4), *layers]), keras.optimizers.Adam(0.01))
found["unbuilt"] = fit(model, BatchNormStatistics(ranks), epochs=1)
found["unbuilt"] += [float(value) for statistic in moving_statistics(model) for value in statistic.numpy()]

# dtypes that Horovod's operations don't know
keras.config.set_dtype_policy("bfloat16")
model = network(seed=ranks.rank)
counter = model.add_weight(shape=(), dtype="uint32", initializer="ones", trainable=False)
counter.assign(7 + ranks.rank)
found["narrow"] = [*fit(compiled(model, keras.optimizers.SGD(0.1)), epochs=1), float(counter.numpy())]
keras.config.set_dtype_policy("float32")

folder = Path(sys.argv[1])
model = compiled(network(), Registered(0.1))
model.save(folder / f"{ranks.rank}.keras")
found["registered"] = type(keras.saving.load_model(folder / f"{ranks.rank}.keras").optimizer) is Registered
(folder / f"{ranks.rank}.json").write_text(json.dumps(found))
ranks.leave()
