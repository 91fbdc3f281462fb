"""Our C++ operations for CPUs: how they are found and which are in use."""

from types import ModuleType


def load() -> ModuleType | None:
    """The operations, or None where TensorFlow's own must do."""
    return None


def status() -> str:
    """One line: what is in use and why."""
    return "C++ kernels: not built."
