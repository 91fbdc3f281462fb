"""What each rank does in test_training.py: all scenarios in one process, since starting it is what takes long.

    horovodrun -np 2 python tests/horovod_keras/world.py FOLDER

Rank r leaves FOLDER/r.json and, from rank 0, FOLDER/model.keras.
"""

import hashlib
import json
import sys
from pathlib import Path

import keras
import numpy as np

import horovod_keras
from horovod_keras.batch_norm import moving_statistics, synchronise
from horovod_keras.callbacks import AgreedStop, BatchNormStatistics, BroadcastInitialState, MetricAverage, WarmUp
from horovod_keras.environment import launched_rank

if launched_rank() is None:
    sys.modules["horovod"] = None  # type: ignore[assignment]  # a single process must not need it

GLOBAL_BATCH = 16
images = np.random.default_rng(0).normal(size=(64, 8, 8, 2)).astype("float32")
labels = np.random.default_rng(1).integers(0, 3, 64)
ranks = horovod_keras.join()


def network(seed: int, batch_norm: bool = True) -> keras.Model:
    """A functional model with a branch, nothing like MobileNet."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 2))
    # A bias before batch normalisation has no gradient but rounding, which Adam would make large.
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=not batch_norm)(image)
    if batch_norm:
        x = keras.layers.BatchNormalization(momentum=0.5)(x)
    x = keras.layers.Add()([keras.layers.Activation("tanh")(x), keras.layers.Conv2D(8, 1)(x)])
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(3)(x))


def compiled(model: keras.Model, optimizer: keras.Optimizer, **options) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = horovod_keras.distribute(optimizer, ranks, **options)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return model


def mine(batch: int = GLOBAL_BATCH) -> list[int]:
    """This rank's examples, ordered so that its k-th local batch is its share of the k-th global batch."""
    share = batch // ranks.size
    return [start + ranks.rank * share + k for start in range(0, 64, batch) for k in range(share)]


def fit(model: keras.Model, callbacks: list, batch: int = GLOBAL_BATCH, epochs: int = 2) -> None:
    chosen = mine(batch)
    options = {"batch_size": batch // ranks.size, "epochs": epochs, "shuffle": False, "verbose": 0}
    model.fit(images[chosen], labels[chosen], callbacks=callbacks, **options)


def vector(model: keras.Model) -> list[float]:
    return np.concatenate([np.asarray(v.numpy()).ravel() for v in model.variables]).astype(float).tolist()


def digest(model: keras.Model) -> str:
    return hashlib.sha256(
        b"".join(v.numpy().tobytes() for v in [*model.variables, *model.optimizer.variables])
    ).hexdigest()


found: dict[str, object] = {"rank": ranks.rank, "size": ranks.size}

# Different seeds: only the broadcast makes the ranks equal.
model = compiled(network(seed=ranks.rank), keras.optimizers.Adam(0.01))
synchronise(model, ranks.mean)
fit(model, [BroadcastInitialState(ranks), BatchNormStatistics(ranks)])
found["adam"], found["adam_digest"] = vector(model), digest(model)

model = compiled(network(seed=5), keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=0.5))
synchronise(model, ranks.mean)
fit(model, [])
found["sgd"] = vector(model)

# Two local batches of half the size, added up, are one batch: without batch normalisation to the last rounding.
model = compiled(network(5, batch_norm=False), keras.optimizers.SGD(0.1), accumulation_steps=2)
fit(model, [], batch=GLOBAL_BATCH // 2)
found["accumulated"] = vector(model)
model = compiled(network(5, batch_norm=False), keras.optimizers.SGD(0.1))
fit(model, [])
found["plain"] = vector(model)
model = compiled(network(5, batch_norm=False), keras.optimizers.SGD(0.1), compression="fp16")
fit(model, [])
found["fp16"] = vector(model)

# Statistics of their own, brought together at the end of the epoch.
model = compiled(network(seed=5), keras.optimizers.SGD(0.1))
own: list[list[float]] = []
remember = keras.callbacks.LambdaCallback(
    on_train_batch_end=lambda batch, logs: own.append(np.concatenate(moving_statistics(model)).tolist())
)
fit(model, [BatchNormStatistics(ranks), remember], epochs=1)
found["own_statistics"] = own[-1]
found["common_statistics"] = np.concatenate(moving_statistics(model)).tolist()

# Ranks with different numbers of examples: metrics count examples, not ranks. Nothing is learnt (rate 0).
model = compiled(network(5, batch_norm=False), keras.optimizers.SGD(0.0))
chosen = list(range(ranks.rank, 64, ranks.size))
uneven = chosen[:4] if ranks.rank else chosen
history = model.fit(
    images[uneven], labels[uneven], batch_size=64, verbose=0, callbacks=[MetricAverage(ranks)],
    validation_data=(images[uneven], labels[uneven]),
)  # fmt: skip
found["uneven"] = uneven
found["history"] = {name: values[-1] for name, values in history.history.items()}
predicted = model.predict(images, verbose=0).argmax(1)
found["correct"] = (predicted == labels).tolist()

# The last rank wants to stop after its second batch.
model = compiled(network(5), keras.optimizers.SGD(0.1))
stop = AgreedStop(model.optimizer.exchange)
batches: list[int] = []


def count_and_ask(batch: int, logs: object) -> None:
    batches.append(batch)
    if batch == 1 and ranks.rank == ranks.size - 1:
        stop.request()


ask = keras.callbacks.LambdaCallback(on_train_batch_end=count_and_ask)
fit(model, [stop, ask], epochs=5)
found["batches_until_stop"] = len(batches)

model = compiled(network(5), keras.optimizers.SGD(0.1))
rates: list[float] = []
note = keras.callbacks.LambdaCallback(
    on_train_batch_end=lambda batch, logs: rates.append(float(model.optimizer.learning_rate))
)
fit(model, [WarmUp(ranks, learning_rate=0.1, steps=4), note], epochs=2)
found["rates"] = rates

folder = Path(sys.argv[1])
if ranks.rank == 0:
    model = compiled(network(5), keras.optimizers.Adam(0.01, beta_1=0.8))
    model.optimizer.build(model.trainable_variables)
    model.save(folder / "model.keras")
    found["saved"] = model.predict(images[:4], verbose=0).tolist()
(folder / f"{ranks.rank}.json").write_text(json.dumps(found))
ranks.leave()
