"""Searches as real processes: how tests start them, look into them, and count what they leave."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from tune.records import Row, read

ROOT = Path(__file__).parents[2]
# How Ray titles the processes: a trial's class is wrapped by `tune.with_parameters`.
RANK, TRIAL = "ray::MemberProcess", "ray::_Inner"
# Tiny: what is tested is who does what when, not what is learned.
SMALL = [
    "--dataset",
    "garments",
    "--limit-train",
    "64",
    "--limit-eval",
    "32",
    "--weights",
    "none",
    "--global-batch",
    "32",
    "--no-measure",
    "--vary",
    "resolution=32..40",
]


class Sweep:
    """A search that runs; `args` follow those of `SMALL`."""

    def __init__(self, out: Path, *args: str, small: bool = True) -> None:
        self.out = out
        command = [sys.executable, "-m", "tune.sweep", *(SMALL if small else ()), "--out", str(out), *args]
        if "--resume" in args:
            command = [sys.executable, "-m", "tune.sweep", *args]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.output = ""

    def end(self, seconds: float = 240.0) -> int:
        """The exit code; `output` then holds what was printed."""
        try:
            self.output, _ = self.process.communicate(timeout=seconds)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode

    def rows(self) -> list[Row]:
        """What is in the books so far."""
        path = self.out / "trials.parquet"
        return read(path) if path.exists() else []

    def wait_for(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Return when a condition holds; fails when the search ends before, or after some time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                output, _ = self.process.communicate()
                raise AssertionError(f"the search didn't get there:\n{output}")
            time.sleep(0.1)

    def descendants(self) -> list[psutil.Process]:
        """Every process that comes from the search, those of Ray too."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def ranks(self) -> list[psutil.Process]:
        """The processes that train."""
        return named(self.descendants(), RANK)

    def trials(self) -> list[psutil.Process]:
        """The processes that hold a trial."""
        return named(self.descendants(), TRIAL)


def named(processes: Iterable[psutil.Process], start: str) -> list[psutil.Process]:
    """Those whose title begins so; Ray gives each process the name of what it does."""
    found = []
    for process in processes:
        try:
            if " ".join(process.cmdline()).startswith(start):
                found.append(process)
        except psutil.Error:
            continue
    return found


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def all_gone(processes: Iterable[psutil.Process], seconds: float = 20.0) -> bool:
    """Whether they all end in time."""
    processes, deadline = list(processes), time.monotonic() + seconds
    while alive(processes) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not alive(processes)
