"""Printing that ends nothing: a reader may go, a terminal hang up, a disk be full, and the run goes on."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO


def tell(line: str, stream: TextIO | None = None) -> None:
    """Print a line to a stream (stdout); once one can't be written, the stream leads nowhere."""
    stream = stream or sys.stdout
    if stream is None:  # closed by whoever started the process
        return
    # A path may hold bytes that no encoding has.
    text = line.encode(stream.encoding or "utf-8", "backslashreplace").decode(stream.encoding or "utf-8")
    with _or_nowhere(stream):
        print(text, file=stream, flush=True)


def settle() -> None:
    """Before the process ends: what others have printed and nobody could read must not change its exit code."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with _or_nowhere(stream):
            stream.flush()


@contextlib.contextmanager
def _or_nowhere(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except OSError:
        # What is left in its buffer would fail again when Python flushes it at the end: exit code 120.
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
