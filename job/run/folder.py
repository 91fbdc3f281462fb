"""The run folder: what is in it, and the rule that one folder holds one run."""

import contextlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import yaml

from job import reading
from job.config import DIGEST, Config, plain
from job.errors import InputError, refused_for_now
from job.reading import shortened
from job.run.checkpoints import Checkpoints, write_atomically

PATIENCE = 1.0
"""Seconds that a folder in use is waited for at a time."""


class BusyError(InputError):
    """Another job holds the run folder."""


class RunFolder:
    """One run's files; only rank 0 writes.

    Args:
        config: whose :meth:`~job.config.Config.folder` it is.
        source: what the data are, for example a digest; part of the run's identity.

    Raises:
        BusyError: the folder is in use by another job.
        InputError: the folder holds another run (the option and both values are named), or can't be written.
    """

    def __init__(self, config: Config, source: str) -> None:
        self.path = config.folder()
        self.config = config
        identity = config.identity() | {DIGEST: source}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Held until this object goes and all checkpoints are written, at the latest with the process.
            self._lock = filelock.FileLock(self.path / ".lock", timeout=PATIENCE)
            self._lock.acquire()
            for left in self.path.glob(".*partial*"):  # by a run that was killed while it wrote
                left.unlink(missing_ok=True)
            known = self.path / "config.yaml"
            # Checkpoints alone are what a search carries over from one trial to another with other options.
            if known.exists() or (self.path / "result.json").exists():
                self._refuse_another_run(identity, _read(known, reading.yaml_file) if known.exists() else None)
            self.checkpoints = Checkpoints(self.path / "checkpoints", self._lock)
            write_atomically(known, yaml.safe_dump(plain(config) | {DIGEST: source}, sort_keys=False).encode())
        except filelock.Timeout:
            raise BusyError(
                f"run folder {self.path} is in use by another job. Wait for it or choose another."
            ) from None
        except OSError as error:
            if refused_for_now(error):
                raise
            raise InputError(
                f"run folder {self.path} can't be used: {error.strerror}. Choose another with --run."
            ) from None

    def _has_begun(self) -> bool:
        """Whether anything would be lost, or count: a run that failed before its first checkpoint left nothing."""
        noted = any((self.path / name).exists() for name in ("result.json", "halvings.json"))
        return noted or any((self.path / "checkpoints").glob("*.safetensors"))

    def _refuse_another_run(self, identity: dict[str, Any], known: Any) -> None:
        if not isinstance(known, dict) or DIGEST not in known:
            wrong = "lacks the config.yaml of its run" if known is None else "holds a config.yaml of something else"
            raise InputError(f"run folder {self.path} {wrong}. Choose another with --run.")
        if not self._has_begun():
            return
        for name, value in identity.items():
            if known.get(name, value) == value:
                continue
            if name == DIGEST:
                raise InputError(
                    f"run folder {self.path} holds a run on other images: their digest is "
                    f"{shortened(known[name]):.20} there, {value!r:.20} now. "
                    "Choose another with --run, or give the same data."
                )
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"run folder {self.path} holds another run: {option} is {shortened(known[name])} there, {value!r} now. "
                "Choose another with --run, or give the same options."
            )

    def result(self) -> dict[str, Any] | None:
        """The content of ``result.json``, or None while the run isn't finished."""
        return self._json("result.json", lambda value: isinstance(value, dict) and "status" in value)

    def environment(self) -> dict[str, Any]:
        """What ``environment.json`` tells of the part of the run before this one; nothing if it can't be read."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            value = reading.json_value(reading.bounded(self.path / "environment.json"))
            return value if isinstance(value, dict) else {}
        return {}

    def write_json(self, name: str, value: Any) -> None:
        """Write one of the folder's JSON files."""
        write_atomically(self.path / name, json.dumps(value, indent=2).encode() + b"\n")

    def keep_metrics_before(self, epoch: int) -> None:
        """Drop what an interrupted run noted of this epoch (from 1) and later ones: they are trained again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            text = _read(path, reading.bounded).decode(errors="replace")
            lines = [line for line in text.splitlines() if _epoch(line) < epoch]
            write_atomically(path, "".join(f"{line}\n" for line in lines).encode())

    def halvings(self) -> list[dict[str, Any]]:
        """Where this run's learning rate was halved, and why."""
        return self._json("halvings.json", _are_objects) or []

    def _json(self, name: str, sound: Callable[[Any], bool]) -> Any:
        def parse(path: Path) -> Any:
            value = reading.json_value(reading.bounded(path))
            if not sound(value):
                raise ValueError(f"it holds {shortened(value)}")
            return value

        path = self.path / name
        return _read(path, parse) if path.exists() else None

    def note_halving(self, record: dict[str, Any]) -> None:
        """Add one to ``halvings.json``."""
        self.write_json("halvings.json", [*self.halvings(), record])

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one epoch's line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())  # it must not be lost where the checkpoint that follows it isn't


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def trained_on(path: Path) -> str | None:
    """The digest of the images that the run in a folder was trained on, if its configuration tells."""
    values = _read(path / "config.yaml", reading.yaml_file)
    return values.get(DIGEST) if isinstance(values, dict) else None


def _read(path: Path, parse: Callable[[Path], Any]) -> Any:
    try:
        return parse(path)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged: {' '.join(str(error).split())}. Restore it, or remove it to go on without."
        ) from None


def _epoch(line: str) -> float:
    """The epoch of a line of metrics; infinity, so that it is dropped, for one that is damaged or was not finished."""
    try:
        epoch = json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return epoch if type(epoch) is int else math.inf
