"""What the keeper does when a run diverges."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from job.config import resolve
from job.errors import HalvedError
from job.run.callbacks import Keeper
from job.run.checkpoints import Position
from job.run.folder import RunFolder
from tests.job.run.contexts import context


@pytest.mark.parametrize(
    ("back_to", "kept"),
    [
        ([3, 0], 1),  # it has got on since it was halved, and was then interrupted: this checkpoint has gone well
        ([5, 0], 0),  # half the rate has gone wrong from here too
        (None, 1),
    ],
)
def test_a_checkpoint_is_dropped_only_if_half_the_rate_has_gone_wrong_from_it(
    tmp_path: Path, back_to: list[int] | None, kept: int
) -> None:
    config = resolve([{"on_nan": "half-rate", "run": tmp_path / "run"}])
    folder = RunFolder(config, "data")
    position = Position(epoch=5)
    folder.checkpoints.save({"a": np.zeros(1)}, position)
    folder.checkpoints.wait()
    if back_to:
        folder.note_halving({"epoch": 4, "step": 1, "reason": "nan", "back_to": back_to})
    keeper = Keeper(context(config), folder, position, metrics={}, steps=10, journal=None)
    optimizer = SimpleNamespace(
        exchange=SimpleNamespace(total=0.0), _learning_rate=SimpleNamespace(factor=0.5 if back_to else 1.0)
    )
    model: Any = SimpleNamespace(batch_loss=float("nan"), optimizer=optimizer)
    keeper.set_model(model)
    with pytest.raises(HalvedError, match="the loss became nan"):
        keeper._stop_if_diverged()
    assert len(list((tmp_path / "run/checkpoints").glob("step-*"))) == kept
    assert folder.halvings()[-1]["back_to"] == [5, 0]
