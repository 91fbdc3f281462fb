"""Writes a small data set in each format that the job reads."""

import gzip
import struct
from pathlib import Path

import numpy as np

from job.data.arrays import Arrays

IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx_images(images: np.ndarray) -> bytes:
    return struct.pack(">4I", 0x803, *images.shape) + images.tobytes()


def idx_labels(labels: np.ndarray) -> bytes:
    return struct.pack(">2I", 0x801, len(labels)) + labels.tobytes()


def write_idx(folder: Path, arrays: Arrays, zipped: bool) -> None:
    contents = (
        idx_images(arrays.train_images),
        idx_labels(arrays.train_labels),
        idx_images(arrays.test_images),
        idx_labels(arrays.test_labels),
    )
    for name, content in zip(IDX_NAMES, contents, strict=True):
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)


def csv(images: np.ndarray, labels: np.ndarray) -> bytes:
    header = ",".join(["label", *(f"pixel{number}" for number in range(1, 785))])
    table = np.column_stack([labels, images.reshape(len(images), -1)])
    return "\n".join([header, *(",".join(map(str, line)) for line in table.tolist()), ""]).encode()


def write_csv(folder: Path, arrays: Arrays) -> None:
    (folder / "fashion-mnist_train.csv").write_bytes(csv(arrays.train_images, arrays.train_labels))
    (folder / "fashion-mnist_test.csv").write_bytes(csv(arrays.test_images, arrays.test_labels))


def write_npz(path: Path, arrays: Arrays, **changed: np.ndarray) -> None:
    contents = {
        "x_train": arrays.train_images,
        "y_train": arrays.train_labels,
        "x_test": arrays.test_images,
        "y_test": arrays.test_labels,
    }
    np.savez_compressed(path, **(contents | changed))
