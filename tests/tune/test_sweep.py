"""Whole searches as real processes on this machine: what they leave, and how they go on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from job.data import garments
from tests.tune.searches import ROOT, SMALL, Sweep, all_gone, named
from tune.folder import SCRATCH
from tune.records import SCHEMA, ranked, read, summaries
from tune.report import write_report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A finished search of three trials, two of them at a time."""
    sweep = Sweep(tmp_path_factory.mktemp("searches") / "small", "--trials", "3", "--epochs", "2", "--search", "random")
    assert sweep.end() == 0, sweep.output
    return sweep


def test_every_epoch_is_in_the_books_with_the_documented_schema(finished: Sweep) -> None:
    assert pq.read_schema(finished.out / "trials.parquet").equals(SCHEMA, check_metadata=False)
    trials = summaries(finished.rows(), "search")
    assert [t.number for t in trials] == [1, 2, 3]
    assert all(t.status in ("done", "stopped") for t in trials)
    assert all([row["epoch"] for row in t.rows] == list(range(1, t.epochs + 1)) for t in trials)
    assert trials[0].settings == {"dropout": 0.5, "learning_rate": 0.001, "resolution": 40}  # of 32..40


def test_only_the_winner_has_seen_the_test_set_once(finished: Sweep) -> None:
    results = list(finished.out.rglob("result.json"))
    with_test = [path for path in results if "test_accuracy" in path.read_text()]
    assert with_test == [finished.out / "best" / "result.json"]
    best = max(t.score for t in summaries(finished.rows(), "search") if t.whole)
    assert json.loads(with_test[0].read_text())["val_accuracy"] == pytest.approx(best, abs=1e-6)
    assert (finished.out / "best" / "model.keras").exists()


def test_the_job_takes_the_best_configuration(finished: Sweep) -> None:
    command = [sys.executable, "-m", "job.train", "--config", str(finished.out / "best.yaml"), "--print-config"]
    shown = yaml.safe_load(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout)
    best = yaml.safe_load((finished.out / "best.yaml").read_text())
    assert shown["learning_rate"] == best["learning_rate"] and shown["limit_train"] is None
    assert "job.train --config" in finished.output


def test_each_trial_keeps_at_most_two_checkpoints_and_tensorboard_events(finished: Sweep) -> None:
    for trial in {row["trial"] for row in finished.rows()}:
        folder = finished.out / "search" / trial
        assert 1 <= len(list(folder.glob("checkpoint_*"))) <= 2
        assert list(folder.glob("events.out.tfevents.*"))
    assert not (finished.out / SCRATCH).exists()


def test_the_search_says_how_it_was_made(finished: Sweep) -> None:
    (part,) = json.loads((finished.out / "environment.json").read_text())
    assert "-m tune.sweep" in part["command"] and part["seconds"] > 1


def test_the_report_is_made_again_from_the_books(finished: Sweep) -> None:
    first = (finished.out / "report.html").read_text()
    assert write_report(finished.out).read_text() == first
    assert "http" not in first.replace("http-equiv", "")


def test_the_same_command_trains_nothing_again_and_another_space_is_refused(finished: Sweep) -> None:
    before = finished.rows()
    again = Sweep(finished.out, "--trials", "3", "--epochs", "2", "--search", "random")
    assert again.end() == 0, again.output
    assert again.rows() == before
    assert "this search is complete" in again.output
    other = Sweep(finished.out, "--trials", "3", "--epochs", "2", "--search", "random", "--vary", "dropout=0..0.1")
    assert other.end() == 2
    assert "holds another search: dropout" in other.output
    assert finished.rows() == before


