"""Which compiled library belongs to these sources, and where it is kept."""

import hashlib
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from job import cache
from job.errors import InputError

SOURCES = Path(__file__).parent

INNER_FLAGS = ["-O3", "-fno-math-errno", "-Wno-maybe-uninitialized"]  # gcc 12 takes its own intrinsics for a mistake
VARIANT_FLAGS = {
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
    "plain": [],
}
# Products of bfloat16, the fastest first: not among those that are chosen by speed, and not known to every compiler.
_AVX512BF16 = [*VARIANT_FLAGS["avx512"], "-mavx512bf16"]
BFLOAT16_FLAGS = {"amx": [*_AVX512BF16, "-mamx-tile", "-mamx-bf16"], "avx512bf16": _AVX512BF16}
# A product that is rounded in one place and not in another would leave a remainder where gradients cancel out.
OPERATION_FLAGS = ["-O2", "-ffp-contract=off", "-Wno-deprecated-declarations"]


def variants() -> dict[str, list[str]]:
    """Compiler flags of each variant of the inner kernels, exact to float32, that this kind of processor can have."""
    if platform.machine() in ("x86_64", "AMD64"):
        return VARIANT_FLAGS
    return {"plain": VARIANT_FLAGS["plain"]}


SHIPPED = SOURCES / "built"
"""Where an image has its libraries, in folders as the cache's."""


def _name() -> str:
    """Of the folder for these sources, this TensorFlow, Python and C library, and this kind of processor."""
    digest = hashlib.sha256()
    for path in sorted(path for part in ("inner", "ops") for path in SOURCES.glob(f"{part}/*.[ch]*")):
        digest.update(f"{path.relative_to(SOURCES)}\0".encode() + path.read_bytes())
    flags = repr((INNER_FLAGS, variants(), BFLOAT16_FLAGS, OPERATION_FLAGS))
    python = ".".join(map(str, sys.version_info[:2]))
    digest.update(repr((_tensorflow_version(), python, platform.libc_ver(), platform.machine(), flags)).encode())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where a library that is compiled here is kept."""
    return cache.folder("kernels") / _name()


def built() -> list[Path]:
    """The libraries for these sources, by any compiler, the newest first: no compiler is needed to find them."""
    folders = [SHIPPED / _name(), cache_folder()]
    return sorted((p for f in folders for p in f.glob("*.so")), key=lambda path: path.stat().st_mtime, reverse=True)


def _tensorflow_version() -> str:
    for name in ("tensorflow-cpu", "tensorflow"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise InputError("TensorFlow is not installed. Install it first: pip install -r requirements/runtime.txt.")
