"""A run folder that another job holds."""

import signal
import subprocess
import sys
import threading
import time

import filelock
import numpy as np
import pytest

from job.config import resolve
from job.errors import PreemptedError
from job.run import folder, start
from job.run.checkpoints import Position
from tests.horovod_keras.pods import Pods, until
from tests.job.run.contexts import context

TRAIN = [
    sys.executable, "-m", "job.train", "--dataset", "garments", "--weights", "none", "--recipe", "fast",
    "--epochs", "1", "--limit-train", "200", "--limit-eval", "100", "--resolution", "32", "--global-batch", "20",
    "--run", "run",
]  # fmt: skip


def test_it_is_refused_to_a_job_on_one_machine_and_free_when_its_holder_is_killed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folder, "PATIENCE", 0.1)
    config = resolve([{"run": tmp_path / "run"}])
    hold = (
        "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    )
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", hold, str(tmp_path / "run/.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline()
        with pytest.raises(folder.BusyError, match="in use by another job"):
            folder.RunFolder(config, "data")
        holder.send_signal(signal.SIGKILL)
    folder.RunFolder(config, "data")


def test_it_stays_in_use_until_its_last_checkpoint_is_written(tmp_path) -> None:
    run = folder.RunFolder(resolve([{"run": tmp_path}]), "data")
    run.checkpoints.save({"model 0000": np.zeros(50_000_000, np.float32)}, Position(epoch=1))
    del run
    with filelock.FileLock(tmp_path / ".lock", timeout=60):
        assert list((tmp_path / "checkpoints").glob("step-*"))


def test_whoever_is_told_to_stop_while_the_folder_is_in_use_stops_soon(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")  # an elastic rank may be alone, and waits as long as many would
    stop = threading.Event()
    with filelock.FileLock(tmp_path / ".lock"):
        threading.Timer(7, stop.set).start()
        begun = time.monotonic()
        with pytest.raises(PreemptedError, match="before the first step"):
            start.open_folder(context(resolve([{"run": tmp_path}]), stop), "data")
    assert time.monotonic() - begun < 60  # and not the 120 s that a lost machine's lock is waited for


def test_ranks_on_several_machines_wait_for_the_lock_of_one_that_was_lost(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    with filelock.FileLock(tmp_path / "run/.lock") as lock, Pods(tmp_path, options=["--start-timeout", "60"]) as pods:
        pods.start_all(TRAIN, "--max-restarts", "0")
        until("they wait", lambda: "in use by another job" in pods.log(0), 60)
        time.sleep(7)
        lock.release()
        assert pods.codes(90) == [0, 0]
    assert "Trying for 120 s" in pods.log(0) and "test accuracy" in pods.log(0)
