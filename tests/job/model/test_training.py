"""The training model's own mathematics: schedule, dropout, and what is decayed."""

import numpy as np
import pytest
import tensorflow as tf

from horovod_keras.collectives import SingleProcess
from job.config import resolve
from job.model import training
from job.model.training import Schedule, dropout_mask


@pytest.mark.parametrize(("shape", "halfway"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(shape: str, halfway: float) -> None:
    schedule = Schedule(0.002, 100, 0.2, shape)
    rates = [float(schedule(step)) / 0.002 for step in range(101)]
    assert rates[0] == pytest.approx(1 / 20)
    assert rates[19] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(halfway)
    assert rates[100] == pytest.approx(1.0 if shape == "constant" else 0.0, abs=1e-6)
    assert np.all(np.diff(rates[:20]) > 0) and np.all(np.diff(rates[20:]) <= 1e-7)
    schedule.factor = 0.5
    assert float(schedule(60)) == pytest.approx(0.001 * halfway)


def test_the_rate_is_of_updates_and_not_of_the_batches_that_they_are_made_of() -> None:
    whole, halves = Schedule(0.002, 50, 0.2, "linear"), Schedule(0.002, 50, 0.2, "linear", batches=2)
    assert [float(halves(2 * update + 1)) for update in range(50)] == [float(whole(update)) for update in range(50)]
    config = resolve([{"recipe": "fast", "weights": "none", "resolution": 32, "accumulate": 2}])
    made = training.build(config, SingleProcess(), 20).optimizer._learning_rate
    assert (made.steps, made.batches) == (10, 2)


def test_dropout_keeps_the_mean_and_depends_on_the_image_alone() -> None:
    keys = tf.constant(np.random.default_rng(1).integers(-(2**63), 2**63, 400))
    mask = dropout_mask(keys, 512, 0.2).numpy()
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1.25)}
    # 204,800 draws: a standard error of 0.001.
    assert np.mean(mask == 0) == pytest.approx(0.2, abs=0.005)
    assert np.array_equal(dropout_mask(keys[7:9], 512, 0.2), mask[7:9])
    assert abs(np.corrcoef(mask[:, 0], mask[:, 1])[0, 1]) < 0.2


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    config = resolve([{"recipe": "fast", "weights": "none", "resolution": 32}])
    model = training.build(config, SingleProcess(), 10)
    decayed = [v.path for v in model.trainable_variables if model.optimizer._use_weight_decay(v)]
    assert decayed and all(len(v.shape) > 1 for v in model.trainable_variables if v.path in decayed)
    assert sum(len(v.shape) > 1 for v in model.trainable_variables) == len(decayed) == 28
