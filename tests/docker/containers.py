"""podman as the tests use it, and how they build an image with it."""

import os
import subprocess
import time
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


def build(podman: Podman, target: str, *options: str, tag: str = "") -> str:
    """Build a target of the Dockerfile, or take it from the layer cache, and return the image's name."""
    image = f"localhost/fashion-job:{tag or target}"
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    options = (*options, "--build-arg", f"REVISION={git.stdout.strip() or 'unknown'}")
    command: list[str | Path] = ["bash", BUILDER, ROOT, ROOT / "Dockerfile", image, "--target", target, *options]
    environment = os.environ | {"RIG": str(podman.state)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode == 77:
        pytest.skip(f"images can't be built here: {done.stdout.strip()}")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return image
