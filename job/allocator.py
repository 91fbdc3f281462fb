"""glibc's allocator, told to keep what is freed."""

import ctypes

# Of malloc.h, mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MEBI = 1 << 20


def keep_freed_memory() -> bool:
    """Keep freed memory for the next step; False where the C library has no such setting.

    glibc gives every large tensor back to the system when it is freed, and has each of its pages cleared again at the
    next use. `python -m benchmarks.allocator` measures what that costs.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    # Older versions of glibc refuse more than 32 MiB for the first.
    direct = set_option(_MMAP_THRESHOLD, 1024 * _MEBI) or set_option(_MMAP_THRESHOLD, 32 * _MEBI)
    return bool(direct and set_option(_TRIM_THRESHOLD, 2047 * _MEBI) and set_option(_TOP_PAD, 64 * _MEBI))
