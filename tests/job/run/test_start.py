"""Where a run goes on: what is on the disk, and what a process has kept in memory from an elastic world before."""

import errno
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from horovod_keras.collectives import SingleProcess
from horovod_keras.elastic import KerasState
from job.config import resolve
from job.errors import InputError
from job.run import start, state
from job.run.checkpoints import Position
from job.run.folder import RunFolder
from tests.job.run.contexts import context


def model(value: float, units: int = 1) -> keras.Model:
    made = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(units, kernel_initializer=keras.initializers.Constant(value))]
    )
    made.compile("sgd")
    made.optimizer.build(made.trainable_variables)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(resolve([{"run": tmp_path / "run"}]), "data")


@pytest.fixture
def on_disk(folder: RunFolder) -> Callable[..., None]:
    def save(position: Position, *, best: bool = False) -> None:
        arrays = state.everything(model(1.0))
        folder.checkpoints.save(arrays | {"metric loss/total": np.ones(1)}, position, arrays if best else None)
        folder.checkpoints.wait()

    return save


def kept(position: Position) -> KerasState:
    result = KerasState(SingleProcess(), model(2.0), position=position, metrics={})
    result.save()
    return result


@pytest.mark.parametrize(
    ("place", "best_epoch", "expected"),
    [
        ((2, 0), 1, 2.0),  # what is kept is newer
        ((2, 0), 2, 1.0),  # but its best weights were lost with the rank that wrote them
        ((1, 5), 1, 1.0),  # the same place: the checkpoint has the epoch's running metrics
    ],
)
def test_memory_is_taken_only_where_it_is_newer_and_nothing_is_lost_with_it(
    folder, on_disk, place, best_epoch, expected
):
    on_disk(Position(epoch=1, best_accuracy=0.5, best_epoch=1), best=True)
    on_disk(Position(epoch=1, step=5, best_accuracy=0.5, best_epoch=1))
    held = kept(Position(epoch=place[0], step=place[1], best_accuracy=0.6, best_epoch=best_epoch))
    assert held.model is not None
    found = start.restore(held.model, folder, held)
    assert held.model.get_weights()[0].item() == expected
    assert found.position.place == (place if expected == 2.0 else (1, 5))
    assert (found.position.best_epoch, found.position.best_accuracy) == (1, 0.5)
    assert bool(found.metrics) == (expected == 1.0)


@pytest.mark.parametrize("place", [(0, 0), (1, 0)])
def test_with_nothing_on_the_disk_the_model_goes_back_to_what_was_kept(folder, place) -> None:
    held = kept(Position(epoch=place[0], step=place[1], best_accuracy=0.6, best_epoch=place[0]))
    assert held.model is not None
    held.model.set_weights([array + 1 for array in held.model.get_weights()])  # steps that were lost with a rank
    found = start.restore(held.model, folder, held)
    assert held.model.get_weights()[0].item() == 2.0
    assert (found.position.place, found.position.best_epoch) == (place, 0)


def test_memory_is_taken_where_the_disk_fails(folder, on_disk, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk(Position(epoch=2))
    held = kept(Position(epoch=1))

    def fail() -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(folder.checkpoints, "last", fail)
    assert held.model is not None
    assert start.restore(held.model, folder, held).position.epoch == 1


def test_a_checkpoint_of_another_model_is_refused_in_one_line(folder, on_disk) -> None:
    on_disk(Position(epoch=1))
    with pytest.raises(InputError, match="of another model") as raised:
        start.restore(model(1.0, units=2), folder, KerasState(SingleProcess()))
    assert "\n" not in str(raised.value)


def test_the_environment_tells_of_earlier_parts_what_was_otherwise(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first attempt failed before it had saved anything: it counts for nothing.
    for epoch, processor in ((0, "X"), (0, "A"), (1, "B"), (2, "B")):
        monkeypatch.setattr(start, "environment", lambda *_, name=processor: {"processor": name, "cores": 2})
        start.note_environment(folder, SingleProcess(), Position(epoch=epoch))
    assert folder.environment() == {"processor": "B", "cores": 2, "part": 3, "earlier": [{"processor": "A"}]}
    folder.write_json("environment.json", {"part": "x", "earlier": 5})  # by somebody else
    start.note_environment(folder, SingleProcess(), Position(epoch=2))
    assert folder.environment() == {"processor": "B", "cores": 2, "part": 2, "earlier": []}


def test_initial_weights_are_of_a_run_that_begins(folder: RunFolder, on_disk: Callable[..., None]) -> None:
    def wanted(weights: str, at: RunFolder | None = folder) -> Path | None:
        return start.initial_weights(context(resolve([{"weights": weights}])), at)

    assert wanted("/nowhere.h5") == Path("/nowhere.h5")
    assert wanted("none") is None and wanted("/nowhere.h5", None) is None
    on_disk(Position(epoch=1))
    assert wanted("/nowhere.h5") is None  # it may be gone by now, and is of no use
