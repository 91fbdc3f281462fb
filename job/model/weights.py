"""ImageNet weights for the backbone: where they come from, and how a file of them is read without trusting it."""

import contextlib
import math
import sys
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pooch

from horovod_keras.background import within
from job import cache
from job.errors import InputError, refused_here

URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/mobilenet_1_0_224_tf_no_top.h5"
DOWNLOAD_SECONDS = 600.0
"""The most that a download of weights may take: 17 MB at about 30 kB/s."""
# All that h5py and NumPy raise on files that are cut, flipped or laid out otherwise.
_DAMAGE = (OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, OverflowError)
_ADVICE = "Give a file with --weights FILE, or start from random weights with --weights none."


def imagenet_weights() -> Path:
    """The path of Keras' own MobileNet 1.0 weights without top, downloaded once into the cache.

    Keras publishes no checksum for these files, so the HDF5 signature is checked here, and every layer's shape
    when it is loaded.

    Raises:
        InputError: they could not be downloaded in bounded time.
        OSError: the cache's disk is full or can't be written.
    """
    name = URL.rpartition("/")[2]
    folder = cache.folder("weights")
    download = pooch.HTTPDownloader(timeout=(10, 60), progressbar=sys.stderr.isatty())
    try:
        with cache.one_at_a_time(folder):
            if not _is_whole(folder / name):
                (folder / name).unlink(missing_ok=True)
            path = within(
                DOWNLOAD_SECONDS,
                "download",
                lambda: Path(pooch.retrieve(URL, known_hash=None, fname=name, path=folder, downloader=download)),
            )
    except OSError as error:
        if refused_here(error):
            raise
        raise InputError(
            f"ImageNet weights could not be downloaded: {URL} ({cache.cause(error)}). {_ADVICE}"
        ) from error
    if not _is_whole(path):
        raise InputError(f"what was downloaded is no whole HDF5 file: received it from {URL}. {_ADVICE}")
    with contextlib.suppress(OSError):  # another user's, who shares the cache
        path.chmod(cache.MODE)
    return path


def _is_whole(path: Path) -> bool:
    """Whether a file is HDF5 and not cut off."""
    try:
        with h5py.File(path, "r"):
            return True
    except _DAMAGE:
        return False


def load_imagenet(backbone: keras.Model, path: Path) -> None:
    """Set `backbone`'s weights from a MobileNet weights file without top (.h5 as published, or .weights.h5 of Keras 3).

    Only arrays are read: nothing in the file is unpickled or run. Raises InputError that names the file and the layer.
    """
    layers = [layer for layer in backbone.layers if layer.weights]
    if not path.is_file():
        wrong = "is a folder or a device" if path.exists() else "does not exist"
        raise InputError(f"the weights file {wrong}: received {path}. {_ADVICE}")
    try:
        with h5py.File(path, "r") as file:
            arrays = _published(file, path, layers) if "layer_names" in file.attrs else _keras3(file, path, layers)
    except _DAMAGE as error:
        raise InputError(f"the weights file is not HDF5 or is damaged: received {path}. {_ADVICE}") from error
    backbone.set_weights(arrays)


def _published(file: h5py.File, path: Path, layers: list[keras.Layer]) -> list[np.ndarray]:
    """Arrays of a file in Keras' older layout: a group per layer, under the layer's name."""
    arrays = []
    for layer in layers:
        group = _own(file, layer.name)
        names = [] if group is None else [_text(name) for name in group.attrs.get("weight_names", [])]
        arrays += _checked(path, layer, [_own(group, name) for name in names])
    return arrays


def _keras3(file: h5py.File, path: Path, layers: list[keras.Layer]) -> list[np.ndarray]:
    """Arrays of a Keras 3 file: layers/CLASS_NUMBER/vars/INDEX, numbered per class in the model's order."""
    arrays = []
    numbers: dict[str, int] = {}
    for layer in layers:
        stem = _stock_class(layer)
        number = numbers[stem] = numbers.get(stem, -1) + 1
        group = _own(file, f"layers/{stem}_{number}/vars" if number else f"layers/{stem}/vars")
        arrays += _checked(path, layer, [] if group is None else [_own(group, str(i)) for i in range(len(group))])
    return arrays


def _own(group: h5py.Group, name: str) -> Any:
    """What a group has under a name, or None. Links are not followed: they may lead to other files, or to a pipe."""
    found: Any = group
    for part in name.split("/"):
        if not isinstance(found, h5py.Group) or not isinstance(found.get(part, getlink=True), h5py.HardLink):
            return None
        found = found[part]
    return found


def _stock_class(layer: keras.Layer) -> str:
    if isinstance(layer, keras.layers.BatchNormalization):
        return "batch_normalization"
    return "depthwise_conv2d" if isinstance(layer, keras.layers.DepthwiseConv2D) else "conv2d"


def _checked(path: Path, layer: keras.Layer, found: list[h5py.Dataset | None]) -> list[np.ndarray]:
    if not all(_is_plain(entry) for entry in found if isinstance(entry, h5py.Dataset)):
        raise InputError(
            f"the weights of layer {layer.name} lie in other files or in too large pieces: received {path}. {_ADVICE}"
        )
    expected = [tuple(weight.shape) for weight in layer.weights]
    received = [tuple(entry.shape) if isinstance(entry, h5py.Dataset) else None for entry in found]
    if received == expected and all(entry.dtype.kind == "f" for entry in found if entry is not None):
        arrays = [np.asarray(entry, np.float32) for entry in found]
        if all(np.isfinite(array).all() for array in arrays):
            return arrays
        raise InputError(f"the weights of layer {layer.name} hold NaN or infinity: received {path}. {_ADVICE}")
    if not received:
        raise InputError(
            f"the weights file lacks layer {layer.name}: received {path}. Use a MobileNet file without top."
        )
    raise InputError(
        f"the weights of layer {layer.name} have another shape: received {received} in {path}, expected {expected}. "
        "Use a MobileNet file without top, of this width multiplier (alpha)."
    )


def _is_plain(entry: h5py.Dataset) -> bool:
    """Whether reading it takes no more memory than its shape says, and reads no other file."""
    return not entry.external and not entry.is_virtual and math.prod(entry.chunks or ()) <= max(1, entry.size)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
