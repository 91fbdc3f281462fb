"""Readers of images and labels that trust nothing in a file: IDX (gzipped or not), Kaggle's CSV and NumPy's npz.

Each checks what a file claims against what is really there before it makes room for it, so that the memory used is
bounded by `MAX_IMAGES` whatever a file says. Each raises `InputError` of one line: the file, what was wrong with it,
what was received and what to do.
"""

import gzip
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import IO, NoReturn, cast

import numpy as np

from job.data.arrays import CLASS_NAMES, SIDE, UInt8
from job.errors import InputError

MAX_IMAGES = 250_000
"""The most images that a file may hold (196 MB): four times Fashion-MNIST's, and enough for EMNIST's digits."""

_IMAGE_BYTES = SIDE * SIDE
_CHUNK = 1 << 20
_ADVICE = "Fetch the file again, or give another folder with --data-dir."
_LONGEST_LINE = 10_000
_COLUMNS = ["label", *(f"pixel{number}" for number in range(1, _IMAGE_BYTES + 1))]


def read_idx_images(path: Path) -> UInt8:
    """Read an IDX file of images, gzipped or not: uint8 of shape [N, 28, 28]."""
    return _read_idx(path, 0x803, "images", (SIDE, SIDE))


def read_idx_labels(path: Path) -> UInt8:
    """Read an IDX file of labels, gzipped or not: uint8 of shape [N], each from 0 to 9."""
    labels = _read_idx(path, 0x801, "labels", ())
    _check_labels(path, labels)
    return labels


def read_csv(path: Path) -> tuple[UInt8, UInt8]:
    """Read Kaggle's layout, a header label,pixel1,…,pixel784 and a line an image: images [N, 28, 28] and labels [N]."""
    with opened(path) as file:
        names = file.readline(_LONGEST_LINE).decode("utf-8-sig", "replace").strip().split(",")
        if names != _COLUMNS:
            received = f"{len(names)} columns, first {names[:3]}"[:120]
            refuse(path, "has no header label,pixel1,…,pixel784", received)
        lines = _csv_lines(path, file)
        if (first := next(lines, None)) is None:
            refuse(path, "holds no images", "a header only")
        try:
            table = np.loadtxt(chain([first], lines), np.uint8, comments=None, delimiter=",", ndmin=2)
        except ValueError as problem:
            refuse(path, "is not a CSV file of whole numbers from 0 to 255", _one_line(problem))
    if table.shape[1] != len(_COLUMNS):
        refuse(path, f"has lines of another length than {len(_COLUMNS)} numbers", f"{table.shape[1]} numbers")
    _check_labels(path, table[:, 0])
    return table[:, 1:].reshape(-1, SIDE, SIDE), table[:, 0].copy()


