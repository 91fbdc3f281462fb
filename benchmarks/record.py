"""The JSON files that hold what was measured: what they have in common, how they are read, and written whole."""

import datetime
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job.environment import commit
from job.errors import InputError
from job.reading import shortened
from job.run.checkpoints import write_atomically


def made() -> dict[str, Any]:
    """How and when something is measured: by which command, at which commit, on which day."""
    command = shlex.join(["python", *sys.orig_argv[1:]])
    return {"command": command, "commit": commit(), "date": datetime.date.today().isoformat()}


def times(seconds: Sequence[float]) -> dict[str, Any]:
    """What turns took, in milliseconds."""
    return {
        "best_ms": round(1e3 * min(seconds), 3),
        "median_ms": round(1e3 * statistics.median(seconds), 3),
        "turns_ms": [round(1e3 * value, 3) for value in seconds],
    }


def check(path: Path | None) -> None:
    """Before anything is measured: raises InputError where a record could not be written."""
    if path is not None and not path.parent.is_dir():
        raise InputError(f"the folder of {path} is not there. Make it, or name another with --json.")


def read(path: Path | None, rows: str) -> dict[str, Any]:
    """A record as earlier calls left it, with no `rows` if there is none. Raises InputError if it is something else."""
    check(path)
    if path is None or not path.exists():
        return {rows: []}
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is no record: {error}. Name another file with --json.") from None
    if not isinstance(record, dict) or not isinstance(record.get(rows), list):
        raise InputError(f"{path} is no record with {rows}: received {shortened(record)}. Name another with --json.")
    return record


def write(path: Path | None, record: dict[str, Any]) -> None:
    """Write a record, if a path is given, so that it is there whole or as it was."""
    if path is not None:
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def place(environment: dict[str, Any]) -> str:
    """The processor and its cores; of a run that went on elsewhere, all of them."""
    parts = [environment | part for part in (*environment.get("earlier", []), {})]
    return ", then ".join(dict.fromkeys(f"{part['processor']}, {part['cores']} cores" for part in parts))


def markdown(heads: Sequence[str], rows: Sequence[Sequence[object]], shared: Sequence[str]) -> str:
    """A Markdown table; a column of `shared` that is the same in all rows becomes a sentence below it."""
    same = {
        head: str(rows[0][column])
        for column, head in enumerate(heads)
        if head in shared and len({str(row[column]) for row in rows}) == 1
    }
    kept = [column for column, head in enumerate(heads) if head not in same]
    lines = [f"| {' | '.join(heads[column] for column in kept)} |", "| --- " * len(kept) + "|"]
    lines += [f"| {' | '.join(str(row[column]) for column in kept)} |" for row in rows]
    told = "; ".join(f"{head}: {value}" for head, value in same.items())
    return "\n".join([*lines, *(["", f"The same in all rows: {told}."] if same else [])])


def short(commit: str | None) -> str:
    """A commit's first twelve digits, and the mark of a tree that was not quite it."""
    if commit is None:
        return "unknown"
    digits, _, mark = commit.partition("-")
    return f"{digits[:12]}-{mark}" if mark else digits[:12]
