"""The page a person looks at after a run: `report.html`, one file that asks for nothing from anywhere."""

import base64
import importlib.resources
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from job import reading
from job.errors import InputError
from job.run.charts import learning_charts
from job.run.checkpoints import write_atomically
from job.run.scores import Scores, predictions, score, worst_mistakes

_MISTAKES = 24
_CONFUSIONS = 6
# Disjoint parts of a run's duration, by their keys in `result.json`.
_TIMINGS = {
    "earlier": "Before the run was interrupted",
    "import": "Start: importing libraries, meeting the other ranks",
    "data": "Start: reading the data",
    "model": "Start: making the model",
    "tracing": "Tracing and compiling the step, with the first step",
    "steps": "Training steps",
    "all_reduce": "Waiting for the exchange of gradients",
    "evaluation": "Evaluation",
    "saving": "Saving",
}


def write_report(
    run_dir: Path,
    *,
    images: NDArray[np.uint8],
    places: NDArray[np.integer],
    labels: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    class_names: Sequence[str],
    split_name: str,
    result: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html` into a run folder, from the files that the run has left there and its predictions.

    `config.yaml`, `environment.json`, `metrics.jsonl` and `result.json` are read where they are there, and what they
    don't hold is left out. The page replaces an older one in one step.

    Args:
        images: uint8 [N, 28, 28].
        places: [N], of each image in its data set's file, from 0.
        labels: [N], 0 to C − 1.
        probabilities: float [N, C].
        class_names: C names.
        split_name: Where the images come from: "test" or "validation".
        result: what `result.json` will hold, if it isn't written yet.

    Raises:
        InputError: a file of the run folder is damaged.
        ValueError: the arrays don't fit each other.
        OSError: the page can't be written; an older one is then unchanged.
    """
    if images.shape != (len(labels), 28, 28) or probabilities.shape != (len(labels), len(class_names)):
        raise ValueError(
            "images, labels, probabilities and class names don't fit each other: received "
            f"{images.shape}, {labels.shape}, {probabilities.shape} and {len(class_names)} names."
        )
    scores = score(labels, probabilities)
    config, environment = _mapping(run_dir / "config.yaml"), _mapping(run_dir / "environment.json")
    result = _mapping(run_dir / "result.json") if result is None else result
    epochs = _epochs(run_dir / "metrics.jsonl")
    page = template("job.run").render(
        run_name=run_dir.resolve().name,
        status=result.get("status"),
        headline=_headline(result, scores, split_name, chosen_best=config.get("select", "best") == "best"),
        facts=_facts(config, result),
        command=environment.get("command"),
        charts=learning_charts(epochs),
        epochs=epochs,
        columns=list(dict.fromkeys(key for epoch in epochs for key in epoch)),
        split_name=split_name,
        scores=scores,
        class_names=class_names,
        confused=_most_confused(scores, class_names),
        mistakes=_mistakes(images, places, labels, probabilities, class_names),
        timings=_timings(result),
        first_step=first if _is_number(first := result.get("seconds_to_first_step")) else None,
        config=list(_flat(config)),
        environment=list(_flat(environment)),
    )
    path = run_dir / "report.html"
    write_atomically(path, page.encode(errors="backslashreplace"))  # paths may be of any bytes
    return path


@dataclass(frozen=True, slots=True)
class Figure:
    """One headline figure: a name, its value, and a word on it."""

    name: str
    value: str
    note: str = ""


def _headline(result: Mapping[str, Any], scores: Scores, split_name: str, *, chosen_best: bool) -> list[Figure]:
    error = f"± {100 * scores.standard_error:.2f} standard error, {scores.count:,} images"
    if split_name == "test" and _is_number(result.get("test_accuracy_with_flips")):
        error += f"; {percent(result['test_accuracy_with_flips'])} averaged with mirror images"
    figures = [Figure(f"{split_name.capitalize()} accuracy", percent(scores.accuracy), error)]
    if split_name != "test" and _is_number(result.get("test_accuracy")):
        figures.insert(0, Figure("Test accuracy", percent(result["test_accuracy"])))
    figures.append(Figure(f"{split_name.capitalize()} loss", short(scores.loss), "nats"))
    if split_name != "validation" and _is_number(result.get("val_accuracy")):
        note = "best epoch by test images: protocol original" if result.get("protocol") == "original" else ""
        figures.append(Figure("Validation", percent(result["val_accuracy"]), note))
    if "epochs" in result:
        best = result.get("best_epoch") if chosen_best else None
        figures.append(Figure("Epochs", short(result["epochs"]), f"best: {short(best)}" if best else ""))
    if "ranks" in result:
        figures.append(Figure("Ranks", short(result["ranks"])))
    if _is_number(result.get("seconds")):
        figures.append(Figure("Duration", duration(result["seconds"])))
    return figures


def _facts(config: Mapping[str, Any], result: Mapping[str, Any]) -> list[tuple[str, object]]:
    keys = ("dataset", "recipe", "weights", "protocol", "resolution", "seed")
    values = {key: result.get(key, config.get(key)) for key in keys}
    return [(key.capitalize(), value) for key, value in values.items() if value is not None]


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often one class was taken for another."""

    true: str
    predicted: str
    images: int
    share: float
    """Of the images of the true class."""


def _most_confused(scores: Scores, names: Sequence[str]) -> list[Confusion]:
    wrong = scores.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [(int(place) // len(names), int(place) % len(names)) for place in order]
    return [
        Confusion(
            names[true], names[predicted], int(wrong[true, predicted]), wrong[true, predicted] / scores.support[true]
        )
        for true, predicted in pairs
        if wrong[true, predicted]
    ]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One image that was predicted wrongly."""

    place: int
    """In its data set's file, from 0."""
    picture: str
    """A PNG as a `data:` address."""
    true: str
    predicted: str
    true_probability: float
    predicted_probability: float


def _mistakes(
    images: NDArray[np.uint8],
    places: NDArray[np.integer],
    labels: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    names: Sequence[str],
) -> list[Mistake]:
    predicted = predictions(probabilities)
    return [
        Mistake(
            place=int(places[index]),
            picture=_png(images[index]),
            true=names[labels[index]],
            predicted=names[predicted[index]],
            true_probability=float(probabilities[index, labels[index]]),
            predicted_probability=float(probabilities[index, predicted[index]]),
        )
        for index in worst_mistakes(labels, probabilities, _MISTAKES)
    ]


def _png(image: NDArray[np.uint8]) -> str:
    data = io.BytesIO()
    Image.fromarray(image).save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")


@dataclass(frozen=True, slots=True)
class Timing:
    """What one kind of work took."""

    name: str
    seconds: float
    share: float
    """Of the whole run, 0 to 1."""


def _timings(result: Mapping[str, Any]) -> list[Timing]:
    timings = result.get("timings")
    if not isinstance(timings, Mapping):
        return []
    order = list(dict.fromkeys([*_TIMINGS, *timings]))
    known = {_TIMINGS.get(key, key): float(timings[key]) for key in order if _is_number(timings.get(key))}
    total, spent = result.get("seconds"), sum(known.values())
    if _is_number(total) and total > spent:
        known["Everything else"] = total - spent
    whole = sum(known.values()) or 1.0
    return [Timing(name, seconds, seconds / whole) for name, seconds in known.items()]


def _mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON object; an empty one where there is no file."""
    if not path.exists():
        return {}
    try:
        value = reading.json_value(reading.bounded(path)) if path.suffix == ".json" else reading.yaml_file(path)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} can't be read: {error}. Restore it, or remove it to have the report without it."
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold one object: received {type(value).__name__}. Restore it, or remove it.")
    return value


def _epochs(path: Path) -> list[dict[str, Any]]:
    """Read one object a line; a resumed run may have written an epoch twice, and its last line counts."""
    if not path.exists():
        return []
    epochs: dict[int, dict[str, Any]] = {}
    try:
        lines = reading.bounded(path).decode(errors="replace").splitlines()
    except ValueError as error:
        raise InputError(f"{path} can't be read: {error}. Restore it, or remove it.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            epoch = reading.json_value(line)
            epochs[int(epoch["epoch"])] = epoch
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{path} line {number} is not an epoch's metrics: received {line[:60]!r}. Remove the line."
            ) from error
    return [epochs[number] for number in sorted(epochs)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield (
                f"{prefix}{key}",
                value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False),
            )


def percent(value: float) -> str:
    """Write a share (0 to 1) as a percentage with two digits after the point."""
    return f"{100 * value:.2f}\N{NO-BREAK SPACE}%" if math.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """Write seconds as a person says them: "51.3 s", "4 min 12 s", "2 h 03 min"."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def short(value: object) -> str:
    """A value as it is shown, numbers to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "not a number"
    return "–" if value is None else str(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def template(package: str) -> jinja2.Template:
    """A package's `report.html.j2`: everything that it is given is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, duration=duration, short=short)
    return environment.from_string(importlib.resources.files(package).joinpath("report.html.j2").read_text("utf-8"))
