"""What a person sees while the search runs: a table in a terminal, a line for each result in a log."""

from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console
from rich.live import Live
from rich.table import Table

from horovod_keras.voice import tell
from job.run.report import duration, percent, short
from tune.estimate import Estimate
from tune.records import Journal, Summary, last_line, ranked, summaries

_SHOWN = 20


class Display(Callback):
    """Shows the trials of a phase, the best so far, and the time left.

    Args:
        journal: which has each result before this callback does.
        estimate: of the time left.
        wanted: number of trials of the phase.
        epochs: of a trial's whole budget; None where that is no number of epochs.
    """

    def __init__(self, journal: Journal, estimate: Estimate, wanted: int, epochs: int | None) -> None:
        self._journal, self._estimate, self._wanted, self._epochs = journal, estimate, wanted, epochs
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=2, transient=True)
        self._is_live = self._console.is_terminal
        self._told: dict[str, int] = {}

    def setup(self, *args: Any, **info: Any) -> None:
        if self._is_live:
            self._live.start()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        if self._is_live:
            self._live.stop()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        # A trial's end may come with the result of the epoch that was told of.
        if not self._is_live and "val_accuracy" in result and self._told.get(trial.trial_id) != result["epoch"]:
            self._told[trial.trial_id] = result["epoch"]
            found = self._trials()
            mine = next(t for t in found if t.trial == trial.trial_id)
            tell(
                f"trial {mine.number}, epoch {self._of_all(mine)}: {percent(result['val_accuracy'])} on the "
                f"validation split; {self._best(found)}{self._left(found)}"
            )

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._say_end(trial)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = next((t.number for t in self._trials() if t.trial == trial.trial_id), None)
        what = f"trial {number} goes on from its last checkpoint" if number else "a trial begins again"
        self._say(f"{what} after a failure: {last_line(trial)}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._say_end(trial)

    def _say_end(self, trial: Trial) -> None:
        found = next((t for t in self._trials() if t.trial == trial.trial_id), None)
        if found is None:
            return
        if problem := found.rows[-1]["problem"]:
            self._say(f"trial {found.number} {found.status}: {problem}")
        elif found.status == "stopped" and not self._is_live:
            tell(f"trial {found.number} stopped early after epoch {found.epochs}")

    def _say(self, line: str) -> None:
        if self._is_live:
            self._console.print(line, soft_wrap=True)  # above the table
        else:
            tell(line)

    def _trials(self) -> list[Summary]:
        return summaries(self._journal.rows, self._journal.phase)

    def _of_all(self, trial: Summary) -> str:
        return f"{trial.epochs}/{self._epochs}" if self._epochs else str(trial.epochs)

    @staticmethod
    def _best(found: list[Summary]) -> str:
        # While it goes on the best so far may be one that has not used its whole budget.
        best = max(ranked(found), key=lambda t: t.score, default=None)
        return f"best so far {percent(best.score)}, trial {best.number}" if best else "none yet"

    def _left(self, found: list[Summary]) -> str:
        left = self._estimate.left(found)
        return "" if left is None else f"; at most {duration(left)} left"

    def _table(self) -> Table:
        found = self._trials()
        ended = sum(t.status != "running" for t in found)
        table = Table(
            title=f"{ended} of {self._wanted} trials ended; {self._best(found)}{self._left(found)}",
            title_justify="left",
        )
        names = sorted({name for t in found for name in t.settings})
        for name in ("trial", *names, "epochs", "validation", "cost", "status"):
            table.add_column(name, justify="left" if name == "status" else "right")
        best = ranked(found)[:1]
        running = [t for t in found if t.status == "running"]
        for t in sorted([*running, *[t for t in reversed(found) if t not in running]][:_SHOWN], key=lambda t: t.number):
            values = [short(t.settings.get(name, "")) for name in names]
            score, cost = percent(t.score) if t.epochs else "–", duration(t.cost)
            style = "bold" if t in best else "dim" if t.status == "stopped" else None
            table.add_row(str(t.number), *values, self._of_all(t), score, cost, t.status, style=style)
        return table
