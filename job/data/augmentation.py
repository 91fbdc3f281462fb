"""Flips, shifts and random erasing of raw images, drawn for each image and not for each rank.

What happens to an image depends on (seed, epoch, image) alone, so that any number of ranks and any batch size see the
same pictures.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from job.data.arrays import SIDE, UInt8
from job.data.draws import UInt64, hashed, uniform

# What a number is drawn for. A purpose keeps its number for ever: runs could not be repeated otherwise.
_FLIP, _SHIFT_DOWN, _SHIFT_RIGHT, _ERASE, _AREA, _ASPECT, _TOP, _LEFT, _NOISE = range(9)

# Zhong et al., "Random erasing data augmentation" (2017, arXiv:1708.04896), for Fashion-MNIST: 2 to 40 % of the area in
# the paper; at most 30 % here, so that a rectangle of any of the aspects fits into the image.
_LEAST_AREA, _MOST_AREA = 0.02, 0.3
_LEAST_ASPECT, _MOST_ASPECT = 0.3, 3.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What is done to each training image before the model sees it."""

    flip: bool = False
    """Mirror half of the images left to right."""
    shift: int = 0
    """Move each image by up to so many pixels in both directions; what comes in is 0."""
    erase: float = 0.0
    """The share of images in which a rectangle is filled with noise."""


def augment(images: UInt8, keys: UInt64, augmentation: Augmentation) -> UInt8:
    """Augment images, uint8 of shape [b, 28, 28], each by its own key; returns `images` if there is nothing to do."""
    if augmentation.flip:
        images = flipped(images, keys)
    if augmentation.shift:
        images = _shifted(images, keys, augmentation.shift)
    if augmentation.erase:
        images = _erased(images, keys, augmentation.erase)
    return images


def flipped(images: UInt8, keys: UInt64) -> UInt8:
    """Mirror the images left to right whose key says so: half of all keys."""
    mirror = uniform(keys, _FLIP) < 0.5
    return np.where(mirror[:, None, None], images[:, :, ::-1], images)


def _shifted(images: UInt8, keys: UInt64, most: int) -> UInt8:
    padded = np.pad(images, ((0, 0), (most, most), (most, most)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (SIDE, SIDE), axis=(1, 2))
    choices = 2 * most + 1
    down, right = (_whole(keys, purpose, choices) for purpose in (_SHIFT_DOWN, _SHIFT_RIGHT))
    return windows[np.arange(len(images)), down, right]


def _erased(images: UInt8, keys: UInt64, share: float) -> UInt8:
    chosen = np.flatnonzero(uniform(keys, _ERASE) < share)
    keys = keys[chosen]
    area = (_LEAST_AREA + uniform(keys, _AREA) * (_MOST_AREA - _LEAST_AREA)) * SIDE * SIDE
    aspect = _LEAST_ASPECT + uniform(keys, _ASPECT) * (_MOST_ASPECT - _LEAST_ASPECT)
    height, width = np.rint(np.sqrt(area * aspect)).astype(int), np.rint(np.sqrt(area / aspect)).astype(int)
    rows = _covered(_whole(keys, _TOP, SIDE + 1 - height), height)
    columns = _covered(_whole(keys, _LEFT, SIDE + 1 - width), width)
    # Eight pixels take the eight bytes of one hash, the lowest first on any processor.
    words = hashed(keys[:, None], _NOISE, np.arange(SIDE * SIDE // 8)).astype("<u8")
    noise = words.view(np.uint8).reshape(-1, SIDE, SIDE)
    erased = images.copy()
    erased[chosen] = np.where(rows[:, :, None] & columns[:, None, :], noise, images[chosen])
    return erased


def _whole(keys: UInt64, purpose: int, choices: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A whole number from 0 to below `choices` for each key."""
    return (uniform(keys, purpose) * choices).astype(np.int64)


def _covered(start: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of 28 rows or columns lie in a stretch, for each image: shape [b, 28]."""
    offset = np.arange(SIDE) - start[:, None]
    return (offset >= 0) & (offset < length[:, None])
