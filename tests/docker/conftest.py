"""Real images: built once for all tests that need them, where root, podman and a base image can be had."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.containers import BUILDER, Podman, build


@pytest.fixture(scope="session")
def podman() -> Podman:
    if os.geteuid() != 0:
        pytest.skip("images can't be built here: this needs root")
    if not BUILDER.is_file():
        pytest.skip(f"images can't be built here: there is no {BUILDER.name} beside this checkout")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Podman(Path(os.environ.get("RIG") or Path(cache) / "image-rig"))


@pytest.fixture(scope="session")
def cpu_image(podman) -> str:
    return build(podman, "cpu")


@pytest.fixture(scope="session")
def full_suite() -> None:
    if os.environ.get("IMAGE_TESTS") != "full":
        pytest.skip("this builds for a quarter of an hour or longer: set IMAGE_TESTS=full to run it")


@pytest.fixture(scope="session")
def gpu_image(full_suite, podman) -> str:
    return build(podman, "gpu")


@pytest.fixture
def containers(podman) -> Iterator[list[str]]:
    """Names of containers that are removed after the test, whatever became of it."""
    names: list[str] = []
    yield names
    for name in names:
        podman("rm", "--force", "--time", "0", name)


@pytest.fixture
def runs(tmp_path) -> Path:
    """A folder for /runs that belongs to the image's user."""
    folder = tmp_path / "runs"
    folder.mkdir()
    os.chown(folder, 1000, 0)
    return folder
