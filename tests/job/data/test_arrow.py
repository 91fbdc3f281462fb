"""The shared cache: mapped and not copied, never stale, never half written, and not needed."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from job.data.arrays import Arrays
from job.data.arrow import DataSet, dataset, open_arrow
from job.errors import InputError
from tests.job.data import written


def _is(found: DataSet, expected: Arrays) -> bool:
    return (
        np.array_equal(found.images, np.concatenate([expected.train_images, expected.test_images]))
        and np.array_equal(found.labels, np.concatenate([expected.train_labels, expected.test_labels]))
        and found.train_count == len(expected.train_labels)
    )


def _must_not_load() -> Arrays:
    raise AssertionError("read again although it is in the cache")


def _mapped_files(array: np.ndarray) -> list[str]:
    """The files whose maps in this process hold the whole of an array."""
    first = array.__array_interface__["data"][0]
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        low, high = (int(bound, 16) for bound in fields[0].split("-"))
        if low <= first and first + array.nbytes <= high and len(fields) == 6:
            found.append(fields[5])
    return found


def test_images_are_read_once_and_then_come_from_the_cache(small, cache):
    assert _is(open_arrow("key", lambda: small), small)
    assert _is(open_arrow("key", _must_not_load), small)
    assert len(list((cache / "arrow").iterdir())) == 1


def test_images_and_labels_are_views_of_the_mapped_file(small, cache):
    open_arrow("key", lambda: small)
    found = open_arrow("key", _must_not_load)
    (file,) = (cache / "arrow").iterdir()
    for array in (found.images, found.labels):
        assert _mapped_files(array) == [str(file)]
        assert not array.flags.writeable


def test_another_key_is_another_file(small):
    open_arrow("one", lambda: small)
    with pytest.raises(AssertionError, match="read again"):
        open_arrow("another", _must_not_load)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer"])
def test_a_damaged_file_is_noticed_and_made_again(small, cache, damage, caplog):
    open_arrow("key", lambda: small)
    (file,) = (cache / "arrow").iterdir()
    content = bytearray(file.read_bytes())
    match damage:
        case "flip":
            content[len(content) // 2] ^= 1
        case "cut":
            del content[-100:]
        case "empty":
            content.clear()
        case "longer":
            content += b"0"
    file.write_bytes(content)
    assert _is(open_arrow("key", lambda: small), small)
    assert "is damaged and is made again" in caplog.text
    assert _is(open_arrow("key", _must_not_load), small)


def test_a_changed_data_file_is_not_served_from_the_cache(tmp_path, small):
    written.write_idx(tmp_path, small, zipped=True)
    before = dataset("fashion-mnist", tmp_path)
    changed = Arrays(255 - small.train_images, small.train_labels, small.test_images, small.test_labels, "")
    written.write_idx(tmp_path, changed, zipped=True)
    after = dataset("fashion-mnist", tmp_path)
    assert _is(before, small) and _is(after, changed)
    assert before.digest != after.digest


def test_the_same_images_in_another_format_have_the_same_digest_and_their_own_source(tmp_path, small):
    (tmp_path / "idx").mkdir()
    written.write_idx(tmp_path / "idx", small, zipped=False)
    written.write_npz(tmp_path / "mine.npz", small)
    first, second = dataset("fashion-mnist", tmp_path / "idx"), dataset("fashion-mnist", tmp_path / "mine.npz")
    assert first.digest == second.digest
    assert (first.source, second.source) == (str(tmp_path / "idx"), str(tmp_path / "mine.npz"))


def test_a_copy_of_the_files_is_served_from_the_cache_under_its_own_source(tmp_path, small, cache):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written.write_npz(tmp_path / name / "mine.npz", small)
        assert dataset("fashion-mnist", tmp_path / name).source == str(tmp_path / name / "mine.npz")
    assert len(list((cache / "arrow").iterdir())) == 1


def test_damaged_source_files_are_refused_and_leave_nothing_in_the_cache(tmp_path, small, cache):
    written.write_idx(tmp_path, small, zipped=False)
    (tmp_path / written.IDX_NAMES[0]).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="ends before its header does"):
        dataset("fashion-mnist", tmp_path)
    assert not list(cache.rglob("*.arrow"))


def test_a_cache_that_cannot_be_written_costs_one_line_in_the_log(small, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert _is(open_arrow("key", lambda: small), small)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "can't be used (Not a directory)" in caplog.text


_FULL = """
import resource, sys
from job.data import garments
from job.data.arrow import open_arrow
small = garments.draw(train=120, test=30)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
found = open_arrow("key", lambda: small)
assert (found.images[:120] == small.train_images).all()
"""


def test_a_disk_that_is_full_costs_one_line_and_leaves_no_half_file(cache):
    done = subprocess.run([sys.executable, "-c", _FULL], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.count("\n") == 1 and "can't be used (File too large)" in done.stderr
    assert not list((cache / "arrow").iterdir())


_MANY = """
import sys, time
from job.data import garments
from job.data.arrow import open_arrow
small = garments.draw(train=120, test=30)
time.sleep(max(0, float(sys.argv[1]) - time.time()))
for number in range(30):
    found = open_arrow(f"key{number}", lambda: small)
    assert (found.images[:120] == small.train_images).all() and len(found.labels) == 150
"""


def test_processes_that_write_at_once_do_no_harm_to_each_other(cache, small):
    start = str(time.time() + 1.5)
    processes = [
        subprocess.Popen([sys.executable, "-c", _MANY, start], stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for process in processes:
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0 and errors == ""
    assert len(list((cache / "arrow").iterdir())) == 30
    assert _is(open_arrow("key7", _must_not_load), small)


def test_processes_that_start_together_on_an_empty_cache_draw_once(cache, tmp_path):
    script = tmp_path / "load.py"
    script.write_text(
        "import sys, time\nfrom job.data import arrow, garments\n"
        "def load():\n    print('drawn', flush=True)\n    time.sleep(1)\n    return garments.draw(train=20, test=10)\n"
        "arrow.open_arrow('key', load)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    processes = [subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment) for _ in range(3)]
    assert sum(process.communicate(timeout=60)[0].count(b"drawn") for process in processes) == 1
    assert len(list((cache / "arrow").iterdir())) == 1


def test_what_a_killed_process_left_is_removed_later(small, cache):
    folder = cache / "arrow"
    folder.mkdir(parents=True)
    for name, age in (("old.partial", 7200), ("new.partial", 60)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    open_arrow("key", lambda: small)
    assert not (folder / "old.partial").exists() and (folder / "new.partial").exists()


def test_the_drawn_data_set_is_that_of_its_seed(small):
    found = dataset("garments", None)
    assert found.train_count == 60_000 and found.images.shape == (70_000, 28, 28)
    assert (found.images[:120] == small.train_images).all()
    assert (found.images[60_000:60_030] == small.test_images).all()
