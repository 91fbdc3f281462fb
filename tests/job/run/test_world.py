"""How ranks are set up and refused, and how they keep in touch under real `horovodrun`."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os
import sys
import time

os.environ["HOROVOD_STALL_CHECK_TIME_SECONDS"] = "1"
os.environ["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] = "3"
import horovod_keras
from job.run.world import in_touch

ranks = horovod_keras.join()
start = time.monotonic()
found = in_touch(ranks, lambda: time.sleep(9 * (ranks.rank == 0)) or ranks.rank)
assert time.monotonic() - start > 8, "the ranks did not wait for each other"
print(f"rank {found} goes on", flush=True)

def fail():
    if ranks.rank == 0:
        raise ValueError("what was read is damaged")

try:
    in_touch(ranks, fail)
except ValueError as error:
    print(f"rank {ranks.rank}: {error}", flush=True)
sys.stdout.write(f"{sum(ranks.gather(1, 'the end'))} at the end\\n")  # in one piece
"""


def test_a_gpu_that_is_asked_for_and_not_seen_is_an_input_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "job.train", "--dataset", "garments", "--run", str(tmp_path / "run")]
    environment = os.environ | {"FASHION_NEEDS_GPU": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: TensorFlow sees no GPU here, and FASHION_NEEDS_GPU=1 asks for one.")
    assert not (tmp_path / "run").exists()


def test_ranks_wait_for_one_that_works_longer_than_a_stall_may_last(launch, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = launch(2, script)
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank} goes on" in done.stdout for rank in range(2))
    assert done.stdout.count("what was read is damaged") == 1
    assert done.stdout.count("2 at the end") == 2
