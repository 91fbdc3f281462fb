"""Which images are for training, for the choices and for the test: the same on every machine and for every run."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from job.data.arrays import CLASS_NAMES, UInt8
from job.data.arrow import DataSet
from job.data.draws import permutation
from job.errors import InputError

Indices = npt.NDArray[np.int64]
Protocol = Literal["honest", "original"]

_SEED = 20_260_101  # Of the project, not of a run: results of different seeds are compared on the same split.
_VALIDATION_SHARE = 12  # One image in twelve: 5,000 of Fashion-MNIST's 60,000.


@dataclass(frozen=True, slots=True)
class Splits:
    """Indices into a data set's images, int64 of shape [n]: the train, validation and test split."""

    train: Indices
    validation: Indices
    test: Indices


def splits(
    data: DataSet, *, limit_train: int | None = None, limit_eval: int | None = None, protocol: Protocol = "honest"
) -> Splits:
    """Split a data set.

    Args:
        data: the data set; its order of images decides the split, together with a seed of the project.
        limit_train: the most images to train on. A smaller split is the beginning of a larger one, and its classes are
            in proportion: to within one image each where all have the same number of images, as in Fashion-MNIST.
        limit_eval: the same for validation and for test.
        protocol: "honest" keeps a twelfth of the training images (5,000 of 60,000), in proportion of the classes, for
            validation. "original" trains on all of them and validates on the test images, as was done in 2017.

    Raises:
        InputError: too few training images to split.
    """
    train = _stratified(data.labels[: data.train_count], purpose=0)
    test = _stratified(data.labels[data.train_count :], purpose=1) + data.train_count
    validation = test
    if protocol == "honest":
        if len(train) < _VALIDATION_SHARE:
            raise InputError(
                f"there are too few training images to keep some for validation: received {len(train)}. "
                f"Give {_VALIDATION_SHARE} or more."
            )
        kept = len(train) // _VALIDATION_SHARE
        validation, train = train[:kept], train[kept:]
    return Splits(train[:limit_train], validation[:limit_eval], test[:limit_eval])


def _stratified(labels: UInt8, purpose: int) -> Indices:
    """A shuffled order of which any first part holds the classes in proportion (equal ones to within an image each)."""
    shuffled = permutation(len(labels), _SEED, purpose)
    place = np.empty(len(labels))
    for kind in range(len(CLASS_NAMES)):
        members = np.flatnonzero(labels[shuffled] == kind)
        # The images of every class are spread evenly from 0 to 1: sorted by that, they mix in proportion.
        place[members] = (np.arange(len(members)) + 0.5) / max(len(members), 1)
    return shuffled[np.argsort(place, kind="stable")]
