"""Compiles the C++ operations into the cache: `python -m job.model.kernels.build`.

One library holds code for AVX-512, AVX2 and any other processor (on x86-64; elsewhere the last alone), chosen when it
is loaded, and for products of bfloat16 (by AMX, by AVX-512), chosen by `--precision bfloat16`. It is compiled against
the headers in TensorFlow's own wheel, by $CXX or g++, in about 20 seconds.
"""

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from job.errors import InputError, RunError, run_main
from job.model.kernels.library import BFLOAT16_FLAGS, INNER_FLAGS, OPERATION_FLAGS, SOURCES, cache_folder, variants

_INSTRUCTIONS = {"amx": "tilerelease", "avx512bf16": "vdpbf16ps %zmm0, %zmm0, %zmm0"}
"""One of each kind, which an old assembler beside a newer compiler may not know."""


def build() -> tuple[Path, float]:
    """Compile the library unless the cache has it. Returns its path and the seconds it took, 0 if it was there.

    Raises InputError without g++, RunError where it fails, its words on stderr.
    """
    compiler = _compiler()
    identity = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True).stdout
    if "clang" in identity.lower():
        # It forgets how vectors are aligned when they are template arguments: what it makes of the kernels crashes.
        raise InputError(f"the kernels need g++: received {' '.join(compiler)}, which is clang. Set CXX to g++.")
    folder = cache_folder()
    library = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library, 0.0
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    inner = variants()
    if "avx512" in inner:
        inner = inner | {name: flags for name, flags in BFLOAT16_FLAGS.items() if _takes(compiler, name, flags)}
    macros = [f"-DFASHION_{name.upper()}" for name in inner if name in BFLOAT16_FLAGS]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # In the order in which they are linked: of a function that several have, the first is taken, and the first
        # runs on any processor.
        commands = [[*OPERATION_FLAGS, *macros, *_headers(), str(SOURCES / "ops/all.cc"), "-o", f"{scratch}/ops.o"]]
        commands += [
            [*INNER_FLAGS, *flags, f"-DVARIANT={name}", str(SOURCES / "inner/variant.cc"), "-o", f"{scratch}/{name}.o"]
            for name, flags in sorted(inner.items(), key=lambda variant: len(variant[1]))
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda command: _run([*compiler, "-std=c++17", "-fPIC", "-c", *command]), commands))
        whole = Path(scratch) / "library.so"
        objects = [command[-1] for command in commands]
        _run([*compiler, "-shared", "-o", str(whole), *objects, *_libraries()])
        whole.replace(library)  # whoever loads it finds all of it or nothing
    return library, time.monotonic() - start


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CXX", ""))
    command = chosen or ["g++"]
    if shutil.which(command[0]) is None:
        raise InputError(f"no C++17 compiler was found: looked for {' '.join(command)}. Install g++ or set CXX to one.")
    return command


def _takes(compiler: list[str], name: str, flags: list[str]) -> bool:
    """Whether a compiler knows these flags (those for AMX gcc does from 11 on), and its assembler the instructions."""
    source = f'void probe() {{ asm("{_INSTRUCTIONS[name]}"); }}'
    with tempfile.TemporaryDirectory() as scratch:
        command = [*compiler, *flags, "-c", "-x", "c++", "-", "-o", f"{scratch}/probe.o"]
        return subprocess.run(command, input=source, text=True, capture_output=True, check=False).returncode == 0


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise RunError(f"compiling the kernels failed, with the words above: {shlex.join(command)}")


def _headers() -> list[str]:
    import tensorflow as tf  # 5 seconds: only when there is something to compile

    return list(tf.sysconfig.get_compile_flags())


def _libraries() -> list[str]:
    import tensorflow as tf

    return list(tf.sysconfig.get_link_flags())


def main() -> int:
    """Build, and say what was done."""
    parser = argparse.ArgumentParser(prog="python -m job.model.kernels.build", description=__doc__)
    parser.parse_args()
    library, seconds = build()
    done = f"compiled in {seconds:.0f} s" if seconds else "already compiled"
    print(f"C++ kernels ({', '.join(variants())}): {done}, {library}")
    return 0


if __name__ == "__main__":
    run_main(main)