def read_npz(path: Path) -> tuple[UInt8, UInt8, UInt8, UInt8]:
    """Read Keras's layout of one npz file: x_train and x_test [N, 28, 28], y_train and y_test [N], in Arrays' order."""
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            arrays = {name: _read_npy(path, archive, name) for name in ("x_train", "y_train", "x_test", "y_test")}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as problem:
        refuse(path, "is not a sound npz file", _one_line(problem))
    for split in ("train", "test"):
        check_pair(path, arrays[f"x_{split}"], path, arrays[f"y_{split}"])
    return arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"]


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading (never a pipe or a device, which may never end), or raise InputError."""
    if not path.is_file():
        refuse(path, "is not a file", "a folder or a device" if path.exists() else "a path where nothing is")
    try:
        with path.open("rb") as file:
            yield file
    except OSError as problem:
        refuse(path, "cannot be read", problem.strerror or _one_line(problem))


def check_pair(images_path: Path, images: UInt8, labels_path: Path, labels: UInt8) -> None:
    """Raise InputError unless there is one label for each image."""
    if len(images) != len(labels):
        other = "" if labels_path == images_path else f" in {labels_path}"
        received = f"{len(images):,} images and {len(labels):,} labels"
        refuse(images_path, f"holds another number of images than there are labels{other}", received)


def refuse(path: Path, wrong: str, received: str, advice: str = _ADVICE) -> NoReturn:
    """Raise the InputError that says what is wrong with a file, in one line."""
    raise InputError(f"{path} {wrong}: received {received}. {advice}") from None


def _read_idx(path: Path, magic: int, content: str, shape: tuple[int, ...]) -> UInt8:
    """Read an IDX file of unsigned bytes (the format is described at the end of http://yann.lecun.com/exdb/mnist)."""
    head_bytes, item = 8 + 4 * len(shape), math.prod(shape)
    with opened(path) as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if zipped else raw
        try:
            head = file.read(head_bytes)
            if len(head) < head_bytes:
                refuse(path, "ends before its header does", f"{len(head)} of {head_bytes} bytes")
            received, count, *sides = struct.unpack(f">{head_bytes // 4}I", head)
            if received != magic:
                refuse(path, f"is not an IDX file of {content}", f"magic number {received}, expected {magic}")
            if tuple(sides) != shape:
                refuse(path, f"holds images of another size than {SIDE}×{SIDE}", "×".join(map(str, sides)))
            _check_count(path, count)
            body = _read_at_most(file, count * item + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
            refuse(path, "is a damaged gzip file", _one_line(problem))
    if len(body) != count * item:
        there = f"{len(body):,} of" if len(body) < count * item else "more than"
        refuse(path, f"does not hold the {count:,} {content} that it claims", f"{there} {count * item:,} bytes")
    return np.frombuffer(body, np.uint8).reshape(count, *shape)


def _csv_lines(path: Path, file: BufferedReader) -> Iterator[str]:
    """Lines that hold something, as many and as long as images can need."""
    for number in range(MAX_IMAGES + 1):
        line = file.readline(_LONGEST_LINE)
        if len(line) == _LONGEST_LINE:
            refuse(path, "has a line that is too long", f"{_LONGEST_LINE:,} characters or more")
        if not line:
            return
        _check_count(path, number + 1)
        if line.strip():
            yield line.decode("latin-1")


def _read_npy(path: Path, archive: zipfile.ZipFile, name: str) -> UInt8:
    """Read one array of an npz file as uint8. Nothing is unpickled: a header that asks for objects is refused."""
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        names = [info.filename for info in archive.infolist()[:4]]
        refuse(path, f"has no array {name}", str(names)[:120], "It must hold x_train, y_train, x_test and y_test.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        refuse(path, "is compressed by a method that NumPy does not use", f"method {member.compress_type}")
    tail = (SIDE, SIDE) if name.startswith("x") else ()
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):  # others may claim headers of 4 GB, for arrays with thousands of named fields
                raise ValueError(f"format version {version}")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except (ValueError, TypeError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError) as problem:
            refuse(path, f"has an array {name} without a sound header", _one_line(problem))
        # Labels are small whole numbers however they are stored; images must be what the model takes.
        if (tail and dtype != np.uint8) or dtype.kind not in "iu" or fortran or shape[1:] != tail or not shape:
            expected = "uint8 [N, 28, 28]" if tail else "whole numbers [N]"
            refuse(path, f"has an array {name} other than {expected}", f"{dtype} {list(shape)}")
        _check_count(path, shape[0])
        expected_bytes = math.prod(shape) * dtype.itemsize
        body = _read_at_most(file, expected_bytes + 1)
    if len(body) != expected_bytes:
        refuse(path, f"has an array {name} of another length than its header says", f"{len(body):,} bytes")
    values = np.frombuffer(body, dtype).reshape(shape)
    if not tail:
        _check_labels(path, values)
    return values.astype(np.uint8, copy=False)


def _read_at_most(file: IO[bytes], most: int) -> bytearray:
    """Read up to `most` bytes in small pieces, so that memory grows with what is there and not with what is claimed."""
    body = bytearray()
    while len(body) < most and (piece := file.read(min(_CHUNK, most - len(body)))):
        body += piece
    return body


def _check_count(path: Path, count: int) -> None:
    if not 0 < count <= MAX_IMAGES:
        refuse(path, f"must hold 1 to {MAX_IMAGES:,} images or labels", f"{count:,}")


def _check_labels(path: Path, labels: np.ndarray) -> None:
    wrong = (labels < 0) | (labels >= len(CLASS_NAMES))
    if wrong.any():
        first = int(wrong.argmax())
        refuse(path, "holds a label other than 0 to 9", f"{labels[first]} as label {first + 1:,}")


def _one_line(problem: Exception) -> str:
    return (" ".join(str(problem).split()) or type(problem).__name__)[:160]
