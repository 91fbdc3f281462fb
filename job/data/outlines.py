"""The outlines of the ten drawn garments, and the details inside them: what tells one kind from another.

A garment is drawn in a frame of its own: u runs right, v runs down, both from about -1 to 1. An outline is a field that
is negative inside and positive outside, in the frame's units; details are added to the brightness.

Only +, -, ×, ÷, minimum, maximum and square root are used. IEEE 754 defines their every bit, so that the images don't
depend on the processor or on how NumPy was built, as they would with sine or exponential.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.floating]
"""float32 of shape [b, 28, 28] for a value at each pixel of b images, or [b, 1, 1] for one value an image."""

Number = Field | float

Vary = Callable[[float, float], Field]
"""Each call returns the next random number of each image, shape [b, 1, 1], between two bounds."""


@dataclass(frozen=True, slots=True)
class Cloth:
    """Where b garments of one kind are drawn, and the numbers that make each of them different."""

    u: Field
    """Distance of each pixel to the right of the garment's middle."""
    v: Field
    """Distance of each pixel below the garment's middle."""
    pixels: Field
    """Pixels in a unit of the frame."""
    vary: Vary

    def cover(self, distance: Field) -> Field:
        """How much of each pixel lies inside an outline, 0 to 1."""
        return np.clip(0.5 - distance * self.pixels, 0, 1)

    def line(self, distance: Field, width: Number) -> Field:
        """How much of each pixel lies on a line `width` wide, where `distance` is 0."""
        return self.cover(np.abs(distance) - width / 2)

    def chance(self, probability: float) -> Field:
        """1 with the probability, else 0, for each image."""
        return (self.vary(0, 1) < probability).astype(np.float32)


Outline = tuple[Field, Field]
"""Distance to the outline and brightness to add inside it."""


def _profile(x: Field, y: Field, *corners: tuple[Number, Number]) -> Field:
    """Distance to a shape that is symmetric about x = 0, given by (y, half its width) from its top to its bottom."""
    width: Number = corners[0][1]
    for (start, before), (end, after) in itertools.pairwise(corners):
        width = width + np.clip((y - start) / (end - start), 0, 1) * (after - before)
    return np.maximum(np.abs(x) - width, np.maximum(corners[0][0] - y, y - corners[-1][0]))


