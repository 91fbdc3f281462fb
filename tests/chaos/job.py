"""The training job that faults strike: tiny, on a small disk of its own, under the real `horovodrun`."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import psutil

from job.data import garments
from job.run.checkpoints import read
from tests.horovod_keras.pods import ROOT, processes_in, until

STEPS, EPOCHS = 20, 4
OPTIONS = ["--dataset", "fashion-mnist", "--weights", "none", "--resolution", "32", "--deterministic"]
OPTIONS += ["--global-batch", "12", "--limit-train", "240", "--epochs", str(EPOCHS)]
# Ranks of one host share its cores and those of two don't: the bits depend on the threads of a rank.
OPTIONS += ["--checkpoint-every", "0.5", "--step-timeout", "15", "--threads", "1"]
"""240 images in 20 batches of 12, which 2, 3 and 4 ranks share equally."""
LIMITS = {
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "25",
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "4",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "20",
}
"""Shorter than the defaults, so that a fault is over sooner."""
DISK = 500
"""Megabytes of the run's disk: checkpoints take 39 each."""
START, LONGEST = 120.0, 300.0
"""Seconds within which a job must make its first steps, and end if nothing strikes it."""


class Site:
    """Where jobs run: data, a disk for the run folder, a cache. Leaving the context kills what is left and unmounts.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data.npz"
        self.disk = folder / "disk"
        self.run = self.disk / "run"
        self.log = folder / "log"
        self.mounted = False
        self.options: list[str] = []
        """More options of the job, which win over `OPTIONS`."""

    def __enter__(self) -> Self:
        drawn = garments.draw(train=270, test=24)
        np.savez(
            self.data,
            x_train=drawn.train_images,
            y_train=drawn.train_labels,
            x_test=drawn.test_images,
            y_test=drawn.test_labels,
        )
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(self.disk)]
        self.mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        if self.mounted:
            subprocess.run(["umount", "--lazy", self.disk], check=True)

    def kill(self) -> None:
        """End what is left of a job."""
        for process in processes_in(self.folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def remount(self, how: str) -> None:
        """Make the run's disk read-only (`ro`) or writable (`rw`)."""
        subprocess.run(["mount", "-o", f"remount,{how}", self.disk], check=True)

    @property
    def environment(self) -> dict[str, str]:
        """Of the job: nothing of the user's own."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HOROVOD_", "FASHION_MNIST"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "XDG_CACHE_HOME": str(self.folder / "cache")}
        return kept | LIMITS | own | {"PATH": path}

    @property
    def command(self) -> list[str]:
        """The job, without its launcher."""
        return [
            sys.executable,
            "-m",
            "job.train",
            *OPTIONS,
            *self.options,
            "--data-dir",
            str(self.data),
            "--run",
            str(self.run),
        ]

    def start(self, ranks: int) -> "Attempt":
        """Start the job, or go on with it."""
        return Attempt(self, ranks)

    def forget_cache(self) -> None:
        """So that the next attempt reads the data again."""
        for file in (self.folder / "cache/fashion-job/arrow").glob("*"):
            file.unlink()

    def begun(self) -> bool:
        """Whether there is a run."""
        return any(self.disk.glob("run/*"))

    def finished(self) -> bool:
        """Whether the run is complete."""
        result = self.run / "result.json"
        return result.exists() and json.loads(result.read_text())["status"] == "done"

    def checkpoints(self) -> list[Path]:
        """The positions on the disk, oldest first."""
        return sorted((self.run / "checkpoints").glob("step-*.safetensors"))

    def newest(self) -> int:
        """Steps, since the run's beginning, that the newest checkpoint holds by its name: the file may go meanwhile."""
        names = [path.name.split(".")[0].split("-") for path in self.checkpoints()]
        return max((int(epoch) * STEPS + int(step) for _, epoch, step in names), default=0)

    def saved(self) -> int:
        """Steps, since the run's beginning, that the newest undamaged checkpoint holds."""
        for path in reversed(self.checkpoints()):
            with contextlib.suppress(ValueError):
                position = read(path)[1]
                return position.epoch * STEPS + position.step
        return 0

    def weights(self) -> dict[str, np.ndarray]:
        """Weights, optimizer and metrics after the last epoch, the test accuracy, and which epochs were told of."""
        arrays, position = read(self.checkpoints()[-1])
        assert position.epoch == EPOCHS, f"the last checkpoint is of epoch {position.epoch}"
        result = json.loads((self.run / "result.json").read_text())
        epochs = [json.loads(line)["epoch"] for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        return arrays | {"test accuracy": np.array(result["test_accuracy"]), "epochs told of": np.array(epochs)}


class Attempt:
    """One start of the job under `horovodrun`, until its last process has ended."""

    def __init__(self, site: Site, ranks: int) -> None:
        self.site, self.size = site, ranks
        self.began = time.time()
        self.saved = site.saved()
        """Steps that it must go on from."""
        self.made = self.saved
        """Steps on the disk when the fault struck, of which none may be lost."""
        self._from = site.log.stat().st_size if site.log.exists() else 0
        launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(ranks)]
        with site.log.open("a") as log:
            self.process = subprocess.Popen(
                [*launcher, *site.command],
                cwd=site.folder,
                env=site.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def output(self) -> str:
        """What launcher and ranks have printed."""
        with self.site.log.open() as log:
            log.seek(self._from)
            return log.read()

    def ranks(self) -> dict[int, psutil.Process]:
        """The ranks' processes that run, by rank."""
        found = {}
        for process in processes_in(self.site.folder):
            with contextlib.suppress(psutil.NoSuchProcess, KeyError):
                if process.cmdline()[1:3] == ["-m", "job.train"]:
                    found[int(process.environ()["HOROVOD_RANK"])] = process
        return found

    def moment(self, name: str) -> bool:
        """Wait for a moment of the job's life (see `MOMENTS`); False if the job ended before."""
        reached = MOMENTS[name]
        deadline = time.monotonic() + START
        while not reached(self):
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"not within {START:g} s: {name}\n{self.output()}"
            # The shortest moment, a checkpoint's writing, takes some ten milliseconds.
            time.sleep(0.001 if name == "writing a checkpoint" else 0.05)
        return True

    def new(self, path: Path) -> bool:
        """Whether this attempt wrote that file."""
        return path.exists() and path.stat().st_mtime >= self.began

    def wait(self, limit: float) -> int:
        """The launcher's exit code, once nothing of the job runs any more. AssertionError after `limit` seconds."""
        until(f"the job's end\n{self.output()}", lambda: self.process.poll() is not None, limit)
        until("the end of all processes", lambda: not processes_in(self.site.folder), limit)
        return self.process.wait()

    def steps_made(self) -> int:
        """The most steps, since the run's beginning, that any rank has told of."""
        return max(steps(self.output(), "waited for|for|after"), default=0)

    def began_elsewhere(self) -> str:
        """What is wrong with where this attempt went on from; empty if that is what was saved, or it did not train."""
        begun, trains = steps(self.output(), "going on after"), f"on {self.size} rank(s)" in self.output()
        if not trains or (begun or [0]) == [self.saved]:
            return ""
        return f"it began after step {begun or 0} of the run, and {self.saved} were saved"


def steps(text: str, words: str) -> list[int]:
    """The steps, since the run's beginning, that lines with these words tell of."""
    said = re.findall(rf"({words}) (?:step (\d+) of )?epoch (\d+)", text)
    return [
        (int(epoch) - bool(step)) * STEPS + (int(step) - (not how.endswith("after")) if step else 0)
        for how, step, epoch in said
    ]


def _partial(attempt: Attempt) -> Iterator[os.DirEntry[str]]:
    folder = attempt.site.run / "checkpoints"
    if folder.exists():
        with os.scandir(folder) as entries:
            for entry in entries:
                # One that a killed attempt has left doesn't count; one that is done meanwhile does.
                with contextlib.suppress(FileNotFoundError):
                    if not entry.name.endswith(".partial") or entry.stat().st_mtime < attempt.began:
                        continue
                yield entry


MOMENTS = {
    "starting": lambda a: len(a.ranks()) == a.size,
    "reading data": lambda a: any((a.site.folder / "cache/fashion-job/arrow").glob("*")),
    "first step": lambda a: a.new(a.site.run / "environment.json"),
    "mid-epoch": lambda a: any(a.new(path) for path in a.site.checkpoints()),
    "evaluation": lambda a: any(a.new(path) for path in a.site.checkpoints() if f"-{EPOCHS:05d}-" in path.name),
    "finishing": lambda a: a.new(a.site.run / ".partial.keras") or a.new(a.site.run / "model.keras"),
    "writing a checkpoint": lambda a: any(_partial(a)),
}
"""What tells, from outside, that a job has come so far."""

AFTER = {
    "starting": 6.0,
    "reading data": 0.5,
    "first step": 3.0,
    "mid-epoch": 2.0,
    "evaluation": 1.0,
    "finishing": 1.0,
    "writing a checkpoint": 0.0,
}
"""The most seconds, drawn at random, between that sign and the fault."""


def clear(process: psutil.Process | subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        process.send_signal(number)
