"""Curves over epochs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from job.run.svg import FIRST, SECOND, STYLE, inline_svg


@dataclass(frozen=True, slots=True)
class Chart:
    """One finished picture."""

    title: str
    """What is drawn."""
    description: str
    """The picture in a sentence, for those who don't see it."""
    svg: Markup
    """An inline `<svg>` element with ids of its own."""
    lines: tuple[str, ...]
    """Names of the lines, in the order of the colours."""


def learning_charts(epochs: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Draw loss, accuracy, learning rate and images per second over epochs.

    Args:
        epochs: The lines of `metrics.jsonl`. A number that is missing, huge or NaN is a gap; a chart without any is
            left out.
    """
    wanted = [
        ("Loss", {"training": "loss", "validation": "val_loss"}, "{:.4g}", False),
        ("Accuracy", {"training": "accuracy", "validation": "val_accuracy"}, "{:.2%}", False),
        ("Learning rate", {"learning rate": "learning_rate"}, "{:.3g}", True),
        ("Images per second", {"images per second": "images_per_second"}, "{:,.0f}", True),
    ]
    charts = []
    for title, keys, form, from_zero in wanted:
        lines = {name: [_number(epoch.get(key)) for epoch in epochs] for name, key in keys.items()}
        lines = {name: values for name, values in lines.items() if not all(map(math.isnan, values))}
        if lines:
            places = [int(epoch["epoch"]) for epoch in epochs]
            charts.append(_chart(title, places, lines, form, from_zero))
    return charts


def _chart(title: str, places: list[int], lines: dict[str, list[float]], form: str, from_zero: bool) -> Chart:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for (name, values), colour in zip(lines.items(), (FIRST, SECOND), strict=False):
            _line(axes, places, values, colour, dashed=name == "training" and len(lines) > 1)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlim(min(places) - 0.4, max(places) + 0.4)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(_tick(title)))
        svg = inline_svg(figure, title)
    described = "; ".join(_describe(name, places, values, form) for name, values in lines.items())
    return Chart(title, f"{title} by epoch: {described}.", svg, tuple(lines))


def _line(axes: Axes, places: list[int], values: list[float], colour: str, *, dashed: bool) -> None:
    few = len(places) <= 30
    axes.plot(
        places,
        values,
        color=colour,
        linewidth=2,
        linestyle=(0, (4, 1.5)) if dashed else "-",
        marker="o" if few else None,
        markersize=4,
    )


def _tick(title: str) -> Any:
    if title == "Accuracy":
        return lambda value, _: f"{100 * value:.4g} %"
    if title == "Images per second":
        return lambda value, _: f"{value:,.0f}"
    return lambda value, _: f"{value:.3g}"


def _describe(name: str, places: list[int], values: list[float], form: str) -> str:
    known = [(place, value) for place, value in zip(places, values, strict=True) if not math.isnan(value)]
    first, last = known[0], known[-1]
    if len(known) == 1:
        return f"{name} {form.format(first[1])} in epoch {first[0]}"
    return f"{name} from {form.format(first[1])} in epoch {first[0]} to {form.format(last[1])} in epoch {last[0]}"


def _number(value: object) -> float:
    # Beyond that no axis can be drawn, and no network is meant.
    return float(value) if isinstance(value, int | float) and abs(value) < 1e30 else math.nan
