"""Readers of data files: what is well formed is read, and nothing else does more than one line of harm."""

import gzip
import io
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from job.data import garments
from job.data.formats import MAX_IMAGES, read_csv, read_idx_images, read_idx_labels, read_npz
from job.errors import InputError
from tests.job.data import written

Reader = Callable[[Path], Any]
SMALL = garments.draw(train=12, test=4)
MEGABYTE = 1 << 20


def _npz(**changed: np.ndarray) -> bytes:
    stream = io.BytesIO()
    written.write_npz(stream, SMALL, **changed)  # type: ignore[arg-type]
    return stream.getvalue()


VALID: dict[str, tuple[Reader, bytes]] = {
    "IDX images": (read_idx_images, written.idx_images(SMALL.train_images)),
    "IDX labels": (read_idx_labels, written.idx_labels(SMALL.train_labels)),
    "gzipped IDX images": (read_idx_images, gzip.compress(written.idx_images(SMALL.train_images), mtime=0)),
    "gzipped IDX labels": (read_idx_labels, gzip.compress(written.idx_labels(SMALL.train_labels), mtime=0)),
    "CSV": (read_csv, written.csv(SMALL.train_images[:3], SMALL.train_labels[:3])),
    "npz": (read_npz, _npz()),
}


def _refusal(reader: Reader, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        reader(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and "received" in message
    return message


@pytest.mark.parametrize("kind", VALID)
def test_what_is_written_is_read(tmp_path, kind):
    reader, content = VALID[kind]
    path = tmp_path / "file"
    path.write_bytes(content)
    found = reader(path)
    for array in found if isinstance(found, tuple) else (found,):
        assert array.dtype == np.uint8
    if kind == "CSV":
        assert (found[0] == SMALL.train_images[:3]).all() and (found[1] == SMALL.train_labels[:3]).all()
    elif kind == "npz":
        assert (found[0] == SMALL.train_images).all() and (found[3] == SMALL.test_labels).all()
    else:
        assert (found == (SMALL.train_images if "images" in kind else SMALL.train_labels)).all()


@pytest.mark.parametrize("kind", VALID)
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, kind, share):
    reader, content = VALID[kind]
    path = tmp_path / "file"
    # A cut within the last number of a CSV line leaves a number: cut there to lose a whole one.
    path.write_bytes(content[: int(len(content) * share) - 4 * (kind == "CSV")])
    _refusal(reader, path)


@pytest.mark.parametrize(
    ("reader", "content", "said"),
    [
        (read_idx_images, b"", "ends before its header"),
        (read_idx_images, written.idx_labels(SMALL.train_labels) + bytes(8), "magic number 2049, expected 2051"),
        (read_idx_images, struct.pack(">4I", 0x803, 1, 32, 32) + bytes(1024), "received 32×32"),
        (read_idx_images, struct.pack(">4I", 0x803, 0, 28, 28), "must hold 1 to 250,000"),
        (read_idx_images, struct.pack(">4I", 0x803, 2, 28, 28) + bytes(784), "received 784 of 1,568 bytes"),
        (read_idx_images, struct.pack(">4I", 0x803, 1, 28, 28) + bytes(785), "received more than 784 bytes"),
        (read_idx_labels, struct.pack(">2I", 0x801, 3) + bytes([0, 10, 1]), "received 10 as label 2"),
        (read_idx_labels, gzip.compress(struct.pack(">2I", 0x801, 3) + bytes(3))[:-9], "damaged gzip"),
        (read_csv, b"", "has no header"),
        (read_csv, b"a,b\n1,2\n", "received 2 columns, first ['a', 'b']"),
        (read_csv, VALID["CSV"][1].replace(b"\n", b"\n1,", 1), "the number of columns changed"),
        (read_csv, VALID["CSV"][1].split(b"\n")[0] + b"\n" + b",".join([b"256"] * 785), "could not convert string"),
        (read_csv, VALID["CSV"][1].split(b"\n")[0] + b"\n" + b",".join([b""] * 785), "could not convert string"),
        (read_csv, VALID["CSV"][1].split(b"\n")[0] + b"\n\n", "received a header only"),
        (read_csv, VALID["CSV"][1].split(b"\n")[0] + b"\n" + b",".join([b"11"] * 785), "received 11 as label 1"),
        (read_npz, b"PK\x03\x04", "is not a sound npz"),
        (read_npz, _npz(y_train=SMALL.train_labels[1:]), "received 12 images and 11 labels"),
        (read_npz, _npz(y_train=SMALL.train_labels.astype(np.int64) - 1), "received -1 as label"),
        (read_npz, _npz(y_train=SMALL.train_labels.astype(np.int64) + 256), "holds a label other than 0 to 9"),
        (read_npz, _npz(x_train=SMALL.train_images.astype(np.float32)), "received float32 [12, 28, 28]"),
        (read_npz, _npz(x_test=SMALL.test_images[:, :27]), "received uint8 [4, 27, 28]"),
        (read_npz, _npz(x_test=np.array([{}, object()])), "received object [2]"),
    ],
)
def test_a_malformed_file_is_refused_with_what_was_wrong_and_received(tmp_path, reader, content, said):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert said in _refusal(reader, path)


def test_labels_of_any_whole_number_type_are_read_from_an_npz_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(_npz(y_train=SMALL.train_labels.astype(">i8")))
    assert (read_npz(path)[1] == SMALL.train_labels).all()


def test_an_npz_file_that_lacks_an_array_names_it(tmp_path):
    np.savez(tmp_path / "file.npz", x_train=SMALL.train_images, images=SMALL.test_images)
    assert "has no array y_train" in _refusal(read_npz, tmp_path / "file.npz")


@pytest.mark.parametrize("reader", [read_idx_images, read_idx_labels, read_csv, read_npz])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")  # Opening a pipe that nobody writes to would wait for ever.
    for path, received in (
        (tmp_path / "none", "a path where nothing is"),
        (tmp_path, "a folder or a device"),
        (tmp_path / "pipe", "a folder or a device"),
    ):
        assert received in _refusal(reader, path)


def _bounded(reader: Reader, path: Path, most: int) -> str:
    """The refusal of a file, after checking that reading it took less memory than `most` bytes at its peak."""
    tracemalloc.start()
    try:
        message = _refusal(reader, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / MEGABYTE:.0f} MiB"
    return message


@pytest.mark.parametrize("count", [MAX_IMAGES, MAX_IMAGES + 1, 2**32 - 1])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_header_that_claims_many_images_makes_room_for_none_of_them(tmp_path, count, zipped):
    content = struct.pack(">4I", 0x803, count, 28, 28) + bytes(1000)
    (tmp_path / "file").write_bytes(gzip.compress(content) if zipped else content)
    _bounded(read_idx_images, tmp_path / "file", 4 * MEGABYTE)


def test_a_gzip_bomb_is_not_unpacked_beyond_what_its_header_claims(tmp_path):
    with gzip.open(tmp_path / "file", "wb", compresslevel=1) as bomb:
        bomb.write(struct.pack(">4I", 0x803, 10, 28, 28))
        for _ in range(100):
            bomb.write(bytes(MEGABYTE))
    assert "received more than 7,840 bytes" in _bounded(read_idx_images, tmp_path / "file", 4 * MEGABYTE)


@pytest.mark.parametrize("shape", [(4_000_000_000, 28, 28), (MAX_IMAGES, 28, 28), (-1, 28, 28), (10, 28, 28)])
def test_an_npz_bomb_is_not_unpacked_beyond_what_its_header_claims(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x_train.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for _ in range(50):
                member.write(bytes(MEGABYTE))
        for name in ("y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", b"")
    most = 4 if shape[0] != MAX_IMAGES else 120
    _bounded(read_npz, tmp_path / "file", most * MEGABYTE)


def test_an_npz_header_that_claims_gigabytes_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x_train.npy", "w") as member:
            member.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1))
            for _ in range(50):
                member.write(bytes(MEGABYTE))
        for name in ("y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", b"")
    assert "without a sound header" in _bounded(read_npz, tmp_path / "file", 4 * MEGABYTE)


