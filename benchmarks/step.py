"""One training step at 56×56 and batch 64: ours, stock Keras in fit, PyTorch, and the machine's matrix product.

python -m benchmarks.step                            everything, about three minutes
python -m benchmarks.step --quick                    fewer turns, ours against stock alone
python -m benchmarks.step --torch-python PATH        PyTorch from another environment's interpreter
python -m benchmarks.step --table                    ours over resolution, batch and threads too
python -m benchmarks.step --gpu                      mixed precision and XLA too, which a GPU is for
python -m benchmarks.step --compare benchmarks/records/step.json

Every contender lives in a process of its own; they take turns, many times, so that all meet the same neighbours on a
shared machine. A turn is some steps; its time is their mean. Ratios are of the best turns.
"""

import argparse  # for its Namespace
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from benchmarks import record as records
from benchmarks.step_picture import draw
from job.command_line import Parser, count
from job.environment import BFLOAT16, processor
from job.errors import InputError, RunError, run_main
from job.model.kernels.library import BFLOAT16_FLAGS

ROOT = Path(__file__).parents[1]
TORCH = [f"pytorch {layout}{mode}" for layout in ("channels-last", "contiguous") for mode in ("", " compiled")]
OURS_BFLOAT16 = "ours bfloat16"
TORCH_BFLOAT16 = [f"pytorch channels-last bfloat16{mode}" for mode in ("", " compiled")]
"""Products in bfloat16 (PyTorch: its autocast), where the processor has them: contenders among themselves."""
ON_GPU = ["ours xla", "ours mixed", "stock mixed", "stock without xla"]
"""Stock Keras' own default on a GPU is XLA."""
MATRIX = 2048
"""Rows and columns of the matrix product that stands for the machine's rate."""
NOMINAL_FLOP = 213e6
"""A training step's operations an image at 56 px as usually counted: 3 · 2 · 569 M multiply-adds · (56 / 224)²."""


def exact_flop(resolution: int) -> float:
    """Operations of one image's step by layers, three equal passes: maps are rounded down, so fewer than nominal."""
    from job.model.mobilenet import BLOCKS  # and TensorFlow: not while others take their turns

    side, channels, total = -(-resolution // 2), 32, 0.0
    total += side * side * 27 * channels
    for filters, stride in BLOCKS:
        side //= stride
        total += side * side * channels * (9 + filters)
        channels = filters
    return 6 * total


class Contender:
    """A process that is ready and takes its turns on request."""

    def __init__(self, name: str, command: list[str], log: IO[str], settings: Mapping[str, str] | None = None) -> None:
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)} | dict(settings or {})
        self.name, self.log, self.seconds = name, log, list[float]()
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        self.versions: dict[str, str] = self._answer()

    def turn(self) -> None:
        """Run one turn and keep its seconds per step."""
        assert self.process.stdin is not None
        self.process.stdin.write("turn\n")
        self.process.stdin.flush()
        self.seconds.append(self._answer())

    def in_bfloat16(self) -> bool:
        """Whether our kernels multiply in bfloat16 in it."""
        return not BFLOAT16_FLAGS.keys().isdisjoint(self.versions.get(self.name, "").split())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RunError(f"{self.name} ended early: exit code {self.process.wait()}. See {self.log.name}")
        return json.loads(line)


