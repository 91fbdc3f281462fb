"""A data set in memory: what every reader and drawer of images returns."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""In the order of the labels, as Fashion-MNIST's authors spell them (arXiv:1708.07747, table 2)."""

SIDE = 28
"""Height and width of an image in pixels."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """A data set: images are uint8 of shape [N, 28, 28], labels are uint8 of shape [N] from 0 to 9."""

    train_images: UInt8
    train_labels: UInt8
    test_images: UInt8
    test_labels: UInt8
    source: str
    """Where the images came from, for people: a folder, a file or "drawn"."""
