"""A look inside some steps, for TensorBoard."""

import contextlib
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

FIRST, LAST = 10, 15


class Profile(keras.callbacks.Callback):
    """Profiles steps FIRST to LAST, counted from where training begins or goes on; fewer, or none, if it ends before.

    Args:
        folder: TensorBoard's; the profile goes below `plugins/profile/`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._step = 0
        self._running = False

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._step += 1
        if self._step == FIRST:
            with contextlib.suppress(tf.errors.UnavailableError):  # one that an exception has left running
                tf.profiler.experimental.stop(save=False)
            tf.profiler.experimental.start(str(self._folder))
            self._running = True
        if self._running:
            # TensorBoard tells steps apart by these.
            self._trace = tf.profiler.experimental.Trace("train", step_num=self._step, _r=1)
            self._trace.__enter__()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._running:
            self._trace.__exit__(None, None, None)
            if self._step == LAST:
                self._stop()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._running:
            self._stop()

    def _stop(self) -> None:
        tf.profiler.experimental.stop()
        self._running = False
