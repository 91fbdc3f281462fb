"""A rank that trains nothing: all-reduce in a loop, going on from the step that was written down.

    python steps.py FOLDER STEPS

Exit codes as of a real job: 0 all steps made, 75 after SIGTERM to any rank (all agree), 1 when Horovod fails.
"""

import os
import signal
import sys
import time
from pathlib import Path

import horovod.tensorflow as hvd
import tensorflow as tf


def main(folder: Path, steps: int) -> int:
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    hvd.init()
    file = folder / "step"
    begin = int(hvd.broadcast(tf.constant(int(file.read_text()) if file.exists() else 0), root_rank=0, name="begin"))
    for step in range(begin + 1, steps + 1):
        mine = tf.constant([float(hvd.rank()), float(bool(told))])
        total, stop = hvd.allreduce(mine, op=hvd.Sum, name="step").numpy()
        assert total == hvd.size() * (hvd.size() - 1) / 2, f"wrong sum at step {step}: {total}"
        if hvd.rank() == 0:
            new = file.with_suffix(".new")
            new.write_text(str(step))
            new.replace(file)
        if stop:
            hvd.shutdown()
            return 75
        time.sleep(0.02)
    print(f"rank {hvd.rank()} of {hvd.size()} on {os.environ['HOROVOD_HOSTNAME']}: {steps} steps", flush=True)
    hvd.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
