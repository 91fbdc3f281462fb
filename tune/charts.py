"""Pictures of a search, each an inline SVG in the page's colours: the best in the first, early stops in the second."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from job.run.charts import Chart
from job.run.report import short
from job.run.svg import FIRST, MUTED, RULE, SECOND, STYLE, inline_svg
from tune.records import Summary, spread

_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")
_BEST = 5


def parameter_charts(trials: Sequence[Summary], names: Sequence[str], log: frozenset[str]) -> list[Chart]:
    """Accuracy against each parameter.

    Args:
        trials: with at least one epoch each.
        names: of the parameters.
        log: those whose axis is logarithmic.
    """
    charts = []
    for name in names:
        with mpl.rc_context(STYLE):
            figure, axes = _figure(3.6, 2.7)
            levels = _levels(trials, name)
            for whole, colour, filled in ((False, SECOND, False), (True, FIRST, True)):
                shown = [t for t in trials if t.whole is whole]
                places = [levels.index(str(t.settings[name])) if levels else t.settings[name] for t in shown]
                _points(axes, places, [t.score for t in shown], colour, filled)
            if levels:
                axes.set_xticks(range(len(levels)), [_drawn(level) for level in levels])
            elif name in log:
                axes.set_xscale("log")
            axes.set_xlabel(name)
            _accuracy(axes)
            svg = inline_svg(figure, f"parameter {name}")
        best = max(trials, key=lambda t: t.score)
        text = f"Validation accuracy against {name}: the best, {best.score:.2%}, is at {short(best.settings[name])}."
        charts.append(Chart(name, text, svg, ("whole budget", "stopped early")))
    return charts


def parallel_chart(trials: Sequence[Summary], names: Sequence[str], log: frozenset[str]) -> Chart:
    """Each trial as a line through its parameters to its accuracy; the best ones stand out."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(8.6, 3.4)
        columns = {name: _scaled([t.settings[name] for t in trials], name in log) for name in names}
        columns["accuracy"] = _scaled([t.score for t in trials], False)
        best = sorted(range(len(trials)), key=lambda i: -trials[i].score)[:_BEST]
        for index in sorted(range(len(trials)), key=lambda i: trials[i].score):
            stands_out = index in best
            axes.plot(
                range(len(columns)),
                [values[index] for values, _, _ in columns.values()],
                color=FIRST if stands_out else MUTED,
                linewidth=2 if stands_out else 1,
                alpha=0.95 if stands_out else 0.35,
            )
        for place, (name, (_, low, high)) in enumerate(columns.items()):
            axes.axvline(place, color=RULE, zorder=0)
            ends = [f"{100 * float(v):.2f} %" for v in (low, high)] if name == "accuracy" else [short(low), short(high)]
            for height, end in zip((-0.09, 1.04), ends, strict=True):
                axes.text(place, height, _drawn(end), ha="center", color=MUTED, fontsize=9)
        axes.set_xticks(range(len(columns)), list(columns))
        axes.set_yticks([])
        axes.set_ylim(-0.12, 1.12)
        axes.tick_params(axis="x", length=0, pad=12)
        axes.spines["bottom"].set_visible(False)
        svg = inline_svg(figure, "parallel")
    text = f"Parallel coordinates of {len(trials)} trials over {', '.join(columns)}."
    return Chart("All parameters together", text, svg, (f"the best {len(best)}",))


def pareto(trials: Sequence[Summary]) -> list[Summary]:
    """Those for which no other is both cheaper and at least as good, the cheapest first."""
    front: list[Summary] = []
    for trial in sorted(trials, key=lambda t: (t.cost, -t.score)):
        if not front or trial.score > front[-1].score:
            front.append(trial)
    return front


def cost_chart(trials: Sequence[Summary]) -> Chart:
    """Accuracy against cost with the Pareto front."""
    front = pareto(trials)
    with mpl.rc_context(STYLE):
        figure, axes = _figure(5.2, 2.9)
        for whole, colour, filled in ((False, SECOND, False), (True, FIRST, True)):
            shown = [t for t in trials if t.whole is whole]
            _points(axes, [t.cost for t in shown], [t.score for t in shown], colour, filled)
        edge = max(t.cost for t in trials)
        axes.step(
            [*(t.cost for t in front), edge], [*(t.score for t in front), front[-1].score], where="post", color=FIRST
        )
        axes.set_xlabel("cost: seconds of training × ranks")
        axes.set_xlim(left=0)
        _accuracy(axes)
        svg = inline_svg(figure, "cost")
    text = "Validation accuracy against cost; on the front: " + "; ".join(
        f"trial {t.number} with {t.score:.2%} for {t.cost:.0f} rank-seconds" for t in front
    )
    return Chart("Accuracy against cost", f"{text}.", svg, ("whole budget, and the front", "stopped early"))


