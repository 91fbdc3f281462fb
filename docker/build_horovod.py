"""Build Horovod 0.28.1 for the installed TensorFlow, keep the wheel, install it, and prove it by an all-reduce.

    python docker/build_horovod.py                  # build (or take from the cache), install, verify
    python docker/build_horovod.py --mpi            # with MPI beside Gloo (needs Open MPI's headers)
    python docker/build_horovod.py --cuda HOME      # with NCCL, for NVIDIA GPUs (needs a CUDA 12 toolkit)
    python docker/build_horovod.py --wheel-dir DIR  # only put the wheel there: no installation, no verification

PyPI has Horovod's source alone, and that source no longer compiles as it is: it is mended first. The wheel is cached
under a name made from everything it depends on (Python, TensorFlow, Horovod, compiler, this script, options), so a
second call takes a second. Standard library only: the Makefile and the images run it before anything else is there.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from importlib import metadata
from pathlib import Path

VERSION = "0.28.1"
SOURCE_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"

CUDA_ARCHITECTURES = "60,70,75,80,86,89,90"
"""Compute capabilities that GPU code is made for; the last one as PTX too, which newer GPUs compile themselves."""

# TensorFlow 2.21 no longer exports the function that Horovod declares here; a stream tells its handle itself.
STREAM_DECLARED = """// Forward declaration of AsGpuStreamValue
namespace stream_executor {
namespace gpu {
GpuStreamHandle AsGpuStreamValue(Stream* stream);
} // namespace stream_executor
} // namespace gpu
"""
STREAM_INCLUDED = "#endif // TENSORFLOW_VERSION >= 2011000000\n#endif // HAVE_GPU\n"
STREAM_DEFINED = """#endif // TENSORFLOW_VERSION >= 2011000000
namespace stream_executor::gpu {
static GpuStreamHandle AsGpuStreamValue(Stream* stream) {
  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);
}
} // namespace stream_executor::gpu
#endif // HAVE_GPU
"""

EXTENSION_MUTED = "            sys.stderr = open(os.devnull, 'w')\n"
EXTENSION_SILENT = """            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stderr.fileno(), 2)
"""
LAUNCHER_RUNS = "    _run(args)\n\n\nif __name__ == '__main__':\n"
LAUNCHER_ENDS = """    try:
        _run(args)
    except RuntimeError as error:
        sys.exit('horovodrun: ' + ' '.join(str(error).split()))


if __name__ == '__main__':
"""

# Two processes, one number each: the sum proves compiler, loader, launcher and network at once.
ALL_REDUCE = """
import horovod.tensorflow as hvd, tensorflow as tf
hvd.init()
total = float(hvd.allreduce(tf.constant(float(hvd.rank() + 1)), op=hvd.Sum))
assert hvd.size() == 2 and total == 3.0, (hvd.size(), total)
print("all-reduce over 2 processes: sum", total)
"""


class BuildError(Exception):
    """The build can't go on; the message is one line that says why and what to do."""


def compiler() -> str:
    """The C++ compiler's first version line, e.g. ``g++ (Debian 12.2.0) 12.2.0``. Raises BuildError without one."""
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(command[0]) is None:
        raise BuildError(f"no C++17 compiler: {command[0]!r} was not found. Install g++ 9 or newer, or set CXX.")
    return subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def cache_key(options: dict[str, str]) -> str:
    """The name of the cache entry: readable versions, and a digest of all that the wheel depends on."""
    tensorflow = next((metadata.version(n) for n in ("tensorflow-cpu", "tensorflow") if _installed(n)), None)
    if tensorflow is None:
        raise BuildError("TensorFlow is not installed in this Python. Install requirements/runtime.txt first.")
    facts = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "tensorflow": tensorflow,
        "horovod": VERSION,
        "nccl": metadata.version("nvidia-nccl-cu12") if _installed("nvidia-nccl-cu12") else None,
        "compiler": compiler(),
        "options": options,
        "script": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return f"horovod-{VERSION}-tf{tensorflow}-py{platform.python_version()}-{digest}"


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def fetch_source(folder: Path) -> Path:
    """Download the source archive with pip, which checks its SHA-256 before it runs anything, and unpack it.

    Returns the source tree's folder.
    """
    pinned = folder / "horovod.txt"
    pinned.write_text(f"horovod=={VERSION} --hash=sha256:{SOURCE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    run(
        [*command, "--no-build-isolation", "--dest", str(folder), "--require-hashes", "-r", str(pinned)],
        "download of Horovod's source",
    )
    archive = folder / f"horovod-{VERSION}.tar.gz"
    # Without a filter, which Python 3.11.2 lacks: these are the known archive's bytes.
    with tarfile.open(archive) as tar:
        tar.extractall(folder)
    return folder / f"horovod-{VERSION}"


