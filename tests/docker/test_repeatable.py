"""Two builds of the same files have the same packages, and can be listed."""

import json

import pytest

from tests.docker.containers import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LIST = """
from importlib.metadata import distributions
print(open("/usr/local/share/fashion-job/debian-packages.txt").read())
print("\\n".join(sorted(f"{each.name}=={each.version}" for each in distributions())))
"""


def packages(podman, image: str) -> list[str]:
    done = podman("run", "--rm", image, "python", "-c", LIST)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line]


def test_a_second_build_from_nothing_has_the_same_packages(full_suite, podman, cpu_image) -> None:
    first = packages(podman, cpu_image)
    assert any(line.startswith("tini\t") for line in first) and any(line.startswith("horovod==") for line in first)
    second = build(podman, "cpu", "--no-cache", tag="cpu-again")
    assert packages(podman, second) == first


def test_one_command_lists_what_is_inside(podman, cpu_image, tmp_path) -> None:
    build(podman, "sbom", "--build-arg", f"IMAGE={cpu_image}", "--output", f"type=local,dest={tmp_path}")
    listed = json.loads((tmp_path / "sbom.cdx.json").read_text())
    assert listed["bomFormat"] == "CycloneDX"
    names = {component["name"].replace("_", "-") for component in listed["components"]}
    assert {"tensorflow-cpu", "horovod", "ray", "openmpi-bin", "libc6"} <= names
