"""Gradients averaged through shared memory, where all ranks are processes of one host.

Horovod's Gloo sends a gradient to the neighbour process through the loopback interface and adds it up there, on the
very cores that compute. Here each rank writes its gradients where the others can read them, and each adds up all.

Horovod stays the judge of who is there: between writing and reading lies a small exchange of its own, which all ranks
must have reached before any of them goes on, and which fails when one is lost. There are two places to write to, used
in turn: a rank may write the next gradients while a slower one still reads these.
"""

import contextlib
import mmap
import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from horovod_keras.collectives import Collectives

# Bytes that are added up at a time: sums then stay in a core's cache until they are divided.
_CHUNK = 1 << 18
_ALIGNMENT = 64
MOST_RANKS = 8
"""Of a host: each reads the gradients of all, so that memory has to deliver their number squared."""

Bytes = npt.NDArray[np.uint8]


class SharedMemory:
    """Where the ranks of one host write arrays for each other; made by :func:`shared_memory`.

    Args:
        parts: the ranks' memories, in their order, each uint8 [2 · bytes of all arrays].
        rank: of this process.
        shapes: of the arrays.
        dtypes: of the arrays.
        offsets: where each array begins in a half of a memory.
    """

    def __init__(
        self,
        parts: Sequence[Bytes],
        rank: int,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[np.dtype],
        offsets: Sequence[int],
    ) -> None:
        self._rank = rank
        self._turn = 0

        def halves(memory: Bytes) -> list[list[np.ndarray]]:
            return [
                [
                    memory[start + offset : start + offset + int(np.prod(shape)) * dtype.itemsize]
                    .view(dtype)
                    .reshape(shape)
                    for shape, dtype, offset in zip(shapes, dtypes, offsets, strict=True)
                ]
                for start in (0, len(memory) // 2)
            ]

        self._halves = [halves(part) for part in parts]
        # Means have two places as well: whoever keeps those of an update sees them until the update after the next.
        self._means = halves(_aligned(len(parts[0])))

    def write(self, *arrays: np.ndarray) -> np.float32:
        """Put this rank's arrays where the others see them."""
        self._turn ^= 1
        for place, array in zip(self._halves[self._rank][self._turn], arrays, strict=True):
            np.copyto(place, array)
        return np.float32(0)

    def means(self) -> list[np.ndarray]:
        """The mean over ranks of each array written last, added up in the order of ranks: the same bits on all.

        And, as the last, float64 [], the sum of all their values.
        """
        results, all_ranks = self._means[self._turn], [halves[self._turn] for halves in self._halves]
        total = np.float64(0)
        with np.errstate(all="ignore"):  # whoever asks for the sum looks at it
            for result, *arrays in zip(results, *all_ranks, strict=True):
                total += _mean(arrays, result)
        return [*results, np.asarray(total)]


def _aligned(size: int) -> Bytes:
    """Memory that begins where TensorFlow takes it as a tensor's own; elsewhere it would make a copy."""
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    return memory[-memory.ctypes.data % _ALIGNMENT :][:size]


def _mean(arrays: Sequence[np.ndarray], result: np.ndarray) -> np.float64:
    """Write the mean, and give the sum of its values, taken while they are in a core's cache."""
    total = np.float64(0)
    flat, sources = result.reshape(-1), [array.reshape(-1) for array in arrays]
    scale = flat.dtype.type(1 / len(arrays))
    step = _CHUNK // flat.itemsize
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        np.add(sources[0][start : start + step], sources[1][start : start + step], out=part)
        for source in sources[2:]:
            part += source[start : start + step]
        part *= scale
        total += np.float64(part.sum())
    return total


def shared_memory(ranks: Collectives, tensors: Sequence[tf.Tensor]) -> SharedMemory | None:
    """Memory for arrays like these that all ranks share, or None on all of them where there can be none.

    That is: with ranks on several hosts or more than MOST_RANKS, on GPUs, with shapes that aren't known, where the
    memory isn't to be had, or where one rank may not look into another (:func:`_map`). Every rank must call this at the
    same place. The memory has no name in any folder: nothing is left behind, whoever is killed when.
    """
    shapes, dtypes, offsets, end = [], [], [], 0
    for tensor in tensors:
        shapes.append(tuple(tensor.shape.as_list()) if tensor.shape.is_fully_defined() else ())
        dtypes.append(np.dtype(tensor.dtype.as_numpy_dtype))
        offsets.append(end)
        size = int(np.prod(shapes[-1])) * dtypes[-1].itemsize
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    fits = (
        all(tensor.shape.is_fully_defined() and tensor.dtype.is_floating for tensor in tensors)
        and ranks.size == ranks.local_size <= MOST_RANKS
        and not tf.config.list_logical_devices("GPU")
    )
    mine = _reserve(2 * end) if fits else None
    try:
        told = ranks.gather(
            {"file": None if mine is None else _told(mine), "host": socket.gethostname()}, "shared memory"
        )
        maps = None
        if all(rank["file"] for rank in told) and len({rank["host"] for rank in told}) == 1:
            with contextlib.suppress(OSError):
                maps = [_map(2 * end, *rank["file"]) for rank in told]
        everyone = all(ranks.gather(maps is not None, "shared memory found"))
    finally:
        if mine is not None:
            os.close(mine)
    if maps is None or not everyone:
        return None
    return SharedMemory(maps, ranks.rank, shapes, dtypes, offsets)


def _reserve(size: int) -> int | None:
    """A file of this size in memory, of which every page is there: a later write can't fail.

    It is bounded by the memory that this process may use (its control group's limit, else the machine's), not by the
    size of /dev/shm, which a container engine makes 64 MiB.
    """
    try:
        handle = os.memfd_create(f"horovod-keras-{secrets.token_hex(8)}")
    except OSError:
        return None
    try:
        os.posix_fallocate(handle, 0, max(size, 1))
    except OSError:
        os.close(handle)
        return None
    return handle


def _told(handle: int) -> tuple[str, str]:
    """Where the other ranks find this process's open file, and how they know that it is this one."""
    return f"/proc/{os.getpid()}/fd/{handle}", _name(handle)


def _name(handle: int) -> str:
    return str(Path(f"/proc/self/fd/{handle}").readlink())


def _map(size: int, path: str, name: str) -> Bytes:
    """Map another rank's file. Raises OSError where that is of another user, or in another container of this host."""
    with Path(path).open("r+b") as file:
        if _name(file.fileno()) != name:  # another process has that number here
            raise FileNotFoundError(path)
        return np.frombuffer(mmap.mmap(file.fileno(), max(size, 1)), np.uint8)[:size]
