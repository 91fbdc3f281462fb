"""Our C++ operations for CPUs: how they are found, and which are in use.

FASHION_KERNELS chooses for tests and measurements: avx512, avx2, plain, or off for TensorFlow's own operations.
"""

import ctypes
import functools
import os
from types import ModuleType
from typing import NamedTuple

from job.model.kernels import library


class _Found(NamedTuple):
    operations: ModuleType | None
    status: str


def load() -> ModuleType | None:
    """The operations as TensorFlow's wrappers, or None where TensorFlow's own must do. Never compiles anything."""
    return _find(os.environ.get("FASHION_KERNELS", "")).operations


def status() -> str:
    """One line: what is in use and why."""
    return _find(os.environ.get("FASHION_KERNELS", "")).status


@functools.cache
def _find(choice: str) -> _Found:
    if choice == "off":
        return _Found(None, "TensorFlow's own operations (FASHION_KERNELS=off).")
    path = library.built()
    if path is None:
        advice = "build ours with: python -m job.model.kernels.build"
        return _Found(None, f"TensorFlow's own operations: the C++ kernels aren't built for this TensorFlow; {advice}")
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return _Found(None, "TensorFlow's own operations: the device is a GPU.")
    operations = tf.load_op_library(str(path))
    native = ctypes.CDLL(str(path))
    native.fashion_kernels_select.restype = ctypes.c_char_p
    chosen = native.fashion_kernels_select(choice.encode())
    if chosen is None:
        raise ValueError(
            f"FASHION_KERNELS names no kernels of this processor: received {choice}. Use one of "
            f"{', '.join(library.variants())}, off."
        )
    native.fashion_kernels_keep_memory()
    from job.model.kernels import gradients  # registers them: once the operations exist

    gradients.register(operations)
    return _Found(operations, f"C++ kernels for {chosen.decode()} ({path}).")
