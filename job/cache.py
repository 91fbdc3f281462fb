"""This project's cache folder, and the rule that of several processes on a host one fills it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock
import pooch

from job.errors import InputError

MODE = 0o644
"""Of what is kept: several users may share a cache, and nothing in it is private."""
FILL_SECONDS = 600.0
"""The longest that a process waits for another one that downloads or draws; then it does so itself."""


def folder(name: str) -> Path:
    """A folder of the cache, under ``$XDG_CACHE_HOME`` or ``~/.cache``; it needn't be there yet."""
    try:
        return Path(pooch.os_cache("fashion-job")) / name
    except RuntimeError:
        raise InputError("this user has no home, and XDG_CACHE_HOME is not set: set it to a folder.") from None


def cause(error: OSError) -> str:
    """Why a download failed, in a word or two: what the network's libraries say themselves is long."""
    return str(error) if isinstance(error, TimeoutError) else error.strerror or type(error).__name__


@contextlib.contextmanager
def one_at_a_time(place: Path) -> Iterator[None]:
    """Hold a folder of the cache while it is looked at and filled: ranks that start together do the work once.

    Where the folder can't be locked (it is read-only, or its disk is full), all go on at once: whatever is put there
    gets its name when it is whole, so that is only slower.
    """
    lock = filelock.FileLock(place.with_name(f".{place.name}.lock"), timeout=FILL_SECONDS)
    with contextlib.suppress(OSError):  # filelock's Timeout is one too
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
