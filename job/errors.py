"""Why a command or a run ends early, and the one way in which commands end."""

import errno
import signal
import sys
import time
from collections.abc import Callable
from threading import Event
from typing import NoReturn

from horovod_keras.voice import settle, tell

# What the user's own machine refuses: one line says it all, and a traceback would bury it.
_FULL = "Free some space, or choose another disk; the same command then goes on."
_REFUSED = "Change its permissions, or choose another place."
_WRONG_PATH = "Choose another path."
_FAILING = "Look after that disk or file server; the same command then goes on."
_REFUSALS = {
    errno.ENOSPC: (1, _FULL),
    errno.EDQUOT: (1, _FULL),
    errno.EACCES: (2, _REFUSED),
    errno.EPERM: (2, _REFUSED),
    errno.EROFS: (2, _REFUSED),
    errno.ENAMETOOLONG: (2, _WRONG_PATH),
    errno.ENOTDIR: (2, _WRONG_PATH),
    errno.EISDIR: (2, _WRONG_PATH),
    errno.EEXIST: (2, _WRONG_PATH),
    errno.ELOOP: (2, _WRONG_PATH),
    errno.EIO: (1, _FAILING),
    errno.ESTALE: (1, _FAILING),
}

_TOLD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
OTHERS_TURN = 10.0
"""Seconds that a quiet process waits: more than the 5 s after which `horovodrun` kills what it has told to end."""


def refused_here(error: OSError) -> bool:
    """Whether the user's own machine refused something, and no other one beyond a network."""
    return error.errno in _REFUSALS


def refused_for_now(error: OSError) -> bool:
    """Whether the same may work once a disk has been freed or mended."""
    return error.errno in _REFUSALS and _REFUSALS[error.errno][0] == 1


class InputError(Exception):
    """Wrong configuration or input: its message is one line that an entry point prints before it exits with 2."""


class RunError(Exception):
    """A run that can't go on, for a reason that its one-line message gives: an entry point exits with 1."""


class LostRankError(RunError):
    """Another rank has gone: every rank that is left says so, since nobody knows which of them is heard."""


class DivergedError(RunError):
    """The loss or a gradient is no finite number any more; the message says between which steps that happened."""


class HalvedError(Exception):
    """The same, where the run is to go back to its last checkpoint with half the learning rate."""


class PreemptedError(Exception):
    """All ranks have agreed to stop; the run is saved and can go on. Exit code 75."""


def stop_when_told() -> Event:
    """An event that SIGTERM, SIGINT and a terminal that goes set, instead of ending the process."""
    stop = Event()
    for number in _TOLD:
        if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:  # `nohup` ignores it
            signal.signal(number, lambda *_: stop.set())
    return stop


def end_undisturbed() -> None:
    """Have no signal that tells to stop change anything any more: the exit code is decided.

    Python itself would give them their default back before the process has ended, and be killed by them.
    """
    for number in _TOLD:
        signal.signal(number, signal.SIG_IGN)


def run_main(main: Callable[[], int], *, quiet: bool = False) -> NoReturn:
    """Run an entry point's `main` and leave the process with the exit code that it returns.

    An `InputError` becomes one line on stderr and exit code 2, a `RunError` one line and 1; a full or failing disk one
    line and 1; a refused permission or an impossible path one line and 2; Ctrl-C ends with 130. Every other exception
    keeps its traceback (exit code 1).
    A `quiet` process leaves the line to another: of several ranks that find the same error, one tells it. It waits to
    be ended with that one, since launchers end all ranks with the first, and tells after all if nobody ends it.
    """
    try:
        code = main()
    except InputError as error:
        code = _complain(str(error), 2, quiet)
    except RunError as error:
        code = _complain(str(error), 1, quiet and not isinstance(error, LostRankError))
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # nobody reads on, as behind `| head`
        code = 1
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        refusal, advice = _REFUSALS[error.errno]
        where = f": {error.filename!s:.200}" if error.filename else ""
        code = _complain(f"{error.strerror}{where}. {advice}", refusal, quiet)
    settle()
    sys.exit(code)


def _complain(message: str, code: int, quiet: bool) -> int:
    if quiet:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(OTHERS_TURN)
    tell(f"error: {' '.join(message.split())}", sys.stderr)
    return code
