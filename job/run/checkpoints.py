"""Checkpoints: one file each, written beside the training, never seen half-written, checked when read.

A checkpoint is a safetensors file (arrays and a JSON header: nothing in it is executed) whose name ends in the first 16
hex digits of its SHA-256, so damage is noticed without a second file.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from job.errors import InputError, refused_for_now
from job.reading import bounded

log = logging.getLogger(__name__)

Tensors = Mapping[str, np.ndarray]
KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands. Raises ValueError if the values can't be those of a run."""

    epoch: int
    """Epochs completed."""
    step: int = 0
    """Batches done of the epoch after these."""
    best_accuracy: float = -1.0
    """Best validation accuracy so far; -1 before the first."""
    best_epoch: int = 0
    """Epoch (from 1) of the best validation accuracy; 0 before the first."""
    seconds: float = 0.0
    """Wall time spent so far, all parts of the run together."""

    def __post_init__(self) -> None:
        counts, numbers = (self.epoch, self.step, self.best_epoch), (self.best_accuracy, self.seconds)
        good = all(type(count) is int and 0 <= count < 2**31 for count in counts)
        if not good or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError("its position is not one of a run")

    @property
    def place(self) -> tuple[int, int]:
        """Epoch and step: of two positions of a run, the later one's is greater."""
        return self.epoch, self.step


class Checkpoints:
    """The checkpoints of one run: the last two positions, and the best weights.

    Args:
        folder: made if missing.
        lock: of the run, if it has one: not given up while something is being written.
    """

    def __init__(self, folder: Path, lock: object = None) -> None:
        self.folder, self._lock = folder, lock
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.partial"):  # by a run that was killed while it wrote
            left.unlink(missing_ok=True)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, arrays: Tensors, position: Position, best: Tensors | None = None) -> None:
        """Write a position, and before it the best weights if they are new, in the background.

        The arrays must not change afterwards.

        Raises:
            OSError: the checkpoint before this one could not be written.
        """
        self.wait()
        self._pending = self._writer.submit(self._write_all, arrays, position, best)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all is on the disk, or for so many seconds; whether all is.

        Raises:
            OSError: the last checkpoint could not be written.
        """
        if self._pending is not None:
            done, _ = wait([self._pending], timeout=seconds)
            if not done:
                return False
            pending, self._pending = self._pending, None
            pending.result()
        return True

    def last(self) -> tuple[dict[str, np.ndarray], Position] | None:
        """The newest undamaged position, or None if there is no file of one.

        A file that is damaged or can't be read is reported, and the one before it used.

        Raises:
            InputError: there are files, and all are damaged: the run would begin anew without a word.
            OSError: the disk or file server fails, and no other is whole.
        """
        return self._read("step")

    def any(self) -> bool:
        """Whether there is a position, whole or not."""
        return bool(self._files("step"))

    def drop_last(self) -> None:
        """Remove the newest position, if there is one."""
        for path in self._files("step")[-1:]:
            path.unlink()

    def best(self) -> tuple[dict[str, np.ndarray], Position] | None:
        """The best weights, or None; a damaged file is reported."""
        return self._read("best")

    def _write_all(self, arrays: Tensors, position: Position, best: Tensors | None) -> None:
        if best is not None:
            self._write("best", f"best-{position.best_epoch:05d}", best, position, before=0)
        self._write("step", f"step-{position.epoch:05d}-{position.step:07d}", arrays, position, before=KEPT - 1)

    def _write(self, kind: str, stem: str, arrays: Tensors, position: Position, *, before: int) -> None:
        """Write one of a kind, and leave no others but so many before it: a run that went back has no later ones."""
        data = safetensors.numpy.save(dict(arrays), metadata={"position": json.dumps(asdict(position))})
        target = self.folder / f"{stem}.{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
        write_atomically(target, data)
        earlier = [path for path in self._files(kind) if path.name < stem]
        kept = {target, *earlier[len(earlier) - before :]}
        for other in set(self._files(kind)) - kept:
            other.unlink(missing_ok=True)

    def _files(self, kind: str) -> list[Path]:
        return sorted(self.folder.glob(f"{kind}-*.safetensors"))

    def _read(self, kind: str) -> tuple[dict[str, np.ndarray], Position] | None:
        found = None
        damaged: dict[Path, Exception] = {}
        for path in reversed(self._files(kind)):
            try:
                found = read(path)
                break
            except (ValueError, OSError) as error:
                damaged[path] = error
        if damaged and kind == "step" and not found:
            for problem in damaged.values():
                if isinstance(problem, OSError) and refused_for_now(problem):
                    raise problem
            path, problem = next(iter(damaged.items()))
            raise InputError(
                f"no checkpoint in {self.folder} can be read: {path.name} is damaged ({problem}). "
                "Restore one, or remove the folder to begin this run anew."
            )
        instead = "the one before it is used" if kind == "step" else "the best epoch of those to come is used"
        for path, problem in damaged.items():
            log.warning("checkpoint %s is damaged (%s): %s", path, problem, instead)
            # Kept, but not as one of the last two; a disk that can't be read may not be written either.
            with contextlib.suppress(OSError):
                path.replace(path.with_name(f"damaged-{path.name}"))
        return found


def read(path: Path) -> tuple[dict[str, np.ndarray], Position]:
    """The arrays and position in one checkpoint file.

    Raises:
        ValueError: in one line, it is damaged.
        OSError: it can't be read.
    """
    data = bounded(path)
    expected, received = path.name.split(".")[-2], hashlib.sha256(data).hexdigest()[:16]
    if received != expected:
        raise ValueError(f"its checksum is {received}, expected {expected}")
    try:
        arrays = safetensors.numpy.load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        return arrays, Position(**json.loads(header["__metadata__"]["position"]))
    except (safetensors.SafetensorError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a checkpoint of this project: {error}") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut. Raises OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def put_in_place(partial: Path, path: Path) -> None:
    """Give a written file its name, under which it is then whole, also after a power cut. Raises OSError."""
    _flush(partial)
    partial.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
