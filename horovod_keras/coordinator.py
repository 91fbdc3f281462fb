"""What pod 0 decides: when the world is complete, when it must stop, whether it forms again, and how it all ends.

    GATHER ──all pods here──▶ RUN ──a rank or pod is lost──▶ STOP ──all have stopped──▶ GATHER, one restart fewer
      │                        │                              └──nothing left to try──▶ OVER
      └──time is up──▶ OVER    └──every rank ended with 0──▶ OVER

It has no sockets and starts no processes: beats come in, orders go out, and `tick` lets time pass.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from horovod_keras.control import Beat, Order
from horovod_keras.ranks import KILL_AFTER, RankExit
from horovod_keras.rendezvous import Rendezvous

DONE, FAILED, MISUSED, PREEMPTED = 0, 1, 2, 75
"""Exit codes, of ranks and launchers alike. PREEMPTED (EX_TEMPFAIL of sysexits.h): the same command goes on later."""

REMINDER = 30.0
"""Seconds after which the log repeats who is being waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How long to wait, and how often to try. Times in seconds."""

    start_timeout: float = 300.0
    """For all pods to be there, at the start and each time that the world forms again."""
    heartbeat_timeout: float = 15.0
    """After which a pod that says nothing is lost."""
    grace: float = 30.0
    """For the ranks to save and end after SIGTERM."""
    finish_timeout: float = 900.0
    """For the last rank to end after the first has ended well."""
    max_restarts: int = 3
    rejoin: bool = False
    """Whether a pre-empted pod is replaced by someone (Kubernetes): then the others wait for it."""
    world_size: int | None = None
    """The number of ranks that must come together, where the command needs a certain one."""


class Phase(Enum):
    GATHER = "gather"
    RUN = "run"
    STOP = "stop"
    OVER = "over"


@dataclass(slots=True)
class _Pod:
    beat: Beat
    seen: float
    heard_since_stop: bool = True
    """A pod that was just told to run may have ranks, and exits, that it has not yet told of."""

    def __str__(self) -> str:
        return f"pod {self.beat.pod} ({self.beat.name}, {self.beat.address})"


class Coordinator:
    """The state of the world, changed by beats and by time.

    Args:
        pods: how many there must be.
        rendezvous: where the ranks will meet.
        rules: limits.
        say: takes each line for the log.
    """

    def __init__(self, pods: int, rendezvous: Rendezvous, rules: Rules, say: Callable[[str], None]) -> None:
        self._size = pods
        self._rendezvous = rendezvous
        self._rules = rules
        self._say = say
        self._lock = threading.Lock()
        self._pods: dict[int, _Pod] = {}
        self._replaced: set[str] = set()
        self._last_known: dict[int, str] = {}
        self._generation = self._restarts = 0
        self._environments: dict[int, list[dict[str, str]]] = {}
        self._exits: dict[int, RankExit] = {}
        self._last_tick = time.monotonic()
        self._code = DONE
        self._reason = ""
        self._preempted = self._told_to_leave = False
        self._phase = Phase.GATHER
        self._deadline = self._remind = self._limit = 0.0
        self._gather(FAILED)

    def answer(self, beat: Beat) -> Order:
        """Take one pod's beat in, and return what it shall do. Called from the server's threads."""
        with self._lock:
            if beat.pods != self._size:
                reason = f"pod {beat.pod} was started for {beat.pods} pods, pod 0 for {self._size}."
                self._say(f"{reason} It is turned away. Give all the same --pods.")
                return Order(kind="exit", code=MISUSED, reason=reason)
            if beat.life in self._replaced:
                return Order(kind="exit", code=FAILED, reason=f"another launcher has come as pod {beat.pod}.")
            self._take_in(beat)
            self._step()
            return self._order(beat)

    def tick(self) -> None:
        """Let time pass: notice who is lost and what took too long."""
        with self._lock:
            now = time.monotonic()
            # If this process itself stood still (SIGSTOP, a suspended machine), nobody else is to blame.
            standstill = max(0.0, now - self._last_tick - 1.0)
            self._last_tick = now
            for index, pod in list(self._pods.items()):
                pod.seen += standstill
                if now - pod.seen > self._rules.heartbeat_timeout:
                    self._lose(index, f"has not been heard of for {self._rules.heartbeat_timeout:g} s")
            self._step()

    @property
    def others(self) -> int:
        """How many other pods are still here."""
        with self._lock:
            return sum(1 for index in self._pods if index != 0)

    @property
    def others_running(self) -> bool:
        """Whether ranks of other pods still run, or may: see `_Pod.heard_since_stop`."""
        with self._lock:
            return any(p.beat.running or not p.heard_since_stop for index, p in self._pods.items() if index != 0)

    @property
    def over(self) -> bool:
        """Whether all is decided, and only to be told."""
        with self._lock:
            return self._phase is Phase.OVER

    def _take_in(self, beat: Beat) -> None:
        known = self._pods.get(beat.pod)
        if known is not None and known.beat.life != beat.life:
            self._replaced.add(known.beat.life)
            self._lose(beat.pod, "was replaced by a new one")
            known = None
        if beat.generation == self._generation:
            self._exits |= {rank: RankExit(rank, code, asked) for rank, code, asked in beat.exits}
        self._restarts = max(self._restarts, beat.restarts)
        self._told_to_leave |= beat.leaving
        if beat.leaving and self._phase is Phase.RUN:
            self._stop(PREEMPTED, f"pod {beat.pod} ({beat.name}) is being pre-empted")
        elif beat.leaving and self._phase is Phase.GATHER and not self._rules.rejoin:
            self._over(PREEMPTED, f"pod {beat.pod} ({beat.name}) was told to end.")
        if beat.bye:
            self._pods.pop(beat.pod, None)
            return
        self._pods[beat.pod] = pod = _Pod(beat, time.monotonic())
        self._last_known[beat.pod] = str(pod)
        if known is None and self._phase is not Phase.OVER:
            self._say(f"{pod} is here with {beat.ranks} rank(s): {len(self._pods)} of {self._size} pods")

    def _lose(self, index: int, why: str) -> None:
        pod = self._pods.pop(index)
        if self._phase is Phase.OVER:
            return
        self._say(f"{pod} {why}")
        if self._phase is Phase.RUN:
            self._stop(FAILED, f"{pod} {why}")

    def _step(self) -> None:
        now = time.monotonic()
        match self._phase:
            case Phase.GATHER:
                ready = [p for p in self._pods.values() if not p.beat.running and not p.beat.leaving]
                if len(ready) == self._size:
                    self._form()
                elif now > self._deadline:
                    self._over(self._code, f"waited {self._rules.start_timeout:g} s for {self._missing()}.")
                elif now > self._remind:
                    self._remind = now + REMINDER
                    self._say(f"waiting for {self._missing()}; giving up in {self._deadline - now:.0f} s")
            case Phase.RUN:
                failed = [e for e in self._exits.values() if e.code != 0]
                if failed:
                    self._stop(_gravest(failed), ", ".join(self._where(e) for e in failed))
                elif len(self._exits) == sum(len(e) for e in self._environments.values()):
                    self._over(DONE, "every rank has ended with 0.")
                elif self._exits and self._deadline == float("inf"):
                    self._deadline = now + self._rules.finish_timeout
                elif now > self._deadline:
                    reason = f"{self._unfinished()} did not end within {self._rules.finish_timeout:g} s of the first"
                    self._stop(FAILED, reason)
            case Phase.STOP:
                if all(p.heard_since_stop and not p.beat.running for p in self._pods.values()):
                    self._decide()
                elif now > self._deadline:
                    self._over(FAILED, f"{self._unfinished()} could not be ended.")

    def _gather(self, code: int) -> None:
        self._phase = Phase.GATHER
        self._code = code
        self._deadline = time.monotonic() + self._rules.start_timeout
        self._remind = time.monotonic() + min(REMINDER, 5.0)

    def _form(self) -> None:
        pods = [self._pods[index].beat for index in sorted(self._pods)]
        ranks = sum(beat.ranks for beat in pods)
        if self._rules.world_size not in (None, ranks):
            each = ", ".join(str(beat.ranks) for beat in pods)
            asked = self._rules.world_size
            reason = f"--world-size {asked} doesn't fit: the {len(pods)} pod(s) bring {each} rank(s), {ranks} in all."
            self._over(MISUSED, reason)
            return
        self._generation = max([self._generation, *(beat.generation for beat in pods)]) + 1
        environments = self._rendezvous.form([(beat.name, beat.ranks) for beat in pods])
        for beat in pods:
            self._environments[beat.pod] = [environments.pop(0) for _ in range(beat.ranks)]
        self._exits = {}
        self._preempted = self._told_to_leave = False
        self._deadline = float("inf")
        self._phase = Phase.RUN
        self._say(f"world {self._generation}: {ranks} rank(s) on {len(pods)} pod(s)")

    def _stop(self, code: int, reason: str) -> None:
        self._phase = Phase.STOP
        self._code = code
        self._reason = reason
        self._preempted = code == PREEMPTED
        self._limit = self._rules.grace if self._preempted else KILL_AFTER
        self._deadline = time.monotonic() + self._limit + self._rules.heartbeat_timeout
        for pod in self._pods.values():
            pod.heard_since_stop = False
        self._say(f"stopping world {self._generation}: {reason}")

    def _decide(self) -> None:
        exits = self._exits.values()
        by_themselves = [e for e in exits if not e.asked and e.code != 0]
        code = _gravest(by_themselves) if by_themselves else self._code
        if len(exits) == sum(len(e) for e in self._environments.values()) and not any(e.code for e in exits):
            self._over(DONE, "every rank has ended with 0.")
        elif code == MISUSED:
            self._over(MISUSED, ", ".join(self._where(e) for e in by_themselves if e.code == MISUSED) + ".")
        elif self._preempted or code == PREEMPTED:
            # A pod that was told to leave comes back as a new one; if none was, the ranks were told, and all end.
            if self._rules.rejoin and self._told_to_leave:
                self._gather(PREEMPTED)
                self._say(f"waiting up to {self._rules.start_timeout:g} s for the pre-empted pod(s) to be replaced")
            else:
                self._over(PREEMPTED, f"{self._reason}: the same command goes on from the last checkpoint.")
        elif self._restarts >= self._rules.max_restarts:
            self._over(FAILED, f"{self._reason}; all {self._rules.max_restarts} restart(s) are used.")
        else:
            self._restarts += 1
            self._gather(FAILED)
            self._say(f"forming again: restart {self._restarts} of {self._rules.max_restarts}")

    def _over(self, code: int, reason: str) -> None:
        self._phase = Phase.OVER
        self._code = code
        self._reason = reason

    def _order(self, beat: Beat) -> Order:
        match self._phase:
            case Phase.OVER:
                return Order(kind="exit", code=self._code, reason=self._reason)
            case Phase.STOP:
                return self._reply("stop", limit=self._limit, code=self._code, reason=self._reason)
            case Phase.RUN if beat.generation < self._generation and not beat.running and not beat.leaving:
                return self._reply("run", environments=self._environments[beat.pod])
            case _ if beat.running and (beat.generation != self._generation or self._phase is Phase.GATHER):
                return self._reply("stop", limit=KILL_AFTER, code=FAILED, reason="its world is no more")
            case _:
                return self._reply("wait")

    def _reply(self, kind: str, **content: object) -> Order:
        return Order(kind=kind, generation=self._generation, restarts=self._restarts, **content)  # type: ignore[arg-type]

    def _missing(self) -> str:
        absent = [self._last_known.get(i, f"pod {i}") for i in range(self._size) if i not in self._pods]
        ending = [f"{p} to end its ranks" for p in self._pods.values() if p.beat.running or p.beat.leaving]
        return ", ".join(absent + ending)

    def _unfinished(self) -> str:
        ranks = [int(e["HOROVOD_RANK"]) for envs in self._environments.values() for e in envs]
        return ", ".join(f"rank {rank}{self._host(rank)}" for rank in ranks if rank not in self._exits)

    def _where(self, ended: RankExit) -> str:
        return f"{ended}{self._host(ended.rank)}"

    def _host(self, rank: int) -> str:
        for index, environments in self._environments.items():
            for environment in environments:
                if environment["HOROVOD_RANK"] == str(rank):
                    return f" on {environment['HOROVOD_HOSTNAME']} (pod {index})"
        return ""


def _gravest(exits: list[RankExit]) -> int:
    """The exit code that decides: wrong configuration before pre-emption before any other failure."""
    codes = {e.code for e in exits}
    return next((code for code in (MISUSED, PREEMPTED) if code in codes), FAILED)
