"""Our C++ operations for CPUs: how they are found, and which are in use.

FASHION_KERNELS chooses for tests and measurements: avx512, avx2, plain, amx, avx512bf16, or off for TensorFlow's own
operations.
"""

import ctypes
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


def variant() -> str | None:
    """Which of the variants of the operations is in use; None for TensorFlow's own."""
    return _find().variant


def missing() -> bool:
    """Whether they would be used here, if only they could be loaded."""
    return _find().missing


def allow(reason_against: str | None, *, bfloat16: bool = False) -> None:
    """Use the operations where they are there; or, for a reason that `status` then gives, use TensorFlow's own.

    Args:
        reason_against: None if there is none.
        bfloat16: whether those may be used that multiply in bfloat16, where the processor can (AMX, AVX512_BF16).
    """
    global _reason_against, _bfloat16, _only_float32
    _reason_against, _bfloat16, _only_float32 = reason_against, bfloat16, False


def multiply_in_float32() -> None:
    """From here on, also in functions that are traced already, multiply in float32."""
    global _only_float32
    _only_float32 = True
    load()  # the choice is the library's, which learns of it here


def multiply_as_allowed() -> None:
    """Undo `multiply_in_float32`."""
    global _only_float32
    _only_float32 = False
    load()


def in_bfloat16() -> bool:
    """Whether the operations in use multiply in bfloat16; all else in them is float32."""
    return variant() in library.BFLOAT16_FLAGS


_reason_against: str | None = None
_bfloat16 = False
_only_float32 = False


class _Choice(NamedTuple):
    operations: ModuleType | None
    variant: str | None
    line: str
    missing: bool = False


def _none(reason: str, *, missing: bool = False) -> _Choice:
    return _Choice(None, None, f"TensorFlow's own operations{reason}", missing)


def _find() -> _Choice:
    if _reason_against:
        return _none(f": {_reason_against}.")
    choice = os.environ.get("FASHION_KERNELS", "")
    if choice == "off":
        return _none(" (FASHION_KERNELS=off).")
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return _none(": the device is a GPU.")
    opened = _opened()
    if isinstance(opened, str):
        return _none(f": {opened} build ours with: python -m job.model.kernels.build", missing=True)
    path, operations, native = opened
    wanted = [*library.BFLOAT16_FLAGS, ""] if _bfloat16 and not _only_float32 and not choice else [choice]
    chosen = next(filter(None, (native.fashion_kernels_select(name.encode()) for name in wanted)), None)
    if chosen is None:
        names = ", ".join([*library.variants(), *library.BFLOAT16_FLAGS, "off"])
        raise InputError(f"no such kernels for this processor: received FASHION_KERNELS={choice}. Use one of {names}.")
    return _Choice(operations, chosen.decode(), f"C++ kernels for {chosen.decode()} ({path}).")


class _Library(NamedTuple):
    path: Path
    operations: ModuleType
    native: ctypes.CDLL


_library: _Library | None = None
"""This process's, from its first use on: TensorFlow takes no second one, and what is on the disk may change."""


def _opened() -> _Library | str:
    """The library, opened at the first call, or in a few words why there is none and what else to do about it."""
    global _library
    if _library:
        return _library
    import tensorflow as tf

    from job.model.kernels import gradients

    reason = "the C++ kernels aren't built for this TensorFlow;"
    for path in library.built():
        try:
            operations, native = tf.load_op_library(str(path)), ctypes.CDLL(str(path))
        except (tf.errors.NotFoundError, OSError) as error:
            reason = f"{path} can't be loaded ({' '.join(str(error).split()):.200}); remove it and"
            continue
        gradients.register(operations)
        native.fashion_kernels_select.restype = ctypes.c_char_p
        _library = _Library(path, operations, native)
        return _library
    return reason
