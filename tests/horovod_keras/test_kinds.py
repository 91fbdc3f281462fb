"""Horovod for Keras 3 with less usual models and optimizers: what each rank found (see kinds.py)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

KINDS = Path(__file__).with_name("kinds.py")

# Sums over ranks are added up in another order than sums over a batch.
TOLERANCE = 2e-5

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def alone(launch, tmp_path_factory) -> dict[str, Any]:
    """What a single process found."""
    return _run(launch, 0, tmp_path_factory.mktemp("alone"))[0]


@pytest.fixture(scope="module")
def pair(launch, tmp_path_factory) -> Found:
    """What each of two ranks found."""
    return _run(launch, 2, tmp_path_factory.mktemp("pair"))


def _run(launch, ranks: int, folder: Path) -> Found:
    done = launch(ranks, KINDS, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(max(ranks, 1))]


@pytest.mark.parametrize("what", ["plain", "scaled", "undecayed"])
def test_a_loss_scale_and_an_exclusion_from_weight_decay_work_at_any_number_of_ranks(alone, pair, what) -> None:
    for found in (alone, *pair):
        np.testing.assert_allclose(found[what], alone["plain"], rtol=0, atol=TOLERANCE)


def test_all_ranks_skip_the_update_in_which_one_overflows(alone, pair) -> None:
    assert [found["skipped"] for found in (alone, *pair)] == [[True, 0.5]] * 3


def test_a_loss_scale_that_knows_nothing_of_ranks_is_refused(alone, pair) -> None:
    assert "scale_of_one_rank" not in alone
    assert all("distribute LossScaleOptimizer" in found["scale_of_one_rank"] for found in pair)


@pytest.mark.parametrize("what", ["unbuilt", "narrow"])
def test_ranks_end_equal_whatever_the_model_is_made_of(pair, what) -> None:
    assert np.isfinite(pair[0][what]).all()
    assert pair[0][what] == pair[1][what]


def test_a_metric_may_have_a_value_for_each_class(alone, pair) -> None:
    assert len(alone["f1"]) == 3
    assert pair[0]["f1"] == pair[1]["f1"]


def test_a_users_own_registered_optimizer_loads_as_itself(alone, pair) -> None:
    assert all(found["registered"] for found in (alone, *pair))