@contextlib.contextmanager
def contenders(names: list[str], options: argparse.Namespace, **sizes: int) -> Iterator[list[Contender]]:
    """Start the named contenders one after another, each ready before the next."""
    sizes = {"resolution": 56, "batch": 64, "threads": options.threads, "steps": options.steps} | sizes
    arguments = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    started: list[Contender] = []
    with tempfile.NamedTemporaryFile("w", prefix="step-", suffix=".log", delete=False) as log:
        try:
            for name in names:
                torch = [options.torch_python, str(ROOT / "benchmarks/step_torch.py")]
                command = torch if name.startswith("pytorch") else [sys.executable, "-m", "benchmarks.step_tensorflow"]
                started.append(Contender(name, [*command, name, *arguments], log))
            yield started
        finally:
            for contender in started:
                contender.close()
    Path(log.name).unlink()  # what someone wants to read is what contenders said that failed


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One whole run: all contenders, turn by turn."""
    halves = processor().endswith(BFLOAT16)
    names = ["ours", "stock", "matmul", *([OURS_BFLOAT16] if halves else [])]
    if options.gpu:
        names += ON_GPU
    if options.torch_python and not options.quick:
        names += [*TORCH, *(TORCH_BFLOAT16 if halves or options.gpu else [])]
    versions: dict[str, str] = {}
    with contenders(names, options) as started:
        # Other kernels may be asked for by FASHION_KERNELS, or the device be a GPU.
        ready = [one for one in started if one.name != OURS_BFLOAT16 or one.in_bfloat16()]
        for _ in range(options.turns):
            for contender in ready:
                contender.turn()
        for contender in ready:
            versions |= contender.versions
        seconds = {contender.name: contender.seconds for contender in ready}
    best = {name: min(values) for name, values in seconds.items()}
    fastest = min((name for name in best if name in TORCH), key=best.__getitem__, default=None)
    # Its autocast may be slower than its float32: the fastest of both is what a user would take.
    rival = min((name for name in best if name in TORCH + TORCH_BFLOAT16), key=best.__getitem__, default=None)
    rate = 2 * MATRIX**3 / best["matmul"]
    per_second = 64 / best["ours"]
    return {
        "images_per_second": round(per_second, 1),
        "ratio_to_stock_keras": round(best["stock"] / best["ours"], 3),
        "ratio_to_pytorch": round(best[fastest] / best["ours"], 3) if fastest else None,
        "fastest_pytorch": fastest,
        "bfloat16": {
            "images_per_second": round(64 / best[OURS_BFLOAT16], 1),
            "ratio_to_stock_keras": round(best["stock"] / best[OURS_BFLOAT16], 3),
            "ratio_to_pytorch": round(best[rival] / best[OURS_BFLOAT16], 3) if rival else None,
        }
        if OURS_BFLOAT16 in best
        else None,
        "gpu": {
            "xla_to_stock": round(best["stock"] / best["ours xla"], 3),
            "without_xla_to_stock_without_xla": round(best["stock without xla"] / best["ours"], 3),
            "mixed_to_stock_mixed": round(best["stock mixed"] / best["ours mixed"], 3),
        }
        if options.gpu
        else None,
        "share_of_matmul_rate": round(per_second * NOMINAL_FLOP / rate, 3),
        "share_of_matmul_rate_by_exact_count": round(per_second * exact_flop(56) / rate, 3),
        "matmul_gflop_per_second": round(rate / 1e9, 1),
        "contenders": {name: records.times(values) for name, values in seconds.items()},
        "versions": versions,
    }


def table(options: argparse.Namespace) -> list[dict[str, float]]:
    """Ours over resolution, batch and threads: best of a few turns of a few steps."""
    rows = []
    for threads in sorted({1, options.threads}):
        for resolution in (32, 56, 112, 224):
            for batch in (1, 4, 16, 64, 256):
                steps = max(2, min(20, 4_000_000 // (batch * resolution**2)))
                sizes = {"resolution": resolution, "batch": batch, "threads": threads, "steps": steps}
                with contenders(["ours"], options, **sizes) as (one,):
                    for _ in range(4):
                        one.turn()
                    best = min(one.seconds)
                rows.append(sizes | {"best_ms": round(1e3 * best, 2), "images_per_second": round(batch / best, 1)})
                print(
                    f"{resolution:4} px, batch {batch:3}, {threads} threads: {rows[-1]['images_per_second']:8} images/s"
                )
    return rows


def main() -> int:
    """Measure, print, record, compare."""
    parser = Parser("python -m benchmarks.step", description="Measure one training step.")
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--picture", type=Path, help="draw it here (.png or .svg)")
    parser.add_argument("--compare", type=Path, metavar="RECORD", help="show the change against an earlier record")
    parser.add_argument("--quick", action="store_true", help="five turns, no PyTorch")
    parser.add_argument("--turns", type=count, default=12, help="turns of each contender (12)")
    parser.add_argument("--steps", type=count, default=10, help="steps in a turn (10)")
    parser.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="threads (all cores)")
    parser.add_argument("--runs", type=count, default=1, help="whole runs, which must agree to 10 %%")
    parser.add_argument("--gpu", action="store_true", help="mixed precision and XLA as well")
    parser.add_argument("--table", action="store_true", help="ours over resolution, batch and threads as well")
    here = sys.executable if importlib.util.find_spec("torch") else None
    parser.add_argument("--torch-python", default=here, help="interpreter that has PyTorch (this one, if it has)")
    options = parser.parse_args()
    if options.quick:
        options.turns = 5
    elif options.torch_python and not shutil.which(options.torch_python):
        raise InputError(f"no such interpreter: received --torch-python {options.torch_python}. Name one with PyTorch.")
    if options.compare and not options.compare.is_file():
        raise InputError(f"no such record: received --compare {options.compare}.")
    records.check(options.json)
    runs = [measure(options) for _ in range(options.runs)]
    speeds = [run["images_per_second"] for run in runs]
    record = runs[0] | {
        "runs_images_per_second": speeds,
        "runs_agree_to_10_percent": max(speeds) <= 1.1 * min(speeds) if len(runs) > 1 else None,
        "other_runs": runs[1:],
        **records.made(),
        "cpu": processor(),
        "threads": options.threads,
        "python": platform.python_version(),
    }
    if options.table:
        record["table"] = table(options)
    _show(record)
    if options.compare:
        _compare(record, json.loads(options.compare.read_text()))
    records.write(options.json, record)
    if options.picture:
        draw(record, options.picture)
    return 0


def _show(record: dict[str, Any]) -> None:
    print(f"{record['cpu']}, {record['threads']} threads; 56 px, batch 64; milliseconds a step")
    for name, values in record["contenders"].items():
        print(f"  {name:32} best {values['best_ms']:8.1f}   median {values['median_ms']:8.1f}")
    for key in ("images_per_second", "ratio_to_stock_keras", "ratio_to_pytorch", "share_of_matmul_rate",
                "share_of_matmul_rate_by_exact_count", "runs_agree_to_10_percent", "bfloat16", "gpu"):  # fmt: skip
        print(f"  {key}: {record[key]}")


def _compare(record: dict[str, Any], earlier: dict[str, Any]) -> None:
    same = "" if record["cpu"] == earlier["cpu"] else ", another processor: only the ratios can be compared"
    print(f"change against {earlier['date']}, {earlier['cpu']}{same}:")
    for part in (None, "bfloat16"):
        now, then = (record, earlier) if part is None else (record[part] or {}, earlier.get(part) or {})
        for key in ("images_per_second", "ratio_to_stock_keras", "ratio_to_pytorch", "share_of_matmul_rate"):
            if now.get(key) and then.get(key):
                name = f"{part} {key}" if part else key
                print(f"  {name}: {then[key]} → {now[key]} ({100 * (now[key] / then[key] - 1):+.0f} %)")


if __name__ == "__main__":
    run_main(main)
