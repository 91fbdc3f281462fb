"""Pods in network namespaces that run `steps.py`: how they are started, and what can be seen of them from outside."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.horovod_keras.pods import Network, Pods, until

HEARTBEAT, START, GRACE = 5, 40, 10
OPTIONS = ["--heartbeat-timeout", str(HEARTBEAT), "--start-timeout", str(START), "--grace", str(GRACE)]
STALL = 10
"""HOROVOD_GLOO_TIMEOUT_SECONDS of the ranks: how long an all-reduce waits for a rank that stands still."""
LIMIT = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table."""

    fault: str
    outcome: str
    ended: float | None
    """Seconds from the fault to the last old rank's end."""
    back: float | None
    """Seconds from the fault to the first step of the new world, or to the last launcher's end."""


class World(Pods):
    """Pods in namespaces that run `steps.py`, and what can be seen of them from outside."""

    def __init__(self, folder: Path, network: Network, *, steps: int = 300, rejoin: bool = True) -> None:
        # Options that come later win over the quick ones of the tests.
        super().__init__(folder, network.hosts, network, [*OPTIONS, "--rejoin" if rejoin else "--no-rejoin"])
        self.steps = steps

    @property
    def command(self) -> list[str]:
        script = Path(__file__).with_name("steps.py")
        settings = f"HOROVOD_GLOO_TIMEOUT_SECONDS={STALL}"
        return ["env", settings, sys.executable, str(script), str(self.folder), str(self.steps)]

    def begin(self, *options: str) -> None:
        """Start all pods and wait until the ranks make steps."""
        self.start_all(self.command, *options)
        self.first_steps()

    def first_steps(self) -> None:
        """Wait until the ranks make steps."""

        def made() -> bool:
            ended = [process.poll() for process in self.processes.values()]
            assert not any(ended), f"launchers ended with {ended}:\n{self.log(0)}{self.log(1)}"
            return self.step() > 2

        until("the world makes steps", made, LIMIT)

    def step(self) -> int:
        """The last step that was written down."""
        file = self.folder / "step"
        text = file.read_text() if file.exists() else ""
        return int(text or 0)

    def rank(self, number: int) -> psutil.Process:
        """The process of one rank."""
        for process in self.ranks():
            if process.environ().get("HOROVOD_RANK") == str(number):
                return process
        raise LookupError(f"rank {number} does not run")

    def old_ranks_end(self, since: float, old: list[psutil.Process]) -> float:
        """Seconds from ``since`` until none of the old ranks runs."""
        until("the old ranks end", lambda: not any(p.is_running() and p.status() != "zombie" for p in old), LIMIT)
        return time.monotonic() - since

    def steps_again(self, since: float) -> float:
        """Seconds from ``since`` until a new step is written down."""
        before = self.step()
        until("the new world makes steps", lambda: self.step() > before, LIMIT)
        return time.monotonic() - since

    def end(self, since: float) -> tuple[list[int], float]:
        """All launchers' exit codes, and the seconds from ``since`` to the last one's end."""
        return self.codes(LIMIT), time.monotonic() - since
