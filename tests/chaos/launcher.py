"""What becomes of a world when something breaks: faults over network namespaces, the outcome and the seconds.

    sudo python -m tests.chaos.launcher                   # each fault once, the table to standard output
    sudo python -m tests.chaos.launcher --only network    # those whose function's name begins so
    sudo python -m tests.chaos.launcher --write docs/cluster.md    # and into that file's table, in place of older rows

Each host is a network namespace with an address of its own; each rank runs Horovod's all-reduce in a loop and goes on
from the step that it has written down (`tests/chaos/steps.py`). The times hold for the limits in `tests.chaos.world`.
"""

import argparse
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil

from tests.chaos.launcher_faults import FAULTS
from tests.chaos.world import GRACE, HEARTBEAT, START, Outcome, World
from tests.horovod_keras.pods import Network, until

BEGIN, END = "<!-- tests.chaos.launcher: begin -->", "<!-- tests.chaos.launcher: end -->"


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
