"""The space of a search: what is read, drawn and refused."""

import random
from typing import Any

import pytest

from job.errors import InputError
from tune.space import DEFAULT, Choice, Range, Space


def space(**texts: Any) -> Space:
    return Space(texts, {"dataset": "garments"})


def test_the_default_space_is_read_and_written_the_same() -> None:
    assert Space(Space(DEFAULT, {}).texts(), {}).texts() == Space(DEFAULT, {}).texts()


def test_resolutions_are_multiples_of_eight_within_the_range() -> None:
    drawn = {point["resolution"] for point in space(resolution="32..64").random_points(200, seed=1)}
    assert drawn == {32, 40, 48, 56, 64}


def test_a_logarithmic_range_is_drawn_evenly_in_the_logarithm() -> None:
    points = space(learning_rate="1e-4..1e-2 log").random_points(2000, seed=1)
    below = sum(point["learning_rate"] < 1e-3 for point in points)
    assert 900 < below < 1100


def test_the_same_seed_draws_the_same_points_and_the_known_ones_come_first() -> None:
    one, two = (space(dropout="0..0.8", learning_rate="1e-4..1e-2 log").random_points(5, seed=3) for _ in range(2))
    assert one == two
    assert one[0] == {"dropout": 0.5, "learning_rate": 0.001}


def test_known_points_of_a_recipe_are_the_originals_and_the_recipes_own() -> None:
    fast = Space({"dropout": "0..0.8", "learning_rate": "1e-4..1e-2 log"}, {"recipe": "fast"})
    assert fast.known() == [{"dropout": 0.5, "learning_rate": 0.001}, {"dropout": 0.2, "learning_rate": 0.002}]


def test_a_known_value_outside_the_space_is_not_tried() -> None:
    assert space(dropout="0.6..0.8").known() == []


def test_a_grid_has_every_combination_once() -> None:
    points = space(dropout="0..0.5", global_batch="32,64", resolution="32..48").grid_points(3)
    assert len(points) == len({tuple(p.items()) for p in points}) == 3 * 2 * 3


def test_lists_keep_their_types() -> None:
    found = space(global_batch=[32, 64], flip="true,false", weights="none").parameters
    assert found["global_batch"] == Choice((32, 64))
    assert found["flip"] == Choice((True, False))
    assert found["weights"] == Choice(("none",))


@pytest.mark.parametrize(
    "texts, message",
    [
        ({"learning_rate": "1e-2..1e-4"}, "upside down"),
        ({"resolution": "16..64"}, "greater than or equal to 32"),
        ({"resolution": "36..64"}, "multiples of 8"),
        ({"resolution": "32..64 step 4"}, "multiples of 8"),
        ({"dropout": "0..1.5"}, "less than 1"),
        ({"dropout": "0..0.5 log"}, "start above 0"),
        ({"dropout": "0..half"}, "can't be read"),
        ({"sharpness": "0..1"}, "unknown option sharpness"),
        ({"optimizer": "adam..adamw"}, "can't be read"),
        ({"flip": "0..1"}, "has no range"),
        ({"global_batch": []}, "has no values"),
        ({}, "nothing is searched"),
    ],
)
def test_a_wrong_space_is_refused_in_one_line(texts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        space(**texts)
    assert "\n" not in str(raised.value)


def test_the_largest_trial_has_the_largest_resolution_and_batch() -> None:
    config = space(resolution="32..96", global_batch="32,256", dropout="0..0.5").largest()
    assert (config.resolution, config.global_batch) == (96, 256)


def test_a_point_outside_comes_back_to_the_nearest_inside() -> None:
    near = space(resolution="32..64", dropout="0..0.5", learning_rate="1e-4..1e-2 log").nearest
    assert near({"resolution": 77, "dropout": 0.6, "learning_rate": 1e-5}) == {
        "resolution": 64,
        "dropout": 0.5,
        "learning_rate": 1e-4,
    }


@pytest.mark.parametrize("text", ["0..0.8", "1e-4..1e-2 log", "32..96 step 8", "3..9"])
def test_every_drawn_value_is_in_its_range(text: str) -> None:
    name = {"0": "dropout", "1": "learning_rate", "3": "resolution"}[text[0]] if text != "3..9" else "global_batch"
    parameter = space(**{name: text}).parameters[name]
    assert isinstance(parameter, Range)
    draw = random.Random(0)
    assert all(parameter.low <= parameter.sample(draw) <= parameter.high for _ in range(200))