def curves_chart(trials: Sequence[Summary], best: Summary) -> Chart:
    """Validation accuracy over epochs of every trial; a cross where a trial was stopped early."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(5.2, 2.9)
        for trial in sorted(trials, key=lambda t: t is best):
            rows = [row for row in trial.rows if row["val_accuracy"] is not None]
            places, values = [row["epoch"] for row in rows], [row["val_accuracy"] for row in rows]
            is_best = trial is best
            axes.plot(
                places,
                values,
                color=FIRST if is_best else MUTED,
                linewidth=2.4 if is_best else 1,
                alpha=1 if is_best else 0.5,
                marker="." if len(places) == 1 else None,
            )
            if trial.status == "stopped" and rows:
                axes.plot(places[-1], values[-1], marker="x", color=SECOND, markersize=7, markeredgewidth=1.8)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        _accuracy(axes)
        svg = inline_svg(figure, "curves")
    stopped = sum(t.status == "stopped" for t in trials)
    text = f"Validation accuracy over epochs of {len(trials)} trials, {stopped} stopped early; best: {best.score:.2%}."
    return Chart("How trials learned", text, svg, ("the best", "× stopped early"))


def importance_chart(importances: Mapping[str, float]) -> Chart:
    """A bar for each parameter."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(5.2, 0.9 + 0.4 * len(importances))
        names = sorted(importances, key=lambda name: importances[name])
        axes.barh(names, [importances[name] for name in names], color=FIRST, height=0.55)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="both", length=0)
        svg = inline_svg(figure, "importance")
    text = "; ".join(f"{name} {importances[name]:.0%}" for name in reversed(names))
    text = f"Importance of each parameter: {text}. Trials that were stopped early count with what they had reached."
    return Chart("What matters", text, svg, ())


def confirmed_chart(groups: Sequence[Sequence[Summary]]) -> Chart:
    """The mean of each confirmed setting over its seeds, with its standard deviation, and each seed."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(5.2, 1.1 + 0.5 * len(groups))
        texts = []
        for place, group in enumerate(reversed(groups)):
            scores = [t.score for t in group]
            width = spread(group)
            axes.plot(scores, [place] * len(scores), "o", color=MUTED, alpha=0.5, markersize=5)
            axes.errorbar(mean(scores), place, xerr=width, fmt="o", color=FIRST, capsize=4, linewidth=2, markersize=7)
            texts.append(f"{mean(scores):.2%} ± {100 * width:.2f}")
        axes.set_yticks(range(len(groups)), [f"setting {len(groups) - place}" for place in range(len(groups))])
        axes.set_ylim(-0.6, len(groups) - 0.4)
        axes.grid(visible=True, axis="x")
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.set_xlabel("mean ± standard deviation, and each seed")
        svg = inline_svg(figure, "confirmed")
    return Chart("The best again", f"Means over seeds, the best first: {'; '.join(reversed(texts))}.", svg, ())


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _points(axes: Axes, places: Sequence[Any], values: Sequence[float], colour: str, filled: bool) -> None:
    face = colour if filled else "none"
    axes.scatter(places, values, s=34, edgecolors=colour, facecolors=face, linewidths=1.4, alpha=0.9)


def _accuracy(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(_PERCENT)


def _levels(trials: Sequence[Summary], name: str) -> list[str]:
    """The values of a parameter that isn't a number, in order; none if it is one."""
    values = [t.settings[name] for t in trials]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return []
    return sorted({str(value) for value in values})


def _scaled(values: Sequence[Any], log: bool) -> tuple[list[float], Any, Any]:
    """Values from 0 to 1, and the lowest and the highest of them."""
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    order = sorted(set(values) if numeric else set(map(str, values)))
    numbers = (
        [math.log(v) if log else float(v) for v in values]
        if numeric
        else [float(order.index(str(value))) for value in values]
    )
    low, high = min(numbers), max(numbers)
    return [(n - low) / (high - low) if high > low else 0.5 for n in numbers], order[0], order[-1]


def _drawn(text: str) -> str:
    """The same for Matplotlib, which takes what is between dollars for a formula."""
    return text.replace("$", r"\$")
