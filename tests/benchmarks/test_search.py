"""How searches are compared, and what a trial costs beyond its training."""

from datetime import UTC, datetime, timedelta

import pytest

from benchmarks import search
from tests.tune.books import row
from tune.records import Row

START = datetime(2026, 1, 1, tzinfo=UTC)
POINT = {"resolution": 32}


def made(number: int, epoch: int, after: float, score: float, **values: object) -> Row:
    """An epoch of ten seconds that ended so many seconds after the search began."""
    time = START + timedelta(seconds=after)
    return row("search", number, POINT, epoch, "done", seconds=10.0, score=score, time=time, **values)


def test_both_searches_are_cut_at_the_cost_of_the_cheaper_one() -> None:
    cheap = [made(1, 1, 10, 0.5), made(2, 1, 20, 0.7)]
    dear = [made(1, 1, 10, 0.4), made(2, 1, 30, 0.6), made(3, 1, 20, 0.8), made(3, 2, 40, 0.9)]
    found = search.compare({"none": dear, "asha": cheap})
    assert found["budget"] == 20.0
    # By time, the third trial's first epoch was the second that the dear one made.
    assert found["none"] == {"score": 0.8, "trials": 2}
    assert found["asha"] == {"score": 0.7, "trials": 2}
    assert found["curves"]["none"] == [(10.0, 0.4), (20.0, 0.8), (30.0, 0.8), (40.0, 0.9)]


def test_what_a_trial_costs_beyond_its_training_is_between_the_ends_of_two() -> None:
    rows = [made(n, 1, after, 0.5, training_seconds=10.0) for n, after in ((1, 30), (2, 45), (3, 62))]
    found = search.overhead(rows, START)
    assert found["first_with_start_and_import"] == 20.0
    assert found["seconds"] == [20.0, 5.0, 7.0] and found["mean"] == pytest.approx(6.0)
