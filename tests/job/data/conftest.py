"""A cache of their own and a small data set for the tests of job/data."""

from pathlib import Path

import pytest

from job.data import garments
from job.data.arrays import Arrays


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, so that no test reads or fills the user's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "fashion-job"


@pytest.fixture(scope="session")
def small() -> Arrays:
    """120 training and 30 test images."""
    return garments.draw(train=120, test=30)