def change(path: Path, old: str, new: str) -> None:
    """Replace a text that a source file must have exactly once. Raises BuildError where it hasn't."""
    text = path.read_text()
    if text.count(old) != 1:
        raise BuildError(f"{path} is not as expected: {old!r} is there {text.count(old)} times, not once.")
    path.write_text(text.replace(old, new))


def mend(source: Path) -> None:
    """Make the source fit TensorFlow 2.21 and a CUDA runtime shared with TensorFlow, and mend what else is wrong.

    The XLA operations are left out: they include headers that have moved, and serve GPUs only, under a switch.
    """
    tensorflow = source / "horovod/tensorflow"
    xla = 'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n'
    change(tensorflow / "CMakeLists.txt", xla, "")
    change(tensorflow / "mpi_ops.cc", STREAM_DECLARED, "")
    change(tensorflow / "mpi_ops.cc", STREAM_INCLUDED, STREAM_DEFINED)
    runtime = 'set(CMAKE_CUDA_RUNTIME_LIBRARY "{}")'
    change(source / "CMakeLists.txt", runtime.format("Static"), runtime.format("Shared"))
    # The check for stalled ranks looks through this list, which was left empty: under Gloo it never found one.
    ranks = "  global_ranks_.{}(size_);"
    change(source / "horovod/common/gloo/gloo_controller.cc", ranks.format("reserve"), ranks.format("resize"))
    # Process sets, the global one among them, would forget the network interface that the user has named.
    device = "  auto dev = CreateDevice(device_attr);\n\n  global_ctx = global_context.ctx;\n"
    named = "  device_attr.iface = global_context.gloo_iface_;\n"
    change(source / "horovod/common/gloo/gloo_context.cc", device, named + device)
    # horovodrun would take the command's `--timeline` for a short form of two options of its own, and refuse it.
    parser = "argparse.ArgumentParser(description='Horovod Runner'{})"
    change(source / "horovod/runner/launch.py", parser.format(""), parser.format(", allow_abbrev=False"))
    # The launcher looks for extensions quietly, but what TensorFlow's C++ code writes would pass by.
    change(source / "horovod/common/util.py", EXTENSION_MUTED, EXTENSION_MUTED + EXTENSION_SILENT)
    # A rank's own line says why it ended: the launcher's traceback of its own code would bury that.
    change(source / "horovod/runner/launch.py", LAUNCHER_RUNS, LAUNCHER_ENDS)


def gpu_options(cuda: Path, architectures: str) -> dict[str, str]:
    """Horovod's options for NCCL, which comes from its pip package. Raises BuildError when something is missing."""
    if not (cuda / "bin/nvcc").is_file():
        raise BuildError(f"no CUDA toolkit in {cuda}: bin/nvcc was not found. Name the toolkit's folder with --cuda.")
    if not _installed("nvidia-nccl-cu12"):
        raise BuildError("NCCL is not installed in this Python. Install requirements/gpu.txt first.")
    found = importlib.util.find_spec("nvidia.nccl")
    assert found is not None and found.submodule_search_locations
    return {
        "HOROVOD_GPU": "CUDA",
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_CUDA_HOME": str(cuda),
        "HOROVOD_NCCL_HOME": next(iter(found.submodule_search_locations)),
        "HOROVOD_NCCL_LINK": "SHARED",
        "HOROVOD_BUILD_CUDA_CC_LIST": architectures,
        # The pip packages have the shared runtime alone, and no library for kernels that start kernels.
        "CUDAFLAGS": "-cudart shared -cudadevrt none",
        # CMake has the C++ compiler link and doesn't tell it where.
        "LIBRARY_PATH": str(cuda / "lib64"),
    }


def nccl_library(options: dict[str, str], folder: Path) -> dict[str, str]:
    """Put the link that linkers look for, and NCCL's pip package lacks, into a folder; the options that name it."""
    if "HOROVOD_NCCL_HOME" not in options:
        return {}
    (folder / "libnccl.so").symlink_to(Path(options["HOROVOD_NCCL_HOME"]) / "lib/libnccl.so.2")
    return {"HOROVOD_NCCL_INCLUDE": f"{options['HOROVOD_NCCL_HOME']}/include", "HOROVOD_NCCL_LIB": str(folder)}


