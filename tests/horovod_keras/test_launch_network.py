"""The launcher over hosts with addresses of their own, with quick commands: `tests/chaos` has the same with Horovod."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.horovod_keras.pods import Network, Pods, until

ONCE = ["sh", "-c", "mkdir up-$HOROVOD_RANK || exit 0; echo at $HOROVOD_GLOO_IFACE; exec sleep 1000"]


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    if reason := Network.why_not():
        pytest.skip(reason)
    with Network(2) as network, Pods(tmp_path, network=network) as made:
        yield made


def test_a_host_whose_network_is_cut_ends_its_ranks_and_is_taken_in_when_it_is_mended(pods: Pods) -> None:
    assert pods.network
    pods.start_all(ONCE)
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.network.cut(1)
    until("all ranks have ended", lambda: not pods.ranks(), 10)
    pods.network.mend(1)
    assert pods.codes(15) == [0, 0]
    assert "[0] at eth0" in pods.log(0) and "[1] at eth0" in pods.log(1)


@pytest.mark.slow
def test_a_network_that_stays_cut_ends_both_hosts_and_each_names_the_other(pods: Pods) -> None:
    assert pods.network
    pods.start_all(ONCE, "--start-timeout", "4")
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.network.cut(1)
    assert pods.codes(25) == [1, 1]
    assert re.search(r"waited 4 s for pod 1 \(.*10\.77\.0\.2\)", pods.log(0))
    assert re.search(r"waited \d+ s for pod 0 at 10\.77\.0\.1", pods.log(1))


def test_a_name_that_resolves_late_is_waited_for(pods: Pods) -> None:
    assert pods.network
    for pod in range(2):
        pods.start(pod, ["true"], "--coordinator", "job-0.job", "--address", pods.network.address(pod))
    time.sleep(2)
    pods.network.names(1, {"job-0.job": pods.network.address(0)})
    assert pods.codes(10) == [0, 0]
