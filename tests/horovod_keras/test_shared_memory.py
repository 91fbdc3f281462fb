"""Gradients through shared memory, on real ranks of one host."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from horovod.common.util import mpi_built

from horovod_keras.shared_memory import SharedMemory

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no files in memory")

# Every rank averages its own numbers five times, first through memory and then by messages.
SCRIPT = """
import os, resource, signal, sys
import numpy as np, tensorflow as tf
import horovod_keras
from horovod_keras import shared_memory
from horovod_keras.optimizer import Exchange

ranks = horovod_keras.join()
what = sys.argv[1] if len(sys.argv) > 1 else ""
if what == "no room" and ranks.rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
if what == "killed" and ranks.rank == 1:
    shared_memory._map = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
if what == "stranger" and ranks.rank == 1:  # another container's process, whose numbers are of another file here
    shared_memory._told = lambda handle: (f"/proc/{os.getpid()}/fd/{os.open(sys.argv[0], os.O_RDONLY)}", "its own")
shapes = [(300, 500), (7,), (), (1, 3, 3, 5)]
exchange, messages = Exchange(ranks, "none"), Exchange(ranks, "none")
messages.share = False

@tf.function
def average(exchange, *gradients):
    return exchange.average(gradients)

numbers = np.random.default_rng(ranks.rank)
for step in range(5):
    some = shapes if step < 3 else shapes[1:]  # an optimizer may be given other variables than before
    mine = [tf.constant(numbers.normal(size=shape), tf.float32) for shape in some]
    exchange.requests.assign([float(ranks.rank == 1 and step == 1), 0.0, 0.0])
    one, two = average(exchange, *mine), average(messages, *mine)
    for a, b in zip(one, two):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert (exchange.agreed.numpy()[0] > 0) == (step == 1)
    sums = ranks.gather([float(np.float64(a).sum()) for a in one], "check")
    assert all(each == sums[0] for each in sums), "not bit-identical on all ranks"
sys.stdout.write(f"through memory: {all(exchange._memories.values())}\\n")  # in one piece
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def ours() -> set[Path]:
    return set(Path("/dev/shm").glob("*horovod*"))


@pytest.mark.parametrize("ranks", [2, 3])
def test_means_are_horovods_and_the_same_bits_on_all_ranks_and_nothing_is_left(launch, script, ranks) -> None:
    before = ours()
    done = launch(ranks, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("through memory: True") == ranks
    assert ours() == before


@pytest.mark.parametrize("what", ["no room", "stranger"])
def test_where_the_memory_of_one_rank_cannot_be_used_all_send_messages(launch, script, what) -> None:
    done = launch(2, script, what)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("through memory: False") == 2
    assert script.read_text() == SCRIPT


def test_a_rank_that_is_killed_before_all_have_found_the_memory_leaves_nothing(launch, script) -> None:
    before = ours()
    # Where Horovod has MPI, as in the image, horovodrun starts mpirun, which hands on the killed rank's code.
    expected = 128 + signal.SIGKILL if mpi_built() else 1
    assert launch(2, script, "killed").returncode == expected
    assert ours() == before


def test_a_fast_rank_writes_the_next_gradients_while_a_slow_one_reads_these() -> None:
    memories = [np.zeros(2 * 64, np.uint8) for _ in range(2)]
    pair = [SharedMemory(memories, rank, [(3,)], [np.dtype("float32")], [0]) for rank in range(2)]
    gradients = np.random.default_rng(1).normal(size=(5, 2, 3)).astype("float32")  # by step and rank
    for rank in range(2):
        pair[rank].write(gradients[0, rank])
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for step in range(4):  # what lies between writing and reading lets neither be further ahead than this
        fast, slow = step % 2, 1 - step % 2
        first, *_ = pair[fast].means()
        pair[fast].write(gradients[step + 1, fast])
        second, *_ = pair[slow].means()
        pair[slow].write(gradients[step + 1, slow])
        expected = (gradients[step, 0] + gradients[step, 1]) * np.float32(0.5)
        # These, and those of the update before, which someone may still hold.
        for mean, value in [*kept, (first, expected), (second, expected)]:
            np.testing.assert_array_equal(mean, value)
        kept = [(first, expected), (second, expected)]
