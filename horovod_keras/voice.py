"""Printing that ends nothing: a reader may go, a terminal hang up, a disk be full, and the run goes on."""

import contextlib
import os
import sys
from typing import TextIO


def tell(line: str, stream: TextIO | None = None) -> None:
    """Print a line to a stream (stdout); once one can't be written, the stream leads nowhere."""
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        # What is left in its buffer would fail again when the process ends, and change its exit code.
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
