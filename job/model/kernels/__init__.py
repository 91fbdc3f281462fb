"""Our C++ operations for CPUs: how they are found, and which are in use.

FASHION_KERNELS chooses for tests and measurements: avx512, avx2, plain, amx, avx512bf16, or off for TensorFlow's own
operations.
"""

import ctypes
import functools
import os
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from job.errors import InputError
from job.model.kernels import library


def load() -> ModuleType | None:
    """The operations as TensorFlow's wrappers, or None where TensorFlow's own must do. Never compiles anything.

    Raises:
        InputError: FASHION_KERNELS names none that this processor has.
    """
    return _find().operations


def status() -> str:
    """One line: what is in use and why."""
    return _find().line


def allow(reason_against: str | None, *, bfloat16: bool = False) -> None:
    """Use the operations where they are there; or, for a reason that `status` then gives, use TensorFlow's own.

    Args:
        reason_against: None if there is none.
        bfloat16: whether those may be used that multiply in bfloat16, where the processor can (AMX, AVX512_BF16).
    """
    global _reason_against, _bfloat16
    _reason_against, _bfloat16 = reason_against, bfloat16


def multiply_in_float32() -> None:
    """From here on, also in functions that are traced already, multiply in float32."""
    global _bfloat16
    _bfloat16 = False
    load()  # the choice is the library's, which learns of it here


def in_bfloat16() -> bool:
    """Whether the operations in use multiply in bfloat16; all else in them is float32."""
    return _find().variant in library.BFLOAT16_FLAGS


_reason_against: str | None = None
_bfloat16 = False


class _Choice(NamedTuple):
    operations: ModuleType | None
    variant: str | None
    line: str


def _none(reason: str) -> _Choice:
    return _Choice(None, None, f"TensorFlow's own operations{reason}")


def _find() -> _Choice:
    if _reason_against:
        return _none(f": {_reason_against}.")
    choice = os.environ.get("FASHION_KERNELS", "")
    if choice == "off":
        return _none(" (FASHION_KERNELS=off).")
    path = library.built()
    if path is None:
        advice = "build ours with: python -m job.model.kernels.build"
        return _none(f": the C++ kernels aren't built for this TensorFlow; {advice}")
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return _none(": the device is a GPU.")
    operations, native = _open(path)
    wanted = [*library.BFLOAT16_FLAGS, ""] if _bfloat16 and not choice else [choice]
    chosen = next(filter(None, (native.fashion_kernels_select(name.encode()) for name in wanted)), None)
    if chosen is None:
        names = ", ".join([*library.variants(), *library.BFLOAT16_FLAGS, "off"])
        raise InputError(f"no such kernels for this processor: received FASHION_KERNELS={choice}. Use one of {names}.")
    return _Choice(operations, chosen.decode(), f"C++ kernels for {chosen.decode()} ({path}).")


@functools.cache
def _open(path: Path) -> tuple[ModuleType, ctypes.CDLL]:
    import tensorflow as tf

    from job.model.kernels import gradients

    operations = tf.load_op_library(str(path))
    gradients.register(operations)
    native = ctypes.CDLL(str(path))
    native.fashion_kernels_select.restype = ctypes.c_char_p
    return operations, native
