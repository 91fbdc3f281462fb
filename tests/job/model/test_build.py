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
from job.model.kernels.build import _takes, build

ROOT = Path(__file__).parents[3]


def _run(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "job.model.kernels.build"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _python(script: str, *arguments: str, **environment: str) -> str:
    """What a process of its own prints: TensorFlow takes an operation's kernel once in a process."""
    command = [sys.executable, "-c", f"from job.model import kernels\n{script}", *arguments]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="this needs a compiler, which images have not")


@pytest.fixture(autouse=True)
def nothing_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a clone, not as in an image."""
    monkeypatch.setattr(library, "SHIPPED", tmp_path / "shipped")


def test_what_is_compiled_is_not_compiled_again(compiled: None) -> None:
    path, seconds = build()
    assert seconds == 0
    assert library.built()[0] == path
    done = _run()
    assert done.returncode == 0, done.stderr
    assert "already compiled" in done.stdout
    assert str(path) in done.stdout


def test_status_names_the_kernels_in_use(compiled: None) -> None:
    assert kernels.status().startswith("C++ kernels for ")


def test_without_a_library_tensorflow_is_used_and_the_command_is_named(
    tmp_path: Path,
) -> None:
    said = _python("print(kernels.load(), kernels.missing(), kernels.status())", XDG_CACHE_HOME=str(tmp_path))
    assert said.startswith("None True TensorFlow's own operations: the C++ kernels aren't built for this TensorFlow; ")
    assert said.endswith("python -m job.model.kernels.build\n")


def test_a_library_that_can_t_be_loaded_is_passed_over(compiled: None, tmp_path: Path) -> None:
    whole = library.built()[0]
    folder = tmp_path / "fashion-job/kernels" / whole.parent.name
    folder.mkdir(parents=True)
    (folder / "newest.so").write_bytes(b"no library")
    script = "print(kernels.load(), kernels.missing(), kernels.status())"
    said = _python(script, XDG_CACHE_HOME=str(tmp_path))
    assert said.startswith(f"None True TensorFlow's own operations: {folder}/newest.so can't be loaded (")
    assert said.count("\n") == 1 and "; remove it and build ours with: " in said
    shutil.copy(whole, folder / "older.so")
    os.utime(folder / "older.so", (0, 0))
    assert "older.so" in _python(script, XDG_CACHE_HOME=str(tmp_path))


def test_a_process_keeps_the_library_that_it_has_loaded(compiled: None, tmp_path: Path) -> None:
    folder = tmp_path / "fashion-job/kernels" / library.built()[0].parent.name
    shutil.copytree(library.built()[0].parent, folder)
    script = """
import shutil, sys
kernels.allow(None, bfloat16=True)
first, half = kernels.load(), kernels.in_bfloat16()
shutil.rmtree(sys.argv[1])  # as when the sources change under a run: the name is another one
assert kernels.load() is first and kernels.in_bfloat16() == half
kernels.multiply_in_float32()
assert not kernels.in_bfloat16()
print(kernels.status())
"""
    assert _python(script, str(folder), XDG_CACHE_HOME=str(tmp_path)).startswith("C++ kernels for ")


def test_a_library_is_found_without_a_compiler(compiled: None) -> None:
    assert _python("print(kernels.status())", PATH="").startswith("C++ kernels for ")


def test_a_library_that_came_along_is_found(compiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = library.built()[0]
    shutil.copytree(found.parent, tmp_path / "shipped" / found.parent.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert library.built() == [tmp_path / "shipped" / found.parent.name / found.name]


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
    assert library.built() == []
    assert not list((tmp_path / "cache").rglob("*.o"))


def test_an_assembler_that_is_older_than_its_compiler_is_noticed(tmp_path: Path) -> None:
    assembler = tmp_path / "as"
    assembler.write_text(
        '#!/bin/sh\nfor last; do :; done\ngrep -q tilerelease "$last" && exit 1\nexec /usr/bin/as "$@"\n'
    )
    assembler.chmod(0o755)
    takes = {name: _takes(["g++", f"-B{tmp_path}"], name, flags) for name, flags in library.BFLOAT16_FLAGS.items()}
    assert takes == {"amx": False, "avx512bf16": True}
    assert all(_takes(["g++"], name, flags) for name, flags in library.BFLOAT16_FLAGS.items())


@pytest.mark.slow
def test_a_compiler_that_knows_no_bfloat16_builds_all_the_rest(tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-mavx512bf16*) exit 1 ;; esac\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    cache = {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = _run(**cache)
    assert done.returncode == 0, done.stderr
    said = _python("kernels.allow(None, bfloat16=True); print(kernels.status())", **cache)
    assert said.startswith("C++ kernels for ") and not re.search(" amx | avx512bf16 ", said)


def test_an_unknown_choice_of_kernels_is_refused(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_KERNELS", "mmx")
    with pytest.raises(InputError, match="received FASHION_KERNELS=mmx"):
        kernels.load()
