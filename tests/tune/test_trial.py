"""A trial's checkpoints, as Tune carries them."""

import json
from pathlib import Path

import numpy as np
import pytest
from ray.tune import Checkpoint

from job.config import resolve
from job.run.checkpoints import Checkpoints, Position
from tune.trial import _NOTHING, MANIFEST, Task, Trial, read_checkpoint


def test_a_checkpoint_that_is_damaged_is_not_handed_on(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path)
    made.save({"a": np.ones(3)}, Position(epoch=1))
    made.wait()
    (file,) = tmp_path.glob("step-*")
    (tmp_path / MANIFEST).write_text(json.dumps({"files": [file.name], "last": {"epoch": 1}}))
    assert read_checkpoint(tmp_path) == ({"epoch": 1}, {file.name: file.read_bytes()})
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="its checksum is"):
        read_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="FileNotFoundError"):
        read_checkpoint(tmp_path)
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(ValueError, match="TypeError"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("left", ["nothing", "half"])
def test_a_trial_begins_anew_where_its_checkpoint_is_gone_or_damaged(tmp_path: Path, left: str) -> None:
    trial = object.__new__(Trial)  # no process, no group
    trial._local_ip = "127.0.0.1"
    trial.last, trial._files = {"epoch": 3}, {"a": b"b"}
    if left == "half":
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / MANIFEST).write_text('{"files": ["a"')
    trial.restore(Checkpoint.from_directory(str(tmp_path / "checkpoint")))
    assert (trial.last["epoch"], trial._files) == (0, {})


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([[0.5, 64]], [0.9, 0.8, 0.7, 0.7]),
        ([[0.25, 32], [0.25, 64]], [0.9, 0.9, 0.9, 0.9]),  # the first of the final resolution may be chosen
    ],
)
def test_the_score_is_of_weights_that_the_run_would_choose(
    stages: list[tuple[float, int]], expected: list[float]
) -> None:
    trial = object.__new__(Trial)
    fixed = {"resolution": 32, "stages": stages, "epochs": 4, "select": "best"}
    trial.task = Task(fixed, ranks=1, cpus=1, gpus=0, memory=0, placement="pack", folder="x", seconds=None)
    trial._point, trial._trial_info = {}, None
    trial.last, scores = dict(_NOTHING), []
    resolutions = resolve([fixed]).resolutions()
    for epoch, (resolution, accuracy) in enumerate(zip(resolutions, (0.9, 0.8, 0.7, 0.6), strict=True), start=1):
        record = {"epoch": epoch, "resolution": resolution, "val_accuracy": accuracy, "seconds": 1.0}
        trial.last = trial._result(record)
        scores.append(trial.last["score"])
    assert scores == expected
    assert trial.last["status"] == "done"
