"""Rank 0's account of a run's epochs."""

import time
from typing import Any

import keras
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar
from tqdm import tqdm

from horovod_keras.voice import tell
from job.config import Config
from job.run.folder import RunFolder
from job.run.timings import Timings

PROGRESS_SECONDS = 15.0
"""Between lines of progress where there is no terminal."""


class Journal(keras.callbacks.Callback):
    """Rank 0's account of each epoch: ``metrics.jsonl``, TensorBoard, a progress bar or a line.

    Args:
        folder: of the run.
        config: of the run.
        images: training images of an epoch, over all ranks.
        steps: batches of an epoch.
        timings: of the run.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        images: int,
        steps: int,
        timings: Timings,
    ) -> None:
        super().__init__()
        self.folder, self.epochs, self.steps, self.images = folder, config.epochs, steps, images
        self.timings = timings
        self.resolutions = config.resolutions()
        self._bar: tqdm | None = None
        self.record: dict[str, Any] = {}
        """Of the last epoch."""
        (folder.path / "tensorboard").mkdir(exist_ok=True)
        # tensorboardX's usual writer writes again when the process exits, and on a full disk complains again.
        self._events = EventsWriter(str(folder.path / "tensorboard/events"))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._start = time.monotonic()
        self._evaluation = 0.0
        self._batches = 0
        self._said = self._start
        # Without a terminal a bar is noise in a log: there a line tells of each epoch, and of a long one now and then.
        self._name = f"epoch {epoch + 1}/{self.epochs}"
        self._bar = tqdm(total=self.steps, desc=self._name, unit="batch", disable=None, leave=False)
        self._first = self.steps - self.params["steps"]
        self._bar.update(self._first)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        assert self._bar is not None
        self._batches += 1
        if self._bar.update(1) and logs:
            self._bar.set_postfix(
                loss=f"{float(logs['loss']):.4f}", accuracy=f"{float(logs['accuracy']):.4f}", refresh=False
            )
        now = time.monotonic()
        if self._bar.disable and logs and now - self._said > PROGRESS_SECONDS:
            self._said = now
            images = self.images * self._batches / self.steps
            tell(
                f"{self._name}: batch {self._first + self._batches} of {self.steps}, loss {float(logs['loss']):.4f}, "
                f"accuracy {float(logs['accuracy']):.4f}; {images / (now - self._start):.0f} images/s"
            )

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._test_start = time.monotonic()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._evaluation = time.monotonic() - self._test_start

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert self._bar is not None and logs is not None
        self._bar.close()
        total = time.monotonic() - self._start
        training = total - self._evaluation
        record = self.record = {
            "epoch": epoch + 1,
            **{name: round(float(logs[name]), 6) for name in ("loss", "accuracy", "val_loss", "val_accuracy")},
            "learning_rate": float(f"{float(self.model.optimizer.learning_rate):.6g}"),
            "images_per_second": round(self.images * self._batches / self.steps / training, 1),
            "seconds": round(total, 3),
            "elapsed": round(self.timings.elapsed(), 3),
            "resolution": self.resolutions[epoch],
        }
        self.folder.append_metrics(record)
        for name, value in record.items():
            if name != "epoch":
                event = Event(wall_time=time.time(), step=epoch + 1, summary=scalar(name, value))
                self._events.write_event(event)
        self._events.flush()
        tell(
            f"{self._name}: loss {record['loss']:.4f}, accuracy {record['accuracy']:.4f}, "
            f"validation loss {record['val_loss']:.4f}, accuracy {record['val_accuracy']:.4f}; "
            f"{record['images_per_second']:.0f} images/s at {record['resolution']} px, {total:.0f} s"
        )
