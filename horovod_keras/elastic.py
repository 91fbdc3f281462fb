"""Going on when ranks are lost or join: Horovod's elastic mode for Keras 3.

    horovodrun -np 1 --min-np 1 --max-np 4 --host-discovery-script ./hosts.sh python script.py

where the script is, in short,

    ranks = horovod_keras.join()
    state = KerasState(ranks, model, epoch=0)

    def train():
        state.sync()
        while (epoch := state.values["epoch"]) < 10:
            model.fit(..., initial_epoch=epoch, epochs=epoch + 1)
            state.values["epoch"] += 1
            state.commit()

    run(train, state)

Horovod's own state for Keras fails on Keras 3 (https://github.com/horovod/horovod/issues/4290). The processes that are
left meet again as they are, without a restart; functions that TensorFlow has traced for the old number of ranks are
traced anew. Horovod never again uses a host (name) on which a process has failed, unless it is given
``--blacklist-cooldown-range``: losses can be borne while another host is left.
"""

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from horovod_keras.collectives import Collectives
from horovod_keras.environment import is_elastic

T = TypeVar("T")


class HostsChangedError(Exception):
    """The launcher has other hosts now: the ranks leave each other after the same step, to meet in a new world."""


class KerasState:
    """What must outlive a change of ranks: a model, its optimizer, and plain values such as the epoch.

    Args:
        ranks: of the first world and of those that follow.
        model: compiled and built; None: it is set later, as the attribute of that name.
        **values: they become the dict `values`; for `sync`, anything that JSON can hold.
    """

    def __init__(self, ranks: Collectives, model: keras.Model | None = None, **values: Any) -> None:
        self.ranks = ranks
        self.model = model
        self.hosts_changed = False
        """Whether the launcher has told of other hosts; it tells rank 0 alone."""
        self.saved: tuple[list[np.ndarray], dict[str, Any]] | None = None
        """Variables and values of the last `save`."""
        self.values = values

    def save(self) -> None:
        """Copy the model's and the optimizer's variables, and the values, to this process's memory."""
        self.saved = [np.array(v) for v in self._variables()], dict(self.values)

    def restore(self) -> None:
        """Set all to what was saved last, if anything was."""
        if self.saved is not None:
            arrays, values = self.saved
            for variable, array in zip(self._variables(), arrays, strict=True):
                variable.assign(array)
            self.values = dict(values)

    def sync(self) -> None:
        """Set all to rank 0's, and save."""
        for index, variable in enumerate(self._variables()):
            variable.assign(self.ranks.broadcast(variable.value, f"state/{index}"))
        self.values = self.ranks.gather(self.values, "state")[0]
        self.save()

    def commit(self) -> None:
        """Save; every rank must call this at the same place. Raises HostsChangedError, on all, if the hosts changed."""
        self.save()
        if any(self.ranks.gather(self.hosts_changed, "hosts")):
            raise HostsChangedError

    def on_hosts_updated(self, timestamp: float, update: object) -> None:
        """Called by Horovod, on a thread of its own, when the launcher tells of hosts."""
        self.hosts_changed = True

    def _variables(self) -> list[keras.Variable]:
        return [] if self.model is None else [*self.model.variables, *self.model.optimizer.variables]

    def _meet_again(self) -> None:
        self.hosts_changed = False
        if self.model is not None:
            self.model.train_function = self.model.test_function = self.model.predict_function = None
        # Functions of the old world, and files that its rank 0 held open, go before the new one begins.
        gc.collect()
        self.ranks.rejoin()


def is_lost_rank(error: Exception) -> bool:
    """Whether this is Horovod's way to say that another rank has gone."""
    # The kinds that Horovod gives; others, such as exhausted memory, are faults of this rank's own.
    known = isinstance(error, tf.errors.UnknownError | tf.errors.AbortedError)
    return known and "horovod" in str(error).lower()


def run(function: Callable[[], T], state: KerasState, meeting: Callable[[], None] = lambda: None) -> T:
    """Call a function until it has come to its end in one world; without an elastic launcher, once.

    Args:
        function: trains from where the state stands. It is called again in each new world, after `state.restore` where
            ranks were lost; there it should begin with `state.sync`, for those that have joined.
        state: kept from world to world.
        meeting: called before the ranks meet again.

    Returns:
        What the function returns.
    """
    if not is_elastic():
        return function()
    from horovod.runner.elastic.worker import WorkerNotificationManager

    manager = WorkerNotificationManager()
    manager.init()
    manager.register_listener(state)
    while True:
        try:
            return function()
        except HostsChangedError:
            pass
        except (tf.errors.UnknownError, tf.errors.AbortedError) as error:
            if not is_lost_rank(error):
                raise
        meeting()
        state._meet_again()
        state.restore()
