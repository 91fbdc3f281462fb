"""Take out of a virtual environment what no job needs at run time, and compile what every job imports.

    python docker/slim.py /opt/job

Prints a line per step with what it saved. Standard library only; needs binutils' strip. The images' builder runs it.
"""

import argparse
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

UNUSED = {
    "headers": ["**/include", "**/*.h", "**/*.hpp", "**/*.cuh", "**/*.pxd"],
    "static libraries": ["**/*.a"],
    "sources of compiled modules": ["**/*.pyx", "**/*.c", "**/*.cpp"],
    "compiler parts": ["clang", "tensorflow/xla_aot_runtime_src"],
    "maps of minified scripts": ["ray/dashboard/**/*.map"],
    "tests of other packages": [
        "numpy/**/tests",
        "pandas/tests",
        "pyarrow/tests",
        "pyarrow/_pyarrow_cpp_tests*",
        "matplotlib/tests",
        "tensorflow/**/python/tests",
    ],
    "Ray's Java and reinforcement learning": ["ray/jars", "ray/rllib"],
    "what Ray's dashboard could log in to clouds and make environments with": ["cryptography", "virtualenv"],
    "Arrow's network protocol": ["pyarrow/*flight*"],
}
"""What goes, as patterns below site-packages, under the reason why it can."""

STRIPPED = ["horovod/**/*.so", "pyarrow/*.so*", "ray/_raylet.so", "ray/core/**/*", "tensorflow/**/*.so*"]
"""What carries symbols that the loader doesn't use. Not all: libraries that patchelf has changed don't survive it."""

IMPORTED = """
import horovod.tensorflow, jinja2, keras, matplotlib.pyplot, optuna, pandas, pooch, psutil, pyarrow.parquet
import pydantic_settings, ray.dashboard.optional_deps, ray.tune.search.optuna, rich.table, safetensors.numpy
import tensorboardX, yaml
"""
"""What jobs import. Its bytecode goes along, because on a read-only root file system Python can't keep any."""


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count nothing."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def remove(site: Path, patterns: list[str]) -> int:
    """Delete what the patterns match and return its bytes."""
    saved = 0
    for path in [path for pattern in patterns for path in site.glob(pattern)]:
        if ".dist-info/" in str(path):  # licences, in folders of any name
            continue
        saved += size(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have gone with its folder
    return saved


def strip(site: Path) -> int:
    """Drop symbols that the loader doesn't use; return the bytes saved."""
    saved = 0
    for path in [path for pattern in STRIPPED for path in site.glob(pattern)]:
        sections = subprocess.run(
            ["readelf", "--sections", "--wide", path], capture_output=True, text=True, check=False
        )
        if ".symtab" not in sections.stdout:
            continue
        before = path.stat().st_size
        subprocess.run(["strip", "--strip-unneeded", "--preserve-dates", path], check=True)
        saved += before - path.stat().st_size
    return saved


def compile_imported(python: Path) -> int:
    """Compile the modules behind IMPORTED, with names and content that are the same in each build; return the bytes."""
    listing = "import sys\nfor module in list(sys.modules.values()): print(getattr(module, '__file__', None) or '')"
    command = [str(python), "-B", "-c", f"{IMPORTED}\n{listing}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    added = 0
    for line in done.stdout.splitlines():
        if line.endswith(".py") and Path(line).is_relative_to(python.parent.parent):
            unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
            compiled = py_compile.compile(line, doraise=True, invalidation_mode=unchecked)
            added += size(Path(str(compiled)))
    return added


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", type=Path, help="folder of the virtual environment")
    environment = parser.parse_args().environment
    site = next(environment.glob("lib/python*/site-packages"), None)
    if site is None:
        sys.exit(f"slim: {environment} is no virtual environment: it has no lib/python*/site-packages.")
    print(f"{size(site) / 1e6:8.0f} MB before")
    for reason, patterns in UNUSED.items():
        print(f"{-remove(site, patterns) / 1e6:+8.1f} MB {reason}")
    print(f"{-strip(site) / 1e6:+8.1f} MB symbols")
    print(f"{compile_imported(environment / 'bin' / 'python') / 1e6:+8.1f} MB bytecode of what jobs import")
    print(f"{size(site) / 1e6:8.0f} MB after")


if __name__ == "__main__":
    main()
