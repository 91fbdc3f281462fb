"""Ranks that come and go while a run goes on: the real `horovodrun` with a script that tells of hosts."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest
import yaml

from job.run.checkpoints import read
from tests.horovod_keras.pods import ROOT, processes_in, until

LIMIT = 150
OPTIONS = ["--dataset", "garments", "--weights", "none", "--resolution", "32"]
OPTIONS += ["--limit-train", "240", "--limit-eval", "40", "--global-batch", "12"]

pytestmark = pytest.mark.slow


class Elastic:
    """The job under an elastic launcher, on hosts that are all this machine by different names."""

    def __init__(
        self, folder: Path, hosts: str, epochs: int, limits: dict[str, str], every: float, options: tuple[str, ...]
    ) -> None:
        self.folder, self.run = folder, folder / "run"
        self.hosts(hosts)
        script = folder / "hosts.sh"
        script.write_text(f"#!/bin/sh\ncat {folder}/hosts\n")
        script.chmod(0o755)
        launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", "1", "--min-np", "1", "--max-np", "4"]
        launcher += ["--network-interface", "lo", "--host-discovery-script", str(script)]
        command = [sys.executable, "-m", "job.train", *OPTIONS, "--epochs", str(epochs), "--run", str(self.run)]
        command += ["--checkpoint-every", str(every), *options]
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [*launcher, *command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "TF_CPP_MIN_LOG_LEVEL": "3"} | limits,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def hosts(self, hosts: str) -> None:
        """What the script tells from now on."""
        new = self.folder / "hosts.new"
        new.write_text(hosts)
        new.replace(self.folder / "hosts")

    def ranks(self, size: int) -> list[psutil.Process]:
        """Wait until a world of this size trains, and return its processes."""
        self.wait(f"a world of {size}", lambda: f"on {size} rank(s)" in self.output())
        return [p for p in processes_in(self.folder) if p.cmdline()[1:3] == ["-m", "job.train"]]

    def wait(self, what: str, condition: Callable[[], object]) -> None:
        def checked() -> object:
            assert self.process.poll() is None or condition(), self.output()
            return condition()

        until(f"{what}\n{self.output()}", checked, LIMIT)

    def output(self) -> str:
        return (self.folder / "log").read_text()

    def steps(self) -> int:
        """Steps of the newest checkpoint, since the run's beginning."""
        newest = sorted((self.run / "checkpoints").glob("step-*"))
        if not newest:
            return 0
        _, epoch, step = newest[-1].name.split(".")[0].split("-")
        return int(epoch) * 20 + int(step)

    def end(self) -> int:
        """The launcher's exit code, when nothing runs any more."""
        until(f"the end\n{self.output()}", lambda: self.process.poll() is not None, LIMIT)
        until("the end of all processes", lambda: not processes_in(self.folder), 20)
        return self.process.wait()


@pytest.fixture
def elastic(tmp_path: Path) -> Iterator[Callable[..., Elastic]]:
    started: list[Elastic] = []

    def start(hosts: str, epochs: int, every: float = 1.0, options: tuple[str, ...] = (), **limits: str) -> Elastic:
        started.append(Elastic(tmp_path, hosts, epochs, limits, every, options))
        return started[-1]

    yield start
    for process in processes_in(tmp_path):
        process.kill()
    for job in started:
        job.process.wait()
        job.log.close()


def test_a_run_goes_on_without_a_killed_worker_and_takes_in_new_ones(elastic) -> None:
    job = elastic("localhost:1\n127.0.0.1:1\n", 12)
    job.wait("both slots train and save", lambda: "on 2 rank(s)" in job.output() and job.steps() > 2)
    before = job.steps()
    lost = next(p for p in job.ranks(2) if p.environ()["HOROVOD_HOSTNAME"] == "127.0.0.1")
    lost.kill()
    job.ranks(1)
    job.wait("steps alone", lambda: job.steps() > before + 2)
    job.hosts("localhost:3\n127.0.0.1:1\n")
    assert len(job.ranks(3)) == 3
    assert job.end() == 0, job.output()

    result = json.loads((job.run / "result.json").read_text())
    assert result["status"] == "done" and result["ranks"] == 3
    # Every step of every epoch was made once, at the same global batch: the optimizer has counted them.
    arrays, position = read(sorted((job.run / "checkpoints").glob("step-*"))[-1])
    assert (position.epoch, int(arrays["optimizer 0000"])) == (12, 12 * 20)
    lines = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    assert yaml.safe_load((job.run / "config.yaml").read_text())["global_batch"] == 12


