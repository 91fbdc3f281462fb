"""What fits a cluster, and how long it takes: on Ray with two cores."""

import re

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from job.errors import InputError, RunError
from tests.tune.books import epochs
from tune import cluster
from tune.cluster import needed, nodes, slots, task
from tune.estimate import Estimate
from tune.records import summaries
from tune.settings import Search, parse
from tune.trial import GIB

POINT = {"dropout": 0.0, "learning_rate": 1e-3}


def search(*args: str) -> Search:
    return parse(["--dataset", "garments", "--vary", "resolution=32..64", *args])


def test_two_trials_of_one_core_fit_two_cores(two_cores: None) -> None:
    asked = search()
    assert slots(asked, task(asked)) == 2


def test_as_many_trials_run_as_memory_allows(two_cores: None) -> None:
    have = sum(node["memory"] for node in nodes()) / GIB
    asked = search("--memory-per-rank", f"{have * 0.6:.2f}")
    assert slots(asked, task(asked)) == 1


@pytest.mark.parametrize(
    "args, numbers",
    [
        (["--ranks-per-trial", "3"], r"needs 3 rank\(s\) of 1 CPU.* 1 node\(s\): 2 CPU, 0 GPU"),
        (["--cpus-per-rank", "4"], r"1 rank\(s\) of 4 CPU"),
        (["--gpus-per-rank", "1"], r"1 GPU and"),
        (["--global-batch", "1000000"], r"[0-9]{4}\.[0-9] GiB of memory \(at 64 px with a global batch of 1000000\)"),
    ],
)
def test_a_trial_that_fits_nowhere_is_refused_with_the_numbers(two_cores: None, args: list[str], numbers: str) -> None:
    asked = search(*args)
    with pytest.raises(InputError) as raised:
        slots(asked, task(asked))
    assert re.search(numbers, str(raised.value)), raised.value


def test_what_others_hold_is_waited_for_with_the_numbers_and_not_for_ever(
    two_cores: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    monkeypatch.setattr(cluster, "_MOST_PATIENCE", 1)
    theirs = placement_group([{"CPU": 1.5}])
    ray.get(theirs.ready(), timeout=30)
    asked = search()
    try:
        busy = pytest.raises(RunError, match=r"busy: a trial needs 1 rank\(s\) of 1 CPU.*free are 0\.5 CPU")
        with busy, cluster.reserved(task(asked)):
            pass
        assert "waiting up to 1 s" in capsys.readouterr().out
    finally:
        remove_placement_group(theirs)
    with cluster.reserved(task(asked)) as bundles:
        assert bundles.bundle_count == 2


def test_memory_grows_with_pixels_and_shrinks_with_ranks() -> None:
    space = search().space
    small, large = (space.config({"resolution": r, "dropout": 0, "learning_rate": 1e-3}) for r in (32, 224))
    assert needed(small, 1) < needed(large, 2) < needed(large, 1) < 16 * GIB


def test_the_estimate_counts_what_is_left_at_the_measured_speed() -> None:
    asked = parse(["--dataset", "garments", "--resolution", "32", "--trials", "4", "--epochs", "6"])
    config = asked.space.config(POINT)
    estimate = Estimate(asked, 2, 1000.0, config)
    assert estimate.left([]) == pytest.approx(4 * 6 * (55 + 5 / 3) / 2)
    again = parse(["--dataset", "garments", "--resolution", "32", "--trials", "4", "--epochs", "6", "--confirm", "1"])
    assert Estimate(again, 2, 1000.0, config).left([]) == pytest.approx((4 + 2 * 2) * 6 * (55 + 5 / 3) / 2)
    assert Estimate(asked, 2, None, None).left([]) is None
    rows = [row | {"seconds": 10.0} for row in epochs("search", 1, {**POINT, "resolution": 32}, 2, "running")]
    # Four epochs of this trial beside six, and then six beside six, ten seconds each.
    assert estimate.left(summaries(rows, "search")) == pytest.approx((6 + 6) * 10)


def test_two_slots_do_not_halve_the_last_trial() -> None:
    asked = parse(["--dataset", "garments", "--resolution", "32", "--trials", "1", "--epochs", "6"])
    rows = [row | {"seconds": 10.0} for row in epochs("search", 1, {**POINT, "resolution": 32}, 2, "running")]
    assert Estimate(asked, 2, None, None).left(summaries(rows, "search")) == pytest.approx(4 * 10)


def test_a_budget_of_seconds_is_divided_by_the_trials_at_a_time() -> None:
    asked = parse(["--budget", "seconds", "--seconds", "60", "--trials", "4", "--dataset", "garments"])
    config = asked.space.config({"dropout": 0.0, "learning_rate": 1e-3, "resolution": 32})
    assert Estimate(asked, 2, 1000.0, config).left([]) == pytest.approx(4 * 60 / 2)


@pytest.mark.parametrize(
    "raised, told, message",
    [
        (RuntimeError("Failed to start\nGCS"), RunError, "Ray can't start on this machine: Failed to start GCS"),
        (SystemExit(15), KeyboardInterrupt, "^$"),  # as Ray does on SIGTERM
    ],
)
def test_a_ray_of_this_machine_that_does_not_start_is_no_wrong_address(
    raised: BaseException, told: type[BaseException], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: object) -> None:
        raise raised

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(told, match=message), cluster.connected(None):
        pass
