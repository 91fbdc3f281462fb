"""A search's folder: it holds one search, in it works one process at a time, and it says how the search was made."""

import contextlib
import io
import json
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import filelock
import yaml

from horovod_keras.voice import tell
from job.config import read_yaml
from job.environment import environment
from job.errors import InputError
from job.run.checkpoints import write_atomically
from tune.settings import CHANGEABLE, PROGRAM, Search, Settings

T = TypeVar("T")

PHASES = ("search", "confirm")
BOOKS = "trials.parquet"
ENVIRONMENT = "environment.json"
OWN = ".storage"
"""Holds the name of the search's folder in a storage that is given."""
CONFIRMED, WINNER = "confirmed", "winner"
"""What is decided once: the points that are trained again, and the trial that may see the test set."""
LOST_LOCK = 120.0
"""Seconds for a folder in use: a file server keeps the lock of a machine that was lost for a while (NFS 4: 90)."""
_LAST = "kept"
"""In place of the session in the names of Tune's notes. Tune takes the last by name: this one, after all times."""
SCRATCH = ".ranks"
"""Where the ranks' run folders are while they work; removed with all that is in it."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made if missing, for this process alone. Raises InputError: another search is at work in it."""
    lock = filelock.FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            tell(f"{folder} is in use; trying for {LOST_LOCK:.0f} s: a lost machine may have held it")
            lock.acquire(timeout=LOST_LOCK)
    except filelock.Timeout:
        raise InputError(
            f"folder {folder} is in use by another search. Wait for it, or choose another with --out."
        ) from None
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise InputError(f"folder {folder} can't be used: {error.strerror}. Choose another with --out.") from None
    try:
        for left in folder.glob(".*.partial"):  # by a search that was killed while it wrote
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def claim(search: Search) -> None:
    """Write `sweep.yaml`, or find the same search there; one that never began makes room.

    Raises:
        InputError: the folder holds another search, or the storage can't be used.
    """
    folder, identity = search.settings.out, search.identity()
    path = folder / "sweep.yaml"
    if path.exists() and ((folder / BOOKS).exists() or has_state(search.settings, "search")):
        _refuse_another(folder, identity, read_yaml(path))
    else:
        # Of a search that had this folder before: neither its decisions nor its results are this one's.
        for phase in PHASES:
            _kept(search.settings, phase).unlink(missing_ok=True)
        for left in (f".{CONFIRMED}.json", f".{WINNER}.json"):
            (folder / left).unlink(missing_ok=True)
        for left in ("best/result.json", "best.yaml", ENVIRONMENT) if path.exists() else ():
            (folder / left).unlink(missing_ok=True)
        # Other searches may have the same storage, one that had this folder before among them.
        write_atomically(folder / OWN, f"{folder.absolute().name}-{secrets.token_hex(4)}".encode())
        write_atomically(path, yaml.safe_dump(identity, sort_keys=False).encode())


def storage(settings: Settings) -> str:
    """Where Tune keeps its files, a path or a URI: in a storage that is given they have a folder of their own."""
    if settings.storage is None:
        return str(settings.out.absolute())
    own = settings.out / OWN
    given = settings.storage if "://" in settings.storage else str(Path(settings.storage).absolute())
    return f"{given.rstrip('/')}/{own.read_text() if own.exists() else settings.out.absolute().name}"


def decided(folder: Path, what: str, decide: Callable[[], T]) -> T:
    """What was decided in an earlier part of the search, or is now, once and for all: a value that JSON can hold.

    Raises:
        InputError: what was noted of it is damaged.
    """
    path = folder / f".{what}.json"
    if not path.exists():
        write_atomically(path, json.dumps(decide()).encode())
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}. Restore it, or remove it to have that decided again.") from None


def won(folder: Path) -> bool:
    """Whether the trial that sees the test set has been chosen: no other one may, whatever is tried again."""
    return (folder / f".{WINNER}.json").exists()


def complete(settings: Settings) -> bool:
    """Whether the search has its winner, and that one has seen the test set."""
    return won(settings.out) and all((settings.out / name).exists() for name in (BOOKS, "best/result.json"))


