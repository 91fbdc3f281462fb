"""Checkpoint files: what a killed writer or a bad disk leaves behind."""

from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from job.run.checkpoints import Checkpoints, Position, read


def save(checkpoints: Checkpoints, epoch: int) -> None:
    checkpoints.save({"model 0000": np.full(3, epoch, np.float32)}, Position(epoch=epoch))
    checkpoints.wait()


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
