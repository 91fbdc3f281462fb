"""Search for the best resolution, dropout and learning rate; each trial is a group of Horovod ranks in Ray Tune.

    python -m tune.sweep --trials 16 --epochs 5 --limit-train 10000            # this machine
    python -m tune.sweep --ranks-per-trial 2 --scheduler pbt --address auto    # a Ray cluster
    python -m tune.sweep --vary learning_rate="1e-4..1e-2 log" --vary global_batch=64,128 --confirm 3
    python -m tune.sweep --resume runs/search                                  # after an interruption

It leaves one folder (`--out`): `sweep.yaml` (what was searched), `trials.parquet` (every epoch of every trial),
`best.yaml` (for `python -m job.train --config`), `best/` (the winner's model and its one look at the test set),
`report.html`, `environment.json` (machine, commit, command and duration), Ray's log in `ray.log`, and Tune's own files
with TensorBoard events in `search/`.
"""

import contextlib
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from horovod_keras.voice import tell
from job.errors import InputError, RunError, run_main
from tune import folder
from tune.settings import PROGRAM, Search, parse

if TYPE_CHECKING:
    from tune.estimate import Estimate
    from tune.search import Outcome
    from tune.trial import Task

INTERRUPTED = 75


def main() -> int:
    search = parse(sys.argv[1:])
    settings = search.settings
    tell("\n  ".join(["searched:", *search.space.lines()]))
    hint = ""
    try:
        with stoppable(), folder.held(settings.out):
            folder.claim(search)
            hint = f"; go on with: {PROGRAM} --resume {shlex.quote(str(settings.out))}"
            if folder.complete(settings):
                from tune.report import write_report

                # Trials that failed are not tried again: another winner would have to see the test set, too.
                tell(f"this search is complete: {write_report(settings.out)} (choose another folder with --out)")
                return 0
            with folder.described(settings):
                interrupted = run(search)
    except KeyboardInterrupt:
        interrupted = True
    if interrupted:
        tell(f"interrupted{hint}")
    return INTERRUPTED if interrupted else 0


def run(search: Search) -> bool:
    """Make the search to its end; whether it was interrupted before."""
    from tune import cluster, winner
    from tune import search as phases
    from tune.report import write_report

    settings = search.settings
    phases.prepare(settings.out)
    # Ray has taken SIGTERM for itself.
    with cluster.connected(settings.address), stoppable(), scratch(search):
        work = cluster.task(search)
        slots = cluster.slots(search, work)
        tell(f"{search.count()} trials of {work.ranks} rank(s), {slots} at a time")
        if settings.storage is None and (count := cluster.machines()) > 1:
            tell(f"trials may run on {count} machines: they must share {settings.out.absolute()}, or give --storage")
        estimate = estimated(search, work, slots)
        outcome = phases.explore(search, work, slots, estimate)
        if settings.confirm and outcome.ranking and not outcome.interrupted:
            winner.write_best(search, outcome.ranking[0], ())
            write_report(settings.out)  # whatever befalls the rest
            outcome = phases.confirm(search, work, outcome, estimate)
        conclude(search, work, outcome)
    return outcome.interrupted


def conclude(search: Search, work: "Task", outcome: "Outcome") -> None:
    """Write the results, and then let the winner see the test set."""
    from tune import winner
    from tune.records import told
    from tune.report import write_report

    settings = search.settings
    if not outcome.ranking:
        if not outcome.interrupted:
            raise RunError(f"no trial finished an epoch: {outcome.problem or 'see ray.log'}")
        return
    best = outcome.ranking[0]
    if not outcome.interrupted:
        chosen = folder.decided(settings.out, folder.WINNER, lambda: outcome.ranking[0].trial)
        if chosen not in {trial.trial for trial in outcome.ranking}:
            raise InputError(f"the trial that was to see the test set, {chosen}, is not there any more. Restore it.")
        best = next(trial for trial in outcome.ranking if trial.trial == chosen)
    path = winner.write_best(search, best, outcome.seeds)
    # The page comes first, and again: whatever befalls the winner, the search's results are there.
    tell(f"the report is {write_report(settings.out)}")
    tell(f"best: {told(outcome.seeds or [best])} on the validation split with {dict(best.settings)}")
    tell(f"train it: {winner.train_command(path, work.ranks)}")
    if not outcome.interrupted:
        tell("the winner sees the test set")
        result = winner.finish(search, work, best, outcome.trials[best.trial])
        tell(f"test accuracy {result['test_accuracy']:.4f}")
        write_report(settings.out)


def estimated(search: Search, work: "Task", slots: int) -> "Estimate":
    """The time that the search will take, from some measured steps if no epoch tells; says so."""
    from job.run.report import duration
    from tune import cluster, records, winner
    from tune.estimate import Estimate

    books = search.settings.out / folder.BOOKS
    known = books.exists() and any(row["epoch"] for row in records.read(books))
    if known or not search.settings.measure:
        with cluster.reserved(work):  # so that a busy cluster is not waited for without a word
            pass
        return Estimate(search, slots, None, None)
    speed, config = winner.measure(search, work)
    estimate = Estimate(search, slots, speed, config)
    left = estimate.left([])
    if left is not None:
        tell(
            f"measured {speed:.0f} images/s at {config.resolution} px: the search takes about {duration(left)}, less "
            "what is stopped early",
        )
    return estimate


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM is a Ctrl-C: Tune ends at once and keeps everything. A script's background job would ignore Ctrl-C."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: lambda *_: os.kill(os.getpid(), signal.SIGINT),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def scratch(search: Search) -> Iterator[None]:
    """The folder of the ranks' run folders; a killed rank leaves its own there."""
    try:
        yield
    finally:
        shutil.rmtree(search.settings.out / folder.SCRATCH, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    run_main(main)
