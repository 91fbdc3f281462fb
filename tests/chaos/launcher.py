"""What becomes of a world when something breaks: faults over network namespaces, the outcome and the seconds.

    sudo python -m tests.chaos.launcher                   # each fault once, the table to standard output
    sudo python -m tests.chaos.launcher --only network    # those whose function's name begins so
    sudo python -m tests.chaos.launcher --write docs/cluster.md    # and into that file's table, in place of older rows

Each host is a network namespace with an address of its own; each rank runs Horovod's all-reduce in a loop and goes on
from the step that it has written down (`tests/chaos/steps.py`). The times hold for the limits in ``OPTIONS``.
"""

import argparse
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.horovod_keras.pods import Network, Pods, until

HEARTBEAT, START, GRACE = 5, 40, 10
OPTIONS = ["--heartbeat-timeout", str(HEARTBEAT), "--start-timeout", str(START), "--grace", str(GRACE)]
STALL = 10
"""HOROVOD_GLOO_TIMEOUT_SECONDS of the ranks: how long an all-reduce waits for a rank that stands still."""
LIMIT = 120.0
BEGIN, END = "<!-- tests.chaos.launcher: begin -->", "<!-- tests.chaos.launcher: end -->"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table."""

    fault: str
    outcome: str
    ended: float | None
    """Seconds from the fault to the last old rank's end."""
    back: float | None
    """Seconds from the fault to the first step of the new world, or to the last launcher's end."""


class World(Pods):
    """Pods in namespaces that run `steps.py`, and what can be seen of them from outside."""

    def __init__(self, folder: Path, network: Network, *, steps: int = 300, rejoin: bool = True) -> None:
        # Options that come later win over the quick ones of the tests.
        super().__init__(folder, network.hosts, network, [*OPTIONS, "--rejoin" if rejoin else "--no-rejoin"])
        self.steps = steps

    @property
    def command(self) -> list[str]:
        script = Path(__file__).with_name("steps.py")
        settings = f"HOROVOD_GLOO_TIMEOUT_SECONDS={STALL}"
        return ["env", settings, sys.executable, str(script), str(self.folder), str(self.steps)]

    def begin(self, *options: str) -> None:
        """Start all pods and wait until the ranks make steps."""
        self.start_all(self.command, *options)
        self.first_steps()

    def first_steps(self) -> None:
        """Wait until the ranks make steps."""

        def made() -> bool:
            ended = [process.poll() for process in self.processes.values()]
            assert not any(ended), f"launchers ended with {ended}:\n{self.log(0)}{self.log(1)}"
            return self.step() > 2

        until("the world makes steps", made, LIMIT)

    def step(self) -> int:
        """The last step that was written down."""
        file = self.folder / "step"
        text = file.read_text() if file.exists() else ""
        return int(text or 0)

    def rank(self, number: int) -> psutil.Process:
        """The process of one rank."""
        for process in self.ranks():
            if process.environ().get("HOROVOD_RANK") == str(number):
                return process
        raise LookupError(f"rank {number} does not run")

    def old_ranks_end(self, since: float, old: list[psutil.Process]) -> float:
        """Seconds from ``since`` until none of the old ranks runs."""
        until("the old ranks end", lambda: not any(p.is_running() and p.status() != "zombie" for p in old), LIMIT)
        return time.monotonic() - since

    def steps_again(self, since: float) -> float:
        """Seconds from ``since`` until a new step is written down."""
        before = self.step()
        until("the new world makes steps", lambda: self.step() > before, LIMIT)
        return time.monotonic() - since

    def end(self, since: float) -> tuple[list[int], float]:
        """All launchers' exit codes, and the seconds from ``since`` to the last one's end."""
        return self.codes(LIMIT), time.monotonic() - since


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


def run(fault: Callable[[World], Outcome], folder: Path) -> Outcome:
    """Make the hosts, let the fault happen, and return what became of it. AssertionError where it went wrong."""
    with ExitStack() as stack:
        network = stack.enter_context(Network(FAULTS[fault]))
        world = stack.enter_context(World(folder, network))
        outcome = fault(world)
        until("no process is left", lambda: not world.running(), 10)
    return outcome


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as a Markdown table."""

    def seconds(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f}"

    head = "| fault | outcome | old ranks ended after, s | going on or ended after, s |\n| --- | --- | --- | --- |\n"
    return head + "".join(f"| {o.fault} | {o.outcome} | {seconds(o.ended)} | {seconds(o.back)} |\n" for o in outcomes)


def write(file: Path, outcomes: list[Outcome]) -> None:
    """Put the outcomes between the marks of a Markdown file; rows of faults that were not run stay."""
    before, _, rest = file.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    rows = {line.split(" | ")[0]: line for line in old.splitlines() if line.startswith("| ")}
    rows |= {line.split(" | ")[0]: line for line in table(outcomes).splitlines()}
    limits = f"Limits: heart-beats {HEARTBEAT} s, start {START} s, grace {GRACE} s."
    head = f"{time.strftime('%Y-%m-%d')}, {psutil.cpu_count()} cores ({platform.machine()}), once each. {limits}"
    file.write_text(before + BEGIN + "\n" + head + "\n\n" + "\n".join(rows.values()) + "\n" + END + after)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="run the faults whose function's name begins so")
    parser.add_argument("--write", type=Path, help="a Markdown file with marks to put the table between")
    options = parser.parse_args()
    if reason := Network.why_not():
        print(f"tests.chaos.launcher: {reason}", file=sys.stderr)
        return 2
    # So that nothing is left when the run is cut short.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    outcomes = []
    for fault in FAULTS:
        if fault.__name__.startswith(options.only):
            with tempfile.TemporaryDirectory() as folder:
                outcomes.append(run(fault, Path(folder)))
            print(table(outcomes[-1:]).splitlines()[-1], flush=True)
    print("\n" + table(outcomes))
    if options.write:
        write(options.write, outcomes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
