"""The plain kernels on an arm64 processor: cross-compiled, and run by QEMU's user mode, where both are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from job.model.kernels.library import INNER_FLAGS, SOURCES

DRIVER = Path(__file__).with_name("kernels_driver.cc")


def _total(folder: Path, compiler: str, *runner: str) -> float:
    binary = folder / compiler
    sources = [str(DRIVER), str(SOURCES / "inner" / "variant.cc")]
    settings = [*INNER_FLAGS, "-std=c++17", "-pthread", "-static", "-DVARIANT=plain", f"-I{SOURCES / 'inner'}"]
    subprocess.run([compiler, *settings, *sources, "-o", str(binary)], check=True, capture_output=True)
    return float(subprocess.run([*runner, str(binary)], check=True, capture_output=True, text=True).stdout)


def test_plain_kernels_compile_for_arm64_and_give_the_same_there(tmp_path: Path) -> None:
    cross, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    if not (shutil.which("g++") and shutil.which(cross) and shutil.which(emulator)):
        pytest.skip(f"{cross} or {emulator} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")
    assert _total(tmp_path, cross, emulator) == pytest.approx(_total(tmp_path, "g++"), rel=1e-6)