def has_state(settings: Settings, phase: str) -> bool:
    """Whether Tune has noted the state of a phase. Raises InputError: the storage can't be used."""
    from pyarrow.fs import FileSelector

    with _place(settings, phase) as (files, path):
        entries = files.get_file_info(FileSelector(path))
    return any(entry.base_name.startswith("experiment_state") for entry in entries)


def keep_state(settings: Settings, phase: str, notes: str, session: str) -> None:
    """Keep the notes that Tune has just made of a phase in the folder `notes`, all in one file.

    Tune copies them to the storage one by one, over the older ones: killed meanwhile, it leaves some cut, or of another
    moment than the rest.
    """
    together = io.BytesIO()
    with zipfile.ZipFile(together, "w") as archive:
        for path in Path(notes).glob(f"[!.]*-{session}.*"):
            archive.write(path, path.name.replace(session, _LAST))
    write_atomically(_kept(settings, phase), together.getvalue())


def put_back(settings: Settings, phase: str) -> None:
    """Have Tune find the state of a phase as it was kept, whatever became of its own notes.

    Raises:
        InputError: what was kept is damaged, or the storage can't be used.
    """
    kept = _kept(settings, phase)
    if not kept.exists():  # left behind where the folder was copied: then Tune's own have to do
        return
    try:
        with zipfile.ZipFile(kept) as archive:
            notes = {name: archive.read(name) for name in archive.namelist()}
    except zipfile.BadZipFile:
        raise InputError(f"{kept} is damaged. Restore it, or start again with another --out.") from None
    with _place(settings, phase) as (files, path):
        for name, data in notes.items():
            with files.open_output_stream(f"{path}/{name}") as note:
                note.write(data)


def _kept(settings: Settings, phase: str) -> Path:
    return settings.out / f".{phase}-state.zip"


@contextlib.contextmanager
def _place(settings: Settings, phase: str) -> Iterator[tuple[Any, str]]:
    """The file system of a phase's folder in the storage, and its path there; it is made. Raises InputError."""
    from pyarrow.fs import FileSystem, LocalFileSystem

    try:
        place = storage(settings)
        files, path = FileSystem.from_uri(place) if "://" in place else (LocalFileSystem(), place)
        files.create_dir(f"{path}/{phase}", recursive=True)
        yield files, f"{path}/{phase}"
    except (OSError, ValueError) as error:
        if settings.storage is None:
            raise
        reason = " ".join(str(error).split())
        raise InputError(
            f"the storage can't be used: received --storage {settings.storage} ({reason:.300})."
        ) from error


@contextlib.contextmanager
def described(settings: Settings) -> Iterator[None]:
    """Note in `environment.json` how this part of the search is made: machine, versions, commit, command, seconds."""
    path, start = settings.out / ENVIRONMENT, time.monotonic()
    try:
        earlier = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        earlier = []
    part = environment(settings.ranks_per_trial, settings.cpus_per_rank, "as each rank finds them")

    def write(seconds: float | None) -> None:
        write_atomically(path, json.dumps([*earlier, {**part, "seconds": seconds}], indent=2).encode() + b"\n")

    write(None)  # it stays so where the part is killed
    try:
        yield
    finally:
        write(round(time.monotonic() - start, 1))


def command(folder: Path) -> str:
    """The command with which the search in a folder began."""
    return str(json.loads((folder / ENVIRONMENT).read_text())[0]["command"])


def _refuse_another(folder: Path, identity: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for part in (None, "space", "job"):
        mine, theirs = (identity, known) if part is None else (identity[part], known.get(part, {}))
        elsewhere = {"space", "job", *CHANGEABLE} if part is None else ()
        for name in [n for n in {**mine, **theirs} if n not in elsewhere]:
            if mine.get(name) != theirs.get(name):
                raise InputError(
                    f"folder {folder} holds another search: {name} is {theirs.get(name)!r} there, {mine.get(name)!r} "
                    f"now. Choose another with --out, or go on with {PROGRAM} --resume {folder}."
                )
