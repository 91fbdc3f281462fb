"""One pod's launcher: it beats, obeys, runs this pod's ranks, and on pod 0 it coordinates.

`horovod_keras.launch` is the command around it, `horovod_keras.coordinator` what pod 0 decides.
"""

import errno
import os
import secrets
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import FrameType

from horovod_keras.control import Beat, Channel, ControlServer, Order, RefusedError, UnreachableError, resolve
from horovod_keras.coordinator import FAILED, MISUSED, PREEMPTED, REMINDER, Coordinator, Rules
from horovod_keras.ranks import KILL_AFTER, RankExit, Ranks
from horovod_keras.rendezvous import Rendezvous, address_towards, interface_of, interface_variables
from horovod_keras.voice import tell

VARIABLE = "HOROVOD_LAUNCH_"
"""What the names of the launcher's own variables begin with. The ranks don't get them."""
BEAT = 0.5
"""Seconds between heart-beats."""
REFUSALS_LIMIT = 45.0
"""Seconds of nothing but refusals after which the secret is taken for wrong. A name may lead to a stranger for a while:
an address in a cluster is soon used again, and its name service keeps the old one for half a minute."""
LAST_WORDS = 10.0
"""Seconds that pod 0 stays for the others to learn how it ended."""
_WRONG_COMMAND = {errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.EISDIR}
# Any other reason not to start it, as too many processes or files, may have passed the next time.


class LaunchError(Exception):
    """The launcher ends with this code and this line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One launcher's part of the world."""

    command: list[str]
    pods: int
    pod_index: int
    ranks_per_pod: int
    coordinator: str | None
    """Name or address of pod 0."""
    port: int
    """Of the control channel; 0: any free one, for one pod alone."""
    address: str | None
    """This pod's own IPv4 address; None: the one on the way to pod 0."""
    interface: str | None
    """Of the ranks' traffic; None: the one that has this pod's address."""
    secret: bytes
    rules: Rules


