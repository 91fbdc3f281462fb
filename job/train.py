"""Train MobileNet on Fashion-MNIST, in one process or on several ranks under Horovod.

    python -m job.train --recipe fast                                 # one process
    horovodrun -np 4 python -m job.train --recipe fast                # four ranks on this machine
    python -m job.train --dataset garments --weights none --epochs 3  # nothing to download

Repeat a command and an interrupted run goes on. What it leaves in one folder (`--run`) is in README.md.
"""

from __future__ import annotations

import sys
from threading import Event
from typing import TYPE_CHECKING, Any

from horovod_keras.environment import launched_rank
from job import quiet
from job.errors import PreemptedError, end_undisturbed, run_main, stop_when_told

if TYPE_CHECKING:
    from horovod_keras import Collectives
    from job.config import Config
    from job.run.context import Context, OnEpoch

PREEMPTED = 75


def main() -> int:
    stop = stop_when_told()
    # Only now: the libraries that read the configuration take their time, too.
    from job.config import as_yaml, parse

    with quiet.one_voice():
        config = parse(sys.argv[1:])
        if config.print_config:
            print(as_yaml(config), end="")
            return 0
    quiet.import_tensorflow()
    from job.run import world

    ranks = world.join(config)
    try:
        result = train(config, ranks, stop=stop, whole_process=True)
    finally:
        world.leaving(ranks)
    ranks.leave()
    end_undisturbed()
    return PREEMPTED if result["status"] == "preempted" else 0


def train(
    config: Config,
    ranks: Collectives,
    *,
    stop: Event | None = None,
    on_epoch: OnEpoch = None,
    test: bool = True,
    whole_process: bool = False,
) -> dict[str, Any]:
    """Train, evaluate and save one run; what `main` does, and what a trial of the search does.

    Args:
        config: the run.
        ranks: to train on; every one of them calls this function.
        stop: when it is set on any rank, all save and stop after the same step.
        on_epoch: called on rank 0 with each epoch's record when its checkpoint is on the disk; given on all ranks.
        test: False ends after the last epoch and leaves the test set unseen.
        whole_process: whether the process began for this run, so that its start is part of the run's time.

    Returns:
        The result, of which rank 0's is what `result.json` holds (times and memory are each rank's own); its `status`
        is `done`, or, with no `result.json` written, `trained` if there was no test and `preempted` if it can go on.

    Raises:
        InputError: on all ranks, if the data, the weights or the run folder can't be used.
        DivergedError: on all ranks, if the loss is not a finite number any more.
        LostRankError: another rank has ended, and the launcher is not elastic.
        RunError: on rank 0, if the network that it would save isn't the one that was trained.
    """
    from job.run import world
    from job.run.context import Context
    from job.run.timings import Timings

    parts = (config, ranks, stop or Event(), on_epoch, Timings(since_process_start=whole_process))
    try:
        return world.in_each_world(ranks, lambda watchdog, kept: run(Context(*parts, watchdog, kept), test))
    except PreemptedError as reason:
        world.say(ranks, f"{reason}; the same command goes on from there")
        return {"status": "preempted"}


def run(context: Context, test: bool) -> dict[str, Any]:
    """The story of a run, under the watchdog's eye; see `train`. Raises PreemptedError, on all ranks, when stopped."""
    from horovod_keras.callbacks import BroadcastInitialState, MetricAverage
    from job.model import kernels, training
    from job.run import epochs, finish, start, world
    from job.run.callbacks import Keeper
    from job.run.journal import Journal
    from job.run.profile import Profile

    config, ranks, watchdog, timings = context.config, context.ranks, context.watchdog, context.timings
    watchdog.expect("the data", world.SETUP_TIMEOUT)
    with timings.of("data"):
        data = start.load(context)
        folder = start.open_folder(context, data.set.digest)
    with world.agreed(ranks):
        finished = folder.result() if folder else None
    if finished := world.broadcast(ranks, finished):
        world.say(ranks, f"this run is complete: {config.folder()} (choose another folder with --run to train again)")
        return finished

    watchdog.expect("the model", world.SETUP_TIMEOUT)
    steps = epochs.steps_per_epoch(config, data)
    with timings.of("model"):
        weights = start.initial_weights(context, folder)
        with world.agreed(ranks):
            kernels.multiply_as_allowed()  # a world before this one may have been lost in its last evaluation
            if context.kept.saved is None:  # a world before this one was lost before all had rank 0's initial weights
                context.kept.model = None
            model = context.kept.model or training.build(config, ranks, steps * config.epochs, weights)
            context.kept.model = model
        with world.agreed(ranks):
            place = start.restore(model, folder, context.kept)
        position, metrics = start.at_one_place(model, place, ranks)
    world.stop_if_told(ranks, context.stop, "before the first step")

    journal = Journal(folder, config, len(data.splits.train), steps, timings) if folder else None
    keeper = Keeper(context, folder, position, metrics, steps, journal)
    callbacks = [BroadcastInitialState(ranks), MetricAverage(ranks)]
    if folder:
        start.note_environment(folder, ranks, position)
        callbacks += [Profile(folder.path / "tensorboard")] if config.profile else []
        # Before the keeper, which saves: an epoch whose record is ahead is trained again, and one without is lost.
        callbacks.append(journal)
    start.announce(context, data, position)
    with timings.of("steps"):
        epochs.fit(model, config, ranks, data, position, [*callbacks, keeper])
    if not test:
        return {"status": "trained"}
    result = finish.finish(context, model, data, keeper.position, folder)
    chosen = " of the epoch that test images chose" if config.protocol == "original" else ""
    report = config.folder() / "report.html"
    world.say(ranks, f"test accuracy{chosen} {result['test_accuracy']:.4f}; the report is {report}")
    return result


if __name__ == "__main__":
    run_main(main, quiet=launched_rank() not in (None, 0))
