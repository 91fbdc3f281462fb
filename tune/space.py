"""What is searched: options of the training job, each with a range or a list of values.

learning_rate: 1e-4..1e-2 log
dropout: 0..0.8
resolution: 32..96 step 8
global_batch: [64, 128]
"""

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from job.config import Config, resolve
from job.errors import InputError
from job.reading import parsed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Point = dict[str, Any]

DEFAULT: Mapping[str, str] = {
    "resolution": "32..224 step 8",
    "dropout": "0..0.8",
    "learning_rate": "1e-4..1e-2 log",
}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?: +(log)| +step +({_NUMBER}))?")
# The original experiment's settings, which are known to work, and those of the recipes: see `Space.known`.
_SIDE_STEP = 8


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool
    """Draw the logarithm evenly."""
    step: float | None
    """Only `low` plus multiples of it; None: any number."""

    def sample(self, draw: random.Random) -> float:
        """A value at random."""
        if self.log:
            return self.nearest(float(np.exp(draw.uniform(np.log(self.low), np.log(self.high)))))
        return draw.choice(self._steps()) if self.step else draw.uniform(self.low, self.high)

    def grid(self, most: int) -> list[float]:
        """Up to `most` values from one end to the other."""
        if self.step and len(self._steps()) <= most:
            return self._steps()
        spaced = np.geomspace if self.log else np.linspace
        return list(dict.fromkeys(self.nearest(float(value)) for value in spaced(self.low, self.high, most)))

    def nearest(self, value: float) -> float:
        """The value of the range that is nearest to a number."""
        if self.step:
            value = self.low + round((value - self.low) / self.step) * self.step
        value = min(max(value, self.low), self.high)
        return int(value) if isinstance(self.low, int) else value

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high and self.nearest(value) == value

    def distribution(self) -> "BaseDistribution":
        """The same for Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int):
            return IntDistribution(self.low, int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def largest(self) -> float:
        """The upper end."""
        return self.high

    def __str__(self) -> str:
        ending = " log" if self.log else f" step {self.step:g}" if self.step else ""
        return f"{self.low:g}..{self.high:g}{ending}"

    def _steps(self) -> list[float]:
        assert self.step is not None
        return [self.nearest(value) for value in np.arange(self.low, self.high + self.step / 1e6, self.step).tolist()]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a list of values."""

    values: tuple[Any, ...]

    def sample(self, draw: random.Random) -> Any:
        """A value at random."""
        return draw.choice(self.values)

    def grid(self, most: int) -> list[Any]:
        """All values, however many they are."""
        return list(self.values)

    def nearest(self, value: Any) -> Any:
        """The value itself: population-based training only takes values from the list."""
        return value

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def distribution(self) -> "BaseDistribution":
        """The same for Optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def largest(self) -> Any:
        """The largest of numbers."""
        return max(self.values)

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.values))}]"


class Space:
    """Parameters by name.

    Args:
        texts: of each parameter: `LOW..HIGH`, `LOW..HIGH log`, `LOW..HIGH step N`, or values with commas between them.
        fixed: the other options of each trial.

    Raises:
        InputError: a range is upside down, an option is unknown or refuses a value; names parameter and value.
    """

    def __init__(self, texts: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
        if not texts:
            raise InputError("nothing is searched: every parameter is fixed. Vary one with --vary NAME=LOW..HIGH.")
        self.fixed = dict(fixed)
        self.parameters: dict[str, Range | Choice] = {
            name: _parameter(name, text, fixed) for name, text in sorted(texts.items())
        }

    def config(self, point: Mapping[str, Any]) -> Config:
        """The configuration of a trial at a point. Raises InputError."""
        return resolve([self.fixed, point])

    def random_points(self, count: int, seed: int) -> list[Point]:
        """The known points, then points at random, the same for the same seed."""
        draw = random.Random(seed)
        known = self.known()
        drawn = [{name: p.sample(draw) for name, p in self.parameters.items()} for _ in range(count)]
        return (known + drawn)[:count]

    def grid_points(self, each: int) -> list[Point]:
        """All combinations of up to `each` values of each range and all values of each list; nearest to known first."""
        axes = [p.grid(each) for p in self.parameters.values()]
        points = [dict(zip(self.parameters, values, strict=True)) for values in itertools.product(*axes)]
        known = [point for point in self.known() if point in points]
        return known + [point for point in points if point not in known]

    def known(self) -> list[Point]:
        """Settings that are known to work, as far as they lie in the space: the original's, then the recipe's own."""
        recipe = {name: value for name, value in self.fixed.items() if name not in self.parameters}
        candidates = (resolve([recipe | {"recipe": "original"}]), resolve([recipe]))
        points: list[Point] = []
        for config in candidates:
            point = {}
            for name, parameter in self.parameters.items():
                value = getattr(config, name)
                point[name] = value if value in parameter else parameter.grid(1)[0]
            if any(getattr(config, name) in parameter for name, parameter in self.parameters.items()):
                points.append(point)
        return [point for index, point in enumerate(points) if point not in points[:index]]

    def nearest(self, point: Mapping[str, Any]) -> Point:
        """The point of the space that is nearest to one that may lie outside."""
        return {name: p.nearest(point[name]) for name, p in self.parameters.items()}

    def pixels(self, point: Mapping[str, Any] | None = None) -> float:
        """Mean number of input pixels of an epoch's images, to which its cost is nearly proportional.

        Args:
            point: of the space; None for the mean over it.
        """
        points = [point] if point else self.random_points(200, seed=0)
        return float(np.mean([np.mean(np.square(self.config(p).resolutions())) for p in points]))

    def largest(self) -> Config:
        """The most demanding trial: each of resolution and batch at its largest. Raises InputError."""
        most = {n: p.largest() for n, p in self.parameters.items() if n in ("resolution", "global_batch")}
        return self.config(self.random_points(1, seed=0)[0] | most)

    def texts(self) -> dict[str, str]:
        """The space as it can be read again."""
        return {name: str(parameter) for name, parameter in self.parameters.items()}

    def lines(self) -> Iterator[str]:
        """One line for each parameter, for people."""
        width = max(map(len, self.parameters))
        for name, parameter in self.parameters.items():
            yield f"{name:{width}}  {parameter}"


def _parameter(name: str, text: Any, fixed: Mapping[str, Any]) -> Range | Choice:
    def checked(value: Any) -> Any:
        return getattr(resolve([fixed, {name: value}]), name)

    if isinstance(text, list):
        return _choice(name, [checked(value) for value in text], text)
    text = str(text).strip()
    match = _RANGE.fullmatch(text)
    if match is None:
        if ".." in text:
            raise InputError(
                f"the range of {name} can't be read: received {text!r}. Write LOW..HIGH, LOW..HIGH log or "
                "LOW..HIGH step N."
            )
        try:
            values = parsed(text if text.startswith("[") else f"[{text}]")
        except ValueError as error:
            raise InputError(f"the values of {name} can't be read: received {text!r}: {error}.") from None
        return _choice(name, [checked(value) for value in values], text)
    low, high, log, step = match.groups()
    ends = [checked(_plain_number(end)) for end in (low, high)]
    if isinstance(ends[0], bool) or not isinstance(ends[0], int | float):
        raise InputError(f"{name} has no range: received {text!r}. Give its values as a list.")
    if ends[0] > ends[1]:
        raise InputError(f"the range of {name} is upside down: received {text!r}. Write the smaller number first.")
    if log and ends[0] <= 0:
        raise InputError(f"a logarithmic range must start above 0: received {text!r} for {name}.")
    whole = isinstance(ends[0], int)
    default = (_SIDE_STEP if name == "resolution" else 1) if whole and not log else None
    size = (int(float(step)) if whole else float(step)) if step else default
    if size is not None and size <= 0:
        raise InputError(f"the step of {name} must be above 0: received {text!r}.")
    if name == "resolution" and (ends[0] % _SIDE_STEP or (size or _SIDE_STEP) % _SIDE_STEP):
        raise InputError(f"resolutions are multiples of {_SIDE_STEP}: received {text!r}. Change the ends or the step.")
    return Range(ends[0], ends[1], bool(log), size)


def _choice(name: str, values: Sequence[Any], received: object) -> Choice:
    if not values:
        raise InputError(f"{name} has no values: received {received!r}. Give at least one.")
    return Choice(tuple(dict.fromkeys(values)))


def _plain_number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value