class Launcher:
    """One pod's launcher: beats, obeys, and on pod 0 coordinates. Use as ``Launcher(settings).run()``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rules = settings.rules
        self._coordinator: Coordinator | None = None
        self._life = secrets.token_hex(8)
        self._number = self._generation = self._restarts = 0
        self._ranks: Ranks | None = None
        self._exits: list[RankExit] = []
        self._told_at: float | None = None
        self._over_at: float | None = None
        self._started = time.monotonic()
        self._remind = self._started + BEAT * 10
        self._lost = False
        self._expected = FAILED

    def run(self) -> int:
        """Run to the end and return the exit code. Raises LaunchError."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores it
                signal.signal(number, self._on_signal)
        with ExitStack() as stack:
            stack.callback(self._kill)
            self._address = self._own_address()
            try:
                self._interface = self._settings.interface or interface_of(self._address)
            except LookupError as error:
                raise LaunchError(MISUSED, f"{error} Give --address or --interface.") from None
            host, port = self._settings.coordinator or self._address, self._settings.port
            if self._settings.pod_index == 0:
                host, port = self._address, self._coordinate(stack)
            # Short enough that several tries fit into the time after which a pod is lost.
            channel = Channel(host, port, self._settings.secret, min(3.0, self._rules.heartbeat_timeout / 4))
            return self._obey(channel, f"pod 0 at {host}:{port}")

    def _kill(self) -> None:
        if self._ranks:
            self._ranks.kill()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._told_at is not None:
            return  # a terminal that goes says so twice
        # The second time there is no more grace.
        self._told_at = time.monotonic() if self._told_at is None else float("-inf")

    def _own_address(self) -> str:
        if self._settings.address is not None:
            return self._settings.address
        if self._settings.pods == 1:
            return "127.0.0.1"
        host = self._settings.coordinator
        assert host is not None
        while True:
            try:
                found = resolve(host, 3.0)
                return found if self._settings.pod_index == 0 else address_towards(found)
            except (UnreachableError, OSError) as error:
                self._not_heard(self._started, f"pod 0 at {host}: {error}")
            if self._told_at is not None:
                raise LaunchError(PREEMPTED, "told to end before the world had formed.")
            time.sleep(BEAT)

    def _coordinate(self, stack: ExitStack) -> int:
        """Start the coordinator's services and return the control channel's port."""
        settings, refusals = self._settings, set[str]()

        def refused(address: str) -> None:
            if address not in refusals:
                refusals.add(address)
                say(f"refused a request from {address}: it is not signed with this world's secret")

        try:
            rendezvous = stack.enter_context(Rendezvous(self._address, settings.port + 1 if settings.port else 0))
            self._coordinator = Coordinator(settings.pods, rendezvous, settings.rules, say)
            where = (self._address, settings.port)
            server = ControlServer(where, settings.secret, self._coordinator.answer, refused)
        except OSError as error:
            ports = f"ports {settings.port} and {settings.port + 1} of {self._address}"
            raise LaunchError(FAILED, f"can't listen on {ports}: {error.strerror}. Give another --port.") from None
        stack.callback(server.close)
        return server.server_address[1]

    def _obey(self, channel: Channel, where: str) -> int:
        heard = self._started
        refused_at: float | None = None
        while True:
            order = None
            if self._ranks:
                self._ranks.poll()
                if self._told_at is not None:
                    self._ranks.ask_to_end(max(0.0, self._told_at + self._rules.grace - time.monotonic()))
            try:
                order = channel.send(self._beat())
                heard, refused_at, self._lost = time.monotonic(), None, False
                self._follow(order)
            except UnreachableError as error:
                refused_at = (refused_at or time.monotonic()) if isinstance(error, RefusedError) else None
                if refused_at and time.monotonic() - refused_at > min(REFUSALS_LIMIT, self._rules.start_timeout / 2):
                    reason = f"{where} refuses this launcher: {error}. Give all launchers the same secret."
                    raise LaunchError(MISUSED, reason) from None
                self._not_heard(heard, f"{where}: {error}")
            if self._coordinator:
                self._coordinator.tick()
            code = self._ending(order)
            if code is not None:
                if not self._coordinator:
                    with suppress(UnreachableError):
                        channel.send(self._beat(bye=True))
                return code
            self._pause()

    def _beat(self, *, bye: bool = False) -> Beat:
        self._number += 1
        return Beat(
            pod=self._settings.pod_index,
            pods=self._settings.pods,
            life=self._life,
            number=self._number,
            name=socket.gethostname(),
            address=self._address,
            ranks=self._settings.ranks_per_pod,
            generation=self._generation,
            restarts=self._restarts,
            running=self._running,
            exits=[(e.rank, e.code, e.asked) for e in (self._ranks.exits if self._ranks else self._exits)],
            leaving=self._told_at is not None,
            bye=bye,
        )

    @property
    def _running(self) -> bool:
        return self._ranks is not None and self._ranks.running

    def _follow(self, order: Order) -> None:
        self._restarts = max(self._restarts, order.restarts)
        if order.kind == "run":
            self._start(order)
        elif order.kind == "stop" and self._ranks:
            self._expected = order.code
            if self._ranks.ask_to_end(order.limit) and not self._coordinator:
                say(f"pod {self._settings.pod_index} ends its ranks: {order.reason}")
        elif order.kind == "exit" and self._ranks:
            self._ranks.ask_to_end(KILL_AFTER)

    def _start(self, order: Order) -> None:
        assert order.environments
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(VARIABLE)}
        found = interface_variables(self._interface) | {"PYTHONUNBUFFERED": "1"}
        if not (self._settings.interface or self._settings.address):  # what the user has set for Horovod or NCCL counts
            found = {name: inherited.get(name) or value for name, value in found.items()}
        inherited |= found
        environments = [inherited | environment for environment in order.environments]
        self._generation = order.generation
        self._expected = FAILED
        try:
            self._ranks = Ranks(self._settings.command, environments, label=environments[0]["HOROVOD_SIZE"] != "1")
        except OSError as error:
            failed = f"can't run {self._settings.command[0]!r}: {error.strerror}."
            if error.errno not in _WRONG_COMMAND:
                raise LaunchError(FAILED, f"{failed} Free some of it; the same command may then work.") from None
            # As ranks that have ended so: pod 0 then ends all, and nobody waits for this pod's.
            say(f"error: {failed} Give a COMMAND after --.")
            self._ranks = None
            self._exits = [RankExit(int(e["HOROVOD_RANK"]), MISUSED, False) for e in environments]

    def _not_heard(self, since: float, what: str) -> None:
        """Pod 0 is silent: end the ranks after a while, then wait for it to come (back), and give up in the end."""
        now = time.monotonic()
        if self._running and self._ranks:
            if now - since > self._rules.heartbeat_timeout and not self._lost:
                self._lost = True
                self._restarts += 1
                say(f"pod {self._settings.pod_index} ends its ranks: nothing heard for {now - since:.0f} s from {what}")
                self._ranks.ask_to_end(KILL_AFTER)
        elif self._restarts > self._rules.max_restarts:
            raise LaunchError(FAILED, f"lost {what}; all {self._rules.max_restarts} restart(s) are used.")
        elif now - since > self._rules.start_timeout:
            raise LaunchError(self._expected, f"waited {now - since:.0f} s for {what}.")
        elif now > self._remind:
            self._remind = now + REMINDER
            say(f"waiting for {what}; giving up in {since + self._rules.start_timeout - now:.0f} s")

    def _ending(self, order: Order | None) -> int | None:
        """The code to end with now, or None to go on."""
        if self._running:
            return None
        now = time.monotonic()
        if order is not None and order.kind == "exit":
            self._over_at = self._over_at or now
            if self._coordinator and self._coordinator.others and now - self._over_at < LAST_WORDS:
                return None
            say(f"pod {self._settings.pod_index} exits with {order.code}: {order.reason}")
            return order.code
        if self._told_at is None:
            return None
        in_time = now - self._told_at < self._rules.grace
        if in_time and self._coordinator and (self._coordinator.others_running or self._coordinator.over):
            return None  # others are to save, or to be told how it ended
        if (
            in_time
            and order is not None
            and order.kind != "wait"
            and self._ranks
            and not any(e.code for e in self._ranks.exits)
        ):
            return None  # this pod's ranks were done: perhaps all are
        say(f"pod {self._settings.pod_index} exits with {PREEMPTED}: it was told to end")
        return PREEMPTED

    def _pause(self) -> None:
        """Until the next beat is due or there is news to tell."""
        until, told_at = time.monotonic() + BEAT, self._told_at
        while time.monotonic() < until and self._told_at == told_at:
            time.sleep(BEAT / 10)
            if self._ranks and self._ranks.poll():
                return


def say(line: str) -> None:
    """One line for the log of this pod."""
    tell(f"launch: {line}", sys.stderr)
