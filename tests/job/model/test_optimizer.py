"""Our Adam and AdamW are Keras' own."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.model import optimizer

CASES: list[tuple[type[Any], type[Any], dict[str, Any]]] = [
    (optimizer.Adam, keras.optimizers.Adam, {}),
    (optimizer.Adam, keras.optimizers.Adam, {"weight_decay": 0.1, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3}),
    (optimizer.AdamW, keras.optimizers.AdamW, {"weight_decay": 0.1}),
    (optimizer.Adam, keras.optimizers.Adam, {"amsgrad": True}),
    (optimizer.Adam, keras.optimizers.Adam, {"gradient_accumulation_steps": 3, "global_clipnorm": 1.0}),
    (optimizer.AdamW, keras.optimizers.AdamW, {"use_ema": True, "clipnorm": 0.5, "loss_scale_factor": 8.0}),
]
SHAPES = {"kernel": (7, 5), "bias": (5,), "large": (300, 257), "scalar": ()}


def _variables() -> list[keras.Variable]:
    numbers = np.random.default_rng(1)
    return [keras.Variable(numbers.normal(size=shape).astype("float32"), name=name) for name, shape in SHAPES.items()]


def _train(adam: Any, variables: list[keras.Variable], steps: int) -> None:
    numbers = np.random.default_rng(2)

    @tf.function
    def step(gradients: list[tf.Tensor]) -> None:
        adam.apply(gradients, variables)

    for _ in range(steps):
        step([tf.constant(numbers.normal(size=v.shape).astype("float32")) for v in variables])


@pytest.mark.parametrize(("ours", "theirs", "settings"), CASES, ids=lambda value: str(value)[-40:])
def test_updates_equal_keras(way: str, ours: type[Any], theirs: type[Any], settings: dict[str, Any]) -> None:
    rate = keras.optimizers.schedules.CosineDecay(0.01, 20)
    results = []
    for kind in (ours, theirs):
        variables, adam = _variables(), kind(rate, **settings)
        adam.build(variables)
        adam.exclude_from_weight_decay(var_names=["bias"])
        _train(adam, variables, steps=10)
        results.append([*variables, *adam.variables])
    for mine, exact in zip(*results, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=2e-5, atol=2e-6)


def test_a_variable_that_is_given_twice_is_refused_and_not_waited_for(
    compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_KERNELS", "")
    variable, adam = keras.Variable(np.ones(3, "float32")), optimizer.Adam(0.1)
    adam.build([variable])
    with pytest.raises(tf.errors.InvalidArgumentError, match="twice"):
        adam.apply([tf.ones(3), tf.ones(3)], [variable, variable])


def test_slots_and_configuration_are_keras_own(way: str) -> None:
    for ours, theirs in ((optimizer.Adam, keras.optimizers.Adam), (optimizer.AdamW, keras.optimizers.AdamW)):
        mine, exact = ours(0.01, name="same"), theirs(0.01, name="same")
        for adam in (mine, exact):
            adam.build(_variables())
        assert mine.get_config() == exact.get_config()
        assert [v.path for v in mine.variables] == [v.path for v in exact.variables]
        assert ours(0.01).name.startswith(theirs.__name__.lower()[:4])


def test_a_subclass_made_on_the_fly_can_change_gradients(way: str) -> None:
    def apply(self: Any, grads: list[tf.Tensor], trainable_variables: Any = None) -> None:
        optimizer.Adam.apply(self, [2 * gradient for gradient in grads], trainable_variables)

    doubled = type("Adam", (optimizer.Adam,), {"apply": apply})
    first, second = _variables(), _variables()
    _train(doubled(0.01, epsilon=1.0), first, steps=2)
    numbers = np.random.default_rng(2)
    plain = keras.optimizers.Adam(0.01, epsilon=1.0)
    for _ in range(2):
        plain.apply([tf.constant(2 * numbers.normal(size=v.shape).astype("float32")) for v in second], second)
    for mine, exact in zip(first, second, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=1e-5, atol=1e-6)


def test_a_value_read_before_the_update_stays_as_it_was(way: str) -> None:
    variables = _variables()
    adam = optimizer.Adam(0.1)
    adam.build(variables)
    held = tf.identity(variables[2].value), variables[2].value.read_value()
    before = variables[2].numpy().copy()
    adam.apply([tf.ones(v.shape) for v in variables], variables)
    assert all(np.array_equal(value, before) for value in held)
    assert not np.array_equal(variables[2].numpy(), before)