def _limb(x: Field, y: Field, start: tuple[Number, Number], end: tuple[Number, Number], *radii: Number) -> Field:
    """Distance to a limb from one point to another, whose radius goes from the first to the last of `radii`."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    from_x, from_y = x - start[0], y - start[1]
    part = np.clip((from_x * along_x + from_y * along_y) / (along_x * along_x + along_y * along_y), 0, 1)
    off_x, off_y = from_x - part * along_x, from_y - part * along_y
    return np.sqrt(off_x * off_x + off_y * off_y) - (radii[0] + part * (radii[-1] - radii[0]))


def _circle(x: Field, y: Field, radius: Number) -> Field:
    return np.sqrt(x * x + y * y) - radius


def _torso(at: Cloth, hem: tuple[float, float], flare: tuple[float, float]) -> tuple[Field, Field, Field]:
    """Distance to a body with shoulders, its height at the hem, and half its width there."""
    chest, bottom = at.vary(0.42, 0.54), at.vary(*hem)
    width = chest + at.vary(*flare)
    return _profile(at.u, at.v, (-0.82, 0.2), (-0.64, chest), (-0.2, chest), (bottom, width)), bottom, width


def _sleeves(at: Cloth, length: Field, spread: Field, cuff: Field) -> Field:
    """Distance to two sleeves, `length` down and `spread` out from the shoulders."""
    return _limb(np.abs(at.u), at.v, (0.4, -0.58), (0.4 + spread, -0.58 + length), 0.19, cuff)


def _t_shirt(at: Cloth) -> Outline:
    body, _, _ = _torso(at, (0.65, 0.9), (-0.06, 0.08))
    sleeves = _sleeves(at, at.vary(0.2, 0.45), at.vary(0.3, 0.5), at.vary(0.14, 0.2))
    neck = _circle(at.u, (at.v + 0.86) * at.vary(0.6, 1.1), at.vary(0.2, 0.3))
    shape = np.maximum(np.minimum(body, sleeves), -neck)
    return shape, at.chance(0.4) * at.line(neck - 0.05, 0.05) * at.vary(-0.3, 0.3)


def _trouser(at: Cloth) -> Outline:
    waist, hem = at.vary(0.28, 0.38), at.vary(0.3, 0.56)
    legs = _profile(at.u, at.v, (-0.95, waist), (-0.5, waist + at.vary(0.03, 0.1)), (0.95, hem))
    crotch = at.vary(-0.45, -0.1)
    gap = (at.v - crotch) * at.vary(0.08, 0.3) - np.abs(at.u)
    shape = np.maximum(legs, np.where(at.v > crotch, gap, -1))
    belt = at.cover(at.v + 0.84) * at.vary(-0.35, 0.25)
    return shape, belt - at.line(np.abs(at.u) - hem * 0.55, 0.05) * at.vary(0, 0.2)


def _pullover(at: Cloth) -> Outline:
    body, bottom, _ = _torso(at, (0.6, 0.88), (-0.08, 0.04))
    length, spread = at.vary(1.05, 1.35), at.vary(0.28, 0.5)
    sleeves = _sleeves(at, length, spread, at.vary(0.09, 0.14))
    neck = _circle(at.u, at.v + 0.9, at.vary(0.14, 0.2))
    band = at.vary(0.1, 0.16)
    ribs = np.maximum(at.cover(bottom - band - at.v), at.cover(np.abs(neck - band / 2) - band / 2))
    ribs = np.maximum(ribs, at.cover(-0.58 + length - band - at.v) * (np.abs(at.u) > 0.5))
    return np.maximum(np.minimum(body, sleeves), -neck), ribs * at.vary(-0.35, -0.15)


def _dress(at: Cloth) -> Outline:
    top, waist, hem = at.vary(0.16, 0.3), at.vary(0.16, 0.27), at.vary(0.34, 0.72)
    level = at.vary(-0.3, 0.05)
    body = _profile(at.u, at.v, (-0.92, top), (-0.55, waist + at.vary(0.03, 0.1)), (level, waist), (0.95, hem))
    caps = _limb(np.abs(at.u), at.v, (0.18, -0.72), (at.vary(0.3, 0.5), at.vary(-0.6, -0.4)), 0.1)
    shape = np.minimum(body, caps + 2 * (1 - at.chance(0.3)))
    neck = _circle(at.u, at.v + 0.95, at.vary(0.08, 0.2))
    return np.maximum(shape, -neck), at.line(at.v - level, 0.1) * at.vary(-0.4, 0.2)


def _coat(at: Cloth) -> Outline:
    body, _, _ = _torso(at, (0.86, 0.98), (0, 0.14))
    sleeves = _sleeves(at, at.vary(1.05, 1.35), at.vary(0.24, 0.44), at.vary(0.12, 0.17))
    depth = at.vary(-0.3, 0.1)
    lapel = np.abs(at.u) - (depth - at.v) * at.vary(0.24, 0.36)
    opening = np.abs(at.u) - np.maximum(at.v - depth, 0) * at.vary(0, 0.06) - 0.035
    dark = np.where(at.v > depth, at.cover(opening), at.cover(lapel)) * at.vary(0.45, 0.65)
    edge = at.line(lapel - 0.13, 0.06) * (at.v < depth + 0.1) * 0.2
    belt = at.line(at.v - 0.25, 0.1) * at.chance(0.3) * 0.25
    return np.minimum(body, sleeves), -np.maximum(dark, np.maximum(edge, belt))


def _sandal(at: Cloth) -> Outline:
    heel, ground = at.vary(0, 0.5), 0.5
    rise = np.clip(at.u * 0.7 + 0.2, 0, 1) * heel
    sole = np.abs(at.v - (ground - rise - 0.06)) - at.vary(0.05, 0.1)
    sole = np.maximum(sole, np.abs(at.u) - at.vary(0.8, 0.95))
    post = np.maximum(np.abs(at.u - 0.7) - at.vary(0.06, 0.14), np.maximum(ground - heel - 0.1 - at.v, at.v - ground))
    ankle = (at.vary(0.35, 0.65), ground - heel - at.vary(0.4, 0.65))
    width = at.vary(0.04, 0.07)
    front = _limb(at.u, at.v, (at.vary(-0.75, -0.5), 0.42), ankle, width)
    middle = _limb(at.u, at.v, (at.vary(-0.2, 0.1), 0.4 - heel * 0.25), ankle, width)
    back = _limb(at.u, at.v, (0.8, ground - heel), ankle, width)
    toe = _circle(at.u + at.vary(0.4, 0.6), (at.v - 0.4) * at.vary(0.8, 1.2), at.vary(0.2, 0.32))
    toe = np.maximum(np.abs(toe) - width, at.v - 0.42)
    shape = np.minimum(np.minimum(np.minimum(sole, post), np.minimum(front, back)), np.minimum(toe, middle))
    return shape, at.cover(sole) * at.vary(-0.3, 0.2)


def _shirt(at: Cloth) -> Outline:
    body, _, _ = _torso(at, (0.7, 0.94), (-0.06, 0.08))
    long = at.chance(0.65)
    length = long * at.vary(1, 1.3) + (1 - long) * at.vary(0.25, 0.5)
    sleeves = _sleeves(at, length, at.vary(0.28, 0.46), 0.11 + (1 - long) * 0.05)
    shade = at.vary(0.3, 0.5) * np.where(at.chance(0.5) > 0, 1, -1)
    nearest = at.v - np.rint(at.v * 5 - 0.1) / 5
    buttons = at.cover(_circle(at.u, nearest, at.vary(0.045, 0.065))) * (at.v > -0.6)
    placket = at.line(np.abs(at.u) - 0.11, 0.045) * 0.5
    collar = _limb(np.abs(at.u), at.v, (0.08, -0.84), (0.2, -0.66), at.vary(0.09, 0.12), 0.04)
    notch = np.abs(at.u) + (at.v + 0.72) * 0.8
    detail = np.maximum(buttons, placket) * shade + at.cover(collar) * np.abs(shade) * 0.8
    return np.minimum(np.minimum(body, sleeves), collar), detail - at.cover(notch) * 0.5


def _upper(at: Cloth, toe: Field, instep: Field, top: Field, back: Field) -> Field:
    """Distance to a shoe's upper side: from the toe, low, up the instep to the opening at height `top`."""
    ramp = np.clip((at.u + instep) / (0.5 + instep), 0, 1)
    height = toe + np.clip((at.u + 0.95) / 0.3, 0, 1) * 0.12 + ramp * (0.5 - top - toe - 0.12)
    return np.maximum(np.maximum(0.5 - height - at.v, at.v - 0.5), np.maximum(-0.92 - at.u, at.u - back))


