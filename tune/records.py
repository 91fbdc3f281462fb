"""The books of a search: one row for each epoch of each trial, in `trials.parquet`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.tune import Callback
from ray.tune.experiment import Trial

from job.errors import InputError
from job.run.checkpoints import write_atomically
from tune.space import unlike

Row = dict[str, Any]

# Why a trial ended, or that it goes on. The last three are never tried again.
STATUSES = (
    "running",  # or waiting to go on
    "done",  # used its whole budget
    "stopped",  # early, by the scheduler
    "failed",  # more often than --max-failures
    "diverged",  # the loss was not a number
    "out of memory",
    "refused",  # the job refused the settings
)

_FIELDS = [
    ("phase", pa.string(), "search, or confirm: the best again with other seeds"),
    ("trial", pa.string(), "Ray Tune's id of the trial"),
    ("number", pa.int32(), "of the trial in its phase, from 1, in the order in which they were proposed"),
    ("epoch", pa.int32(), "from 1; 0 in the only row of a trial that finished none"),
    ("status", pa.string(), f"of the trial, the same in all its rows: {', '.join(STATUSES)}"),
    (
        "score",
        pa.float64(),
        "validation accuracy that the trial is judged by: its best at its final resolution, or its last, as selected",
    ),
    ("val_accuracy", pa.float64(), "on the validation split after the epoch, 0 to 1"),
    ("val_loss", pa.float64(), "mean cross-entropy there, in nats"),
    ("accuracy", pa.float64(), "on the training split during the epoch, 0 to 1"),
    ("loss", pa.float64(), "mean cross-entropy there, in nats"),
    ("images_per_second", pa.float64(), "in training, all ranks together"),
    ("seconds", pa.float64(), "of the epoch with its validation"),
    (
        "training_seconds",
        pa.float64(),
        "of the trial so far, at its end by seconds with the epoch that was cut; with pbt the weights' ancestors' too",
    ),
    ("cost", pa.float64(), "rank-seconds so far: training_seconds times ranks"),
    ("time", pa.timestamp("ms", tz="UTC"), "when the result came in"),
    ("settings", pa.string(), "the trial's point of the space in this epoch, as JSON; confirmed ones with their seed"),
    ("problem", pa.string(), "what the job said when it ended the trial, else null"),
]
SCHEMA = pa.schema([pa.field(name, kind, metadata={"description": text}) for name, kind, text in _FIELDS])


@dataclass(frozen=True, slots=True)
class Summary:
    """One trial as a whole."""

    phase: str
    trial: str
    number: int
    settings: Mapping[str, Any]
    """Its point of the space at the end."""
    status: str
    epochs: int
    """Finished ones."""
    score: float
    cost: float
    """Rank-seconds."""
    rows: Sequence[Row] = field(repr=False)

    @property
    def whole(self) -> bool:
        """Whether it used its whole budget."""
        return self.status == "done"

    @property
    def sound(self) -> bool:
        """Whether nothing went wrong with it."""
        return self.status in ("done", "stopped", "running")


def summaries(rows: Iterable[Row], phase: str) -> list[Summary]:
    """The trials of a phase, by number."""
    trials: dict[str, list[Row]] = {}
    for row in rows:
        if row["phase"] == phase:
            trials.setdefault(row["trial"], []).append(row)
    found = []
    for name, epochs in trials.items():
        epochs.sort(key=lambda row: row["epoch"])
        last = epochs[-1]
        settings = json.loads(last["settings"])
        score = last["score"] if last["score"] is not None else 0.0
        found.append(
            Summary(
                phase, name, last["number"], settings, last["status"], last["epoch"], score, last["cost"] or 0.0, epochs
            )
        )
    return sorted(found, key=lambda summary: summary.number)


def ranked(trials: Iterable[Summary]) -> list[Summary]:
    """Those that are fit to win, the best first: before all others those that used their whole budget."""
    fit = [t for t in trials if t.epochs and t.sound]
    return sorted(fit, key=lambda t: (not t.whole, -t.score, t.cost))


def candidates(ranking: Iterable[Summary], count: int) -> list[dict[str, Any]]:
    """The settings of the best so many trials that differ in them, the best first: those to be confirmed."""
    return unlike([dict(trial.settings) for trial in ranking])[:count]


def groups_of_seeds(trials: Sequence[Summary]) -> list[list[Summary]]:
    """Confirmed trials of the same settings together, by seed: the complete groups first, the best mean before others.

    So the first of a group is the one whose model is taken: by rule, since the luckiest would flatter the settings.
    """
    groups: dict[str, list[Summary]] = {}
    for trial in trials:
        if trial.whole and trial.epochs:
            point = {name: value for name, value in trial.settings.items() if name != "seed"}
            groups.setdefault(str(sorted(point.items())), []).append(trial)
    found = [sorted(group, key=lambda t: t.settings["seed"]) for group in groups.values()]
    return sorted(found, key=lambda group: (-len(group), -mean(t.score for t in group)))


def spread(group: Sequence[Summary]) -> float:
    """Standard deviation of the scores over seeds; 0 for a single one."""
    return stdev(t.score for t in group) if len(group) > 1 else 0.0


def told(group: Sequence[Summary]) -> str:
    """What settings reached: one trial's score, or the mean over seeds."""
    average = mean(t.score for t in group)
    return f"{average:.4f}" + (f" ± {spread(group):.4f} over {len(group)} seeds" if len(group) > 1 else "")


