"""What this process may use of the machine: cores and memory, less what a container allows."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> float:
    """Cores that this process may use: its CPU set, or a container's quota (which needn't be whole) where that is less.

    Args:
        root: of the file system in which Linux tells about control groups.
    """
    cores = float(len(os.sched_getaffinity(0)))
    for group in _groups("cpu", root):
        # Version 2 keeps "QUOTA PERIOD" or "max PERIOD" in one file, version 1 two files, with -1 for no quota.
        with contextlib.suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            cores = min(cores, int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            cores = min(cores, int(quota) / int(period)) if int(quota) > 0 else cores
    return cores


def usable_memory(root: Path = _ROOT) -> int:
    """Bytes that can still be had: the machine's available memory, or what a container's limit leaves of it."""
    available = psutil.virtual_memory().available
    for group in _groups("memory", root):
        for limit, usage, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            with contextlib.suppress(OSError, ValueError):
                left = int((group / limit).read_text()) - int((group / usage).read_text()) + _cached(group, prefix)
                available = min(available, max(left, 0))
    return available


def _cached(group: Path, prefix: str) -> int:
    """Bytes of files that a control group's memory holds and gives up when it is needed; 0 if that isn't told."""
    try:
        lines = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return sum(int(lines[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
    except (OSError, ValueError, KeyError):
        return 0


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The process's control groups of either version, from its own up: each of them may hold the limit."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            base = root / "sys/fs/cgroup" / (controller if controllers else "")
            own = base / path.strip("/")
            yield from (group for group in (own, *own.parents) if group.is_relative_to(base))
