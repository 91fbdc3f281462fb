"""One rank of the doctor's trial: sums a number over all ranks and writes what this Horovod can do.

horovodrun -np 2 python job/probe.py RESULT.json
"""

import json
import os
import sys
from pathlib import Path


def main(result: Path) -> None:
    """Meet the other ranks; rank 0 writes the sum of rank + 1 over all of them and Horovod's build."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    total = hvd.allreduce(tf.constant(hvd.rank() + 1.0), op=hvd.Sum, name="probe")
    if hvd.rank() == 0:
        built = {name: bool(getattr(hvd, f"{name}_built")()) for name in ("gloo", "mpi", "nccl")}
        result.write_text(json.dumps({"sum": float(total), "size": hvd.size(), "built": built}))
    hvd.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main(Path(sys.argv[1]))
