"""What several parts of the suite share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def fashion_mnist_dir() -> Path:
    """The folder of the real Fashion-MNIST; tests that need it are skipped where there is none."""
    beside = ROOT / "../shared/data/fashion-mnist"
    folder = Path(os.environ.get("FASHION_MNIST_DIR") or beside)
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("real Fashion-MNIST is not here: set FASHION_MNIST_DIR to run this test")
    return folder.resolve()


@pytest.fixture(scope="session")
def launch():
    """Run a Python command on so many ranks under the real `horovodrun` (0: one process, no launcher)."""

    def run(ranks: int, *arguments: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(ranks)] if ranks else []
        # A user's own data must not change what a test sees.
        env = {name: value for name, value in os.environ.items() if name != "FASHION_MNIST_DIR"}
        return subprocess.run(
            [*horovodrun, sys.executable, *arguments],
            cwd=ROOT,
            env=env | {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
