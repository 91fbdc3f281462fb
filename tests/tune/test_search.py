"""The search in Tune's terms, without a cluster: what is tried, and who is stopped."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Experiment
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from tests.tune.books import epochs
from tune.proposals import Listed, Searched
from tune.search import _scheduler, _tpe, first_points, remember
from tune.settings import parse
from tune.trial import Trial

POINT = {"learning_rate": 1e-3, "dropout": 0.0, "resolution": 64}


def scheduler_of(*args: str) -> Any:
    search = parse(["--dataset", "garments", *args])
    return _scheduler(search.settings, search.space)


def test_each_scheduler_is_the_one_that_was_asked_for() -> None:
    assert isinstance(scheduler_of("--scheduler", "none"), FIFOScheduler)
    assert isinstance(scheduler_of("--scheduler", "pbt"), PopulationBasedTraining)
    assert isinstance(scheduler_of("--scheduler", "asha"), ASHAScheduler)


@pytest.mark.parametrize(
    "args, rungs",
    [
        (["--epochs", "9"], [3, 1]),
        (["--epochs", "10"], [6, 2]),
        (["--epochs", "28"], [12, 4]),
        (["--budget", "seconds", "--seconds", "90"], [30, 10]),
        (["--budget", "seconds", "--seconds", "300"], [102, 34]),
    ],
)
def test_asha_stops_at_a_ninth_and_a_third_of_the_budget(args: list[str], rungs: list[int]) -> None:
    scheduler = scheduler_of(*args)
    assert [milestone for milestone, _ in scheduler._brackets[0]._rungs if milestone < scheduler._max_t] == rungs


@pytest.mark.parametrize(
    "args, clock", [(["--epochs", "10"], ("epoch", 2)), (["--budget", "seconds"], ("training_seconds", 60))]
)
def test_a_population_changes_by_what_trials_have_in_equal_measure(args: list[str], clock: tuple[str, int]) -> None:
    scheduler = scheduler_of("--scheduler", "pbt", *args)
    assert (scheduler._time_attr, scheduler._perturbation_interval) == clock


def test_a_resumed_asha_judges_by_what_was_reached_before() -> None:
    before = [row for n in range(1, 5) for row in epochs("search", n, POINT, 3, "done", 0.01 * n)]
    newcomer = SimpleNamespace(trial_id="newcomer")
    fresh, resumed = (scheduler_of("--epochs", "9") for _ in range(2))
    remember(resumed, before)
    assert fresh._brackets[0].on_result(newcomer, 1, 0.1) == TrialScheduler.CONTINUE
    assert resumed._brackets[0].on_result(newcomer, 1, 0.1) == TrialScheduler.STOP


def test_a_population_never_leaves_the_space() -> None:
    scheduler = scheduler_of("--scheduler", "pbt", "--vary", "resolution=32..64", "--vary", "global_batch=32,64")
    search = parse(["--dataset", "garments", "--vary", "resolution=32..64", "--vary", "global_batch=32,64"])
    point = search.space.random_points(2, seed=1)[1]
    parent, child = (SimpleNamespace(config=point) for _ in range(2))
    for _ in range(200):
        point, _ = scheduler._get_new_config(child, parent)
        parent = SimpleNamespace(config=point)
        assert all(point[name] in parameter for name, parameter in search.space.parameters.items()), point


def test_optuna_begins_with_known_settings_and_draws_from_the_space_with_its_seed() -> None:
    search = parse(["--dataset", "garments", "--vary", "global_batch=32,64", "--vary", "resolution=32..64"])

    def drawn() -> list[dict[str, Any]]:
        tpe = _tpe(search.settings, search.space, first_points(search.settings, search.space))
        found = []
        for number in range(12):
            point = tpe.suggest(str(number))
            assert point is not None
            tpe.on_trial_complete(str(number), {"score": point["dropout"]})
            found.append(point)
        return found

    one, two = drawn(), drawn()
    assert one == two
    assert one[0] == search.space.known()[0]
    assert all(point[name] in parameter for point in one for name, parameter in search.space.parameters.items())


@pytest.mark.parametrize("how", ["random", "grid"])
def test_lists_reach_the_job_through_tune_as_they_are(how: str) -> None:
    stages = ["--vary", "stages=[],[[0.4,32],[0.3,40]]"]
    search = parse(["--dataset", "garments", "--search", how, *stages, "--trials", "9"])
    points = first_points(search.settings, search.space)
    generator = BasicVariantGenerator(points_to_evaluate=list(points))
    names = dict.fromkeys(search.space.parameters)
    generator.add_configurations(Experiment("search", run=Trial, config=names, num_samples=len(points)))
    found = []
    while trial := generator.next_trial():
        found.append(search.space.config(trial.config).stages)
    assert found == [search.space.config(point).stages for point in points]
    assert {*found} == {(), ((0.4, 32), (0.3, 40))}


@pytest.mark.parametrize("how", ["tpe", "random"])
def test_proposals_go_on_where_they_were_but_as_this_session_has_them(how: str, tmp_path: Path) -> None:
    search = parse(["--dataset", "garments", "--search", how, "--trials", "6"])
    points = first_points(search.settings, search.space)
    kept: list[tuple[str, str]] = []

    def session(place: str, cpus: int, most: int) -> tuple[Any, Experiment]:
        experiment = Experiment(
            "search",
            run=Trial,
            config=dict.fromkeys(search.space.parameters) if how == "random" else None,
            num_samples=6,
            resources_per_trial=PlacementGroupFactory([{"CPU": cpus}]),
            storage_path=str(tmp_path / place),
        )
        if how == "random":
            return Listed(experiment, lambda *noted: kept.append(noted), points), experiment
        limiter = ConcurrencyLimiter(_tpe(search.settings, search.space, points), most)
        return Searched(experiment, lambda *noted: kept.append(noted), limiter), experiment

    (first, experiment), (then, _) = session("old", 1, 2), session("new", 2, 3)
    first.add_configurations(experiment)
    made = [first.next_trial(), first.next_trial()]
    assert how == "random" or first.next_trial() is None
    first.save_to_dir(str(tmp_path), session_str="1")
    assert kept == [(str(tmp_path), "1")]
    assert then.has_checkpoint(str(tmp_path))
    then.restore_from_dir(str(tmp_path))
    trial = then.next_trial()
    trial.create_placement_group_factory()
    assert trial.storage.storage_fs_path == str(tmp_path / "new")
    assert trial.placement_group_factory.required_resources == {"CPU": 2}
    assert trial.config not in [one.config for one in made]
    assert then.total_samples == 6
    assert how == "random" or then.next_trial() is None  # three at a time now, two of them from before
    then.save_to_dir(str(tmp_path), session_str="2")
    assert kept[1:] == [(str(tmp_path), "2")]  # this session's way to keep, not the one that was pickled
