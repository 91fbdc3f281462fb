"""Look whether this machine can train, and say how to mend what is wrong.

    python -m job.doctor [--data-dir DIR] [--runs DIR] [--json]

Exit code 0 when nothing fails (a warning is no failure), else 1.
"""

import contextlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from job import cache, quiet
from job.command_line import Parser
from job.config import usual_data_dir
from job.errors import InputError, run_main
from job.machine import usable_cores, usable_memory
from job.model.kernels import library

_GIB = 2**30
_RANK_MEMORY = 1.5 * _GIB  # At 56 pixels and a batch of 64.
_ALL_REDUCE_SECONDS = 120.0
_IMPORT_SECONDS = 120.0
_SETUP = "Run `make train` or `make test`: both set up what is missing."
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found."""

    subject: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""
    """What to do; empty if nothing need be done."""


def main(argv: list[str] | None = None) -> int:
    """Examine the machine, print what was found and return the exit code."""
    options = _parser().parse_args(argv)
    findings = list(examine(options.data_dir, options.runs))
    healthy = all(finding.status != "fail" for finding in findings)
    if options.json:
        print(json.dumps({"healthy": healthy, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        Console(highlight=False).print(table_of(findings))
    return 0 if healthy else 1


def examine(data_dir: Path | None, runs: Path) -> Iterator[Finding]:
    """Look at everything, the software first."""
    yield from _versions()
    yield _compiler()
    problem = _tensorflow()
    if problem:
        yield problem  # nothing that needs it can be looked at
    else:
        yield from _horovod()
        quiet.import_tensorflow()
        yield _kernels()
        yield _gpus()
    yield _cores()
    yield _memory()
    yield _shared_memory()
    yield check_data(data_dir)
    yield check_folder("Run folder", runs, needed=_GIB, option="--run")
    yield check_folder("Cache folder", cache.folder("."), needed=_GIB // 4, option="XDG_CACHE_HOME")


def _versions() -> Iterator[Finding]:
    python = platform.python_version()
    fits = sys.version_info[:2] == (3, 11)
    yield Finding("Python", "ok" if fits else "fail", python, "" if fits else "Install Python 3.11 and set up anew.")
    for names, oldest in ((("tensorflow", "tensorflow-cpu"), 2), (("keras",), 3), (("numpy",), 2), (("pyarrow",), 1)):
        version = next(filter(None, map(_version, names)), None)
        if version is None:
            yield Finding(names[0], "fail", "not installed", _SETUP)
        elif int(version.partition(".")[0]) < oldest:
            yield Finding(names[0], "fail", f"{version}: older than {oldest}", _SETUP)
        else:
            yield Finding(names[0], "ok", version)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _compiler() -> Finding:
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(command[0]) is None:
        if library.SHIPPED.is_dir():
            return Finding("C++ compiler", "ok", "none, and none is needed: the operations came with this image")
        advice = "Only set-up needs it: install g++, or set CXX, before `make train` builds Horovod and the operations."
        return Finding("C++ compiler", "warn", f"{shlex.join(command)} was not found", advice)
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    name = (version.splitlines() or [shlex.join(command)])[0]
    if "clang" in name:
        return Finding("C++ compiler", "warn", f"{name}: the operations need g++", "Install g++, or set CXX to it.")
    return Finding("C++ compiler", "ok", name)


def _tensorflow() -> Finding | None:
    # In a process of its own: what can't be imported may end the process that tries.
    problem = run_bounded([sys.executable, "-c", "import tensorflow"], _IMPORT_SECONDS)
    return Finding("TensorFlow's import", "fail", problem, _SETUP) if problem else None


def _horovod() -> Iterator[Finding]:
    version = _version("horovod")
    if version is None:
        yield Finding("Horovod", "fail", "not installed: only one process can train", _SETUP)
        return
    # A virtual environment that isn't activated has its programs beside its Python.
    program = shutil.which("horovodrun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        yield Finding("Horovod", "fail", f"{version}, but horovodrun is not on the path", _SETUP)
        return
    print(f"Trying an all-reduce on two ranks (at most {_ALL_REDUCE_SECONDS:.0f} s) …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [program, "-np", "2", sys.executable, str(Path(__file__).with_name("probe.py")), str(result)]
        problem = run_bounded(command, _ALL_REDUCE_SECONDS)
        report = json.loads(result.read_text()) if result.exists() else None
    if problem is None and (report is None or (report["sum"], report["size"]) != (3.0, 2)):
        problem = f"the ranks should have summed to 3: received {report}"
    if report is not None:
        built = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in report["built"].items())
        yield Finding("Horovod", "ok", f"{version} ({built})")
    if problem is None:
        yield Finding("Two-rank all-reduce", "ok", "right")
    else:
        advice = (
            "Try `horovodrun -np 2 hostname`; if that works, remove .venv and the cache's horovod-…, and set up anew."
        )
        yield Finding("Two-rank all-reduce", "fail", problem, advice)


def run_bounded(command: list[str], seconds: float) -> str | None:
    """Run a command for so many seconds at most, and leave none of its processes behind.

    Returns:
        None if it ended with 0, else one line on what went wrong.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # horovodrun's ranks are in sessions of their own: killing its process group would leave them.
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.communicate()
        return f"no end within {seconds:.0f} s"
    if process.returncode == 0:
        return None
    lines = [line for line in output.splitlines() if "Error" in line] or output.splitlines() or ["no output"]
    return f"exit code {process.returncode}: {lines[-1].strip()}"


