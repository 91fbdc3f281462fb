"""The drawn data set: the same everywhere, and neither too easy nor too hard."""

import hashlib

import numpy as np
import pytest

from job.data import garments
from job.data.arrays import Arrays

FROZEN = "c113523635420fa40db8b98f124f57b693ed54d4e88f0447de58b1dd1c7faf7d"


@pytest.fixture(scope="module")
def drawn() -> Arrays:
    return garments.draw(train=8_000, test=2_000)


def test_the_images_are_frozen(drawn):
    digest = hashlib.sha256(drawn.train_images[:500].tobytes() + drawn.test_images[:500].tobytes())
    assert digest.hexdigest() == FROZEN, "a pixel has changed: raise garments.VERSION and freeze the new digest"


def test_shapes_types_and_source_are_those_of_every_data_set(drawn):
    assert drawn.train_images.shape == (8_000, 28, 28) and drawn.train_images.dtype == np.uint8
    assert drawn.test_labels.shape == (2_000,) and drawn.test_labels.dtype == np.uint8
    assert drawn.source == "drawn with seed 2017"


def test_every_ten_images_hold_each_kind_once(drawn):
    tens = np.sort(drawn.train_labels.reshape(-1, 10), axis=1)
    assert (tens == np.arange(10)).all()


def test_an_image_does_not_depend_on_how_many_are_drawn(drawn):
    few = garments.draw(train=57, test=3)
    assert (few.train_images == drawn.train_images[:57]).all()
    assert (few.train_labels == drawn.train_labels[:57]).all()
    assert (few.test_images == drawn.test_images[:3]).all()


def test_splits_and_seeds_differ(drawn):
    assert (drawn.train_images[:100] != drawn.test_images[:100]).any(axis=(1, 2)).all()
    assert (garments.draw(train=100, test=1, seed=1).train_images != drawn.train_images[:100]).any(axis=(1, 2)).all()


def test_no_image_is_empty_or_a_copy(drawn):
    assert (drawn.train_images > 60).sum(axis=(1, 2)).min() >= 10
    assert len(np.unique(drawn.train_images.reshape(len(drawn.train_images), -1), axis=0)) == len(drawn.train_images)


def test_a_linear_model_stays_well_below_eighty_percent_but_learns(drawn):
    """Logistic regression, trained for 40 epochs with Adam until the training loss has settled."""
    train, test = (
        (images.reshape(len(images), -1) / np.float32(255)).astype(np.float32) - np.float32(0.2)
        for images in (drawn.train_images, drawn.test_images)
    )
    weights = np.zeros((784, 10), np.float32)
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    random = np.random.default_rng(0)
    steps = 40 * 40
    for step in range(1, steps + 1):
        chosen = random.integers(0, len(train), 200)
        scores = train[chosen] @ weights
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        chances[np.arange(200), drawn.train_labels[chosen]] -= 1
        gradient = train[chosen].T @ chances / 200
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient * gradient - square)
        rate = 0.01 * (1 - step / (steps + 1))
        weights -= rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    assert ((train @ weights).argmax(axis=1) == drawn.train_labels).mean() > 0.65
    assert 0.4 < ((test @ weights).argmax(axis=1) == drawn.test_labels).mean() < 0.75
