"""Groups and searches on a cluster of two nodes, both of them on this machine."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

from tests.tune.searches import RANK, ROOT, SMALL, TRIAL, Sweep, all_gone, named
from tune.group import ProcessGroup
from tune.member import Member
from tune.records import read, summaries


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with one CPU each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def ranks_and_sum(member: Member) -> list[float]:
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    total = float(hvd.allreduce(tf.constant(float(hvd.rank() + 1)), op=hvd.Sum))
    found = [total, hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), hvd.cross_size()]
    hvd.shutdown()
    return found


def test_local_and_cross_ranks_follow_the_nodes(two_nodes: str) -> None:
    ray.init(address=two_nodes, log_to_driver=False, logging_level=logging.ERROR)
    try:
        bundles = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
        ray.get(bundles.ready())
        group = ProcessGroup(bundles, ranks=2)
        group.run(ranks_and_sum)
        while not group.finished:
            group.poll(1.0)
        assert group.results == [[3.0, 0, 2, 0, 1, 2], [3.0, 1, 2, 0, 1, 2]]
        group.shutdown()
        remove_placement_group(bundles)
    finally:
        ray.shutdown()


def workers() -> list[psutil.Process]:
    """Processes of any trial or rank on this machine's clusters."""
    return [p for title in (RANK, TRIAL) for p in named(psutil.process_iter(), title)]


def leftovers(address: str) -> list[str]:
    """Actors and placement groups of the cluster that are still there."""
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        groups = [g["state"] for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
        actors = [a["State"] for a in ray._private.state.actors().values() if a["State"] != "DEAD"]
        return groups + actors
    finally:
        ray.shutdown()


def listening() -> set[int]:
    """Ports that processes of trials and ranks listen on."""
    return {c.laddr.port for p in workers() for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    """The environment of commands for a Ray head that is started by them, and ended here."""
    with tempfile.TemporaryDirectory() as folder:  # a short name: sockets lie in it
        yield os.environ | {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": folder, "PYTHONPATH": str(ROOT)}
        for process in psutil.process_iter(["cmdline"]):
            if folder in " ".join(process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


@pytest.mark.slow
def test_a_search_is_handed_in_as_kuberay_does_it(head: dict[str, str], tmp_path: Path) -> None:
    start = ["start", "--head", "--num-cpus=2", "--port=0", "--dashboard-port=28265", "--dashboard-agent-listen-port=0"]
    search = [sys.executable, "-m", "tune.sweep", *SMALL, "--address=auto", f"--out={tmp_path / 's'}", "--trials=1"]
    submit = ["job", "submit", "--address=http://127.0.0.1:28265", "--", *search, "--epochs=1"]
    for words in (start, submit):
        command = [sys.executable, "-m", "ray.scripts.scripts", *words]
        done = subprocess.run(command, cwd=ROOT, env=head, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = summaries(read(tmp_path / "s/trials.parquet"), "search")
    assert (trial.status, trial.epochs) == ("done", 1)


@pytest.mark.slow
def test_asha_stops_what_cannot_learn_and_leaves_nothing_on_the_cluster(two_nodes: str, tmp_path: Path) -> None:
    rates = ["--search", "grid", "--vary", "learning_rate=1e-3,1e-9,1e-8,1e-7", "--dropout", "0", "--resolution", "32"]
    size = ["--limit-train", "640", "--limit-eval", "200", "--global-batch", "16", "--batch-norm-momentum", "0.5"]
    fixed = ["--dataset", "garments", "--weights", "none", "--no-measure", "--epochs", "9", "--address", two_nodes]
    sweep = Sweep(tmp_path / "s", *rates, *size, *fixed, "--ranks-per-trial", "2", "--placement", "spread", small=False)
    sweep.wait_for(lambda: bool(sweep.rows()))
    during = workers()
    assert sweep.end() == 0, sweep.output
    trials = {t.settings["learning_rate"]: t for t in summaries(sweep.rows(), "search")}
    assert (trials[1e-3].status, trials[1e-3].epochs) == ("done", 9)
    stopped = [t for rate, t in trials.items() if rate < 1e-3 and t.status == "stopped"]
    assert len(stopped) >= 2 and all(t.epochs < 9 for t in stopped)
    assert "after a failure" not in sweep.output
    assert all_gone(during)
    assert not listening()
    assert leftovers(two_nodes) == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", [None, "rank", "trial", "driver"])
def test_a_search_on_two_nodes_leaves_nothing_on_the_cluster(
    two_nodes: str, tmp_path: Path, victim: str | None
) -> None:
    args = ["--address", two_nodes, "--ranks-per-trial", "2", "--placement", "spread", "--trials", "3", "--epochs", "4"]
    sweep = Sweep(tmp_path / "s", *args)
    sweep.wait_for(lambda: len(sweep.rows()) >= 2 and len(workers()) >= 3)
    during = workers()
    if victim == "driver":
        os.kill(sweep.process.pid, signal.SIGKILL)
        sweep.end()
    else:
        if victim:
            name = {"rank": RANK, "trial": TRIAL}[victim]
            os.kill(named(during, name)[0].pid, signal.SIGKILL)
        assert sweep.end() == 0, sweep.output
        assert all(t.status in ("done", "stopped") for t in summaries(sweep.rows(), "search"))
        assert bool(victim) == ("after a failure" in sweep.output)
    assert all_gone(during)
    assert not listening()
    assert leftovers(two_nodes) == []
