"""The process group: functions in ranks, their reports, and how it ends."""

import os
import pickle
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from horovod_keras.environment import launched_rank
from tune.group import GroupError, ProcessGroup
from tune.member import Member

Make = Callable[..., ProcessGroup]


@pytest.fixture
def make(two_cores: None) -> Iterator[Make]:
    """Makes groups of processes that need half a core each, and ends them after the test."""
    made: list[tuple[ProcessGroup, PlacementGroup]] = []

    def _make(ranks: int) -> ProcessGroup:
        bundles = placement_group([{"CPU": 0.5}] * ranks)
        ray.get(bundles.ready())
        made.append((ProcessGroup(bundles, ranks=ranks, cpus=0.5), bundles))
        return made[-1][0]

    yield _make
    for group, bundles in made:
        group.shutdown()
        remove_placement_group(bundles)


def until_gone(pid: int) -> None:
    """Wait for a process's end."""
    deadline = time.monotonic() + 30
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is left"
        time.sleep(0.2)


def finish(group: ProcessGroup, seconds: float = 60.0) -> list[Any]:
    """All reports until the function has ended."""
    reports, deadline = [], time.monotonic() + seconds
    while not group.finished:
        assert time.monotonic() < deadline, "the group didn't finish in time"
        reports += group.poll(1.0)
    return reports


def stays_if_not_rank_0(member: Member) -> None:
    if member.rank:
        time.sleep(60)


def sum_of_ranks(member: Member) -> list[float]:
    import horovod.tensorflow as hvd
    import tensorflow as tf

    import horovod_keras

    ranks = horovod_keras.join()  # as the job does: what it sets must not end the process when it meets others again
    total = float(ranks.sum(tf.constant(ranks.rank + 1.0), "ranks"))
    found = [total, ranks.rank, ranks.size, ranks.local_rank, ranks.local_size, hvd.cross_size(), os.getpid()]
    ranks.leave()
    return found


def count_to_three(member: Member) -> int:
    for number in range(3):
        if member.rank == 0:
            member.report(number)
    return member.rank


def wait_for_the_end(member: Member) -> str:
    member.report(os.getpid())
    member.stop.wait(60)
    return "asked to stop" if member.stop.is_set() else "waited too long"


def wait_without_listening(member: Member) -> None:
    member.report(os.getpid())
    time.sleep(600)


def fail_on_rank_1(member: Member) -> None:
    if member.rank == 1:
        raise ArithmeticError("one is\nwrong")
    time.sleep(600)


def take_too_much_memory(member: Member) -> None:
    bytearray(1 << 60)


def launcher_variables(member: Member) -> int | None:
    return launched_rank()


def process_id(member: Member) -> int:
    return os.getpid()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_ranks_meet_and_the_same_processes_meet_again_in_a_new_world(make: Make) -> None:
    group = make(2)
    found = []
    for _ in range(2):
        group.run(sum_of_ranks)
        finish(group)
        found.append(group.results)
    for one in found:
        assert [r[:6] for r in one] == [[3.0, 0, 2, 0, 2, 1], [3.0, 1, 2, 1, 2, 1]]
    assert [r[6] for r in found[0]] == [r[6] for r in found[1]]


def test_a_group_of_one_has_no_launcher_and_needs_no_horovod(make: Make) -> None:
    group = make(1)
    group.run(launcher_variables)
    finish(group)
    assert group.results == [None]


def test_all_reports_come_in_order_and_then_the_results(make: Make) -> None:
    group = make(2)
    group.run(count_to_three)
    assert finish(group) == [0, 1, 2]
    assert group.results == [0, 1]


def test_a_group_that_runs_something_refuses_more(make: Make) -> None:
    group = make(1)
    group.run(wait_for_the_end)
    with pytest.raises(RuntimeError, match="running a function already"):
        group.run(count_to_three)


def test_a_stopped_group_can_run_something_else(make: Make) -> None:
    group = make(2)
    group.run(wait_for_the_end)
    group.poll(10.0)
    assert group.stop(10.0)
    assert group.results == ["asked to stop"] * 2
    group.run(count_to_three)
    assert finish(group) == [0, 1, 2]


def test_a_group_that_does_not_listen_is_ended(make: Make) -> None:
    group = make(1)
    group.run(wait_without_listening)
    (pid,) = group.poll(10.0)
    assert not group.stop(1.0)
    until_gone(pid)


def test_an_exception_names_the_rank_and_the_class_and_ends_the_group(make: Make) -> None:
    group = make(2)
    group.run(fail_on_rank_1)
    with pytest.raises(GroupError, match="rank 1: ArithmeticError: one is wrong") as raised:
        finish(group)
    assert raised.value.find("ArithmeticError") is raised.value.find("Exception") is not None
    assert raised.value.find("MemoryError") is None
    assert group.finished


def test_memory_that_cannot_be_had_is_told_from_other_failures(make: Make) -> None:
    group = make(1)
    group.run(take_too_much_memory)
    with pytest.raises(GroupError) as raised:
        finish(group)
    assert raised.value.find("MemoryError")


def test_a_killed_rank_ends_the_group_within_seconds(make: Make) -> None:
    group = make(2)
    group.run(wait_without_listening)
    (pid,) = group.poll(10.0)
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(GroupError, match="rank 0: ActorDiedError"):
        finish(group)
    assert time.monotonic() - started < 10


def test_a_group_whose_process_stands_still_is_ended(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.group._SILENCE", 2.0)
    monkeypatch.setattr("tune.group._TAKE", 1.0)
    group = make(1)
    group.run(wait_without_listening)
    (pid,) = group.poll(10.0)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(GroupError, match="it hasn't answered for 2 s"):
        finish(group)
    until_gone(pid)


def test_a_rank_that_does_not_end_with_the_others_ends_the_group(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.group._PARTING", 1.0)
    group = make(2)
    group.run(stays_if_not_rank_0)
    with pytest.raises(GroupError) as raised:
        finish(group)
    (failure,) = raised.value.failures
    assert (failure.rank, failure.kinds) == (1, ("SilentError",))
    assert failure.message == "it didn't end within 1 s of the first rank"


def test_a_failure_carries_the_ranks_own_traceback(make: Make) -> None:
    group = make(1)
    group.run(take_too_much_memory)
    with pytest.raises(GroupError) as raised:
        finish(group)
    again = pickle.loads(pickle.dumps(raised.value))
    assert "in take_too_much_memory" in "".join(traceback.format_exception(again))


def test_a_shut_down_group_leaves_no_process_and_no_port(make: Make) -> None:
    group = make(2)
    group.run(process_id)
    finish(group)
    pids = group.results
    assert group._rendezvous is not None
    where = (group._rendezvous.address, group._rendezvous.port)
    group.shutdown()
    for pid in pids:
        until_gone(pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where, timeout=2)