def _sneaker(at: Cloth) -> Outline:
    top = at.vary(-0.25, 0.0)
    upper = _upper(at, at.vary(0.15, 0.25), at.vary(0.2, 0.5), top, at.vary(0.78, 0.92))
    opening = _circle(at.u - at.vary(0.45, 0.6), (at.v - top + 0.06) * 1.4, at.vary(0.14, 0.24))
    thick = at.vary(0.09, 0.16)
    sole = np.maximum(np.abs(at.v - 0.5) - thick, np.abs(at.u) - 0.95)
    shape = np.minimum(np.maximum(upper, -opening), sole)
    stripe = at.u * at.vary(0.6, 1) + at.v - at.vary(0, 0.25)
    laces = at.line(np.abs(stripe) - 0.12, 0.07) * (at.v < 0.4) * at.vary(-0.4, 0.4)
    return shape, at.cover(sole) * at.vary(0.15, 0.45) + laces


def _bag(at: Cloth) -> Outline:
    top, bottom, width = at.vary(-0.35, 0.05), at.vary(0.6, 0.9), at.vary(0.55, 0.92)
    body = _profile(
        at.u, at.v, (top, width * at.vary(0.7, 1)), (top + 0.12, width), (bottom, width * at.vary(0.8, 1.05))
    )
    reach, height = width * at.vary(0.35, 0.8), at.vary(0.25, 0.6)
    ring = np.abs(_circle(at.u / reach, (at.v - top) / height, 1.0)) * np.minimum(reach, height) - at.vary(0.04, 0.08)
    handle = np.maximum(ring, at.v - top)
    flap = at.line(at.v - top - at.vary(0.2, 0.4), 0.06) * at.vary(-0.4, 0.2)
    clasp = at.cover(_circle(at.u, at.v - top - 0.3, 0.1)) * at.chance(0.5) * at.vary(-0.4, 0.4)
    return np.minimum(body, handle), flap + clasp


def _ankle_boot(at: Cloth) -> Outline:
    back, shaft = at.vary(0.6, 0.85), at.vary(0.55, 0.85)
    upper = _upper(at, at.vary(0.15, 0.25), at.vary(0.1, 0.4), at.vary(-0.1, 0.1), back)
    leg = np.maximum(np.maximum(at.u - back, back - shaft - at.u), np.maximum(at.vary(-0.95, -0.7) - at.v, at.v - 0.5))
    heel = np.maximum(
        np.abs(at.u - back + 0.2) - at.vary(0.12, 0.22), np.maximum(0.5 - at.v, at.v - at.vary(0.58, 0.8))
    )
    sole = np.maximum(np.abs(at.v - 0.5) - 0.06, np.maximum(-0.95 - at.u, at.u - back))
    shape = np.minimum(np.minimum(upper, leg), np.minimum(sole, heel))
    seam = at.line(at.u - back + shaft * 0.5, 0.06) * at.cover(at.v - 0.2) * at.vary(-0.3, 0.2)
    return shape, seam - np.maximum(at.cover(sole), at.cover(heel)) * at.vary(-0.2, 0.4)


OUTLINES: tuple[Callable[[Cloth], Outline], ...] = (
    _t_shirt,
    _trouser,
    _pullover,
    _dress,
    _coat,
    _sandal,
    _shirt,
    _sneaker,
    _bag,
    _ankle_boot,
)
"""In Fashion-MNIST's order of classes."""