def _kernels() -> Finding:
    from job.model import kernels

    line = kernels.status()
    if not kernels.missing():
        return Finding("C++ operations", "ok", line)
    advice = "Training works without, more slowly. Building them needs g++ with C++17."
    return Finding("C++ operations", "warn", line, advice)


def _gpus() -> Finding:
    import tensorflow as tf

    seen = len(tf.config.list_physical_devices("GPU"))
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if there > seen:
        advice = "Install the CUDA build of TensorFlow (tensorflow[and-cuda]), or use the GPU image."
        return Finding("GPUs", "warn", f"{there} in the machine, but TensorFlow sees {seen}", advice)
    return Finding("GPUs", "ok", str(seen) if seen else "none: training runs on the processor")


def _cores() -> Finding:
    machine, usable = os.cpu_count() or 1, usable_cores()
    if usable < 1:
        return Finding(
            "Cores",
            "warn",
            f"{usable:.1f} of the machine's {machine} can be used",
            "Raise the container's CPU limit to 1 a rank.",
        )
    return Finding("Cores", "ok", f"{usable:g} of the machine's {machine} can be used")


def _memory() -> Finding:
    available = usable_memory()
    ranks = int(available / _RANK_MEMORY)
    found = f"{available / _GIB:.1f} GiB available: enough for {ranks} ranks of 64 images at 56 pixels"
    if ranks >= 2:
        return Finding("Memory", "ok", found)
    advice = "Free memory or raise the container's limit; a smaller batch or resolution needs less."
    return Finding("Memory", "warn" if ranks else "fail", found, advice)


def _shared_memory() -> Finding:
    place = Path("/dev/shm")
    size = shutil.disk_usage(place).total / _GIB if place.is_dir() else 0.0
    if size < 0.25:
        found = f"{1024 * size:.0f} MiB: too little for NCCL, MPI and Ray; ranks on processors need none"
        return Finding("/dev/shm", "warn", found, "Start the container with --shm-size=1g.")
    return Finding("/dev/shm", "ok", f"{size:.1f} GiB")


def check_data(data_dir: Path | None) -> Finding:
    """Find and read Fashion-MNIST where the user says it is, or in the cache; nothing is downloaded."""
    from job.data import fashion_mnist

    try:
        data = fashion_mnist.load(data_dir, download=False)
    except InputError as error:
        return Finding("Fashion-MNIST", "fail" if data_dir else "warn", *_split_advice(str(error), bool(data_dir)))
    except OSError as error:
        return Finding("Fashion-MNIST", "fail", f"{error.filename}: {error.strerror}", "Change its permissions.")
    found = f"{len(data.train_images):,} + {len(data.test_images):,} images in {data.source}"
    return Finding("Fashion-MNIST", "ok", found)


def _split_advice(message: str, named: bool) -> tuple[str, str]:
    """What is wrong, and what to do."""
    if not named:
        advice = "The first run downloads it (31 MB); without a network use --data-dir, or --dataset garments."
        return "not in the cache", advice
    wrong, _, advice = message.partition(". ")
    return wrong, advice


def check_folder(subject: str, folder: Path, *, needed: int, option: str) -> Finding:
    """Try to write into a folder, or the nearest one above it that is there; see whether `needed` bytes are free."""
    try:
        place = next(each for each in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(each))
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"written")
    except OSError as error:
        return Finding(
            subject, "fail", f"{folder}: {error.strerror}", f"Change its permissions or its place ({option})."
        )
    free = shutil.disk_usage(place).free
    found = f"{folder}: writable, {free / _GIB:.1f} GiB free"
    if free < needed:
        return Finding(subject, "warn", found, f"Free {needed / _GIB:.2g} GiB or change its place ({option}).")
    return Finding(subject, "ok", found)


def table_of(findings: list[Finding]) -> Table:
    """The findings as a table for a terminal."""
    table = Table("", "Looked at", "Found, and what to do", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for each in findings:
        # Text and not strings, in which square brackets would be taken for styles.
        said = Text(each.found + (f"\n→ {each.remedy}" if each.remedy else ""))
        table.add_row(Text(each.status, style=_COLOURS[each.status]), Text(each.subject), said)
    return table


def _parser() -> Parser:
    parser = Parser("python -m job.doctor", description="Look whether this machine can train.")
    parser.add_argument("--data-dir", metavar="DIR", type=Path, default=usual_data_dir(), help="Fashion-MNIST")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="where runs go (default: runs)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    run_main(main)
