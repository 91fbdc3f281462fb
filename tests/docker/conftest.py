"""Real images: built once for all tests that need them, where root, podman and a base image can be had."""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILDER = ROOT / "../shared/images/build-image.sh"
BUILD_SECONDS = 2400
READ_ONLY = ["--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp", "--cap-drop=all"]


@dataclass(frozen=True)
class Podman:
    """podman with the state that the image builder keeps, and the network that it made."""

    state: Path

    def __call__(self, *arguments: str | Path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = ["bash", "-c", '. "$0/env.sh"; exec podman "$@"', self.state, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    def start(self, *arguments: str | Path) -> str:
        """Start a container in the background and return its id."""
        done = self("run", "--detach", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def log(self, container: str) -> str:
        done = self("logs", container)
        return done.stdout + done.stderr

    def log_has(self, container: str, text: str, seconds: float = 200) -> bool:
        """Whether the container's log has a text within so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if text in self.log(container):
                return True
            time.sleep(0.5)
        return False

    def exit_code(self, container: str) -> int:
        """The exit code of a container, which is waited for."""
        return int(self("wait", container).stdout)


@pytest.fixture(scope="session")
def podman() -> Podman:
    if os.geteuid() != 0:
        pytest.skip("images can't be built here: this needs root")
    if not BUILDER.is_file():
        pytest.skip(f"images can't be built here: there is no {BUILDER.name} beside this checkout")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Podman(Path(os.environ.get("RIG") or Path(cache) / "image-rig"))


def build(podman: Podman, target: str) -> str:
    """Build a target of the Dockerfile, or take it from the layer cache, and return the image's name."""
    image = f"localhost/fashion-job:{target}-test"
    command: list[str | Path] = ["bash", BUILDER, ROOT, ROOT / "docker/Dockerfile", image, "--target", target]
    environment = os.environ | {"RIG": str(podman.state)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode == 77:
        pytest.skip(f"images can't be built here: {done.stdout.strip()}")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return image


@pytest.fixture(scope="session")
def cpu_image(podman) -> str:
    return build(podman, "cpu")


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
