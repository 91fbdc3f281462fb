"""A run's context in a test, where nothing is watched."""

from threading import Event

from horovod_keras.collectives import SingleProcess
from horovod_keras.elastic import KerasState
from horovod_keras.watchdog import Watchdog
from job.config import Config
from job.run.context import Context
from job.run.timings import Timings


def context(config: Config, stop: Event | None = None) -> Context:
    """Of a single process."""
    ranks = SingleProcess()
    with Watchdog(0, "the test", 60) as watchdog:  # which would end the tests if it went on
        timings = Timings(since_process_start=False)
        return Context(config, ranks, stop or Event(), None, timings, watchdog, KerasState(ranks))