@pytest.mark.parametrize(
    "args, message",
    [
        (["--address", "127.0.0.1:1"], "no Ray cluster answers"),
        (["--address", "nowhere"], "HOST:PORT"),
        (["--ranks-per-trial", "64"], "needs 64 rank(s) of 1 CPU"),
    ],
)
def test_what_cannot_start_is_refused_with_the_numbers(args: list[str], message: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", *args)
    assert sweep.end(90) == 2
    assert message in sweep.output and "Traceback" not in sweep.output


@pytest.mark.slow
def test_missing_data_end_the_search_before_its_first_trial(tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    args = ["--data-dir", str(data), "--weights", "none", "--resolution", "32", "--epochs", "1"]
    args += ["--limit-train", "64", "--limit-eval", "32", "--global-batch", "32"]
    sweep = Sweep(tmp_path / "s", *args, small=False)
    assert sweep.end(120) == 2
    assert "error: " in sweep.output and "Traceback" not in sweep.output
    # On another node there may be data: unmeasured, a trial is tried again, and not marked as refused.
    sweep = Sweep(tmp_path / "s", *args, "--no-measure", "--trials", "1", "--max-failures", "1", small=False)
    assert sweep.end(120) == 1
    assert "begins again after a failure" in sweep.output
    assert [(row["status"], row["epoch"]) for row in sweep.rows()] == [("failed", 0)]
    assert "in load" in (sweep.out / "ray.log").read_text()  # the rank's own traceback
    drawn = garments.draw(train=270, test=40)
    images, labels = (drawn.train_images, drawn.test_images), (drawn.train_labels, drawn.test_labels)
    np.savez(data, x_train=images[0], y_train=labels[0], x_test=images[1], y_test=labels[1])
    sweep = Sweep(tmp_path / "s", "--resume", str(sweep.out), small=False)
    assert sweep.end(180) == 0, sweep.output
    assert [(row["status"], row["epoch"]) for row in sweep.rows()] == [("done", 1)]


@pytest.mark.slow
def test_settings_that_the_job_refuses_are_marked_and_end_no_search_that_measures_first(tmp_path: Path) -> None:
    job = ["--dataset", "garments", "--weights", "none", "--resolution", "32", "--dropout", "0", "--limit-train", "64"]
    job += ["--limit-eval", "32", "--learning-rate", "1e-3", "--ranks-per-trial", "2"]
    odd = ["--search", "grid", "--scheduler", "none", "--epochs", "1", "--vary", "global_batch=31,32"]
    sweep = Sweep(tmp_path / "s", *job, *odd, small=False)
    assert sweep.end() == 0, sweep.output
    assert "measured" in sweep.output
    assert sorted(t.status for t in summaries(sweep.rows(), "search")) == ["done", "refused"]


@pytest.mark.slow
def test_a_killed_rank_costs_the_trial_at_most_an_epoch(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", "--ranks-per-trial", "2", "--trials", "2", "--epochs", "5", "--scheduler", "none")
    sweep.wait_for(lambda: len(sweep.rows()) >= 2 and bool(sweep.ranks()))
    before, family = sweep.rows(), sweep.descendants()
    os.kill(sweep.ranks()[0].pid, signal.SIGKILL)
    assert sweep.end() == 0, sweep.output
    kept_and_whole(before, sweep, epochs=5)
    assert "goes on from its last checkpoint" in sweep.output
    assert all_gone(family)


@pytest.mark.slow
def test_a_trial_of_progressive_resizing_goes_on_at_the_right_resolution(tmp_path: Path) -> None:
    fixed = SMALL[: SMALL.index("--vary")]
    staged = ["--resolution", "40", "--stages=[[0.5,32]]", "--vary", "dropout=0.1,0.2", "--trials", "1"]
    args = [*fixed, *staged, "--epochs", "6", "--ranks-per-trial", "2", "--scheduler", "none"]
    sweep = Sweep(tmp_path / "s", *args, small=False)
    sweep.wait_for(lambda: len(sweep.rows()) >= 2 and bool(sweep.ranks()))
    before = sweep.rows()
    os.kill(sweep.ranks()[0].pid, signal.SIGKILL)
    assert sweep.end() == 0, sweep.output
    kept_and_whole(before, sweep, epochs=6)
    lines = [json.loads(line) for line in (sweep.out / "best/metrics.jsonl").read_text().splitlines()]
    assert [line["resolution"] for line in lines] == [32, 32, 32, 40, 40, 40]


@pytest.mark.slow
def test_a_killed_trial_takes_its_ranks_with_it_and_goes_on(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", "--ranks-per-trial", "2", "--trials", "1", "--epochs", "30", "--scheduler", "none")
    sweep.wait_for(lambda: len(sweep.rows()) >= 2 and bool(sweep.ranks()))
    before, family, ranks = sweep.rows(), sweep.descendants(), sweep.ranks()
    os.kill(sweep.trials()[0].pid, signal.SIGKILL)
    assert all_gone(ranks, 15)
    assert sweep.end() == 0, sweep.output
    kept_and_whole(before, sweep, epochs=30)
    assert all_gone(family)


@pytest.mark.slow
def test_a_killed_search_leaves_nothing_and_goes_on_without_training_again(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", "--trials", "4", "--epochs", "4", "--scheduler", "none")
    sweep.wait_for(lambda: any(row["number"] == 3 for row in sweep.rows()))
    before, agents = killed(sweep)
    assert before
    resumed = Sweep(sweep.out, "--resume", str(sweep.out))
    assert resumed.end() == 0, resumed.output
    after = resumed.rows()
    assert all(row in after for row in before)
    assert sorted(t.number for t in summaries(after, "search")) == [1, 2, 3, 4]
    kept_and_whole(before, resumed, epochs=4, trials=4)
    assert all_gone(agents, 90)


@pytest.mark.slow
@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_with_the_best_so_far_and_how_to_go_on(tmp_path: Path, told: signal.Signals) -> None:
    sweep = Sweep(tmp_path / "s", "--trials", "3", "--epochs", "8", "--scheduler", "none")
    sweep.wait_for(lambda: len(sweep.rows()) >= 2)
    family = sweep.descendants()
    if told == signal.SIGINT:
        os.killpg(sweep.process.pid, told)  # as a terminal does it: to all processes
    else:
        sweep.process.send_signal(told)
    assert sweep.end(60) == 75, sweep.output
    assert f"--resume {sweep.out}" in sweep.output and "best: " in sweep.output
    assert (sweep.out / "best.yaml").exists() and (sweep.out / "report.html").exists()
    assert not (sweep.out / "best").exists()
    assert all_gone(family)
    resumed = Sweep(sweep.out, "--resume", str(sweep.out))
    assert resumed.end() == 0, resumed.output
    kept_and_whole([], resumed, epochs=8, trials=3)


@pytest.mark.slow
def test_ctrl_c_while_the_winner_is_tested_keeps_the_results_of_the_search(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", "--trials", "1", "--epochs", "1")
    sweep.wait_for((sweep.out / "report.html").exists)
    os.killpg(sweep.process.pid, signal.SIGINT)
    assert sweep.end(60) == 75, sweep.output
    assert "best: " in sweep.output and f"--resume {sweep.out}" in sweep.output and "Traceback" not in sweep.output
    resumed = Sweep(sweep.out, "--resume", str(sweep.out))
    assert resumed.end() == 0, resumed.output
    assert "test accuracy" in resumed.output and (sweep.out / "best" / "result.json").exists()


@pytest.mark.slow
def test_a_population_copies_its_best_and_keeps_few_checkpoints(tmp_path: Path) -> None:
    args = ["--scheduler", "pbt", "--trials", "4", "--epochs", "5", "--perturb-every", "1"]
    sweep = Sweep(tmp_path / "s", *args)
    assert sweep.end() == 0, sweep.output
    kept_and_whole([], sweep, epochs=5, trials=4)
    settings = {t.trial: {row["settings"] for row in t.rows} for t in summaries(sweep.rows(), "search")}
    assert any(len(points) > 1 for points in settings.values())
    assert all(len(list((sweep.out / "search" / trial).glob("checkpoint_*"))) <= 5 for trial in settings)
    assert "failed" not in sweep.output


@pytest.mark.slow
def test_settings_that_diverge_or_are_refused_are_marked_and_not_tried_again(tmp_path: Path) -> None:
    args = ["--search", "grid", "--dropout", "0.5", "--resolution", "32", "--learning-rate", "1e-3", "--global-batch"]
    small = [arg for arg in SMALL if arg not in ("--vary", "resolution=32..40")]
    small[small.index("--global-batch") : small.index("--global-batch") + 2] = []
    fixed = [*small, *args[:-1], "--vary", "global_batch=31,32", "--ranks-per-trial", "2", "--epochs", "1"]
    sweep = Sweep(tmp_path / "refused", *fixed, small=False)
    assert sweep.end() == 0, sweep.output
    refused, done = sorted(summaries(sweep.rows(), "search"), key=lambda t: t.settings["global_batch"])
    assert (refused.status, done.status) == ("refused", "done")
    assert "can't be shared equally" in refused.rows[0]["problem"]
    diverging = [*SMALL, "--vary", "learning_rate=0.001,1e30", "--dropout", "0.5", "--search", "grid", "--epochs", "2"]
    sweep = Sweep(tmp_path / "diverged", *diverging, "--grid-points", "1", small=False)
    assert sweep.end() == 0, sweep.output
    trials = {t.settings["learning_rate"]: t for t in summaries(sweep.rows(), "search")}
    assert trials[1e30].status == "diverged" and trials[0.001].status == "done"
    assert "Lower --learning-rate" in trials[1e30].rows[-1]["problem"]


@pytest.mark.slow
def test_a_search_killed_while_tune_noted_it_and_then_moved_goes_on(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", "--trials", "5", "--epochs", "2", "--scheduler", "none")
    sweep.wait_for(lambda: any(row["number"] == 3 for row in sweep.rows()))
    before, _ = killed(sweep)
    moved = sweep.out.rename(tmp_path / "moved")
    for note in [*moved.glob("search/*.json"), *moved.glob("search/*.pkl")]:
        note.write_bytes(note.read_bytes()[: note.stat().st_size // 2])
    resumed = Sweep(moved, "--resume", str(moved))
    assert resumed.end() == 0, resumed.output
    kept_and_whole(before, resumed, epochs=2, trials=5)
    assert not (tmp_path / "s").exists()  # no trial was made for the first session's folder
    for trial in summaries(resumed.rows(), "search"):
        assert list((moved / "search" / trial.trial).glob("checkpoint_*"))
    assert "--resume" not in (moved / "best.yaml").read_text().splitlines()[0]  # but the command that began it


@pytest.mark.slow
def test_the_best_are_confirmed_with_seeds_and_the_storage_may_be_elsewhere(tmp_path: Path) -> None:
    storage = (tmp_path / "shared").as_uri()
    args = ["--trials", "3", "--epochs", "1", "--confirm", "2", "--seeds", "2", "--storage", storage]
    sweep = Sweep(tmp_path / "s", *args)
    assert sweep.end() == 0, sweep.output
    confirmed = summaries(sweep.rows(), "confirm")
    assert len(confirmed) == 4
    assert len({t.settings["seed"] for t in confirmed}) == 2
    assert "±" in (sweep.out / "report.html").read_text()
    assert "over 2 seeds on the validation split" in sweep.output
    best = (sweep.out / "best.yaml").read_text()
    assert "over 2 seeds" in best and yaml.safe_load(best)["seed"] == 2018
    assert list((tmp_path / "shared").glob("s-*/search/*/checkpoint_*"))
    assert not (sweep.out / "search").exists()


@pytest.mark.slow
def test_a_budget_of_seconds_ends_trials_by_the_clock(tmp_path: Path) -> None:
    args = ["--budget", "seconds", "--trials", "2", "--scheduler", "none"]
    sweep = Sweep(tmp_path / "s", *args, "--seconds", "20")
    assert sweep.end() == 0, sweep.output
    for trial in summaries(sweep.rows(), "search"):
        assert trial.status == "done" and 20 <= trial.rows[-1]["training_seconds"] < 25
        # The epoch in which the time ran out is no result.
        assert sum(row["seconds"] for row in trial.rows) < trial.rows[-1]["training_seconds"] == trial.cost
    best = yaml.safe_load((sweep.out / "best.yaml").read_text())
    assert best["epochs"] == ranked(summaries(sweep.rows(), "search"))[0].epochs
    sweep = Sweep(tmp_path / "short", *args, "--seconds", "0.1")
    assert sweep.end() == 1
    assert "no epoch ended within" in sweep.output


@pytest.mark.slow
def test_a_search_outlives_its_reader(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", "--trials", "2", "--epochs", "2")
    sweep.wait_for(lambda: bool(sweep.rows()))
    assert sweep.process.stdout is not None
    sweep.process.stdout.close()
    assert sweep.process.wait(timeout=240) == 0
    assert (sweep.out / "best/result.json").exists()


def killed(sweep: Sweep) -> tuple[list[dict], list[psutil.Process]]:
    """Kill a search's own process: the books of the trials that were done, and what of Ray stays for a while."""
    family = sweep.descendants()
    os.kill(sweep.process.pid, signal.SIGKILL)
    # Ray's own two agents wait for a minute for the rest of Ray to come back.
    agents = named(family, "ray::DashboardAgent") + named(family, "ray::RuntimeEnvAgent")
    assert all_gone(p for p in family if p not in agents)
    sweep.end()
    return [row for row in sweep.rows() if row["status"] == "done"], agents


def kept_and_whole(before: list[dict], sweep: Sweep, *, epochs: int, trials: int | None = None) -> None:
    """Each trial has each of its epochs, and what was in the books before is there still, with the same figures."""
    after = {(row["trial"], row["epoch"]): row for row in read(sweep.out / "trials.parquet")}
    for trial in summaries(after.values(), "search"):
        assert trial.status == "done"
        assert [row["epoch"] for row in trial.rows] == list(range(1, epochs + 1))
    for row in before:
        assert after[row["trial"], row["epoch"]]["val_loss"] == pytest.approx(row["val_loss"], abs=1e-4)
    if trials:
        assert len({trial for trial, _ in after}) == trials