def test_a_run_goes_on_without_its_rank_0(elastic) -> None:
    job = elastic("localhost:1\n127.0.0.1:1\n", 6)
    job.wait("both slots train and save", lambda: "on 2 rank(s)" in job.output() and job.steps() > 2)
    lost = next(p for p in job.ranks(2) if p.environ()["HOROVOD_RANK"] == "0")
    lost.kill()
    start = time.monotonic()
    job.ranks(1)
    assert time.monotonic() - start < 60
    assert job.end() == 0, job.output()
    assert json.loads((job.run / "result.json").read_text())["ranks"] == 1


def test_a_run_goes_on_without_a_worker_that_stands_still(elastic) -> None:
    job = elastic("localhost:1\n127.0.0.1:1\n", 6, HOROVOD_GLOO_TIMEOUT_SECONDS="15")
    job.wait("both slots train and save", lambda: "on 2 rank(s)" in job.output() and job.steps() > 2)
    still = next(p for p in job.ranks(2) if p.environ()["HOROVOD_HOSTNAME"] == "127.0.0.1")
    rank = still.environ()["HOROVOD_RANK"]
    still.suspend()
    start = time.monotonic()
    job.ranks(1)
    assert time.monotonic() - start < 60
    assert job.end() == 0, job.output()
    assert f"error: rank {rank} on" in job.output() and "stood still for 15 s: killed" in job.output()
    assert json.loads((job.run / "result.json").read_text())["ranks"] == 1


def test_a_worker_may_be_lost_before_anything_was_saved(elastic) -> None:
    job = elastic("localhost:1\n127.0.0.1:1\n", 4, every=300.0)
    job.wait("both slots train", lambda: "on 2 rank(s)" in job.output() and (job.run / "environment.json").exists())
    ranks = job.ranks(2)
    time.sleep(4)
    assert not list((job.run / "checkpoints").glob("step-*")), "it was too late: the first epoch is over"
    next(p for p in ranks if p.environ()["HOROVOD_HOSTNAME"] == "127.0.0.1").kill()
    assert job.end() == 0, job.output()
    arrays, position = read(sorted((job.run / "checkpoints").glob("step-*"))[-1])
    assert (position.epoch, int(arrays["optimizer 0000"])) == (4, 4 * 20)


# Python runs it in each process that starts: the first rank 0 is killed before it has told the others its weights.
KILLED = """
import os
import pathlib

if os.environ.get("HOROVOD_ELASTIC") == "1" and os.environ.get("HOROVOD_RANK") == "0":
    from horovod_keras import callbacks

    def killed(self, logs=None):
        try:
            (pathlib.Path(__file__).parent / "killed").mkdir()
        except FileExistsError:
            return begin(self, logs)
        os.kill(os.getpid(), 9)

    begin = callbacks.BroadcastInitialState.on_train_begin
    callbacks.BroadcastInitialState.on_train_begin = killed
"""


def test_a_rank_0_that_is_lost_with_the_initial_weights_is_replaced_by_one_that_reads_them(
    elastic, tmp_path: Path
) -> None:
    stock = keras.applications.MobileNet(input_shape=(32, 32, 3), include_top=False, weights=None, pooling="avg")
    stock.save_weights(tmp_path / "mine.weights.h5")
    (tmp_path / "sitecustomize.py").write_text(KILLED)
    options = ("--weights", str(tmp_path / "mine.weights.h5"), "--learning-rate", "1e-12")
    job = elastic("localhost:1\n127.0.0.1:1\n", 1, options=options)
    assert job.end() == 0, job.output()
    assert (tmp_path / "killed").exists()
    arrays, _ = read(sorted((job.run / "checkpoints").glob("step-*"))[-1])
    (last,) = (
        array for name, array in arrays.items() if name.startswith("model") and array.shape == (1, 1, 1024, 1024)
    )
    np.testing.assert_allclose(last, stock.get_layer("conv_pw_13").get_weights()[0], atol=1e-6)
