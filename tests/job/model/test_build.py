"""The compiler, the cache, and what is said about them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from job.errors import InputError, RunError
from job.model import kernels
from job.model.kernels import library
from job.model.kernels.build import build

ROOT = Path(__file__).parents[3]


def _run(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "job.model.kernels.build"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="this needs a compiler, which images have not")


@pytest.fixture(autouse=True)
def nothing_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a clone, not as in an image."""
    monkeypatch.setattr(library, "SHIPPED", tmp_path / "shipped")


def test_what_is_compiled_is_not_compiled_again(compiled: None) -> None:
    path, seconds = build()
    assert seconds == 0
    assert library.built() == path
    done = _run()
    assert done.returncode == 0, done.stderr
    assert "already compiled" in done.stdout
    assert str(path) in done.stdout


def test_status_names_the_kernels_in_use(compiled: None) -> None:
    assert kernels.status().startswith("C++ kernels for ")


def test_without_a_library_tensorflow_is_used_and_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels.load() is None
    assert "python -m job.model.kernels.build" in kernels.status()


def test_a_library_is_found_without_a_compiler(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert kernels.load() is not None


def test_a_library_that_came_along_is_found(compiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = library.built()
    assert found is not None
    shutil.copytree(found.parent, tmp_path / "shipped" / found.parent.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Found, but not loaded: TensorFlow takes an operation's kernel once in a process.
    assert library.built() == tmp_path / "shipped" / found.parent.name / found.name


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="looked for no-such-compiler"):
        build()
    done = _run(CXX="no-such-compiler")
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0


def test_clang_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'Debian clang version 14.0.6'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(InputError, match=r"need g[+][+]: received .*, which is clang"):
        build()


def test_a_failing_compiler_is_quoted_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "it broke" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RunError, match=str(compiler)):
        build()
    assert "it broke" in capsys.readouterr().err
    assert library.built() is None
    assert not list((tmp_path / "cache").rglob("*.o"))


@pytest.mark.slow
def test_a_compiler_that_knows_no_bfloat16_builds_all_the_rest(tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-mavx512bf16*) exit 1 ;; esac\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    cache = {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = _run(**cache)
    assert done.returncode == 0, done.stderr
    script = "from job.model import kernels; kernels.allow(None, bfloat16=True); print(kernels.status())"
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | cache
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.stdout.startswith("C++ kernels for ") and not re.search(" amx | avx512bf16 ", said.stdout), said.stderr


def test_an_unknown_choice_of_kernels_is_refused(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_KERNELS", "mmx")
    with pytest.raises(InputError, match="received FASHION_KERNELS=mmx"):
        kernels.load()
