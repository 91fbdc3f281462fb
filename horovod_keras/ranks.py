"""The processes of one pod's ranks: start them, pass their output on, end them, and leave nothing behind."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

KILL_AFTER = 3.0
"""Seconds from SIGTERM to SIGKILL where nothing is left to save: a rank of a broken world."""
LEFT_BEHIND = 60.0
"""Seconds of SIGKILL after which a rank that is still there, since its device hangs, is waited for no longer."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_OUTPUT = threading.Lock()


@dataclass(frozen=True, slots=True)
class RankExit:
    """How one rank ended."""

    rank: int
    code: int
    """The exit code; the negative number of the signal that killed it."""
    asked: bool
    """Whether the launcher had told it to end: then its code says nothing about a cause."""

    def __str__(self) -> str:
        names = {number.value: number.name for number in signal.Signals}  # real-time signals have none
        killer = names.get(-self.code, f"signal {-self.code}")
        return f"rank {self.rank} " + (f"was killed by {killer}" if self.code < 0 else f"ended with {self.code}")


def _dies_with(launcher: int) -> Callable[[], None]:
    """Run in the child: SIGKILL when the launcher is gone, however it went (prctl(2))."""

    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:
            os._exit(1)

    return prepare


def _pass_on(source: IO[bytes], target: IO[bytes], prefix: bytes) -> None:
    # A limit, so that output without line ends can't fill the memory. What can't be written is lost, and read on all
    # the same: a rank whose pipe is full would stand still.
    while line := source.readline(65536):
        with _OUTPUT, contextlib.suppress(OSError):
            target.write(prefix + line + (b"" if line.endswith(b"\n") else b"\n"))
            target.flush()
    source.close()


class Ranks:
    """The running ranks of this pod in one world. Make it in the main thread: a child dies with the thread it is of.

    Args:
        command: what each rank runs.
        environments: one complete environment per rank, HOROVOD_RANK among it.
        label: whether each line of output gets its rank in front, ``[3] …``; without it the ranks share the
            launcher's own streams, unchanged.

    Raises:
        OSError: the command can't be started.
    """

    def __init__(self, command: Sequence[str], environments: Sequence[dict[str, str]], *, label: bool) -> None:
        self.exits: list[RankExit] = []
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._pumps: list[threading.Thread] = []
        self._asked = False
        self._kill_at = float("inf")
        stream = subprocess.PIPE if label else None
        try:
            for environment in environments:
                rank = int(environment["HOROVOD_RANK"])
                self._running[rank] = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                    preexec_fn=_dies_with(os.getpid()),
                )
                if label:
                    self._label(rank, self._running[rank])
        except OSError:
            self.kill()
            raise

    def _label(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        for source, target in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer)):
            assert source is not None
            pump = threading.Thread(target=_pass_on, args=(source, target, f"[{rank}] ".encode()), daemon=True)
            pump.start()
            self._pumps.append(pump)

    @property
    def running(self) -> bool:
        """Whether any rank was running at the last ``poll``, and is worth waiting for: see `LEFT_BEHIND`."""
        return bool(self._running) and time.monotonic() < self._kill_at + LEFT_BEHIND

    def poll(self) -> list[RankExit]:
        """Note who has ended since the last call and return them; kill those whose time is up."""
        if time.monotonic() >= self._kill_at:
            for process in self._running.values():
                _signal_group(process, signal.SIGKILL)
        ended = [RankExit(r, p.returncode, self._asked) for r, p in self._running.items() if p.poll() is not None]
        for each in ended:
            # What a rank has started goes with it.
            _signal_group(self._running.pop(each.rank), signal.SIGKILL)
        self.exits += ended
        if ended and not self._running:
            for pump in self._pumps:
                pump.join(timeout=1)
        return ended

    def ask_to_end(self, limit: float) -> bool:
        """Send SIGTERM, once; ``poll`` sends SIGKILL to those that still run ``limit`` seconds later.

        Returns whether this was the first time that it was asked for.
        """
        self.poll()  # who has ended by now has not been asked to
        first = bool(self._running) and not self._asked
        if first:
            self._asked = True
            for process in self._running.values():
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
        self._kill_at = min(self._kill_at, time.monotonic() + limit)
        return first

    def kill(self) -> None:
        """SIGKILL all that still run, and wait for their end (at most a second each)."""
        self.ask_to_end(0)
        for process in self._running.values():
            _signal_group(process, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
        self.poll()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