def read(path: Path) -> list[Row]:
    """The rows of `trials.parquet`. Raises InputError if it isn't one."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise InputError(f"no search there: received {path.parent}, in which there is no {path.name}.") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} can't be read: {' '.join(str(error).split())}. Restore it.") from None
    if missing := [name for name in SCHEMA.names if name not in table.column_names]:
        raise InputError(f"{path} is not the record of a search: it lacks the column {missing[0]}.")
    return table.select(SCHEMA.names).to_pylist()


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows in one step: the file is the older or the newer one, never half of it."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), buffer)
    write_atomically(path, buffer.getvalue().to_pybytes())


def last_line(trial: Trial) -> str:
    """What a trial failed of, in a line."""
    # Where Tune writes it first: it comes into the storage later.
    path = Path(trial.error_file) if trial.error_file else None
    lines = path.read_text(errors="replace").strip().splitlines() if path and path.exists() else []
    return lines[-1][:300] if lines else "no reason is known"


class Journal(Callback):
    """Writes each result of a phase into the books as soon as Tune has it, and keeps what was there before."""

    def __init__(self, path: Path, phase: str) -> None:
        self.path, self.phase = path, phase
        known = read(path) if path.exists() else []
        self._rows = {(row["phase"], row["trial"], row["epoch"]): row for row in known}
        # Tune lists the trials in another order when it goes on.
        self._numbers = {row["trial"]: row["number"] for row in known if row["phase"] == phase}
        self._to_compare = bool(self._numbers)
        self.problem: OSError | None = None
        """Why the books could not be written; Tune would take it for its own, or for a trial's."""

    @property
    def rows(self) -> list[Row]:
        """All rows so far, those of other phases too."""
        return list(self._rows.values())

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Drop the rows of trials that Tune, going on, has not restored.

        Raises:
            InputError: it has restored none of those that had ended.
            OSError: the books could not be written.
        """
        if self.problem:
            raise self.problem
        if not self._to_compare:
            return
        self._to_compare = False
        lost = self._numbers.keys() - {trial.trial_id for trial in trials}
        mine = [row for row in self.rows if row["phase"] == self.phase]
        ended = {row["trial"] for row in mine if row["status"] != "running"}
        if ended and ended <= lost:
            raise InputError(
                f"{self.path} holds {len(ended)} ended trial(s) of which Tune's own files hold none: they were moved, "
                "removed or damaged. Restore them, or begin again with another --out."
            )
        for row in [row for row in mine if row["trial"] in lost]:
            del self._rows[self.phase, row["trial"], row["epoch"]]
            self._numbers.pop(row["trial"], None)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """One that had failed is tried again, and runs until it tells otherwise."""
        mine = self._of(trial)
        if any(row["status"] == "failed" for row in mine):
            for row in mine:
                row |= {"status": "running", "problem": None}
            self._write()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._note(trials, trial, result, result.get("status", "running"), datetime.now(UTC))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        status = (trial.last_result or {}).get("status", "running")
        self._note(trials, trial, trial.last_result or {}, "stopped" if status == "running" else status)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._note(trials, trial, {**(trial.last_result or {}), "problem": last_line(trial)}, "failed")

    def _of(self, trial: Trial) -> list[Row]:
        return [row for (*whose, _), row in self._rows.items() if whose == [self.phase, trial.trial_id]]

    def _number(self, trials: list[Trial], trial: Trial) -> int:
        for one in trials:
            self._numbers.setdefault(one.trial_id, 1 + max(self._numbers.values(), default=0))
        return self._numbers[trial.trial_id]

    def _note(
        self,
        trials: list[Trial],
        trial: Trial,
        result: Mapping[str, Any],
        status: str,
        came: datetime | None = None,
    ) -> None:
        epoch = int(result.get("epoch", 0))
        # A trial may go back: to its last checkpoint, or to the weights of another that has seen fewer epochs.
        for row in self._of(trial):
            if 0 < epoch < row["epoch"]:
                del self._rows[self.phase, trial.trial_id, row["epoch"]]
        mine = self._of(trial)
        row = {name: result.get(name) for name in SCHEMA.names}
        if status in ("diverged", "out of memory", "refused", "failed") and any(r["epoch"] == epoch for r in mine):
            row = next(dict(r) for r in mine if r["epoch"] == epoch) | {"problem": result.get("problem")}
        row |= {
            "phase": self.phase,
            "trial": trial.trial_id,
            "number": self._number(trials, trial),
            "epoch": epoch,
            "time": came or next((r["time"] for r in mine if r["epoch"] == epoch), datetime.now(UTC)),
            # A population's scheduler has given the trial its next settings already.
            "settings": json.dumps(result.get("config", trial.config)),
        }
        self._rows[self.phase, trial.trial_id, epoch] = row
        if epoch:
            self._rows.pop((self.phase, trial.trial_id, 0), None)
        for other in [*mine, row]:
            other["status"] = status
        self._write()

    def _write(self) -> None:
        try:
            write(self.path, self.rows)
            self.problem = None
        except OSError as error:
            self.problem = error
