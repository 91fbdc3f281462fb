"""How ranks are set up, and refused."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_gpu_that_is_asked_for_and_not_seen_is_an_input_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "job.train", "--dataset", "garments", "--run", str(tmp_path / "run")]
    environment = os.environ | {"FASHION_NEEDS_GPU": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: TensorFlow sees no GPU here, and FASHION_NEEDS_GPU=1 asks for one.")
    assert not (tmp_path / "run").exists()
