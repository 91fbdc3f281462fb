"""Numbers that went wrong, in real runs: what all ranks say, what is kept, and the way back with half the rate."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from job.run.callbacks import MOST_HALVINGS
from job.run.checkpoints import read

SMALL = ["--dataset", "garments", "--weights", "none", "--limit-train", "160", "--limit-eval", "40"]
SMALL += ["--resolution", "32", "--global-batch", "16", "--epochs", "2"]
# The variance of activations overflows float32 at rates near this one, and no longer at a few halvings of it.
TOO_LARGE = "1e17"

# A gradient of rank 1 that is not finite although its loss is: what a flipped bit or a bad kernel would do.
BAD_GRADIENT = """
import sys
import tensorflow as tf
from horovod_keras.environment import launched_rank
from horovod_keras.optimizer import Exchange
average, begin = Exchange.average, Exchange.__init__
def begun(self, *arguments):
    begin(self, *arguments)
    self.steps = tf.Variable(0, trainable=False)
def spoiled(self, gradients):
    first, *others = gradients
    seventh = self.steps.assign_add(1) == (7 if launched_rank() == 1 else 0)
    return average(self, [tf.where(seventh, float("inf"), first), *others])
Exchange.average, Exchange.__init__ = spoiled, begun
from job import train
from job.errors import run_main
run_main(train.main, quiet=launched_rank() != 0)
"""


def train(launch, ranks: int, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return launch(ranks, "-m", "job.train", *SMALL, "--run", run, *options)


def test_a_run_goes_back_with_half_the_rate_until_its_numbers_are_finite(launch, tmp_path) -> None:
    run = tmp_path / "run"
    done = train(launch, 2, run, "--learning-rate", TOO_LARGE, "--on-nan", "half-rate")
    assert done.returncode == 0, done.stderr
    halvings = json.loads((run / "result.json").read_text())["halvings"]
    assert 1 <= len(halvings) <= MOST_HALVINGS
    assert {"epoch", "step", "reason", "back_to"} == halvings[0].keys()
    said = [line for line in done.stdout.splitlines() if "half the learning rate" in line]
    assert len(said) == len(halvings) and "between steps" in said[0]
    rate = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["learning_rate"]
    assert rate == pytest.approx(float(TOO_LARGE) * 0.5 ** len(halvings), rel=1e-5)


def test_halving_ends_after_a_bounded_number(launch, tmp_path) -> None:
    done = train(launch, 0, tmp_path / "run", "--learning-rate", "1e38", "--on-nan", "half-rate")
    assert done.returncode == 1
    assert f"after {MOST_HALVINGS} halvings" in done.stderr.strip().splitlines()[-1]
    assert len(json.loads((tmp_path / "run/halvings.json").read_text())) == MOST_HALVINGS
    # The same command does not try for ever.
    again = train(launch, 0, tmp_path / "run", "--learning-rate", "1e38", "--on-nan", "half-rate")
    assert again.returncode == 1 and f"after {MOST_HALVINGS} halvings" in again.stderr


def test_with_accumulated_batches_any_of_an_update_may_be_the_one(launch, tmp_path) -> None:
    done = train(launch, 0, tmp_path / "run", "--accumulate", "2", "--learning-rate", "1e38")
    assert done.returncode == 1
    step = re.search(r"between steps (\d+) and (\d+) of epoch 1", done.stderr)
    assert step and int(step[2]) - int(step[1]) == 2 and int(step[2]) % 2 == 0, done.stderr


def test_an_infinite_gradient_on_one_rank_stops_all_and_spoils_no_checkpoint(launch, tmp_path) -> None:
    run = tmp_path / "run"
    done = launch(2, "-c", BAD_GRADIENT, *SMALL, "--run", run, "--checkpoint-every", "0.1")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "error: a gradient became" in line]
    assert len(lines) == 1 and "between steps 6 and 7 of epoch 1" in lines[0], done.stderr
    for path in (run / "checkpoints").glob("step-*"):
        arrays, position = read(path)
        assert position.step < 7 and all(np.isfinite(array).all() for array in arrays.values())
    # What was kept is good to go on from.
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-m", "job.train", *SMALL, "--run", str(run)]
    assert subprocess.run(command, env=env, capture_output=True, timeout=240, check=False).returncode == 0
