"""Finding Fashion-MNIST: in a folder, in the cache, or on its servers."""

import functools
import hashlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from job.data import fashion_mnist
from job.data.arrays import CLASS_NAMES, Arrays
from job.data.fashion_mnist import find, load
from job.errors import InputError
from tests.job.data import written


def _same(found: Arrays, expected: Arrays) -> bool:
    return all(
        np.array_equal(getattr(found, name), getattr(expected, name))
        for name in ("train_images", "train_labels", "test_images", "test_labels")
    )


@pytest.mark.parametrize("layout", ["IDX", "gzipped IDX", "CSV", "npz in a folder", "npz"])
def test_every_layout_gives_the_same_arrays(tmp_path, small, layout):
    place = tmp_path
    match layout:
        case "CSV":
            written.write_csv(tmp_path, small)
        case "npz" | "npz in a folder":
            written.write_npz(tmp_path / "mine.npz", small)
            place = tmp_path / "mine.npz" if layout == "npz" else tmp_path
        case _:
            written.write_idx(tmp_path, small, zipped=layout.startswith("gzipped"))
    found = load(place)
    assert _same(found, small)
    assert str(place) in found.source


def test_a_folder_without_known_files_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"received no file of a known name\. Name a folder"):
        load(tmp_path)


def test_a_path_where_nothing_is_is_refused(tmp_path):
    with pytest.raises(InputError, match="received a path where nothing is"):
        load(tmp_path / "none")


@pytest.mark.parametrize("name", written.IDX_NAMES)
def test_a_missing_file_is_named(tmp_path, small, name):
    written.write_idx(tmp_path, small, zipped=True)
    (tmp_path / f"{name}.gz").unlink()
    with pytest.raises(InputError, match=f"lacks {name}"):
        load(tmp_path)


def test_several_npz_files_are_refused_rather_than_guessed_at(tmp_path, small):
    for name in ("a", "b"):
        written.write_npz(tmp_path / f"{name}.npz", small)
    with pytest.raises(InputError, match=r"received 2 \.npz files"):
        load(tmp_path)


def test_images_and_labels_of_different_number_name_both_files(tmp_path, small):
    written.write_idx(tmp_path, small, zipped=False)
    (tmp_path / written.IDX_NAMES[1]).write_bytes(written.idx_labels(small.train_labels[:-1]))
    with pytest.raises(InputError, match="received 120 images and 119 labels") as caught:
        load(tmp_path)
    assert all(name in str(caught.value) for name in written.IDX_NAMES[:2])


def test_the_digest_follows_the_bytes_of_the_files(tmp_path, small):
    written.write_idx(tmp_path, small, zipped=False)
    before = find(tmp_path).digest()
    assert find(tmp_path).digest() == before
    labels = tmp_path / written.IDX_NAMES[1]
    content = labels.read_bytes()
    labels.write_bytes(content[:-1] + bytes([(content[-1] + 1) % 10]))
    assert find(tmp_path).digest() != before


def test_an_empty_cache_is_refused_where_nothing_may_be_downloaded(cache):
    with pytest.raises(InputError, match="does not hold the files of Fashion-MNIST"):
        load(None, download=False)
    assert not cache.exists()


@pytest.fixture
def home(tmp_path: Path, small: Arrays, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server of small files, which stand as the published ones."""
    folder = tmp_path / "home"
    folder.mkdir()
    written.write_idx(folder, small, zipped=True)
    checksums = {
        name: "md5:" + hashlib.md5((folder / name).read_bytes()).hexdigest() for name in fashion_mnist.IDX_FILES
    }
    monkeypatch.setattr(fashion_mnist, "IDX_FILES", checksums)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()[1]
    # The first address refuses connections.
    homes = (f"http://127.0.0.1:{closed}/", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(fashion_mnist, "HOMES", homes)
    yield folder
    server.shutdown()
    server.server_close()


def test_files_are_downloaded_once_from_the_first_home_that_answers(home, cache, small):
    assert _same(load(None), small)
    for file in home.iterdir():
        file.unlink()
    assert _same(load(None, download=False), small)
    assert load(None).source == str(cache / "fashion-mnist")


def test_a_damaged_file_in_the_cache_is_downloaded_again(home, cache, small):
    load(None)
    damaged = cache / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert _same(load(None), small)


def test_a_download_with_another_checksum_is_refused_and_not_kept(home, cache):
    (home / "train-labels-idx1-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(InputError, match="a file with another checksum from http"):
        load(None)
    assert not (cache / "fashion-mnist" / "train-labels-idx1-ubyte.gz").exists()


def test_a_file_that_the_server_lacks_ends_the_download_in_one_line(home):
    (home / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="HTTPError for http") as caught:
        load(None)
    assert "\n" not in str(caught.value)


def test_a_server_that_never_ends_is_given_up_in_bounded_time(cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(fashion_mnist, "HOMES", (address, address))
        monkeypatch.setattr(fashion_mnist, "DOWNLOAD_SECONDS", 1.0)
        start = time.monotonic()
        with pytest.raises(InputError, match="not within 1 s"):
            load(None)
    assert time.monotonic() - start < 20  # and not the silence of 30 s that one read may have


def test_the_published_files_are_read(fashion_mnist_dir):
    found = load(fashion_mnist_dir)
    assert found.train_images.shape == (60_000, 28, 28) and found.test_images.shape == (10_000, 28, 28)
    assert np.bincount(found.train_labels).tolist() == [6000] * len(CLASS_NAMES)
    assert found.train_labels[:5].tolist() == [9, 0, 0, 3, 0]
    for file, checksum in zip(find(fashion_mnist_dir).files, fashion_mnist.IDX_FILES.values(), strict=True):
        assert hashlib.md5(file.read_bytes()).hexdigest() == checksum.removeprefix("md5:")
