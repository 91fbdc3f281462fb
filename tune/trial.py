"""One trial of the search: a group of ranks that call `job.train.train`, and what Ray Tune sees of them.

Each epoch comes to Tune as a result with a checkpoint. The checkpoint is files of the run's own format, carried as
bytes, so that no disk need be shared between the trial and its rank 0. The group stays for the next trial.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import PlacementGroupFactory

from job.config import resolve
from job.run import checkpoints
from tune import runs
from tune.group import GroupError, ProcessGroup
from tune.runs import Files
from tune.space import as_options

GIB = 2**30
# Of the trial's own process, which trains nothing.
TRIAL_MEMORY = GIB // 4
# In which ranks end a step, save, and are ready for the next trial.
_STOP_SECONDS = 30.0
# The same before they are ended in any case; Tune itself waits 10 seconds.
_LEAVE_SECONDS = 5.0
# Failures that a restart would only repeat, by the exceptions' names, and how the trial is marked.
LASTING = {
    "diverged": ("DivergedError",),
    "out of memory": ("OutOfMemoryError", "MemoryError", "ResourceExhaustedError"),
    "refused": ("RefusedError",),
}
_NOTHING = {"epoch": 0, "score": 0.0, "best": 0.0, "cost": 0.0, "training_seconds": 0.0}
MANIFEST = "trial.json"


@dataclass(frozen=True, slots=True)
class Task:
    """What all trials of a search have in common."""

    fixed: Mapping[str, Any]
    """Options of the job beside the trial's own."""
    ranks: int
    cpus: int
    """Cores of each rank."""
    gpus: int
    """GPUs of each rank."""
    memory: int
    """Bytes of each rank."""
    placement: str
    """pack or spread."""
    folder: str
    """Where ranks keep their run folders while they train; on the disk of rank 0's node."""
    seconds: float | None
    """After which a trial ends, within an epoch too; None: no limit."""

    def resources(self) -> PlacementGroupFactory:
        """A bundle for the trial and one for each rank."""
        rank: dict[str, float] = {"CPU": self.cpus, "memory": self.memory}
        if self.gpus:
            rank["GPU"] = self.gpus
        # The trial's own bundle asks for no core: on two cores two trials of one rank must fit.
        return PlacementGroupFactory([{"memory": TRIAL_MEMORY}, *[rank] * self.ranks], strategy=self.placement.upper())


class Trial(tune.Trainable):
    """A trial as Tune runs it. An instance may serve several trials, one after another, with the same processes."""

    def setup(self, config: dict[str, Any], task: Task | None = None) -> None:
        assert task is not None
        self.task = task
        self._group: ProcessGroup | None = None
        self._point, self._trains = config, False
        # What was spent before the group began to train.
        self._before = 0.0
        self._files: Files = {}
        self._reports: list[tuple[dict[str, Any], Files]] = []
        self.last: dict[str, Any] = dict(_NOTHING)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._group and not self._group.stop(_STOP_SECONDS):
            self._group = None
        self._point, self._trains = new_config, False
        self._files, self._reports, self.last = {}, [], dict(_NOTHING)
        return True

    def step(self) -> dict[str, Any]:
        if self.last.get("done"):  # restored between its last checkpoint and Tune's note of its end
            return dict(self.last)
        try:
            if self._group is None:
                self._group = self._start()
            if not self._trains:
                self._before = self.last["training_seconds"]
                left = None if self.task.seconds is None else self.task.seconds - self._before
                self._group.run(runs.train, self._options(), self._files, left)
                self._trains = True
            while not self._reports and not self._group.finished:
                self._reports = self._group.poll(60.0)
        except GroupError as error:
            return self._failed(error)
        if self._reports:
            record, self._files = self._reports.pop(0)
            self.last = self._result(record)
        else:
            self.last = self._ended(self._group.results[0])
        return dict(self.last)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        folder = Path(checkpoint_dir)
        for name, data in self._files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        (folder / MANIFEST).write_text(json.dumps({"files": list(self._files), "last": self.last}))

    def restore(self, checkpoint_path: Any) -> None:
        try:
            super().restore(checkpoint_path)
        except ValueError as error:  # Tune's own, where the checkpoint isn't there any more
            self._begin_anew(checkpoint_path, error)

    def load_checkpoint(self, checkpoint: Any) -> None:
        try:
            self.last, self._files = read_checkpoint(Path(checkpoint))
        except ValueError as error:
            self._begin_anew(checkpoint, error)

    def _begin_anew(self, checkpoint: Any, error: ValueError) -> None:
        # It would be given this one again and again.
        logging.getLogger("ray").warning("checkpoint %s can't be used (%s): the trial begins anew", checkpoint, error)
        self.last, self._files = dict(_NOTHING), {}

    def cleanup(self) -> None:
        if self._group:
            # Rank 0 takes its run folder away, if it is given the time.
            self._group.stop(_LEAVE_SECONDS)
            self._group.shutdown()

    def _start(self) -> ProcessGroup:
        bundles = ray.util.get_current_placement_group()
        assert bundles is not None
        return ProcessGroup(bundles, ranks=self.task.ranks, first_bundle=1, cpus=self.task.cpus, gpus=self.task.gpus)

    def _options(self) -> dict[str, Any]:
        return {
            **self.task.fixed,
            **as_options(self._point),
            "threads": self.task.cpus,
            "run": str(Path(self.task.folder) / self.trial_id),
        }

    def _result(self, record: dict[str, Any]) -> dict[str, Any]:
        config = resolve([self._options()])
        # As the run would choose its weights: of its epochs at the final resolution the best, or the last.
        best = self.last["best"]
        if config.select == "best" and record["resolution"] == config.resolution:
            best = max(best, record["val_accuracy"])
        seconds = self.last["training_seconds"] + record["seconds"]
        over = record["epoch"] >= config.epochs or (self.task.seconds is not None and seconds >= self.task.seconds)
        return {
            **record,
            "score": best or record["val_accuracy"],
            "best": best,
            "training_seconds": seconds,
            "cost": self.last["cost"] + record["seconds"] * self.task.ranks,
            "status": "done" if over else "running",
            "done": over,
        }

    def _ended(self, stopped_after: float | None) -> dict[str, Any]:
        """The last whole epoch's result again, at the cost of all that was spent."""
        seconds = self.last["training_seconds"]
        if stopped_after is not None:
            seconds = max(seconds, self._before + stopped_after)
            if self.task.seconds is None or seconds < self.task.seconds:
                raise RuntimeError(f"the ranks stopped after {seconds:.0f} s, and nobody knows why.")
        problem = None if self.last["epoch"] else f"no epoch ended within {seconds:.0f} s. Raise --seconds."
        return self.last | {
            "training_seconds": seconds,
            "cost": seconds * self.task.ranks,
            "status": "done",
            "done": True,
            "problem": problem,
        }

    def _failed(self, error: GroupError) -> dict[str, Any]:
        self._group, self._trains = None, False
        for status, kinds in LASTING.items():
            if failure := error.find(*kinds):
                return self.last | {"done": True, "status": status, "score": 0.0, "problem": failure.message}
        raise error


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], Files]:
    """The last result before a checkpoint was made, and the run's own checkpoint files in it.

    Raises:
        ValueError: something in it is damaged or can't be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name in manifest["files"]:
            if name.endswith(".safetensors"):
                checkpoints.read(folder / name)
        return manifest["last"], {name: (folder / name).read_bytes() for name in manifest["files"]}
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
