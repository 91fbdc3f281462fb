"""Those who are told to end: the ranks save, and nothing counts as a failure. Quick commands in place of training."""

import time

import pytest

from tests.horovod_keras.pods import FOREVER, Pods, script, until


def test_exit_75_ends_all_with_75(pods: Pods) -> None:
    pods.start_all(script("test $HOROVOD_RANK = 1 && sleep 0.3; exit 75"))
    assert pods.codes(8) == [75, 75]


@pytest.mark.parametrize("pod", [0, 1])
def test_sigterm_to_one_launcher_lets_all_ranks_save_and_ends_all_with_75(pods: Pods, pod: int) -> None:
    pods.start_all(
        script("trap 'sleep 1; touch saved-$HOROVOD_RANK; exit 75' TERM; touch up-$HOROVOD_RANK; sleep 1000 & wait")
    )
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.processes[pod].terminate()
    assert pods.codes(8) == [75, 75]
    assert len(list(pods.folder.glob("saved-*"))) == 2


def test_sigterm_while_waiting_for_others_ends_with_75(pods: Pods) -> None:
    pods.start(0, FOREVER)
    until("it waits", lambda: "1 of 2 pods" in pods.log(0), 5)
    pods.processes[0].terminate()
    assert pods.code(0, 3) == 75


@pytest.mark.slow
def test_a_rank_that_ignores_sigterm_is_killed_when_the_grace_is_over(pods: Pods) -> None:
    pods.start_all(script("trap '' TERM; touch up-$HOROVOD_RANK; while :; do sleep 0.1; done"), "--grace", "1")
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.processes[1].terminate()
    assert pods.codes(8) == [75, 75]


@pytest.mark.parametrize("pod", [0, 1])
def test_a_preempted_pod_that_is_replaced_finds_the_others_waiting(pods: Pods, pod: int) -> None:
    command = script("trap 'exit 75' TERM; mkdir up-$HOROVOD_RANK || exit 0; sleep 1000 & wait")
    pods.start_all(command, "--rejoin", "--max-restarts", "0")
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.processes[pod].terminate()
    assert pods.code(pod, 6) == 75
    time.sleep(1)
    assert pods.processes[1 - pod].poll() is None
    pods.start(pod, command, "--rejoin", "--max-restarts", "0")
    assert pods.codes(8) == [0, 0]


def test_a_preempted_pod_that_is_replaced_before_the_others_have_stopped_is_taken_in(pods: Pods) -> None:
    command = script(
        "trap 'test $HOROVOD_RANK = 1 || sleep 2; exit 75' TERM; mkdir up-$HOROVOD_RANK || exit 0; sleep 1000 & wait"
    )
    pods.start_all(command, "--rejoin")
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    # Rank 0 takes two seconds to save: pod 1's successor is there before that.
    pods.processes[1].terminate()
    assert pods.code(1, 1.5) == 75
    pods.start(1, command, "--rejoin")
    assert pods.codes(10) == [0, 0]


@pytest.mark.slow
def test_a_preempted_pod_that_is_not_replaced_lets_the_others_end_with_75(pods: Pods) -> None:
    pods.start_all(
        script("trap 'exit 75' TERM; touch up-$HOROVOD_RANK; sleep 1000 & wait"), "--rejoin", "--start-timeout", "3"
    )
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.processes[1].terminate()
    assert pods.codes(10) == [75, 75]
    assert "waited 3 s for pod 1" in pods.log(0)
