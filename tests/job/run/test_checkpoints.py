"""Checkpoint files: what a killed writer or a bad disk leaves behind."""

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from job.errors import InputError
from job.run import checkpoints
from job.run.checkpoints import Checkpoints, Position, put_in_place, read


def save(kept: Checkpoints, epoch: int) -> None:
    kept.save({"model 0000": np.full(3, epoch, np.float32)}, Position(epoch=epoch))
    kept.wait()


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-00001-0000000.abc.safetensors.77.partial").write_bytes(b"half")
    Checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_position_is_not_one_of_the_two_that_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 5)
    newest = max(tmp_path.glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    found = checkpoints.last()
    assert found is not None and found[1].epoch == 1
    for epoch in (2, 3):
        save(checkpoints, epoch)
    assert [read(path)[1].epoch for path in sorted(tmp_path.glob("step-*"))] == [2, 3]
    assert [path.name for path in tmp_path.glob("damaged-*")] == [f"damaged-{newest.name}"]


def test_what_was_written_last_is_kept_whatever_it_replaces(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)

    def write(epoch: int, value: float) -> None:
        arrays = {"model 0000": np.full(3, value, np.float32)}
        checkpoints.save(arrays, Position(epoch=epoch, best_epoch=epoch, best_accuracy=value), arrays)
        checkpoints.wait()

    def kept(kind: str) -> list[tuple[int, float]]:
        return [(p.epoch, float(a["model 0000"][0])) for a, p in map(read, sorted(tmp_path.glob(f"{kind}-*")))]

    for epoch, value in [(29, 0.8), (30, 0.9), (28, 0.95)]:  # the run went back past its best epoch
        write(epoch, value)
    assert kept("best") == kept("step") == [(28, np.float32(0.95))]
    for attempt in range(8):  # the same epoch again: what tells the files apart is a hash, which has no order
        write(29, 0.96 + attempt / 1000)
        assert kept("best") == [(29, np.float32(0.96 + attempt / 1000))]
        assert [epoch for epoch, _ in kept("step")] == [28, 29]


def test_what_cannot_be_read_is_named_and_the_one_before_it_used_while_there_is_one(tmp_path: Path, caplog) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    unreadable = tmp_path / "step-00002-0000000.0123456789abcdef.safetensors"
    unreadable.mkdir()  # EISDIR, for EIO or ESTALE
    found = checkpoints.last()
    assert found is not None and found[1].epoch == 1
    assert str(unreadable) in caplog.text and "the one before it is used" in caplog.text
    next(tmp_path.glob("step-*")).write_bytes(b"")
    with pytest.raises(InputError, match=r"no checkpoint in .* can be read: .* remove the folder"):
        checkpoints.last()
    assert len(list(tmp_path.glob("step-*"))) == 1  # nothing was changed


def test_a_disk_that_fails_is_no_damage_where_nothing_else_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Checkpoints(tmp_path)
    save(made, 1)

    save(made, 2)

    def fail(path: Path) -> None:
        if path == newest:
            raise ValueError("it is damaged")
        raise OSError(errno.EIO, "Input/output error", str(path))

    newest = max(tmp_path.glob("step-*"))

    monkeypatch.setattr(checkpoints, "read", fail)
    with pytest.raises(OSError, match="Input/output error"):
        made.last()
    assert made.any()  # it may be read again


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path: Path, monkeypatch) -> None:
    flushed = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: flushed.append((Path(f"/proc/self/fd/{handle}").readlink(), names()))
    )

    def names() -> list[str]:
        return [path.name for path in tmp_path.iterdir()]

    (tmp_path / ".partial").write_bytes(b"model")
    put_in_place(tmp_path / ".partial", tmp_path / "model")
    assert flushed == [(tmp_path / ".partial", [".partial"]), (tmp_path, ["model"])]


@pytest.mark.parametrize(
    "position",
    ["[" * 100_000, '{"epoch": 1', "[1]", '{"epoch": "1"}', '{"epoch": -1}', '{"epoch": true}', '{"epoch": 1e999}']
    + [f'{{"epoch": 1, "seconds": {value}}}' for value in ("NaN", '"1"', "9" * 400, "9" * 5000)],
)
def test_a_position_that_no_run_has_is_damage(tmp_path: Path, position: str) -> None:
    data = safetensors.numpy.save({"model 0000": np.zeros(1)}, metadata={"position": position})
    path = tmp_path / f"step-00001-0000000.{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"\S") as raised:
        read(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_a_checkpoint_of_any_size_takes_no_memory_and_the_one_before_it_is_used(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    with (tmp_path / "step-00002-0000000.0000000000000000.safetensors").open("wb") as file:
        file.truncate(1 << 40)
    found = checkpoints.last()
    assert found and found[1].epoch == 1


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 400), change=st.binary(max_size=8))
def test_any_damage_is_noticed(tmp_path: Path, place: int, change: bytes) -> None:
    whole = next(tmp_path.glob("step-*"), None)
    if whole is None:
        save(Checkpoints(tmp_path), 1)
        whole = next(tmp_path.glob("step-*"))
    data = whole.read_bytes()
    damaged = data[:place] + change + data[place + len(change) :]
    copy = tmp_path / f"copy.{whole.name.split('.')[-2]}.safetensors"
    copy.write_bytes(damaged)
    if damaged == data:
        assert read(copy)[1].epoch == 1
        return
    try:
        read(copy)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        raise AssertionError("the damage went unnoticed")