def run(command: list[str], what: str, env: dict[str, str] | None = None, timeout: float = 3600) -> str:
    """Run a command quietly; on failure raise BuildError with its last lines, each cut to a readable length, above."""
    try:
        done = subprocess.run(
            command, env=env, timeout=timeout, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"{what} did not end within {timeout:.0f} s.") from None
    if done.returncode:
        print("\n".join(line[:300] for line in done.stdout.splitlines()[-80:]), file=sys.stderr)
        raise BuildError(f"{what} failed with exit code {done.returncode}; its last output is above.")
    return done.stdout


def build(wheel_dir: Path, options: dict[str, str], jobs: int) -> Path:
    """Compile the wheel into ``wheel_dir`` and return its path."""
    with tempfile.TemporaryDirectory(prefix="horovod-build-") as temporary:
        source = fetch_source(Path(temporary))
        mend(source)
        # CMake and its friends come from this Python's own environment, whether or not that is activated.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        if "HOROVOD_CUDA_HOME" in options:
            path = f"{options['HOROVOD_CUDA_HOME']}/bin{os.pathsep}{path}"
        env = os.environ | options | nccl_library(options, Path(temporary))
        env |= {"PATH": path, "MAKEFLAGS": f"-j{jobs}"}
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
        run([*command, "--wheel-dir", temporary, str(source)], "compilation of Horovod", env=env)
        built = next(Path(temporary).glob(f"horovod-{VERSION}-*.whl"))
        wheel_dir.mkdir(parents=True, exist_ok=True)
        # Copied under another name and renamed, so that an interrupted copy is never taken for a wheel.
        partial = wheel_dir / f".{built.name}.{os.getpid()}.partial"
        shutil.copy(built, partial)
        return partial.rename(wheel_dir / built.name)


def cached(folder: Path) -> Path | None:
    """The wheel in a folder of the cache; one that is damaged is removed."""
    for wheel in folder.glob("*.whl"):
        try:
            with zipfile.ZipFile(wheel) as archive:
                if archive.testzip() is None:
                    return wheel
        except (zipfile.BadZipFile, zlib.error):
            pass
        print(f"{wheel} is damaged and is built again", file=sys.stderr)
        wheel.unlink()
    return None


def verify() -> None:
    """All-reduce over two real processes under ``horovodrun``; raises BuildError when the sum isn't right."""
    launcher = Path(sys.executable).with_name("horovodrun")
    with tempfile.TemporaryDirectory() as temporary:
        script = Path(temporary) / "all_reduce.py"
        script.write_text(ALL_REDUCE)
        command = [str(launcher), "-np", "2", sys.executable, str(script)]
        output = run(command, "the all-reduce over 2 processes", timeout=300)
    if output.count("all-reduce over 2 processes: sum 3.0") != 2:
        raise BuildError(f"the all-reduce over 2 processes did not answer twice; it printed: {output[-500:]!r}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mpi", action="store_true", help="build with MPI beside Gloo")
    parser.add_argument("--cuda", type=Path, metavar="HOME", help="build with NCCL, by the CUDA toolkit in this folder")
    parser.add_argument("--cuda-architectures", default=CUDA_ARCHITECTURES, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parallel compilations (default: all cores)")
    parser.add_argument("--wheel-dir", type=Path, help="put the wheel here and stop: no installation, no check")
    args = parser.parse_args(argv)
    options = {
        "HOROVOD_WITH_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_PYTORCH": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITH_MPI" if args.mpi else "HOROVOD_WITHOUT_MPI": "1",
    }
    try:
        if args.cuda:
            options |= gpu_options(args.cuda, args.cuda_architectures)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fashion-job" / cache_key(options)
        wheel = cached(cache)
        if wheel is None:
            cache.mkdir(parents=True, exist_ok=True)  # what can't be written is told before minutes are spent
            print(
                f"building Horovod {VERSION} for TensorFlow ({args.jobs} jobs; about 5 minutes on two cores) …",
                flush=True,
            )
            start = time.monotonic()
            wheel = build(cache, options, args.jobs)
            print(f"built {wheel.name} in {time.monotonic() - start:.0f} s; kept in {cache}", flush=True)
        else:
            print(f"Horovod {VERSION}: wheel from the cache, {cache.name}", flush=True)
        if args.wheel_dir:
            args.wheel_dir.mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, args.wheel_dir)
            return 0
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)]
        run(pip, "installation of the wheel")
        verify()
        print("Horovod works: two processes under horovodrun agreed on a sum")
    except (BuildError, OSError) as error:
        print(f"build_horovod: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
