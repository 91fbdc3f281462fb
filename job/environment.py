"""What a result depends on beside the configuration: the machine and the software."""

import contextlib
import datetime
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

BFLOAT16 = ("AMX_BF16", "AVX512_BF16")
"""Instructions that multiply bfloat16, the quicker ones first, as `processor` names them."""
LIBRARIES = ("tensorflow-cpu", "tensorflow", "keras", "horovod", "numpy", "pyarrow", "ray")


def environment(ranks: int, threads: int, kernels: str) -> dict[str, Any]:
    """Versions, machine, commit, command, and when that was."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),  # wherever it lies
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "python": platform.python_version(),
        "libraries": {d.name: d.version for d in metadata.distributions() if d.name.replace("_", "-") in LIBRARIES},
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "ranks": ranks,
        "threads_per_rank": threads,
        "kernels": kernels,
    }


def commit() -> str | None:
    """The commit of this code: an image tells it, else git does if this is a clone."""
    if revision := os.environ.get("FASHION_REVISION"):
        return revision
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    if shutil.which(command[0]) is None:
        return None
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def processor() -> str:
    """The processor's name and its widest instructions that our kernels know, as Linux gives them."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    widest = next((text for flag, text in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), None)
    halves = next((text for text in BFLOAT16 if text.lower() in flags), None)
    name = facts.get("model name") or platform.processor() or platform.machine()
    return ", ".join(filter(None, [name, widest, halves]))
