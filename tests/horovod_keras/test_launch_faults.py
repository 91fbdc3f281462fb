"""A rank or pod that is lost, late or the wrong one. Quick commands in place of training."""

import re
import signal
import time
from pathlib import Path

import pytest

from tests.horovod_keras.pods import FOREVER, Pods, script, until


def first_time_only(what: str) -> list[str]:
    """Rank 1 does something in the first world only; else each rank works for a moment and ends well."""
    return script(f"if [ $HOROVOD_RANK = 1 ] && mkdir once 2>/dev/null; then sleep 0.7; {what}; fi; sleep 0.7")


@pytest.mark.parametrize("how", ["kill -9 $$", pytest.param("exit 1", marks=pytest.mark.slow)])
def test_after_a_lost_rank_the_world_forms_again_with_a_new_rendezvous(pods: Pods, how: str) -> None:
    command = first_time_only(how)
    command[-1] = "echo at $HOROVOD_GLOO_RENDEZVOUS_ADDR; " + command[-1]
    pods.start_all(command)
    assert pods.codes(10) == [0, 0]
    assert "rank 1 " in pods.log(0) and "(pod 1)" in pods.log(0) and "restart 1 of 3" in pods.log(0)
    addresses = re.findall(r"at (\S+)", pods.log(0))
    assert len(addresses) == 2 and addresses[0] != addresses[1]


def test_ranks_that_fail_each_time_end_with_1_after_the_last_restart(pods: Pods) -> None:
    pods.start_all(script("test $HOROVOD_RANK = 0 && sleep 1000"), "--max-restarts", "1")
    assert pods.codes(10) == [1, 1]
    assert pods.log(0).count("world ") - pods.log(0).count("stopping world ") == 2
    assert "all 1 restart(s) are used" in pods.log(0)


def test_exit_2_ends_all_at_once_and_without_a_restart_though_others_fail_of_it(pods: Pods) -> None:
    pods.start_all(
        script("test $HOROVOD_RANK = 1 && { touch bad; exit 2; }; until test -e bad; do sleep 0.01; done; exit 1")
    )
    assert pods.codes(8) == [2, 2]
    assert "restart" not in pods.log(0)


@pytest.mark.parametrize("pod", [0, 1])
def test_a_command_that_one_pod_lacks_ends_all_with_2_at_once(pods: Pods, pod: int) -> None:
    pods.start(pod, ["/no/such/command"])
    pods.start(1 - pod, FOREVER)
    assert pods.codes(10) == [2, 2]
    assert "error: can't run '/no/such/command'" in pods.log(pod) and "restart" not in pods.log(0)


@pytest.mark.parametrize("pod", [0, 1])
def test_a_killed_pod_takes_its_ranks_along_and_its_successor_is_taken_in(pods: Pods, pod: int) -> None:
    command = script("mkdir up-$HOROVOD_RANK || exit 0; exec sleep 1000")
    pods.start_all(command)
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.processes[pod].kill()
    until("its rank is gone", lambda: len(pods.ranks()) <= 1, 1)
    until("the other's rank is gone", lambda: not pods.ranks(), 8)
    pods.start(pod, command)
    assert pods.codes(10) == [0, 0]


@pytest.mark.parametrize("pod", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_pod_that_does_not_come_back_is_named_and_the_others_end_with_1(pods: Pods, pod: int) -> None:
    pods.start_all(FOREVER, "--start-timeout", "2.5")
    until("both ranks run", lambda: len(pods.ranks()) == 2, 8)
    pods.processes[pod].kill()
    assert pods.code(1 - pod, 12) == 1
    assert re.search(rf"waited [\d.]+ s for pod {pod}\b", pods.log(1 - pod))


def test_a_launcher_that_stood_still_is_taken_in_again(pods: Pods) -> None:
    pods.start_all(script("mkdir up-$HOROVOD_RANK || exit 0; exec sleep 1000"))
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.processes[1].send_signal(signal.SIGSTOP)
    until("it is missed", lambda: "has not been heard of" in pods.log(0), 6)
    pods.processes[1].send_signal(signal.SIGCONT)
    assert pods.codes(10) == [0, 0]


@pytest.mark.parametrize("late", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_pod_that_comes_late_is_waited_for(pods: Pods, late: int) -> None:
    pods.start(1 - late, ["true"])
    time.sleep(2)
    pods.start(late, ["true"])
    assert pods.codes(8) == [0, 0]


@pytest.mark.parametrize("absent", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_pod_that_never_comes_is_named(pods: Pods, absent: int) -> None:
    pods.start(1 - absent, ["true"], "--start-timeout", "2")
    assert pods.code(1 - absent, 8) == 1
    assert re.search(rf"waited \d s for pod {absent}", pods.log(1 - absent))


def test_a_name_that_does_not_resolve_is_named(pods: Pods) -> None:
    pods.start(1, ["true"], "--coordinator", "nowhere.invalid", "--start-timeout", "2")
    assert pods.code(1, 10) == 1
    assert "pod 0 at nowhere.invalid" in pods.log(1) and "resolve" in pods.log(1)


def test_a_pod_started_for_another_number_of_pods_is_turned_away(pods: Pods) -> None:
    pods.start(0, ["true"], "--start-timeout", "3")
    pods.start(1, ["true"], "--pods", "3")
    assert pods.code(1, 8) == 2
    assert "3 pods" in pods.log(1)


def test_a_world_of_another_size_than_wanted_ends_all_with_2(pods: Pods) -> None:
    pods.start_all(["true"], "--ranks-per-pod", "2", "--world-size", "8")
    assert pods.codes(8) == [2, 2]
    assert "bring 2, 2 rank(s), 4 in all" in pods.log(0)


def test_two_launchers_that_claim_to_be_the_same_pod(pods: Pods) -> None:
    pods.start_all(FOREVER)
    until("both ranks run", lambda: len(pods.ranks()) == 2, 8)
    first = pods.processes[1]
    pods.start(1, ["true"])
    assert first.wait(10) == 1
    assert "another launcher has come as pod 1" in pods.log(1)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with Pods(tmp_path / "a") as first, Pods(tmp_path / "b") as second:
        for pods in (first, second):
            pods.folder.mkdir()
        second.port = first.port
        first.start(0, ["true"])
        until("the first listens", lambda: "1 of 2 pods" in first.log(0), 5)
        second.start(0, ["true"])
        assert second.code(0, 5) == 1
        assert f"can't listen on ports {first.port}" in second.log(0)


@pytest.mark.slow
def test_ranks_that_do_not_end_after_the_first_has_ended_well_are_named(pods: Pods) -> None:
    options = ("--finish-timeout", "1", "--max-restarts", "0")
    pods.start_all(script("test $HOROVOD_RANK = 0 || sleep 1000"), *options)
    assert pods.codes(10) == [1, 1]
    assert re.search(r"rank 1 on \S+ \(pod 1\) did not end within 1 s", pods.log(0))


def test_in_a_failed_kubernetes_job_pod_0_ends_first_so_that_its_log_is_kept(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pod in range(2):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(pod))
        pods.start(pod, script("exit 2"))
    assert pods.code(0, 8) == 2
    assert "exits with 2: rank" in pods.log(0)
    time.sleep(2)
    assert pods.processes[1].poll() is None
    assert pods.code(1, 8) == 2
