"""Interruptions where a run is easily lost: at its last step, at its end, between two updates, before a step."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from horovod_keras.collectives import SingleProcess
from job import train as job
from job.config import resolve
from job.errors import InputError, PreemptedError
from job.run import callbacks, finish, world
from job.run.checkpoints import read
from tests.horovod_keras.pods import ROOT, processes_in, until

SMALL = {"dataset": "garments", "weights": "none", "limit_train": 160, "limit_eval": 40, "resolution": 32}
SMALL |= {"global_batch": 16, "epochs": 2}


def flags(**options: Any) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def last(run: Path) -> dict[str, np.ndarray]:
    return read(sorted((run / "checkpoints").glob("step-*"))[-1])[0]


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory) -> Path:
    """A run of two ranks that nobody interrupts; two batches make an update, and the last weights become the model."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = launch(2, "-m", "job.train", *flags(**SMALL, select="last", accumulate=2), "--deterministic", "--run", run)
    assert done.returncode == 0, done.stderr
    return run


def test_a_run_that_was_lost_after_its_last_epoch_has_the_same_test_accuracy(launch, whole, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").unlink()
    done = launch(2, "-m", "job.train", *flags(**SMALL, select="last", accumulate=2), "--deterministic", "--run", run)
    assert done.returncode == 0, done.stderr
    after = json.loads((run / "result.json").read_text())
    for name in ("val_accuracy", "test_accuracy", "test_loss"):
        assert after[name] == before[name], name


@pytest.mark.slow
def test_a_run_that_was_told_to_stop_between_two_updates_stops_after_the_next(tmp_path, monkeypatch) -> None:
    """In one process; 160 images are 10 updates of 2 batches each."""
    stop = threading.Event()
    options = SMALL | {"select": "last", "accumulate": 2}
    job.train(resolve([options | {"run": str(tmp_path / "whole")}]), SingleProcess())
    _stop_at(monkeypatch, stop, 7)
    config = resolve([options | {"run": str(tmp_path / "stopped")}])
    assert job.train(config, SingleProcess(), stop=stop)["status"] == "preempted"
    assert read(sorted((tmp_path / "stopped/checkpoints").glob("step-*"))[-1])[1].step == 8
    stop.clear()
    assert job.train(config, SingleProcess(), stop=stop)["status"] == "done"
    found, expected = last(tmp_path / "stopped"), last(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_the_record_of_an_epoch_whose_last_step_was_told_to_stop_is_kept(tmp_path, monkeypatch) -> None:
    stop = threading.Event()
    told: list[dict[str, Any]] = []
    _stop_at(monkeypatch, stop, 9)
    config = resolve([SMALL | {"run": str(tmp_path / "run")}])
    assert job.train(config, SingleProcess(), stop=stop, on_epoch=told.append)["status"] == "preempted"
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [line["epoch"] for line in told] == [1]
    stop.clear()
    assert job.train(config, SingleProcess(), stop=stop, on_epoch=told.append)["status"] == "done"
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [line["epoch"] for line in told] == [1, 2]


def test_a_signal_during_an_evaluation_is_not_kept_waiting_for_the_next_step(tmp_path, monkeypatch) -> None:
    stop = threading.Event()
    config = resolve([SMALL | {"run": str(tmp_path / "run")}])
    begin, choose = callbacks.Keeper.on_test_begin, finish.choose_weights

    def evaluated(self, logs=None):
        stop.set()
        begin(self, logs)

    def chosen(*arguments):
        stop.set()
        choose(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Keeper, "on_test_begin", evaluated)
        assert job.train(config, SingleProcess(), stop=stop)["status"] == "preempted"
    assert read(sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1])[1].place == (1, 0)
    stop.clear()
    with monkeypatch.context() as patch:
        patch.setattr(finish, "choose_weights", chosen)
        assert job.train(config, SingleProcess(), stop=stop)["status"] == "preempted"
    assert not (tmp_path / "run/model.keras").exists()
    stop.clear()
    assert job.train(config, SingleProcess(), stop=stop)["status"] == "done"
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [1, 2]


def test_a_run_whose_best_weights_are_lost_says_that_it_has_none(tmp_path, monkeypatch) -> None:
    config = resolve([SMALL | {"run": str(tmp_path / "run"), "select": "best"}])
    choose = finish.choose_weights

    def lost(*arguments):
        for path in (tmp_path / "run/checkpoints").glob("best-*"):
            path.unlink()
        return choose(*arguments)

    monkeypatch.setattr(finish, "choose_weights", lost)
    result = job.train(config, SingleProcess())
    assert result["status"] == "done" and result["best_epoch"] is None
    assert json.loads((tmp_path / "run/result.json").read_text())["best_epoch"] is None


def test_a_signal_at_the_very_start_ends_a_rank_with_75_too(tmp_path) -> None:
    command = [sys.executable, "-m", "job.train", *flags(**SMALL), "--run", str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        caught = f"/proc/{process.pid}/status"
        until("the handler is set", lambda: _catches(Path(caught), signal.SIGTERM), 10)
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "stopped before the first step" in output
    assert not (tmp_path / "run").exists()


def _catches(status: Path, number: signal.Signals) -> bool:
    (mask,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def _stop_at(monkeypatch: pytest.MonkeyPatch, stop: threading.Event, step: int) -> None:
    """Set the event before the batch of this number (from 0) of the first epoch."""
    begin = callbacks.Keeper.on_train_batch_begin

    def begun(self, batch, logs=None):
        if (self.position.epoch, self.position.step) == (0, step):
            stop.set()
        begin(self, batch, logs)

    monkeypatch.setattr(callbacks.Keeper, "on_train_batch_begin", begun)


def test_whoever_is_told_to_stop_while_something_is_prepared_stops_at_once() -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    start = time.monotonic()
    with pytest.raises(PreemptedError):
        world.prepared(SingleProcess(), stop, lambda: time.sleep(60))
    assert time.monotonic() - start < 10


def test_what_goes_wrong_while_something_is_prepared_is_raised() -> None:
    def work() -> None:
        raise InputError("no such data")

    with pytest.raises(InputError, match="no such data"):
        world.prepared(SingleProcess(), threading.Event(), work)
    assert world.prepared(SingleProcess(), threading.Event(), lambda: 7) == 7


SLOW_DATA = """
import os, time
from job.run import start
original = start.dataset
def slow(*arguments):
    if {condition}:
        print("loading", flush=True)
        time.sleep({seconds})
    return original(*arguments)
start.dataset = slow
from horovod_keras.environment import launched_rank
from job import train
from job.errors import run_main
run_main(train.main, quiet=launched_rank() != 0)
"""


@pytest.mark.slow
def test_ranks_wait_for_one_whose_data_take_longer_than_horovods_patience(launch, tmp_path) -> None:
    script = tmp_path / "script.py"
    condition = "os.environ['HOROVOD_RANK'] == '1'"
    script.write_text(SLOW_DATA.format(condition=condition, seconds=75))
    done = launch(2, str(script), *flags(**SMALL), "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr


def test_a_signal_before_the_first_step_ends_all_ranks_with_75(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SLOW_DATA.format(condition="True", seconds=120))
    launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2"]
    command = [*launcher, sys.executable, str(script), *flags(**SMALL), "--run", str(tmp_path / "run")]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=output, stderr=subprocess.STDOUT
        )
    until("ranks load data", lambda: log.read_text().count("loading") == 2, 120)
    start = time.monotonic()
    next(p for p in processes_in(tmp_path) if p.environ().get("HOROVOD_RANK") == "1").terminate()
    until("the end", lambda: process.poll() is not None, 60)
    assert time.monotonic() - start < 30
    assert "stopped before the first step" in log.read_text() and "Exit code: 75" in log.read_text()


# What is wrong on one host only: its data are missing.
MISSING_THERE = """
import os, sys
if DATA and os.environ["HOROVOD_RANK"] == "1":
    sys.argv += ["--dataset", "fashion-mnist", "--data-dir", "/nowhere"]
from horovod_keras.environment import launched_rank
from job import train
from job.errors import run_main
run_main(train.main, quiet=launched_rank() != 0)
"""


@pytest.mark.parametrize("wrong", ["/nowhere", "halvings.json"])
def test_what_one_rank_alone_finds_wrong_ends_all_with_the_reason(launch, tmp_path, wrong) -> None:
    script, run = tmp_path / "script.py", tmp_path / "run"
    script.write_text(MISSING_THERE.replace("DATA", str(wrong == "/nowhere")))
    run.mkdir()
    if wrong == "halvings.json":
        (run / wrong).write_text("[")
    done = launch(2, str(script), *flags(**SMALL), "--run", run)
    assert "Exit code: 2" in done.stderr, done.stderr
    assert len([line for line in done.stderr.splitlines() if "error: " in line and wrong in line]) == 1


# Horovod's shutdown hangs where another rank stands still.
NEVER_LEAVES = """
import time
from horovod_keras.collectives import SingleProcess
from job import train
from job.errors import run_main
from job.run import world
SingleProcess.leave = lambda self: time.sleep(100)
world.LEAVING_TIMEOUT = 1.0
train.train = lambda *arguments, **options: {"status": "done"}
run_main(train.main)
"""


TOLD_TOO_LATE = """
import os, signal
from job import train
from job.errors import run_main

class Late:
    def __del__(self):  # when Python takes its modules down
        os.kill(os.getpid(), signal.SIGTERM)

late = Late()
train.train = lambda *arguments, **options: {"status": "done"}
run_main(train.main)
"""


def test_a_signal_after_the_end_does_not_change_the_exit_code(launch) -> None:
    done = launch(0, "-c", TOLD_TOO_LATE, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_process_that_cannot_leave_the_others_ends_and_says_so(launch) -> None:
    done = launch(0, "-c", NEVER_LEAVES, timeout=60)
    assert done.returncode == 1
    assert "waited 1 s for the other ranks to leave: giving up" in done.stderr
