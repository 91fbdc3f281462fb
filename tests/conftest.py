"""What several parts of the suite share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fashion_mnist_dir() -> Path:
    """The folder of the real Fashion-MNIST; tests that need it are skipped where there is none."""
    beside = Path(__file__).parents[1] / "../shared/data/fashion-mnist"
    folder = Path(os.environ.get("FASHION_MNIST_DIR") or beside)
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("real Fashion-MNIST is not here: set FASHION_MNIST_DIR to run this test")
    return folder.resolve()
