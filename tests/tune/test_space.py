"""The space of a search: what is read, drawn and refused."""

import json
import random
from typing import Any

import pytest
import yaml

from job.config import plain
from job.errors import InputError
from job.recipes import Recipe
from tune.settings import parse
from tune.space import DEFAULT, Choice, Range, Space, as_options


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


def test_a_grid_has_known_settings_first_and_every_combination_once() -> None:
    searched = space(dropout="0..0.8", global_batch="32,64", resolution="32..48")
    points = searched.grid_points(3)
    known = searched.known()
    assert known and points[: len(known)] == known and known[0]["dropout"] == 0.5
    assert len(points) == len({tuple(p.items()) for p in points}) == 3 * 2 * 3 + len(known)


# Of every option of a recipe that may be searched: values that are easily read as something else.
CHOICES: dict[str, list[Any]] = {
    "resolution": [32, 224],
    "stages": [[], [[0.4, 32]], [[0.4, 32], [0.3, 48]]],
    "global_batch": [64, 100],
    "optimizer": ["adam", "adamw"],
    "learning_rate": [1e-05, 0.00123456789],
    "schedule": ["constant", "cosine"],
    "warmup": [0.0, 1 / 3],
    "beta_2": [0.99, 0.999],
    "weight_decay": [0.0],
    "dropout": [0.0, 0.5],
    "label_smoothing": [0.1],
    "batch_norm_momentum": [0.9, 0.99],
    "input_range": ["0..1", "-1..1"],
    "flip": [True, False],
    "shift": [0, 8],
    "erase": [0.0, 1.0],
    "clean": [0.0, 1.0],
    "weights": ["none", "imagenet", "/a, b: c.h5"],
    "select": ["best", "last"],
}
RANGES = {
    "learning_rate": "0.000123456789..0.0123456789 log",
    "dropout": "0.1..0.7 step 0.15",
    "beta_2": "0.9..0.9999999",
    "global_batch": "1000000..1000007",
    "resolution": "32..2048",
}


def test_every_option_of_a_recipe_is_read_from_its_yaml_as_it_was() -> None:
    assert CHOICES.keys() == Recipe.__pydantic_fields__.keys() - {"epochs"}  # type: ignore[attr-defined]
    first = space(**CHOICES)
    again = space(**yaml.safe_load(yaml.safe_dump(first.texts())))
    assert again.parameters == first.parameters
    choices = {name: p.values for name, p in again.parameters.items() if isinstance(p, Choice)}
    assert {name: [as_options({name: v})[name] for v in values] for name, values in choices.items()} == CHOICES
    point = first.random_points(5, seed=3)[-1]
    assert (
        first.nearest(json.loads(json.dumps(point))) == point
        and plain(first.config(point)).items() >= as_options(point).items()
    )


@pytest.mark.parametrize("name", RANGES)
def test_every_digit_of_a_range_is_kept(name: str) -> None:
    first = space(**{name: RANGES[name]})
    assert space(**first.texts()).parameters == first.parameters
    parameter = first.parameters[name]
    assert isinstance(parameter, Range)
    assert [parameter.low, parameter.high] == [float(end) for end in RANGES[name].split()[0].split("..")]


def test_lists_from_the_command_line_may_hold_dots() -> None:
    assert space(input_range="0..1,-1..1").parameters["input_range"] == Choice(("0..1", "-1..1"))


def test_an_option_that_the_original_refuses_leaves_the_recipes_own_settings() -> None:
    searched = Space({"dropout": "0..0.8"}, {"recipe": "fast", "weight_decay": 0.1})
    assert searched.known() == [{"dropout": 0.2}]


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
        ({"resolution": "32..224 log"}, "multiples of 8"),
        ({"resolution": [32, 50]}, "multiples of 8"),
        ({"resolution": "32..110"}, "Write 104 or 112"),
        ({"dropout": "0.1..0.8 step 0.3"}, "Write 0.7 or 1"),
        ({"dropout": "0..1.5"}, "less than 1"),
        ({"dropout": "0..0.5 log"}, "start above 0"),
        ({"dropout": "0..half"}, "can't be read"),
        ({"sharpness": "0..1"}, "unknown option sharpness"),
        ({"optimizer": "adam..adamw"}, "can't be read"),
        ({"flip": "0..1"}, "has no range"),
        ({"global_batch": []}, "has no values"),
        ({"resolution": "32..64 step 8.5"}, "whole number"),
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
    staged = space(resolution="32..48", stages="[],[[0.4,224]]").largest()
    assert max(staged.resolutions()) == 224
    assert max(space(recipe="original,best").largest().resolutions()) == 56


def test_a_logarithmic_range_of_whole_numbers_has_both_ends() -> None:
    parameter = space(global_batch="16..256 log").parameters["global_batch"]
    assert parameter.grid(5) == [16, 32, 64, 128, 256]
    draw = random.Random(0)
    drawn = {parameter.sample(draw) for _ in range(20_000)}
    assert {16, 256} <= drawn and all(type(value) is int for value in drawn)


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


def test_points_that_the_job_refuses_do_not_count_in_the_mean_of_a_space() -> None:
    mixed = ["--vary", "recipe=original,fast", "--vary", "optimizer=adam,adamw", "--vary", "resolution=56"]
    space = parse(["--dataset", "garments", "--stages=[]", *mixed]).space
    assert space.pixels() == 56**2  # fast needs adamw for its decay
    with pytest.raises(InputError, match="needs optimizer adamw"):
        space.pixels({"recipe": "fast", "optimizer": "adam", "resolution": 56, "dropout": 0.1, "learning_rate": 1e-3})


def test_texts_that_look_like_lists_stay_texts() -> None:
    assert as_options({"weights": "[a].h5", "stages": "[[0.4, 32]]"}) == {"weights": "[a].h5", "stages": [[0.4, 32]]}
    assert space(weights=["[a].h5", "none"]).config({"weights": "none"}).weights == "none"
    with pytest.raises(InputError, match="stages"):
        space(stages=["[[0.4"])
