"""Search for the best resolution, dropout and learning rate; each trial is a group of Horovod ranks in Ray Tune.

    python -m tune.sweep --trials 16 --epochs 5 --limit-train 10000            # this machine
    python -m tune.sweep --ranks-per-trial 2 --scheduler pbt --address auto    # a Ray cluster
    python -m tune.sweep --vary learning_rate="1e-4..1e-2 log" --vary global_batch=64,128 --confirm 3
    python -m tune.sweep --resume runs/search                                  # after an interruption

It leaves one folder (`--out`): `sweep.yaml` (what was searched), `trials.parquet` (every epoch of every trial),
`best.yaml` (for `python -m job.train --config`), `best/` (the winner's model and its one look at the test set),
`report.html`, Ray's log in `ray.log`, and Tune's own files with TensorBoard events in `search/`.
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
    from tune.search import Outcome
    from tune.trial import Task

INTERRUPTED = 130


def main() -> int:
    search = parse(sys.argv[1:])
    settings = search.settings
    print("searched:", *search.space.lines(), sep="\n  ", flush=True)
    known = claim(search)

    from tune import cluster
    from tune import search as phases

    phases.prepare(settings.out)
    with stoppable(), cluster.connected(settings.address), scratch(search):
        work = cluster.task(search)
        slots = cluster.slots(search, work)
        print(f"{search.count()} trials of {work.ranks} rank(s), {slots} at a time", flush=True)
        estimate = estimated(search, work, slots, measured=settings.measure and not known)
        outcome = phases.explore(search, work, slots, estimate)
        if settings.confirm and outcome.ranking and not outcome.interrupted:
            print(f"the best {settings.confirm} again, with {settings.seeds} seeds each", flush=True)
            outcome = phases.confirm(search, work, outcome)
        return conclude(search, work, outcome)


def conclude(search: Search, work: "Task", outcome: "Outcome") -> int:
    """Write the results, and let the winner see the test set; the exit code."""
    from tune import winner
    from tune.report import write_report

    settings = search.settings
    if outcome.ranking:
        best = outcome.ranking[0]
        path = winner.write_best(search, best)
        if not outcome.interrupted and not (settings.out / "best" / "result.json").exists():
            print("the winner sees the test set", flush=True)
            winner.finish(search, work, best, outcome.trials[best.trial])
        print(f"the report is {write_report(settings.out)}")
        print(f"best: {best.score:.4f} on the validation split with {dict(best.settings)}")
        print(f"train it: {winner.train_command(path, work.ranks)}")
    elif not outcome.interrupted:
        raise RunError(f"no trial finished an epoch: {outcome.problem or 'see ray.log'}")
    if outcome.interrupted:
        print(f"interrupted; go on with: {PROGRAM} --resume {settings.out}")
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
