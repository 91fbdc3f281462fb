"""The model that a run left, loaded as anyone else would load it."""

import zipfile
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from job.data.arrays import CLASS_NAMES, SIDE
from job.errors import InputError
from job.model.mobilenet import evaluation_batch

MOST_BYTES = 1 << 28
"""Of a model's unpacked file: this job's have 13 MB for each width multiplier of 1, squared."""


def model_path(run: Path) -> Path:
    """The model's file: `run` itself if it is a file, else `model.keras` in the folder.

    Raises:
        InputError: there is none.
    """
    path = run / "model.keras" if run.is_dir() else run
    if not path.is_file():
        raise InputError(f"no model there: received {path}. Name the folder of a finished run, or a .keras file.")
    return path


def load_model(run: Path) -> keras.Model:
    """Load a run's model in safe mode, so that nothing in the file is executed.

    Args:
        run: a run folder, or a `.keras` file.

    Returns:
        A model from uint8 [B, 28, 28] to probabilities float32 [B, 10].

    Raises:
        InputError: there is no model, the file is damaged, or the model takes or gives something else.
    """
    path = model_path(run)
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a Keras model. Name the folder of a finished run, or a .keras file.")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
        if size > MOST_BYTES:
            raise ValueError(
                f"it unpacks to {size:,} bytes, where {MOST_BYTES:,} are enough for any model of this job."
            )
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    # Keras and its readers raise many kinds of exceptions on damaged archives; the cause is in the line.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{path} can't be loaded: {reason} Restore the file or train again.") from error
    shapes = (getattr(model, "input_shape", None), getattr(model, "output_shape", None))
    if shapes != ((None, SIDE, SIDE), (None, len(CLASS_NAMES))):
        raise InputError(f"{path} is not a model of this job: received shapes {shapes}. Name a model that it trained.")
    return model


def probabilities(model: keras.Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities [N, 10] for images uint8 [N, 28, 28]."""
    sides = [layer.height for layer in model.layers if isinstance(layer, keras.layers.Resizing)]
    return model.predict(images, batch_size=evaluation_batch(max(sides, default=SIDE)), verbose=0)
