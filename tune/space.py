"""What is searched: options of the training job, each with a range or a list of values.

learning_rate: 1e-4..1e-2 log
dropout: 0..0.8
resolution: 32..96 step 8
global_batch: [64, 128]
"""

import contextlib
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from job.config import Config, plain, resolve
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
_SIDE_STEP = 8  # of resolutions
# What a trial's memory depends on.
_DEMANDING = ("recipe", "resolution", "stages", "global_batch", "accumulate")


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
        if self.step:
            return self.nearest(self.low + self.step * draw.randrange(self._count))
        return draw.uniform(self.low, self.high)

    def grid(self, most: int) -> list[float]:
        """Up to `most` values from one end to the other."""
        if self.step and self._count <= most:
            return [self.nearest(self.low + self.step * index) for index in range(self._count)]
        spaced = np.geomspace if self.log else np.linspace
        return list(dict.fromkeys(self.nearest(float(value)) for value in spaced(self.low, self.high, most)))

    def nearest(self, value: float) -> float:
        """The value of the range that is nearest to a number."""
        if self.step:
            value = self.low + round((value - self.low) / self.step) * self.step
        value = min(max(value, self.low), self.high)
        return round(value) if isinstance(self.low, int) else value

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high and self.nearest(value) == value

    def distribution(self) -> "BaseDistribution":
        """The same for Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int):
            return IntDistribution(self.low, int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def __str__(self) -> str:
        ending = " log" if self.log else f" step {_exact(self.step)}" if self.step else ""
        return f"{_exact(self.low)}..{_exact(self.high)}{ending}"

    @property
    def _count(self) -> int:
        """How many values there are."""
        assert self.step is not None
        return round((self.high - self.low) / self.step) + 1


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a list of values."""

    values: tuple[Any, ...]
    """As they are searched: see `searched`."""

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

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.values))}]"


class Space:
    """Parameters by name.

    Args:
        texts: of each parameter: `LOW..HIGH`, `LOW..HIGH log`, `LOW..HIGH step N`, a list of values, or that as text.
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
        return resolve([self.fixed, as_options(point)])

    def random_points(self, count: int, seed: int) -> list[Point]:
        """The known points, then points at random, the same for the same seed."""
        draw = random.Random(seed)
        known = self.known()
        drawn = [{name: p.sample(draw) for name, p in self.parameters.items()} for _ in range(count)]
        return (known + drawn)[:count]

    def grid_points(self, each: int) -> list[Point]:
        """Known settings, and all combinations of up to `each` values of each range and all values of each list."""
        axes = [p.grid(each) for p in self.parameters.values()]
        points = [dict(zip(self.parameters, values, strict=True)) for values in itertools.product(*axes)]
        known = self.known()
        return known + [point for point in points if point not in known]

    def known(self) -> list[Point]:
        """Settings that are known to work, or the nearest in the space: the original's, then the recipe's own."""
        recipe = {name: value for name, value in self.fixed.items() if name not in self.parameters}
        points: list[Point] = []
        for candidate in (recipe | {"recipe": "original"}, recipe):
            try:
                values = {name: searched(value) for name, value in plain(resolve([candidate])).items()}
            except InputError:  # an option that is fixed belongs to another recipe
                continue
            if any(values[name] in parameter for name, parameter in self.parameters.items()):
                points.append({name: _within(p, values[name]) for name, p in self.parameters.items()})
        return unlike(points)

    def nearest(self, point: Mapping[str, Any]) -> Point:
        """The point of the space that is nearest to one that may lie outside."""
        return {name: p.nearest(point[name]) for name, p in self.parameters.items()}

    def pixels(self, point: Mapping[str, Any] | None = None) -> float:
        """Mean number of input pixels of an epoch's images, to which its cost is nearly proportional.

        Args:
            point: of the space; None for the mean over what the job takes of it.

        Raises:
            InputError: the job refuses the point, or all of the space that was looked at.
        """
        refusal, found = None, []
        for each in [point] if point else self.random_points(200, seed=0):
            try:
                found.append(np.mean(np.square(self.config(each).resolutions())))
            except InputError as error:  # as the trial will find
                refusal = error
        if refusal and not found:
            raise refusal
        return float(np.mean(found))

    def largest(self) -> Config:
        """The trial that needs the most memory: that of the most input pixels in a batch. Raises InputError."""
        axes = {n: p.grid(2) for n, p in self.parameters.items() if n in _DEMANDING}
        anywhere = self.random_points(1, seed=0)[0]
        found, refusal = [], None
        for values in itertools.product(*axes.values()):
            try:
                found.append(self.config(anywhere | dict(zip(axes, values, strict=True))))
            except InputError as error:  # as the trial will find
                refusal = error
        if refusal and not found:
            raise refusal
        return max(found, key=lambda c: c.global_batch / c.accumulate * max(c.resolutions()) ** 2)

    def texts(self) -> dict[str, Any]:
        """The space as YAML can hold it, and as it can be read again."""
        return {name: list(p.values) if isinstance(p, Choice) else str(p) for name, p in self.parameters.items()}

    def lines(self) -> Iterator[str]:
        """One line for each parameter, for people."""
        width = max(map(len, self.parameters))
        for name, parameter in self.parameters.items():
            yield f"{name:{width}}  {parameter}"


def _within(parameter: Range | Choice, value: Any) -> Any:
    """The value, or what the parameter has in its place: the nearest in a range, the first of a list."""
    if value in parameter:
        return value
    return parameter.nearest(value) if isinstance(parameter, Range) else parameter.values[0]


def searched(value: Any) -> Any:
    """An option's value as it is searched: lists as their JSON, since Tune takes lists apart and Optuna keeps none."""
    return json.dumps(value) if isinstance(value, list) else value


