"""The shared cache: a data set read once, kept as an Arrow file and mapped into memory by all ranks of a host together.

A file's name is KEY.CHECKSUM.arrow. The key says what it was made from (the bytes of the source files, or the drawing's
settings), so that a changed source is never served from the cache. The SHA-256 of its own bytes tells a damaged file,
which is then made again, before Arrow looks into it.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from job import cache
from job.data import fashion_mnist, garments
from job.data.arrays import SIDE, Arrays, UInt8

Name = Literal["fashion-mnist", "garments"]

_LOG = logging.getLogger(__name__)
_FORMAT = 1  # Goes up when what is in the Arrow file changes.
_STALE_SECONDS = 3600.0  # A file that was begun so long ago is what a killed process has left.


@dataclass(frozen=True, slots=True)
class DataSet:
    """All images of a data set, the training images first; read-only where they are mapped from the cache."""

    images: UInt8
    """Shape [N, 28, 28]."""
    labels: UInt8
    """Shape [N], from 0 to 9."""
    train_count: int
    """How many images, from the first, are for training; the others are for the test."""
    source: str
    """Where the images came from, for people."""
    digest: str
    """SHA-256, in hexadecimal, of the images, labels and train_count: the same for the same data in any format."""

    def places(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where images are in the file of their part, training or test, from 0: shape of `indices`."""
        return np.where(indices < self.train_count, indices, indices - self.train_count)


def dataset(name: Name, data_dir: Path | None) -> DataSet:
    """Find or draw a data set and open it by way of the shared cache.

    Args:
        name: "fashion-mnist", or "garments" for the drawn one (60,000 and 10,000 images).
        data_dir: where Fashion-MNIST is: see `fashion_mnist.find`. The drawn data set needs none.

    Raises:
        InputError: Fashion-MNIST can't be found or is damaged.
    """
    if name == "garments":
        settings = ("garments", garments.VERSION, _FORMAT)
        return open_arrow(_key(settings), garments.draw)
    source = fashion_mnist.find(data_dir)
    found = open_arrow(_key(("fashion-mnist", source.digest(), _FORMAT)), source.read)
    # The cache may have been filled from a copy of the same files elsewhere.
    return replace(found, source=source.description)


def open_arrow(key: str, load: Callable[[], Arrays]) -> DataSet:
    """Map the Arrow file of this key, after making it from `load()` where there is no sound one.

    Where the cache can't be used (a read-only folder, a full disk), the images are held in memory and a line is logged.
    """
    folder = cache.folder("arrow")
    arrays = None
    try:
        with cache.one_at_a_time(folder):
            if (path := _find_sound(folder, key)) is not None:
                return _map(path)
            arrays = load()
            return _write(folder, key, arrays)
    except OSError as problem:
        reason = problem.strerror or problem
        _LOG.warning("the cache %s can't be used (%s): each rank holds the images in memory", folder, reason)
        return _in_memory(arrays or load())


def _key(settings: Sequence[str | int]) -> str:
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _find_sound(folder: Path, key: str) -> Path | None:
    """Find a file of the key whose bytes have the checksum in its name; remove those that have not."""
    for path in sorted(folder.glob(f"{key}.*.arrow")):
        if _checksum(path) == path.name.split(".")[1]:
            return path
        _LOG.warning("%s is damaged and is made again", path)
        path.unlink(missing_ok=True)
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, key: str, arrays: Arrays) -> DataSet:
    """Write the file under a name of its own, map it and give it its name: no process ever sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    handle, name = tempfile.mkstemp(dir=folder, prefix=f"{key}.", suffix=".partial")
    partial = Path(name)
    try:
        batch = _record_batch(_in_memory(arrays))
        with os.fdopen(handle, "wb") as file:
            with pa.ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        mapped = _map(partial)
        partial.chmod(cache.MODE)
        partial.rename(folder / f"{key}.{_checksum(partial)}.arrow")
    finally:
        partial.unlink(missing_ok=True)
    return mapped


def _remove_stale(folder: Path) -> None:
    for partial in folder.glob("*.partial"):
        try:
            if time.time() - partial.stat().st_mtime > _STALE_SECONDS:
                partial.unlink()
        except FileNotFoundError:  # Another rank was quicker, or has just given the file its name.
            continue


def _record_batch(whole: DataSet) -> pa.RecordBatch:
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(whole.images.reshape(-1)), SIDE * SIDE)
    images = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), (SIDE, SIDE)), pixels)
    metadata = {"train_count": str(whole.train_count), "source": whole.source, "digest": whole.digest}
    schema = pa.schema([("image", images.type), ("label", pa.uint8())], metadata=metadata)
    return pa.record_batch([images, pa.array(whole.labels)], schema=schema)


def _map(path: Path) -> DataSet:
    """Map a file into memory: its arrays are views of the map and copy nothing."""
    # The arrays keep the map alive after the file is closed.
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    metadata = {name.decode(): value.decode() for name, value in batch.schema.metadata.items()}
    return DataSet(
        images=batch.column("image").to_numpy_ndarray(),
        labels=batch.column("label").to_numpy(),
        train_count=int(metadata["train_count"]),
        source=metadata["source"],
        digest=metadata["digest"],
    )


def _in_memory(arrays: Arrays) -> DataSet:
    images = np.concatenate([arrays.train_images, arrays.test_images])
    labels = np.concatenate([arrays.train_labels, arrays.test_labels])
    train_count = len(arrays.train_labels)
    digest = hashlib.sha256(str(train_count).encode())
    digest.update(images.data)
    digest.update(labels.data)
    return DataSet(images, labels, train_count, arrays.source, digest.hexdigest())
