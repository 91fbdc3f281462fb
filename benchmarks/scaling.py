"""What more ranks bring: the step at 1, 2 and 4 ranks, what the exchange costs, and how Horovod is best set.

python -m benchmarks.scaling --json benchmarks/records/scaling.json --picture docs/scaling.png
python -m benchmarks.scaling --quick

Ranks run under the real horovodrun with their share of the cores as threads. Groups of ranks take turns, many times, so
that all meet the same neighbours on a shared machine, and stand still while another's turn is on. About four minutes.
"""

import contextlib
import itertools
import os
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record as records
from benchmarks.scaling_group import Group
from benchmarks.scaling_picture import draw
from job.command_line import Parser, count
from job.environment import processor
from job.errors import run_main

BATCH = 64
EXCHANGES = {"step": "as it is", "step by messages": "messages", "step alone": "none"}
"""What a rank is asked for, and how the record calls its exchange: as the job has it (on one host, shared memory), by
Horovod's messages, or none."""
SIZES = [1 << power for power in range(10, 27, 2)]
TUNING = [(0, 1.0), (0, 0.5), (0, 5.0), (64, 1.0), (64, 5.0)]
"""Fusion threshold in MiB and cycle time in ms; the first are the job's own."""


def measure(turns: int, steps: int, counts: Sequence[int], sizes: Sequence[int]) -> dict[str, Any]:
    """Steps and messages of groups of so many ranks, and of one process without Horovod."""
    with contextlib.ExitStack() as stack:
        groups = {ranks: stack.enter_context(Group(ranks)) for ranks in (0, *counts)}
        # Equal global batch, then equal local batch; each with the job's exchange, one by messages, and none.
        # One process takes as many images too as two ranks do at equal local batch.
        wanted = dict.fromkeys(
            (ranks, batch, what)
            for ranks in groups
            for batch in ((BATCH // ranks, BATCH) if ranks else (BATCH, 2 * BATCH))
            for what in (EXCHANGES if ranks > 1 else ("step",))
        )
        rows = [
            {"ranks": ranks, "threads": groups[ranks].facts["threads"], "batch": batch, "exchange": EXCHANGES[what]}
            for ranks, batch, what in wanted
        ]
        found: list[list[dict[str, float]]] = [[] for _ in wanted]
        for turn in range(turns + 1):
            for answers, (ranks, batch, what) in zip(found, wanted, strict=True):
                answer = groups[ranks].turn(what, batch=batch, steps=steps)
                if turn:  # the first traces
                    answers.append(answer)
        memory = {str(ranks): round(group.turn("memory")["mib"]) for ranks, group in groups.items()}
        return {
            "steps": [row | _step(row, answers) for row, answers in zip(rows, found, strict=True)],
            "peak_memory_mib": memory,
            "messages": _messages({ranks: groups[ranks] for ranks in counts if ranks > 1}, turns, sizes),
            **groups[0].facts,
        }


def tune(turns: int, steps: int, points: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    """The step of two ranks at equal global batch under settings of Horovod, gradients by its messages."""
    with contextlib.ExitStack() as stack:
        groups = []
        for threshold, cycle in points:
            settings = {"HOROVOD_FUSION_THRESHOLD": str(threshold << 20), "HOROVOD_CYCLE_TIME": str(cycle)}
            groups.append(stack.enter_context(Group(2, settings)))
        seconds: list[list[float]] = [[] for _ in groups]
        for turn in range(turns + 1):
            for values, group in zip(seconds, groups, strict=True):
                answer = group.turn("step by messages", batch=BATCH // 2, steps=steps)
                if turn:
                    values.append(answer["seconds"])
    return [
        {"fusion_threshold_mib": threshold, "cycle_time_ms": cycle, **records.times(values)}
        for (threshold, cycle), values in zip(points, seconds, strict=True)
    ]


def _messages(groups: dict[int, Group], turns: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    cases = list(itertools.product(groups, sizes))
    seconds: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    for turn in range(turns + 1):
        for ranks, size in cases:
            answer = groups[ranks].turn("message", size=size, repeats=max(1, min(20, (4 << 20) // size)))
            if turn:
                seconds[ranks, size].append(answer["seconds"])
    return [{"ranks": ranks, "bytes": size, **records.times(seconds[ranks, size])} for ranks, size in cases]


def _step(row: dict[str, Any], answers: list[dict[str, float]]) -> dict[str, Any]:
    times = records.times([answer["seconds"] for answer in answers])
    images = 1e3 * max(row["ranks"], 1) * row["batch"]
    waited = statistics.median(answer["waited"] for answer in answers)
    return times | {
        "images_per_second": round(images / times["best_ms"], 1),
        "images_per_second_median": round(images / times["median_ms"], 1),
        "waited_ms": round(1e3 * waited, 2),
        "share_waited": round(waited / statistics.median(answer["seconds"] for answer in answers), 3),
    }


def step_of(record: dict[str, Any], ranks: int, batch: int, *, exchange: str = "as it is") -> dict[str, Any]:
    """The row of a record for so many ranks (0: without a launcher) with so many images each."""
    key = {"ranks": ranks, "batch": batch, "exchange": exchange}
    return next(row for row in record["steps"] if key.items() <= row.items())


def main() -> int:
    """Measure, print, record."""
    parser = Parser("python -m benchmarks.scaling", description="Measure what more ranks bring.")
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--picture", type=Path, help="draw it here (.png or .svg)")
    parser.add_argument("--quick", action="store_true", help="two ranks, few turns: to see that it works")
    parser.add_argument("--turns", type=count, default=12, help="turns of each contender (12)")
    parser.add_argument("--steps", type=count, default=5, help="steps in a turn (5)")
    options = parser.parse_args()
    records.check(options.json)
    if options.quick:
        options.turns, options.steps = 2, 2
    counts = [2] if options.quick else [1, 2, 4]
    sizes, points = (SIZES[::4], TUNING[:1]) if options.quick else (SIZES, TUNING)
    # So that the ranks are ended, and do not stand still for ever, when this process is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    record = measure(options.turns, options.steps, counts, sizes)
    one, two = (step_of(record, ranks, BATCH // max(ranks, 1)) for ranks in (0, 2))
    local, both = step_of(record, 2, BATCH), step_of(record, 0, 2 * BATCH)
    record |= {
        "two_ranks_to_one_process_at_equal_local_batch": round(
            local["images_per_second"] / both["images_per_second"], 3
        ),
        "two_ranks_to_one_process": round(two["images_per_second"] / one["images_per_second"], 3),
        "two_ranks_to_one_process_median": round(two["images_per_second_median"] / one["images_per_second_median"], 3),
        "tuning": tune(options.turns, options.steps, points),
        **records.made(),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
    }
    _show(record)
    records.write(options.json, record)
    if options.picture:
        draw(record, options.picture)
    return 0


def _show(record: dict[str, Any]) -> None:
    print(f"{record['cpu']}, {record['cores']} cores; one step at 56 px")
    for row in record["steps"]:
        who = f"{row['ranks']} ranks" if row["ranks"] else "one process"
        print(
            f"  {who:11} × {row['threads']} threads, {row['batch']:2} images each"
            f", exchange {row['exchange']}: best {row['best_ms']:7.1f} ms, "
            f"median {row['median_ms']:7.1f}, {row['images_per_second']:7.0f} images/s, "
            f"waited {100 * row['share_waited']:.0f} %"
        )
    for row in record["messages"]:
        print(f"  {row['ranks']} ranks, {row['bytes']:>9,} bytes: best {row['best_ms']:8.2f} ms")
    for row in record["tuning"]:
        print(
            f"  fusion {row['fusion_threshold_mib']:2} MiB, cycle {row['cycle_time_ms']} ms: "
            f"best {row['best_ms']:.1f} ms"
        )
    print(f"  two ranks to one process: {record['two_ranks_to_one_process']}")
    print(f"  peak memory of a rank, MiB: {record['peak_memory_mib']}")


if __name__ == "__main__":
    run_main(main)
