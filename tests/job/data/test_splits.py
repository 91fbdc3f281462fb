"""The splits: fixed, in proportion, disjoint."""

import hashlib

import numpy as np
import pytest

from job.data import garments
from job.data.arrow import DataSet
from job.data.splits import splits
from job.errors import InputError


def _labelled(train: np.ndarray, test: np.ndarray) -> DataSet:
    labels = np.concatenate([train, test]).astype(np.uint8)
    return DataSet(np.zeros((len(labels), 28, 28), np.uint8), labels, len(train), "made up", "")


@pytest.fixture(scope="module")
def full() -> DataSet:
    """Labels of the full data set's size."""
    return _labelled(garments.labels(60_000, 2017, 0), garments.labels(10_000, 2017, 1))


def test_the_honest_split_has_55000_5000_and_10000_images_and_shares_none(full):
    found = splits(full)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [55_000, 5_000, 10_000]
    everything = np.concatenate([found.train, found.validation, found.test])
    assert (np.sort(everything) == np.arange(70_000)).all()
    assert found.test.min() == 60_000


def test_the_split_is_frozen(full):
    found = splits(full)
    digest = hashlib.sha256(np.concatenate([found.train, found.validation, found.test]).astype("<i8").tobytes())
    assert digest.hexdigest() == "61ff138062c62969b2b7d4554561a25a8b7aef834e522767573ac3e4f4e97525"


def test_every_part_holds_the_classes_equally(full):
    found = splits(full)
    for part, expected in ((found.train, 5500), (found.validation, 500), (found.test, 1000)):
        assert np.bincount(full.labels[part]).tolist() == [expected] * 10


@pytest.mark.parametrize("protocol", ["honest", "original"])
@pytest.mark.parametrize("limit", [1, 7, 100, 1234])
def test_a_smaller_split_is_the_beginning_of_a_larger_one_and_in_proportion(full, limit, protocol):
    whole, part = splits(full, protocol=protocol), splits(full, limit_train=limit, limit_eval=limit, protocol=protocol)
    for name in ("train", "validation", "test"):
        few = getattr(part, name)
        assert (few == getattr(whole, name)[:limit]).all() and len(few) == limit
        counts = np.bincount(full.labels[few], minlength=10)
        assert counts.max() - counts.min() <= 1


def test_unequal_classes_keep_their_proportion():
    train = np.repeat([0, 1, 9], [3000, 600, 60])
    found = splits(_labelled(train, train[:100]), limit_train=366)
    assert np.bincount(train[found.validation], minlength=10)[[0, 1, 9]].tolist() == [250, 50, 5]
    assert np.abs(np.bincount(train[found.train], minlength=10)[[0, 1, 9]] - [300, 60, 6]).max() <= 1


def test_the_original_protocol_trains_on_everything_and_validates_on_the_test_images(full):
    found = splits(full, protocol="original")
    assert (np.sort(found.train) == np.arange(60_000)).all()
    assert (np.sort(found.test) == np.arange(60_000, 70_000)).all()
    assert (found.validation == found.test).all()


def test_a_limit_above_the_split_is_no_limit(full):
    assert len(splits(full, limit_train=10**9, limit_eval=10**9).train) == 55_000


def test_too_few_images_to_split_are_refused():
    with pytest.raises(InputError, match="received 11"):
        splits(_labelled(np.arange(11) % 10, np.arange(10)))


def test_the_real_classes_are_split_equally(fashion_mnist_dir):
    from job.data.fashion_mnist import load

    arrays = load(fashion_mnist_dir)
    data = _labelled(arrays.train_labels, arrays.test_labels)
    assert np.bincount(data.labels[splits(data).validation]).tolist() == [500] * 10
