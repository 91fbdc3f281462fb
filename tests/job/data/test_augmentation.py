"""Flips, shifts and random erasing."""

import hashlib

import numpy as np
import pytest

from job.data import garments
from job.data.augmentation import Augmentation, augment, flipped
from job.data.draws import hashed

COUNT = 4_000
KEYS = hashed(2017, np.arange(COUNT))
IMAGES = np.tile(garments.draw(train=50, test=1).train_images, (COUNT // 50, 1, 1))
ALL = Augmentation(flip=True, shift=2, erase=0.5)


def test_nothing_is_done_by_default():
    assert augment(IMAGES, KEYS, Augmentation()) is IMAGES


def test_the_given_images_are_left_as_they_were():
    before = IMAGES.copy()
    augment(IMAGES, KEYS, ALL)
    assert (before == IMAGES).all()


def test_an_image_depends_on_its_key_and_on_no_other_image():
    whole = augment(IMAGES, KEYS, ALL)
    order = np.argsort(KEYS)
    assert (augment(IMAGES[order], KEYS[order], ALL) == whole[order]).all()
    assert (augment(IMAGES[7:8], KEYS[7:8], ALL) == whole[7:8]).all()


def test_augmented_images_are_frozen():
    digest = hashlib.sha256(augment(IMAGES[:200], KEYS[:200], ALL).tobytes()).hexdigest()
    assert digest == "c359abeffa05eda7e7516c9df9991e2a8ced5c49b6854f2c71490ffc7b26d380", (
        "runs of earlier versions can't be repeated"
    )


def test_half_of_the_images_are_mirrored_and_the_others_untouched():
    found = flipped(IMAGES, KEYS)
    kept, mirrored = (found == IMAGES).all(axis=(1, 2)), (found == IMAGES[:, :, ::-1]).all(axis=(1, 2))
    assert (kept | mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 0.04


@pytest.mark.parametrize("shift", [1, 2, 27])
def test_a_shift_moves_the_image_and_fills_with_zero(shift):
    dot = np.zeros((COUNT, 28, 28), np.uint8)
    dot[:, 14, 14] = 255
    found = augment(dot, KEYS, Augmentation(shift=shift))
    image, row, column = np.nonzero(found)
    assert len(np.unique(image)) == len(image) and found.max() == 255
    if shift < 14:
        assert len(image) == COUNT
        for moved in (row - 14, column - 14):
            counts = np.bincount(moved + shift)
            assert len(counts) == 2 * shift + 1 and np.abs(counts / COUNT - 1 / len(counts)).max() < 0.04
        assert abs(np.corrcoef(row, column)[0, 1]) < 0.06


def test_erasing_fills_one_rectangle_of_the_documented_area_and_aspect_with_noise():
    grey = np.full((COUNT, 28, 28), 77, np.uint8)
    found = augment(grey, KEYS, Augmentation(erase=0.5))
    changed = found != 77
    erased = np.flatnonzero(changed.any(axis=(1, 2)))
    assert abs(len(erased) / COUNT - 0.5) < 0.04
    rows, columns = changed[erased].any(axis=2), changed[erased].any(axis=1)
    for covered in (rows, columns):
        # Once it has begun it goes on to its end: a noise pixel is 77 by chance, but no whole row of a rectangle is.
        assert (np.abs(np.diff(covered.astype(int), prepend=0, append=0)).sum(axis=1) == 2).all()
    height, width = rows.sum(axis=1), columns.sum(axis=1)
    area, aspect = height * width / 784, height / width
    assert 0.012 < area.min() < 0.03 and 0.28 < area.max() < 0.32
    assert 0.2 <= aspect.min() < 0.4 and 2.8 < aspect.max() <= 4
    inside = rows[:, :, None] & columns[:, None, :]
    # Uniform from 0 to 255: 1 in 256 is 77.
    noise = found[erased][inside]
    assert abs(noise.mean() - 127.5) < 1 and np.bincount(noise, minlength=256).min() > 0
    assert (changed[erased].sum() / inside.sum()) == pytest.approx(255 / 256, abs=0.001)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (1.0, COUNT, COUNT), (0.2, 700, 900)])
def test_the_share_of_erased_images_is_the_one_asked_for(share, least, most):
    grey = np.full((COUNT, 28, 28), 77, np.uint8)
    erased = (augment(grey, KEYS, Augmentation(erase=share)) != 77).any(axis=(1, 2)).sum()
    assert least <= erased <= most
