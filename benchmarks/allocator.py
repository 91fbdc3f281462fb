"""What the C library's allocator costs a step, and what helps: glibc as it is, told to keep freed memory, and others.

python -m benchmarks.allocator [--json FILE] [--preload tcmalloc=/usr/lib/.../libtcmalloc_minimal.so.4]

56×56, batch 64, on our C++ operations and on TensorFlow's own. Contenders take turns as in benchmarks.step. Ray's
package has jemalloc, which takes part where it is installed.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import record as records
from benchmarks.step import Contender
from job.command_line import Parser, count
from job.environment import processor
from job.errors import run_main

OPERATIONS = {"our operations": "", "TensorFlow's": "off"}


def allocators(preloads: list[str]) -> dict[str, tuple[list[str], dict[str, str]]]:
    """By name, what makes a process use an allocator: options of the contender, and its environment."""
    libraries = dict(preload.split("=", 1) for preload in preloads)
    ray = importlib.util.find_spec("ray")
    if ray is not None and ray.origin:
        jemalloc = Path(ray.origin).parent / "core/libjemalloc.so"
        libraries |= {"jemalloc": str(jemalloc)} if jemalloc.exists() else {}
    as_is = ["--allocator-as-is"]
    return {
        "glibc, freed memory kept": ([], {}),
        "glibc as it is": (as_is, {}),
        **{name: (as_is, {"LD_PRELOAD": path}) for name, path in libraries.items()},
    }


def measure(threads: int, turns: int, steps: int, preloads: list[str]) -> list[dict[str, Any]]:
    """Every allocator under both kinds of operations, turn by turn."""
    sizes = {"resolution": 56, "batch": 64, "threads": threads, "steps": steps}
    command = [sys.executable, "-m", "benchmarks.step_tensorflow", "ours"]
    command += [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    started: list[tuple[str, str, Contender]] = []
    with tempfile.NamedTemporaryFile("w", prefix="allocator-", suffix=".log", delete=False) as log:
        try:
            for operations, choice in OPERATIONS.items():
                for name, (options, settings) in allocators(preloads).items():
                    settings = settings | {"FASHION_KERNELS": choice}
                    started.append((operations, name, Contender(name, [*command, *options], log, settings)))
            for _ in range(turns):
                for *_, contender in started:
                    contender.turn()
        finally:
            for *_, contender in started:
                contender.close()
    Path(log.name).unlink()
    return [
        {"operations": operations, "allocator": name, **records.times(contender.seconds)}
        for operations, name, contender in started
    ]


def main() -> int:
    """Measure, print, record."""
    parser = Parser("python -m benchmarks.allocator", description="Measure allocators.")
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--turns", type=count, default=12, help="turns of each contender (12)")
    parser.add_argument("--steps", type=count, default=10, help="steps in a turn (10)")
    parser.add_argument("--preload", action="append", default=[], metavar="NAME=PATH", help="one more allocator")
    options = parser.parse_args()
    records.check(options.json)
    cores = len(os.sched_getaffinity(0))
    record: dict[str, Any] = {
        "results": measure(cores, options.turns, options.steps, options.preload),
        **records.made(),
        "cpu": processor(),
        "threads": cores,
    }
    print(f"{record['cpu']}, {cores} threads; milliseconds a step at 56 px, batch 64")
    for row in record["results"]:
        print(
            f"  {row['operations']:15} {row['allocator']:26} best {row['best_ms']:7.1f}  median {row['median_ms']:7.1f}"
        )
    records.write(options.json, record)
    return 0


if __name__ == "__main__":
    run_main(main)
