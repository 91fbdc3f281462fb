"""A disk without room: one line, from one rank, and what was saved stays."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SMALL = ["--dataset", "garments", "--weights", "none", "--limit-train", "160", "--limit-eval", "40"]
SMALL += ["--resolution", "32", "--global-batch", "16", "--epochs", "2"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of so many bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("a small file system can't be mounted here: needs root")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_the_run_with_one_line(launch, disk) -> None:
    done = launch(0, "-m", "job.train", *SMALL, "--run", disk("20m") / "run")
    assert done.returncode == 1
    assert "No space left on device" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_full_disk_at_the_start_is_one_line_from_one_of_two_ranks(launch, disk) -> None:
    small = disk("4k")
    (small / "fill").write_bytes(b"0" * 4096)
    done = launch(2, "-m", "job.train", *SMALL, "--run", small / "run")
    assert done.returncode == 1
    ours = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert len([line for line in ours if "No space left on device" in line]) == 1
    assert not [line for line in ours if "Traceback" in line]
