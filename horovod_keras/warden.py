"""A process beside an elastic rank that kills it when it stands still.

An elastic `horovodrun` waits for a word of every process, without a limit, and a process that is stopped (SIGSTOP) says
none. Its warden ends it, from outside: to the launcher and to the other ranks it is then a lost rank like any other.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

BEAT = 1.0
"""Seconds between two signs of life."""


def start(limit: float, rank: Callable[[], int]) -> None:
    """Have this process killed once no thread of it has run for `limit` seconds; its end ends the warden.

    Args:
        limit: seconds.
        rank: gives the number that the warden's line names.
    """
    # By its path and isolated: it must not import this package, and with it TensorFlow.
    command = [sys.executable, "-I", __file__, str(limit)]
    warden = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)
    threading.Thread(target=_beat, args=(warden, rank), name="warden", daemon=True).start()


def _beat(warden: subprocess.Popen[bytes], rank: Callable[[], int]) -> None:
    assert warden.stdin is not None
    while warden.poll() is None:
        try:
            warden.stdin.write(f"{rank()}\n".encode())
        except BrokenPipeError:  # somebody has killed the warden; the rank goes on without
            return
        time.sleep(BEAT)


def watch(limit: float) -> None:
    """Wait for the end of the parent process, or for `limit` seconds without a sign of its life."""
    parent = os.pidfd_open(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # these are for the rank, which saves first
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rank = "?"

    def heard(seconds: float) -> bool:
        return bool(select.select([sys.stdin], [], [], seconds)[0])

    # Whoever stopped both of them has spent the limit: a process that goes on has a moment to say so.
    while heard(limit) or heard(3 * BEAT):
        beats = os.read(sys.stdin.fileno(), 4096)
        if not beats:
            return
        rank = beats.split()[-1].decode()
    signal.pidfd_send_signal(parent, signal.SIGKILL)
    # Afterwards: whether anybody reads it is not known.
    with contextlib.suppress(OSError):
        print(f"error: rank {rank} on {socket.gethostname()} stood still for {limit:g} s: killed", file=sys.stderr)


if __name__ == "__main__":
    watch(float(sys.argv[1]))
