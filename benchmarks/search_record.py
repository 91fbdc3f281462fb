"""Tables of a recorded search, and of what was measured of searches: for `benchmarks.tables`."""

import json
from pathlib import Path
from typing import Any

import yaml

from benchmarks.record import short
from job.run.report import short as shown_value
from tune import charts, records
from tune.records import Summary

SHOWN = 6
"""The best trials of the search."""


def tables(folder: Path) -> dict[str, str]:
    """By name; those of records that aren't there are left out."""
    found = {"schema": schema()}
    if (folder / "real/trials.parquet").exists():
        found["search"] = search(folder / "real")
        found["search in brief"] = brief(folder / "real")
    if (folder / "asha.json").exists():
        found["asha"] = asha(json.loads((folder / "asha.json").read_text()))
    if (folder / "overhead.json").exists():
        found["overhead"] = overhead(json.loads((folder / "overhead.json").read_text()))
    return found


def schema() -> str:
    """The columns of `trials.parquet`."""
    rows = [f"| `{f.name}` | {f.type} | {f.metadata[b'description'].decode()} |" for f in records.SCHEMA]
    return "\n".join(["| column | type | |", "| --- | --- | --- |", *rows])


def search(folder: Path) -> str:
    """How a search was made and what it found."""
    parts = json.loads((folder / "environment.json").read_text())
    rows = records.read(folder / "trials.parquet")
    trials = records.summaries(rows, "search")
    groups = records.groups_of_seeds(records.summaries(rows, "confirm"))
    result = json.loads((folder / "result.json").read_text())
    front = {trial.trial for trial in charts.pareto([t for t in trials if t.epochs])}
    stopped = sum(trial.status == "stopped" for trial in trials)
    names = list(trials[0].settings)
    where = f"{parts[0]['processor']}, {parts[0]['cores']} cores, commit {short(parts[0]['commit'])}"
    lines = [
        f"```sh\n{parts[0]['command']}\n```",
        "",
        f"{where}: {_minutes(parts)} in all, {len(trials)} trials, {stopped} of them stopped early.",
        f"The best {SHOWN} (◆: on the front of accuracy against cost):",
        "",
        f"| trial | {' | '.join(names)} | epochs | validation | cost, rank-seconds |",
        "| --- " * (len(names) + 4) + "|",
        *[_row(trial, names, trial.trial in front) for trial in sorted(trials, key=lambda t: -t.score)[:SHOWN]],
    ]
    if groups:
        lines += [
            "",
            f"| again | {' | '.join(names)} | validation |",
            "| --- " * (len(names) + 2) + "|",
        ]
        for group in groups:
            shown = " | ".join(shown_value(group[0].settings[name]) for name in names)
            lines.append(f"| {len(group)} seeds | {shown} | {_percent(group)} |")
    lines += [
        "",
        f"The winner's one look at the test set: **{100 * result['test_accuracy']:.2f} %**. {_limits(folder)}",
    ]
    return "\n".join(lines)


def brief(folder: Path) -> str:
    """The same in a sentence or two."""
    parts = json.loads((folder / "environment.json").read_text())
    rows = records.read(folder / "trials.parquet")
    trials = records.summaries(rows, "search")
    result = json.loads((folder / "result.json").read_text())
    group = records.groups_of_seeds(records.summaries(rows, "confirm"))[0]
    settings = ", ".join(f"{name} {shown_value(value)}" for name, value in group[0].settings.items() if name != "seed")
    return (
        f"{len(trials)} trials and {len(group)} seeds of each of the best, {_minutes(parts)}: {settings}.\n"
        f"Validation accuracy {_percent(group)}; the test set, seen once: {100 * result['test_accuracy']:.2f} %. "
        f"{_limits(folder)}"
    )


def asha(record: dict[str, Any]) -> str:
    """Best validation accuracy with and without early stops, by seed."""
    lines = ["| seed | rank-seconds each | without | with ASHA |", "| --- | --- | --- | --- |"]
    for run in record["runs"]:
        scores = " | ".join(
            f"{100 * run[name]['score']:.2f} ({run[name]['trials']} trials)" for name in ("none", "asha")
        )
        lines.append(f"| {run['seed']} | {run['budget']:.0f} | {scores} |")
    gain, spread = 100 * record["mean_gain"], 100 * record["standard_deviation_of_gain"]
    return "\n".join([*lines, "", f"ASHA's gain: {gain:+.2f} ± {spread:.2f} points. {_made(record)}"])


def overhead(record: dict[str, Any]) -> str:
    """What a trial costs beyond its training."""
    lines = [
        "| ranks of a trial | seconds beyond its training | of the first, with Ray's start and TensorFlow's import |"
    ]
    lines.append("| --- " * 3 + "|")
    for ranks, found in record["by_ranks"].items():
        mean, spread = found["mean"], found["standard_deviation"]
        lines.append(f"| {ranks} | {mean:.1f} ± {spread:.1f} | {found['first_with_start_and_import']:.0f} |")
    return "\n".join([*lines, "", _made(record)])


def _made(record: dict[str, Any]) -> str:
    return f"{record['processor']}, {record['cores']} cores, commit {short(record['commit'])}."


def _minutes(parts: list[dict[str, Any]]) -> str:
    # A part that was killed has no seconds.
    known = [part["seconds"] for part in parts if part["seconds"] is not None]
    return f"{'at least ' if len(known) < len(parts) else ''}{sum(known) / 60:.0f} minutes"


def _limits(folder: Path) -> str:
    job = yaml.safe_load((folder / "sweep.yaml").read_text())["job"]
    return f"All on {job['limit_train']:,} training and at most {job['limit_eval']:,} validation or test images."


def _row(trial: Summary, names: list[str], on_front: bool) -> str:
    shown = " | ".join(shown_value(trial.settings[name]) for name in names)
    mark = " ◆" if on_front else ""
    return f"| {trial.number}{mark} | {shown} | {trial.epochs} | {100 * trial.score:.2f} | {trial.cost:.0f} |"


def _percent(group: list[Summary]) -> str:
    mean = sum(trial.score for trial in group) / len(group)
    return f"{100 * mean:.2f} ± {100 * records.spread(group):.2f} %"
