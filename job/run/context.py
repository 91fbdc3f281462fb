"""What the parts of a run share in one process."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any

from horovod_keras import Collectives
from horovod_keras.elastic import KerasState
from horovod_keras.watchdog import Watchdog
from job.config import Config
from job.run.timings import Timings

OnEpoch = Callable[[dict[str, Any]], None] | None


@dataclass(frozen=True, slots=True)
class Context:
    """One process's part in a run."""

    config: Config
    ranks: Collectives
    stop: Event
    """Set by anyone in this process who wants all ranks to stop."""
    on_epoch: OnEpoch
    """Called on rank 0 with each epoch's record when its checkpoint is on the disk; given on all ranks."""
    timings: Timings
    """Of the run so far."""
    watchdog: Watchdog
    """Told of each step."""
    kept: KerasState
    """Gets what is saved, if ranks may come and go."""
