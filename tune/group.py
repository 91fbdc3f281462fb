"""A group of processes that train together under Horovod, inside a Ray placement group.

    group = ProcessGroup(placement_group, ranks=2, cpus=1)
    group.run(train, config)            # train(member, config) begins on each rank
    while not group.finished:
        for report in group.poll(10.0):  # what rank 0 gave to member.report
            ...
    group.shutdown()

The processes stay, with all that they have imported, and one function after another may run in them, each in a Horovod
world of its own. They are actors owned by the process that makes the group: should it die, Ray ends them.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from horovod_keras.rendezvous import Rendezvous, interface_variables
from tune.member import Failure, MemberProcess

# Seconds in which the other ranks of a failed group may say what they died of: one of them knows the cause.
_LAST_WORDS = 3.0
# Seconds for the processes to start, once they have their resources, and for one of them to answer at all.
_START = 300.0
_SILENCE = 300.0
# Seconds for the last rank to end after the first has.
_PARTING = 120.0
# Seconds for which rank 0 may hold back the answer whether there are reports.
_TAKE = 10.0


class GroupError(Exception):
    """A rank failed or its process is gone, and with it the group.

    Attributes:
        failures: of those ranks that are known to have failed.
    """

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__("; ".join(f"rank {f.rank}: {f.kinds[0]}: {f.message}" for f in failures))
        self.failures = failures
        if told := "".join(f"\nrank {f.rank}: {f.traceback}" for f in failures if f.traceback):
            self.__cause__ = Exception(told)  # so that logs have it

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupError, (self.failures,)

    def find(self, *kinds: str) -> Failure | None:
        """The first failure by an exception of one of these classes, or of one derived from them."""
        return next((f for f in self.failures if not set(kinds).isdisjoint(f.kinds)), None)


class ProcessGroup:
    """Processes in the bundles of a placement group, one for each rank.

    Args:
        placement_group: with a bundle for each rank.
        ranks: number of processes.
        first_bundle: the bundle of the first; those before it are someone else's.
        cpus, gpus: of each process; the bundle must have them.

    Raises:
        ray.exceptions.RayError: the processes can't be started.
    """

    def __init__(
        self, placement_group: PlacementGroup, *, ranks: int, first_bundle: int = 0, cpus: float = 1, gpus: float = 0
    ) -> None:
        self._rendezvous: Rendezvous | None = None
        self._running: dict[ray.ObjectRef, int] = {}
        self._results: dict[int, Any] = {}
        self._taking: ray.ObjectRef | None = None
        self._answers_by = self._end_by = math.inf
        self._drained = True
        actor: Any = ray.remote(MemberProcess)
        started = [
            actor.options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=0,
                max_concurrency=3,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group, placement_group_bundle_index=first_bundle + index
                ),
            ).remote()
            for index in range(ranks)
        ]
        try:
            places = ray.get([process.place.remote() for process in started], timeout=_START)
        except BaseException:
            self._kill(started)
            raise
        # Ranks of one node follow each other, those of this process's own node first: local ranks follow the nodes.
        here = ray.get_runtime_context().get_node_id()
        order = sorted(range(ranks), key=lambda index: (places[index][0] != here, places[index][0], index))
        self._processes = [started[index] for index in order]
        self._places = [places[index] for index in order]

    @property
    def finished(self) -> bool:
        """Whether nothing runs, and all reports are taken."""
        return not self._running and self._taking is None and self._drained

    @property
    def results(self) -> list[Any]:
        """What the function returned on each rank, once all of it is finished."""
        return [self._results[rank] for rank in range(len(self._processes))]

    def run(self, function: Callable[..., Any], *args: Any) -> None:
        """Begin `function(member, *args)` on all ranks, where `member` is a :class:`tune.member.Member`.

        Raises:
            RuntimeError: a function is running.
            ray.exceptions.RayError: a process is gone.
        """
        if not self.finished:
            raise RuntimeError("the group is running a function already: poll or stop it first.")
        size = len(self._processes)
        worlds = self._worlds()
        prepared = [p.prepare.remote(rank, size, worlds[rank]) for rank, p in enumerate(self._processes)]
        ray.get(prepared, timeout=_SILENCE)
        self._results, self._drained, self._end_by = {}, False, math.inf
        self._running = {p.execute.remote(function, args): rank for rank, p in enumerate(self._processes)}

    def poll(self, timeout: float) -> list[Any]:
        """What rank 0 has reported since the last call; empty when nothing came in `timeout` seconds or all is done.

        Raises:
            GroupError: a rank failed. The group is shut down.
        """
        deadline = time.monotonic() + timeout
        while not self.finished:
            self._take()
            waited = [*self._running, *([self._taking] if self._taking else [])]
            until = min(deadline, self._answers_by, self._end_by)
            ready, _ = ray.wait(waited, timeout=max(0.0, until - time.monotonic()))
            if not ready and until == deadline:
                return []
            if not ready:  # this process may have stood still itself, as a paused container's does: look once more
                ready, _ = ray.wait(waited, timeout=_LAST_WORDS)
            if not ready:
                silent, what = 0, f"it hasn't answered for {_SILENCE:.0f} s"
                if until == self._end_by:
                    silent = min(self._running.values())
                    what = f"it didn't end within {_PARTING:.0f} s of the first rank"
                raise self._failed([Failure(silent, ("SilentError",), what, "")])
            if ready[0] in self._running:
                self._ended(ready[0])
            elif reports := self._reports():
                return reports
        return []

    def stop(self, timeout: float) -> bool:
        """Ask all ranks to end early and wait for it; whether they did, so that the group can run something else.

        The group is shut down if they did not.
        """
        deadline = time.monotonic() + timeout
        try:
            # Waited for: a request that comes late would stop the next function.
            ray.get([process.stop.remote() for process in self._processes], timeout=timeout)
            while not self.finished and time.monotonic() < deadline:
                self.poll(deadline - time.monotonic())
        except GroupError:
            return False
        except ray.exceptions.RayError:
            self.shutdown()
            return False
        if not self.finished:
            self.shutdown()
        return self.finished and bool(self._processes)

    def shutdown(self) -> None:
        """End the processes at once, and give back the port."""
        self._kill(self._processes)
        self._processes, self._running, self._taking, self._drained = [], {}, None, True
        if self._rendezvous:
            self._rendezvous.close()
            self._rendezvous = None

    @staticmethod
    def _kill(processes: list[Any]) -> None:
        for process in processes:
            ray.kill(process)

    def _worlds(self) -> list[dict[str, str]]:
        """Each rank's environment in a new Horovod world."""
        if len(self._processes) == 1:
            return [{}]
        if self._rendezvous is None:
            self._rendezvous = Rendezvous(ray.util.get_node_ip_address())
        nodes = [node for node, _ in self._places]
        environments = self._rendezvous.form([(node, nodes.count(node)) for node in dict.fromkeys(nodes)])
        interfaces = [interface_variables(interface) for _, interface in self._places]
        return [one | two for one, two in zip(environments, interfaces, strict=True)]

    def _take(self) -> None:
        """Ask rank 0 for its reports, if nobody does: as long as it runs, and once more."""
        if self._taking is not None or self._drained:
            return
        # The last call may have come back just before the function's last report.
        self._drained = 0 not in self._running.values()
        seconds = 0.0 if self._drained else _TAKE
        self._taking = self._processes[0].take.remote(seconds)
        self._answers_by = time.monotonic() + seconds + _SILENCE

    def _reports(self) -> list[Any]:
        taking, self._taking, self._answers_by = self._taking, None, math.inf
        assert taking is not None
        try:
            return ray.get(taking)
        except ray.exceptions.RayError as error:
            raise self._failed([_gone(0, error)]) from error

    def _ended(self, call: ray.ObjectRef) -> None:
        rank = self._running.pop(call)
        outcome = self._outcome(call, rank)
        if isinstance(outcome, Failure):
            raise self._failed([outcome])
        self._results[rank] = outcome
        self._end_by = min(self._end_by, time.monotonic() + _PARTING) if self._running else math.inf

    def _outcome(self, call: ray.ObjectRef, rank: int) -> Any:
        try:
            return ray.get(call)
        except ray.exceptions.RayError as error:
            return _gone(rank, error)

    def _failed(self, failures: list[Failure]) -> GroupError:
        known = {failure.rank for failure in failures}
        calls = [call for call, rank in self._running.items() if rank not in known]
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=_LAST_WORDS) if calls else ([], [])
        outcomes = [self._outcome(call, self._running[call]) for call in ready]
        failures = [*failures, *(outcome for outcome in outcomes if isinstance(outcome, Failure))]
        self.shutdown()
        return GroupError(sorted(failures, key=lambda failure: failure.rank))


def _gone(rank: int, error: Exception) -> Failure:
    kinds = tuple(kind.__name__ for kind in type(error).__mro__)
    return Failure(rank, kinds, " ".join(str(error).split())[:500], "")
