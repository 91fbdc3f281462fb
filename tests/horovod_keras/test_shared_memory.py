"""Gradients through shared memory, on real ranks of one host."""

import subprocess
from pathlib import Path

import pytest

FOLDER = Path("/dev/shm")
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="this system has no /dev/shm")

# Every rank averages its own numbers three times, first through memory and then by messages.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np, tensorflow as tf
import horovod_keras
from horovod_keras import shared_memory
from horovod_keras.optimizer import Exchange

ranks = horovod_keras.join()
if len(sys.argv) > 1 and ranks.rank == 1:
    shared_memory.FOLDER = Path(sys.argv[1])
shapes = [(300, 500), (7,), (), (1, 3, 3, 5)]
exchange, messages = Exchange(ranks, "none"), Exchange(ranks, "none")
messages.share = False

@tf.function
def average(exchange, *gradients):
    return exchange.average(gradients)

numbers = np.random.default_rng(ranks.rank)
for step in range(3):
    mine = [tf.constant(numbers.normal(size=shape), tf.float32) for shape in shapes]
    exchange.requests.assign([float(ranks.rank == 1 and step == 1), 0.0, 0.0])
    one, two = average(exchange, *mine), average(messages, *mine)
    for a, b in zip(one, two):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert (exchange.agreed.numpy()[0] > 0) == (step == 1)
    sums = ranks.gather([float(np.float64(a).sum()) for a in one], "check")
    assert all(each == sums[0] for each in sums), "not bit-identical on all ranks"
sys.stdout.write(f"through memory: {exchange._memory is not None}\\n")  # in one piece, also where nothing is buffered
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def ours() -> set[Path]:
    return set(FOLDER.glob("horovod-keras-*"))


@pytest.mark.parametrize("ranks", [2, 3])
def test_means_are_horovods_and_the_same_bits_on_all_ranks_and_nothing_is_left(launch, script, ranks) -> None:
    before = ours()
    done = launch(ranks, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("through memory: True") == ranks
    assert ours() == before


def test_where_one_rank_has_no_room_all_send_messages(launch, script, tmp_path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        small = tmp_path / "missing"  # a small file system needs root: here there is none at all
    try:
        done = launch(2, script, small)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("through memory: False") == 2
        assert not list(small.glob("*"))
    finally:
        subprocess.run(["umount", small], check=False, capture_output=True)
