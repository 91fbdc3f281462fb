"""The recipes: what they say, and which can't be."""

import pytest

from job.errors import InputError
from job.recipes import RECIPES, Recipe


def test_stages_are_shares_of_the_epochs_and_the_last_are_at_the_resolution_of_the_model() -> None:
    assert RECIPES["fast"].resolutions() == [32] + [48] * 4
    assert RECIPES["best"].resolutions() == [32] * 8 + [48] * 10 + [56] * 22
    assert Recipe(epochs=3, stages=((0.5, 32), (0.2, 48))).resolutions() == [32, 32, 56]
    assert set(RECIPES["original"].resolutions()) == {56}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (((0.6, 32), (0.5, 48)), "stages take more than all epochs"),
        (((0.2, 32), (0.3, 40), (0.5, 48)), "stages leave no epoch of 10 at the resolution 56"),
    ],
)
def test_stages_that_leave_nothing_for_the_model_are_refused(
    stages: tuple[tuple[float, int], ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(epochs=10, stages=stages)


def test_a_decay_that_the_optimizer_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match="needs optimizer adamw: received adam"):
        Recipe(weight_decay=0.1)
