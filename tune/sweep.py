"""Search for the best resolution, dropout and learning rate; each trial is a group of Horovod ranks in Ray Tune.

    python -m tune.sweep --trials 16 --epochs 5 --limit-train 10000            # this machine
    python -m tune.sweep --ranks-per-trial 2 --scheduler pbt --address auto    # a Ray cluster
    python -m tune.sweep --vary learning_rate="1e-4..1e-2 log" --vary global_batch=64,128 --confirm 3
    python -m tune.sweep --resume runs/search                                  # after an interruption

It leaves one folder (`--out`): `sweep.yaml` (what was searched), `trials.parquet` (every epoch of every trial),
`best.yaml` (for `python -m job.train --config`), `best/` (the winner's model and its one look at the test set),
`report.html`, and Tune's own files with TensorBoard events in `search/`.
"""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from job.errors import RunError, run_main
from tune.settings import PROGRAM, Search, claim, parse

if TYPE_CHECKING:
    from tune.estimate import Estimate
    from tune.records import Summary
    from tune.trial import Task

INTERRUPTED = 130


def main() -> int:
    search = parse(sys.argv[1:])
    print("searched:", *search.space.lines(), sep="\n  ", flush=True)
    known = claim(search)
    from tune import search as tuning

    tuning.set_defaults()
    from tune import cluster

    with stoppable(), cluster.connected(search.settings.address), scratch(search):
        work = cluster.task(search)
        slots = cluster.slots(search, work)
        print(
            f"{tuning.count(search.settings, search.space)} trials of {work.ranks} rank(s), {slots} at a time",
            flush=True,
        )
        return sweep(search, work, slots, known)


def sweep(search: Search, work: "Task", slots: int, known: bool) -> int:
    """Search, confirm, let the winner see the test set, and write the results; the exit code."""
    from tune import search as tuning
    from tune import winner
    from tune.live import Display
    from tune.records import Journal, ranked, summaries
    from tune.report import write_report

    settings, books = search.settings, search.settings.out / "trials.parquet"
    estimate = estimated(search, work, slots, measured=settings.measure and not known)
    journal = Journal(books, "search")
    wanted = tuning.count(settings, search.space)
    trials = tuning.run(search, work, slots, [journal, Display(journal, estimate, wanted, settings.epochs)])
    found = summaries(journal.rows, "search")
    interrupted = sum(trial.is_finished() for trial in trials) < wanted
    candidates = ranked(found)

    if settings.confirm and candidates and not interrupted:
        points = [dict(trial.settings) for trial in candidates[: settings.confirm]]
        journal = Journal(books, "confirm")
        trials = tuning.confirm(
            search, work, points, [journal, Display(journal, None, len(points) * settings.seeds, settings.epochs)]
        )
        interrupted = sum(trial.is_finished() for trial in trials) < len(points) * settings.seeds
        confirmed = winner.groups_of_seeds(summaries(journal.rows, "confirm"))
        candidates = ranked(confirmed[0]) if confirmed and not interrupted else candidates

    if not candidates:
        if interrupted:
            print(f"stopped before any epoch was finished; go on with: {PROGRAM} --resume {settings.out}")
            return INTERRUPTED
        raise RunError(f"no trial finished an epoch: {reason(found)}")
    best = candidates[0]
    path = winner.write_best(search, best)
    if not interrupted and not (settings.out / "best" / "result.json").exists():
        print("the winner sees the test set", flush=True)
        winner.finish(search, work, best, next(t for t in trials if t.trial_id == best.trial))
    report = write_report(settings.out)
    print(f"best: {best.score:.4f} on the validation split with {dict(best.settings)}; the report is {report}")
    print(f"train it: {winner.train_command(path, work.ranks)}")
    if interrupted:
        print(f"stopped early; go on with: {PROGRAM} --resume {settings.out}")
        return INTERRUPTED
    return 0


def estimated(search: Search, work: "Task", slots: int, *, measured: bool) -> "Estimate":
    """The time that the search will take, from some measured steps; says so."""
    from job.run.report import duration
    from tune import winner
    from tune.estimate import Estimate

    if not measured:
        return Estimate(search, slots, None, None)
    speed, config = winner.measure(search, work)
    estimate = Estimate(search, slots, speed, config)
    left = estimate.left([])
    if left is not None:
        print(
            f"measured {speed:.0f} images/s at {config.resolution} px: the search takes about {duration(left)}, less "
            "what is stopped early",
            flush=True,
        )
    return estimate


def reason(trials: "list[Summary]") -> str:
    """Why trials ended, of the first that says so."""
    return next((row["problem"] for trial in trials for row in trial.rows if row["problem"]), "see their logs")


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM is a Ctrl-C: Tune ends at once and keeps everything."""
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def scratch(search: Search) -> Iterator[None]:
    """The folder of the ranks' run folders; a killed rank leaves its own there."""
    folder = search.settings.out / "runs"
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    run_main(main)
