"""The compose file, started for real."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docker.containers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]

PROJECT = "fashion-test"


@pytest.fixture
def compose(podman, cpu_image) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run podman-compose with the compose file; all that it started is removed afterwards."""
    program = shutil.which("podman-compose") or str(Path(sys.executable).with_name("podman-compose"))
    if not Path(program).exists():
        pytest.skip("podman-compose is not installed: pip install podman-compose")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = '. "$0/env.sh"; exec "$@"'
        options = ["--project-name", PROJECT, "--file", str(ROOT / "docker/compose.yaml")]
        command = ["bash", "-c", script, str(podman.state), program, *options, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)

    yield run
    run("down", "--volumes")


def test_up_trains_on_two_containers(podman, compose) -> None:
    done = compose("up", "--detach", "--no-build")
    assert done.returncode == 0, done.stdout + done.stderr
    pods = [f"{PROJECT}_pod-{number}_1" for number in (0, 1)]
    assert [podman.exit_code(each) for each in pods] == [0, 0], "".join(map(podman.log, pods))
    assert "2 rank(s) on 2 pod(s)" in podman.log(pods[0])
