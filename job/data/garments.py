"""The drawn data set: ten kinds of garment as 28×28 grey images, for machines without data or network.

Image i of a split depends on (seed, split, i) alone: not on how many are drawn, nor on the machine. The kinds are those
of Fashion-MNIST in its order, and every ten images hold each kind once.
"""

import itertools

import numpy as np

from job.data.arrays import CLASS_NAMES, SIDE, Arrays, UInt8
from job.data.draws import UInt64, hashed, uniform
from job.data.outlines import OUTLINES, Cloth, Field, Vary

VERSION = 1
"""Goes up whenever a change of this module or of outlines.py changes a pixel: cached drawings are then drawn anew."""

_TOGETHER = 128  # Fields of 128 images are 400 kB each: they stay in the processor's cache.

_NOISE = 1_000  # A purpose beyond those that _images counts up to.
_BYTES = np.uint64(0x00FF00FF00FF00FF)


def draw(*, train: int = 60_000, test: int = 10_000, seed: int = 2017) -> Arrays:
    """Draw the data set: `train` and `test` images (at least one each) of which ten in a row hold each kind once."""
    return Arrays(*_split(train, seed, 0), *_split(test, seed, 1), source=f"drawn with seed {seed}")


def labels(count: int, seed: int, split: int) -> UInt8:
    """The kinds of the first `count` images of a split (0 to train, 1 to test): uint8 of shape [count]."""
    tens = np.arange(-(-count // 10))[:, None]
    order = hashed(seed, split, tens, np.arange(10)).argsort(axis=1, kind="stable")
    return order.astype(np.uint8).reshape(-1)[:count]


def _split(count: int, seed: int, split: int) -> tuple[UInt8, UInt8]:
    images = np.empty((count, SIDE, SIDE), np.uint8)
    kinds = labels(count, seed, split)
    for kind in range(len(CLASS_NAMES)):
        mine = np.flatnonzero(kinds == kind)
        for start in range(0, len(mine), _TOGETHER):
            chosen = mine[start : start + _TOGETHER]
            images[chosen] = _images(kind, hashed(seed, split, chosen))
    return images, kinds


def _images(kind: int, keys: UInt64) -> UInt8:
    """Draw one image of a kind for each key."""
    purposes = itertools.count()

    def vary(low: float, high: float) -> Field:
        return (low + uniform(keys, next(purposes)) * (high - low)).astype(np.float32)[:, None, None]

    at = _place(vary)
    distance, detail = OUTLINES[kind](at)
    colour = np.clip(vary(0.35, 0.95) * _texture(at) + detail, 0.12, 1)
    light = _occluded(at.cover(distance) * colour, vary)
    light += _noise(keys) * vary(0.01, 0.06)
    return np.rint(np.clip(light, 0, 1) * 255).astype(np.uint8)


def _place(vary: Vary) -> Cloth:
    """Move, stretch, mirror and slightly turn each garment's frame."""
    across = ((np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2) / (SIDE / 2))[None, None, :]
    down = across.transpose(0, 2, 1)
    size = vary(0.68, 0.98)
    width, height = size * vary(0.85, 1.05), size * vary(0.9, 1.05)
    x, y = across - vary(-1, 1) * (1.08 - width), down - vary(-1, 1) * (1.08 - height)
    # The tangent of half the angle gives its sine and cosine by division alone: up to 14 degrees either way.
    half = vary(-0.12, 0.12)
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    mirror = np.where(vary(0, 1) < 0.5, -1, 1).astype(np.float32)
    u, v = (x * cosine + y * sine) / width * mirror, (y * cosine - x * sine) / height
    return Cloth(u, v, size * (SIDE / 2), vary)


def _texture(at: Cloth) -> Field:
    """Brightness of each pixel between about 0.5 and 1: plain, stripes along or across, checks, or a gradient."""
    kind, depth = at.vary(0, 1), at.vary(0.15, 0.45)
    across, down = _wave(at.u, at), _wave(at.v, at)
    gradient = np.clip(0.5 + 0.5 * (at.u * at.vary(-1, 1) + at.v * at.vary(-1, 1)), 0, 1)
    choices = [kind < 0.5, kind < 0.6, kind < 0.7, kind < 0.8]
    shade = np.select(choices, [np.zeros_like(across), across, down, np.maximum(across, down)], gradient)
    return 1 - depth * shade


def _wave(distance: Field, at: Cloth) -> Field:
    """A triangle wave between 0 and 1 with a random period of 0.25 to 0.7 and a random phase."""
    turns = distance / at.vary(0.25, 0.7) + at.vary(0, 1)
    return np.abs(turns - np.rint(turns)) * 2


def _occluded(light: Field, vary: Vary) -> Field:
    """Hide a grey rectangle of 3 to 8 pixels a side in a third of the images."""
    hidden = vary(0, 1) < 1 / 3
    places = np.arange(SIDE, dtype=np.float32)
    left, top = vary(0, SIDE - 3), vary(0, SIDE - 3)
    columns = np.abs(places[None, None, :] - left - 1.5) < vary(1.5, 4)
    rows = np.abs(places[None, :, None] - top - 1.5) < vary(1.5, 4)
    return np.where(hidden & rows & columns, vary(0, 0.6), light)


def _noise(keys: UInt64) -> Field:
    """Noise of mean 0 and deviation 1, nearly normal: the sum of the eight bytes of a hash for each pixel."""
    drawn = hashed(keys[:, None], _NOISE, np.arange(SIDE * SIDE))
    pairs = (drawn & _BYTES) + ((drawn >> np.uint64(8)) & _BYTES)
    fours = pairs + (pairs >> np.uint64(32))
    total = (fours + (fours >> np.uint64(16))) & np.uint64(0xFFFF)
    # Eight bytes have mean 8 × 127.5 and variance 8 × (256² - 1) / 12.
    return ((total.astype(np.float32) - 1020) / np.float32(209.02)).reshape(-1, SIDE, SIDE)
