"""What is printed: less of TensorFlow's notices and of what all ranks would say alike, and nothing that ends a run."""

import contextlib
import io
import os
import sys
import tempfile
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
    sys.stderr.flush()
    # Its C++ code writes to the descriptor itself, which Python's redirection does not reach.
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            caught.seek(0)
            for line in caught:
                if not any(notice in line for notice in NOTICES):
                    os.write(2, line)


def tell(line: str) -> None:
    """Print a line, or nothing where nobody reads any more: ranks that lose their launcher are to save, not to fail."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Of several ranks, which print the same here, let one be heard. Not for longer: elastic ranks change numbers."""
    with contextlib.redirect_stdout(sys.stdout if launched_rank() in (None, 0) else io.StringIO()):
        yield