def as_options(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point's values as the job takes them; a text that is no list stays one, which the job refuses."""
    options = dict(point)
    if isinstance(options.get("stages"), str):
        with contextlib.suppress(ValueError):
            options["stages"] = json.loads(options["stages"])
    return options


def _parameter(name: str, given: Any, fixed: Mapping[str, Any]) -> Range | Choice:
    def checked(value: Any) -> Any:
        return searched(plain(resolve([fixed, as_options({name: value})]))[name])

    values = given
    if not isinstance(given, list):
        text = str(given).strip()
        if match := _RANGE.fullmatch(text):
            return _range(name, text, match, checked)
        if ".." in text and "," not in text and not text.startswith("["):
            raise InputError(
                f"the range of {name} can't be read: received {text!r}. Write LOW..HIGH, LOW..HIGH log or "
                "LOW..HIGH step N."
            )
        try:
            values = parsed(f"[{text}]")
        except ValueError as error:
            raise InputError(f"the values of {name} can't be read: received {text!r}: {error}.") from None
        if len(values) == 1 and isinstance(values[0], list):  # they had brackets
            (values,) = values
    if not values:
        raise InputError(f"{name} has no values: received {given!r}. Give at least one.")
    values = [checked(value) for value in values]
    if name == "resolution" and any(value % _SIDE_STEP for value in values):
        raise InputError(f"resolutions are multiples of {_SIDE_STEP}: received {given!r}. Change the values.")
    return Choice(tuple(unlike(values)))


def _range(name: str, text: str, match: re.Match[str], checked: Callable[[Any], Any]) -> Range:
    start, end, log, step = match.groups()
    low, high = (checked(_plain_number(number)) for number in (start, end))
    if isinstance(low, bool) or not isinstance(low, int | float):
        raise InputError(f"{name} has no range: received {text!r}. Give its values as a list.")
    if low > high:
        raise InputError(f"the range of {name} is upside down: received {text!r}. Write the smaller number first.")
    if log and low <= 0:
        raise InputError(f"a logarithmic range must start above 0: received {text!r} for {name}.")
    whole = isinstance(low, int)
    if step and whole and not float(step).is_integer():
        raise InputError(f"the step of {name} must be a whole number: received {text!r}.")
    default = (_SIDE_STEP if name == "resolution" else 1) if whole and not log else None
    size = (int(float(step)) if whole else float(step)) if step else default
    if size is not None and size <= 0:
        raise InputError(f"the step of {name} must be above 0: received {text!r}.")
    if name == "resolution" and (log or low % _SIDE_STEP or (size or _SIDE_STEP) % _SIDE_STEP):
        raise InputError(
            f"resolutions are multiples of {_SIDE_STEP}: received {text!r}. Change the start or the step, or leave out "
            "log."
        )
    if size is not None:
        steps = (high - low) / size
        if abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
            ends = " or ".join(_exact(round(low + count * size, 12)) for count in (int(steps), int(steps) + 1))
            raise InputError(
                f"the range of {name} must end on a step of {_exact(size)}: received {text!r}. Write {ends}."
            )
    return Range(low, high, bool(log), size)


def unlike(values: Sequence[Any]) -> list[Any]:
    """Each value once. Lists can't be keys, so no dictionary does it."""
    return [value for index, value in enumerate(values) if value not in values[:index]]


def _exact(value: float) -> str:
    """The shortest text that reads as the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _plain_number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value
