"""What can break in a world, each fault as a function of it that returns what became of it."""

import signal
import time
from collections.abc import Callable

import psutil

from tests.chaos.world import LIMIT, STALL, Outcome, World


def _expect(world: World, wanted: list[int], got: list[int]) -> str:
    logs = "".join(f"\n-- pod {p}\n{world.log(p)}" for p in range(world.count))
    assert got == wanted, f"exit codes {got} instead of {wanted}{logs}"
    return f"exit {', '.join(map(str, got))}"


def _goes_on(world: World, fault: str, since: float, old: list[psutil.Process]) -> Outcome:
    ended = world.old_ranks_end(since, old)
    back = world.steps_again(since)
    codes, _ = world.end(since)
    return Outcome(fault, "goes on; " + _expect(world, [0] * world.count, codes), ended, back)


def two_pods_of_two_ranks(world: World) -> Outcome:
    start = time.monotonic()
    world.begin("--ranks-per-pod", "2")
    back = time.monotonic() - start
    return Outcome("none: 2 pods of 2 ranks", _expect(world, [0, 0], world.end(start)[0]), None, back)


def four_pods(world: World) -> Outcome:
    start = time.monotonic()
    world.begin()
    back = time.monotonic() - start
    return Outcome("none: 4 pods of 1 rank", _expect(world, [0, 0, 0, 0], world.end(start)[0]), None, back)


def rank_killed(world: World) -> Outcome:
    world.begin()
    old, since = world.ranks(), time.monotonic()
    world.rank(1).kill()
    return _goes_on(world, "rank 1 killed (SIGKILL)", since, old)


def rank_stands_still(world: World) -> Outcome:
    world.begin()
    old, since = world.ranks(), time.monotonic()
    world.rank(1).send_signal(signal.SIGSTOP)
    return _goes_on(world, f"rank 1 stands still (SIGSTOP; Gloo's limit {STALL} s)", since, old)


def rank_killed_of_four_pods(world: World) -> Outcome:
    world.begin()
    old, since = world.ranks(), time.monotonic()
    world.rank(2).kill()
    return _goes_on(world, "4 pods: rank 2 killed (SIGKILL)", since, old)


def pod_killed(world: World) -> Outcome:
    world.begin()
    old, since = world.ranks(), time.monotonic()
    world.processes[1].kill()
    time.sleep(2)
    world.start(1, world.command)
    return _goes_on(world, "pod 1 killed, replaced after 2 s", since, old)


def pod_0_killed(world: World) -> Outcome:
    world.begin()
    old, since = world.ranks(), time.monotonic()
    world.processes[0].kill()
    time.sleep(2)
    world.start(0, world.command)
    return _goes_on(world, "pod 0 killed, replaced after 2 s", since, old)


def pod_0_killed_for_good(world: World) -> Outcome:
    world.begin()
    old, since = world.ranks(), time.monotonic()
    world.processes[0].kill()
    ended = world.old_ranks_end(since, old)
    code = world.code(1, LIMIT)
    seconds = time.monotonic() - since
    assert "for pod 0 at" in world.log(1)
    return Outcome("pod 0 killed, never replaced", _expect(world, [1], [code]) + ", names pod 0", ended, seconds)


def pod_30_seconds_late(world: World) -> Outcome:
    start = time.monotonic()
    world.start(0, world.command)
    time.sleep(30)
    world.start(1, world.command)
    world.first_steps()
    back = time.monotonic() - start
    return Outcome("pod 1 comes 30 s late", "starts; " + _expect(world, [0, 0], world.end(start)[0]), None, back)


def pod_never_comes(world: World) -> Outcome:
    start = time.monotonic()
    world.start(0, world.command)
    code = world.code(0, LIMIT)
    assert "for pod 1" in world.log(0)
    outcome = _expect(world, [1], [code]) + ", names pod 1"
    return Outcome("pod 1 never comes", outcome, None, time.monotonic() - start)


def name_resolves_late(world: World) -> Outcome:
    assert world.network
    start = time.monotonic()
    for pod in range(2):
        world.start(pod, world.command, "--coordinator", "job-0.job", "--address", world.network.address(pod))
    time.sleep(10)
    world.network.names(1, {"job-0.job": world.network.address(0)})
    world.first_steps()
    back = time.monotonic() - start
    outcome = "starts; " + _expect(world, [0, 0], world.end(start)[0])
    return Outcome("pod 0's name resolves after 10 s", outcome, None, back)


def network_cut_and_mended(world: World) -> Outcome:
    assert world.network
    world.begin()
    old, since = world.ranks(), time.monotonic()
    world.network.cut(1)
    ended = world.old_ranks_end(since, old)
    time.sleep(max(0.0, 20 - ended))
    world.network.mend(1)
    back = world.steps_again(since)
    outcome = "goes on; " + _expect(world, [0, 0], world.end(since)[0])
    return Outcome("network of pod 1 cut, mended after 20 s", outcome, ended, back)


def network_cut_for_good(world: World) -> Outcome:
    assert world.network
    world.begin()
    old, since = world.ranks(), time.monotonic()
    world.network.cut(1)
    ended = world.old_ranks_end(since, old)
    codes, seconds = world.end(since)
    assert "for pod 1" in world.log(0) and "for pod 0" in world.log(1)
    outcome = _expect(world, [1, 1], codes) + ", each names the other"
    return Outcome("network of pod 1 cut for good", outcome, ended, seconds)


def launcher_terminated(world: World) -> Outcome:
    world.begin("--no-rejoin")
    old, since = world.ranks(), time.monotonic()
    world.processes[1].terminate()
    ended = world.old_ranks_end(since, old)
    codes, seconds = world.end(since)
    return Outcome("SIGTERM to pod 1's launcher", _expect(world, [75, 75], codes), ended, seconds)


def pod_preempted_and_replaced(world: World) -> Outcome:
    world.begin()
    old, since = world.ranks(), time.monotonic()
    world.processes[1].terminate()
    assert world.code(1, LIMIT) == 75
    world.start(1, world.command)
    return _goes_on(world, "SIGTERM to pod 1 in a Job (--rejoin), replaced", since, old)


FAULTS: dict[Callable[[World], Outcome], int] = {
    two_pods_of_two_ranks: 2,
    four_pods: 4,
    rank_killed: 2,
    rank_killed_of_four_pods: 4,
    rank_stands_still: 2,
    pod_killed: 2,
    pod_0_killed: 2,
    pod_0_killed_for_good: 2,
    pod_30_seconds_late: 2,
    pod_never_comes: 2,
    name_resolves_late: 2,
    network_cut_and_mended: 2,
    network_cut_for_good: 2,
    launcher_terminated: 2,
    pod_preempted_and_replaced: 2,
}
"""Each fault, and the number of hosts that it needs."""