def test_a_csv_line_without_an_end_is_not_read_whole(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.write(VALID["CSV"][1].split(b"\n")[0] + b"\n")
        for _ in range(64):
            file.write(b"1," * (MEGABYTE // 2))
    _bounded(read_csv, tmp_path / "file", 4 * MEGABYTE)


_FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _read_or_refuse(reader: Reader, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        found = reader(path)
    except InputError as refusal:
        assert "\n" not in str(refusal)
    else:
        for array in found if isinstance(found, tuple) else (found,):
            assert array.dtype == np.uint8 and array.shape[1:] in ((), (28, 28))


@pytest.mark.parametrize("kind", VALID)
@_FUZZ
@given(content=st.binary(max_size=2000))
def test_random_bytes_are_refused_in_one_line(tmp_path, kind, content):
    _read_or_refuse(VALID[kind][0], tmp_path / "file", content)


@pytest.mark.parametrize("kind", VALID)
@_FUZZ
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 2**20), st.binary(max_size=6), st.integers(0, 6)), min_size=1, max_size=4
    ),
    near=st.sampled_from(["start", "end", "anywhere"]),
)
def test_a_mutated_file_is_read_or_refused_in_one_line(tmp_path, kind, changes, near):
    reader, content = VALID[kind]
    for place, inserted, removed in changes:
        # Headers are at the start, and a zip file's table of contents is at its end.
        start = {"start": place % 200, "end": len(content) - place % 300, "anywhere": place % (len(content) + 1)}[near]
        start = max(start, 0)
        content = content[:start] + inserted + content[start + removed :]
    _read_or_refuse(reader, tmp_path / "file", content)


_TEXT = st.text(
    st.sampled_from("{}()[]',: \n\t0123456789-|<>ubifOVdescrshapefortran_orderTrueFalse\x00é\\#\"*"), max_size=120
)


@_FUZZ
@given(header=_TEXT, version=st.sampled_from([1, 2, 3, 9]), length=st.integers(-3, 3))
@example(header="(" * 5000, version=1, length=0)
@example(header="{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", version=1, length=0)
@example(header="{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}", version=1, length=0)
@example(header="{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}", version=1, length=0)
@example(header="{'descr': '|u1', 'fortran_order': False, 'shape': (True, 28, 28)}", version=1, length=0)
def test_any_header_in_an_npz_file_is_read_or_refused_in_one_line(tmp_path, header, version, length):
    body = header.encode("utf-8" if version == 3 else "latin1")
    claimed = max(len(body) + length, 0)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        size = struct.pack("<H" if version == 1 else "<I", claimed)
        archive.writestr("x_train.npy", b"\x93NUMPY" + bytes([version, 0]) + size + body)
    _read_or_refuse(read_npz, tmp_path / "file", stream.getvalue())


def test_a_csv_file_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbf" + VALID["CSV"][1])
    assert len(read_csv(path)[1]) == 3
