"""Where one training step's time goes, operation by operation, against what its arithmetic alone would take.

    python -m benchmarks.step_profile --json benchmarks/records/profile.json

One thread, so that no two operations overlap and each one's time is its own. TensorFlow's profiler watches some turns
of the step of `benchmarks.step` (56 px, batch 64, float32); the large matrix product takes turns with it.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmarks import record as records
from benchmarks.step import MATRIX
from benchmarks.step_tensorflow import matmul, ours
from benchmarks.tables import OPERATIONS, profile
from job import allocator
from job.command_line import Parser, count
from job.environment import processor
from job.errors import RunError, run_main
from job.model import kernels
from job.model.mobilenet import BLOCKS

RESOLUTION, BATCH = 56, 64


def main() -> int:
    parser = Parser("python -m benchmarks.step_profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=count, default=8, help="turns (8); the quickest counts")
    parser.add_argument("--steps", type=count, default=5, help="steps of a turn (5)")
    parser.add_argument("--json", type=Path, help="write the record here")
    args = parser.parse_args()
    records.check(args.json)
    allocator.keep_freed_memory()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    kernels.allow(None, bfloat16=False)
    if kernels.load() is None:
        raise RunError(f"there is nothing of ours to profile: {kernels.status()}")
    step, product = (make(RESOLUTION, BATCH, args.steps) for make in (ours, matmul))
    step(), product()
    turns = [(profiled(step, args.steps), product()) for _ in range(args.turns)]
    milliseconds, operations = min((turn for turn, _ in turns), key=lambda turn: turn[0])
    record = {
        **records.made(),
        "processor": processor(),
        "kernels": kernels.status().partition(" (")[0],
        "matmul_gflop_per_second": round(2 * MATRIX**3 / min(seconds for _, seconds in turns) / 1e9, 1),
        "step_ms": round(milliseconds, 2),
        "operations": [
            {"layer": layer, "operation": kind, "ms": round(value, 3), "mflop": round(flop(layer, kind) / 1e6, 1)}
            for (layer, kind), value in operations.items()
        ],
    }
    print(profile(record))
    records.write(args.json, record)
    return 0


def profiled(step: Any, steps: int) -> tuple[float, dict[tuple[str, str], float]]:
    """One turn under the profiler: milliseconds a step, and those of each of our operations by (layer, kind)."""
    # A module of TensorFlow's that loads in a second, and that nothing but this needs.
    from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        with tf.profiler.experimental.Profile(folder):
            seconds = step()
        (path,) = Path(folder).rglob("*.xplane.pb")
        space = XSpace.FromString(path.read_bytes())
    found: Counter[tuple[str, str]] = Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                # As gradient_tape/functional_1/conv_pw_3_1/FashionPointwiseGradient:FashionPointwiseGradient
                name, _, kind = plane.event_metadata[event.metadata_id].name.partition(":")
                if kind in OPERATIONS:
                    layer = name.split("/")[-2].removesuffix("_1") if "/" in name else ""
                    found[layer, kind] += event.duration_ps / 1e9 / steps
    return 1e3 * seconds, dict(found)


def flop(layer: str, kind: str) -> float:
    """Operations of a convolution in a step, as its shapes ask for; 0 for what isn't a depthwise or 1×1 convolution."""
    if not layer.startswith(("conv_dw_", "conv_pw_")) or "Normalise" in kind:
        return 0.0
    number = int(layer.rpartition("_")[2])
    side, channels = -(-RESOLUTION // 2), 32
    for filters, stride in BLOCKS[:number]:
        before, side = channels, side // stride
        channels = filters
    multiplications = side * side * before * (9 if "dw" in layer else channels)
    return 2.0 * BATCH * multiplications * (2 if kind.endswith("Gradient") else 1)


if __name__ == "__main__":
    run_main(main)
