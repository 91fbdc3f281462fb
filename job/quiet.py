"""TensorFlow without the lines that it prints before its log level counts."""

import os
import sys
import tempfile

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
