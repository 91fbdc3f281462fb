"""One rank of a process group: what its function is told, and the process that it runs in."""

import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from horovod_keras.environment import MANY_WORLDS, RANK_VARIABLES
from horovod_keras.rendezvous import interface_of

# A rank may be this many reports ahead of those who take them, so that a slow taker bounds what waits in memory.
_AHEAD = 1


@dataclass(frozen=True, slots=True)
class Failure:
    """How one rank ended."""

    rank: int
    kinds: tuple[str, ...]
    """Names of the exception's class and those it derives from; a process that is gone has Ray's."""
    message: str
    traceback: str


class Member:
    """What a function that runs in a group is told, as its first argument.

    Attributes:
        rank: of this process.
        size: number of ranks.
        stop: set when the function is to end early.
        ended: set when it has ended.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.stop = threading.Event()
        self.ended = threading.Event()
        self.reports: queue.Queue[Any] = queue.Queue(maxsize=_AHEAD)

    def report(self, value: Any) -> None:
        """Hand a value to whoever polls the group; waits while one is waiting already, unless told to stop."""
        while not self.stop.is_set():
            try:
                self.reports.put(value, timeout=0.2)
                return
            except queue.Full:
                continue


class MemberProcess:
    """One rank's process. Three calls at a time: the function, who takes its reports, and who stops it."""

    def __init__(self) -> None:
        self._member = Member(0, 1)
        self._world: set[str] = set()

    def place(self) -> tuple[str, str]:
        """The node's id, and the name of its network interface that Ray uses."""
        context = ray.get_runtime_context()
        return context.get_node_id(), interface_of(ray.util.get_node_ip_address())

    def prepare(self, rank: int, size: int, environment: Mapping[str, str]) -> None:
        """Become a rank of a new world. A world of one needs no launcher's variables."""
        for name in self._world.union(RANK_VARIABLES):
            os.environ.pop(name, None)
        os.environ.update(environment)
        os.environ[MANY_WORLDS] = "1"
        self._world = set(environment)
        self._member = Member(rank, size)

    def execute(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """The function's result, or how it failed: an exception's own class may not be known to the caller."""
        try:
            return function(self._member, *args)
        except BaseException as error:
            kinds = tuple(kind.__name__ for kind in type(error).__mro__)
            return Failure(self._member.rank, kinds, " ".join(str(error).split()), traceback.format_exc())
        finally:
            self._member.ended.set()

    def take(self, seconds: float) -> list[Any]:
        """All reports that wait; the first may take so long to come, unless the function ends before."""
        member, deadline = self._member, time.monotonic() + seconds
        while member.reports.empty() and not member.ended.wait(0.02) and time.monotonic() < deadline:
            continue
        found = []
        while not member.reports.empty():
            found.append(member.reports.get())
        return found

    def stop(self) -> None:
        """Ask the function to end."""
        self._member.stop.set()
