"""What is not printed: TensorFlow's notices, and what all ranks would say alike."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator

from horovod_keras.environment import launched_rank

# Said at every start, by every rank, and by no setting to be left out (TensorFlow 2.21).
NOTICES = (
    b"All log messages before absl::InitializeLog() is called are written to STDERR",
    b"oneDNN custom operations are on.",
)


def import_tensorflow() -> None:
    """Import TensorFlow, with its notices left out of stderr; all else that is written meanwhile appears afterwards."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if sys.stderr is None:  # closed by whoever started the process
        import tensorflow

        return
    sys.stderr.flush()
    # Its C++ code writes to the descriptor itself, which Python's redirection does not reach.
    terminal = os.dup(2)
    # In memory: there may be no room on a disk.
    with os.fdopen(os.memfd_create("notices"), "w+b") as caught:
        os.dup2(caught.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            caught.seek(0)
            for line in caught:
                if not any(notice in line for notice in NOTICES):
                    with contextlib.suppress(OSError):  # it may be a full disk's
                        os.write(2, line)


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Of several ranks, which print the same here, let one be heard. Not for longer: elastic ranks change numbers."""
    with contextlib.redirect_stdout(sys.stdout if launched_rank() in (None, 0) else io.StringIO()):
        yield
