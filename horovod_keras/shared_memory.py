"""Gradients averaged through shared memory, where all ranks are processes of one host.

Horovod's Gloo sends a gradient to the neighbour process through the loopback interface and adds it up there, on the
very cores that compute. Here each array has an owner among the ranks. A rank writes its gradients where their owners
can read them, averages those that it owns itself, and reads the means of the others from their owners' memory.

Horovod stays the judge of who is there: after the writing and after the averaging comes a small exchange of its own,
which all ranks must have reached before any of them goes on, and which fails when one is lost. There are two places for
everything, used in turn: a rank may write the next gradients while a slower one still reads these means.
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

Bytes = npt.NDArray[np.uint8]


class SharedMemory:
    """Where the ranks of one host write arrays for each other; made by :func:`shared_memory`.

    Args:
        parts: the ranks' memories, in their order, each uint8 [2 · bytes of all arrays]; other ranks' are read-only.
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
        sizes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
        self._owners = owners(sizes, len(parts))
        self._own: dict[int, np.ndarray] = {}

        def halves(memory: Bytes) -> list[list[np.ndarray]]:
            return [
                [
                    memory[start + offset : start + offset + size].view(dtype).reshape(shape)
                    for shape, dtype, offset, size in zip(shapes, dtypes, offsets, sizes, strict=True)
                ]
                for start in (0, len(memory) // 2)
            ]

        # A rank's own place for an array holds the mean if it owns the array, else its gradient for the owner.
        self._halves = [halves(part) for part in parts]

    def write(self, *arrays: np.ndarray) -> np.float32:
        """Put this rank's arrays where their owners see them; its own ones stay where they are."""
        self._turn ^= 1
        for index, (array, owner) in enumerate(zip(arrays, self._owners, strict=True)):
            if owner == self._rank:
                self._own[index] = array
            else:
                np.copyto(self._halves[self._rank][self._turn][index], array)
        return np.float32(0)

    def reduce(self) -> np.float64:
        """Average the arrays that this rank owns, added up in the order of ranks, and give the sum of all means."""
        total = np.float64(0)
        with np.errstate(all="ignore"):  # whoever asks for the sum looks at it
            for index, mine in self._own.items():
                places = [halves[self._turn][index] for halves in self._halves]
                result = places[self._rank]
                places[self._rank] = mine
                total += _mean(places, result)
        self._own.clear()
        return total

    def means(self) -> list[np.ndarray]:
        """The mean over ranks of each array written last: the same bits on all, there until the update after the next.

        TensorFlow takes them as they lie there, and writes into none that comes from a NumPy array.
        """
        return [self._halves[owner][self._turn][index] for index, owner in enumerate(self._owners)]


def owners(sizes: Sequence[int], ranks: int) -> list[int]:
    """Which rank averages each array, so that all have about as many bytes: the largest first, to who has least."""
    loads, result = [0] * ranks, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        result[index] = min(range(ranks), key=loads.__getitem__)
        loads[result[index]] += sizes[index]
    return result


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

    That is: with ranks on several hosts, on GPUs, with shapes that aren't known, where the memory isn't to be had, or
    where one rank may not look into another (:func:`_map`). Every rank must call this at the same place. The memory has
    no name in any folder: nothing is left behind, whoever is killed when.
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
        and ranks.size == ranks.local_size
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
                maps = [_map(2 * end, *rank["file"], mine=number == ranks.rank) for number, rank in enumerate(told)]
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


def _map(size: int, path: str, name: str, *, mine: bool) -> Bytes:
    """Map a rank's file, to write if it is this rank's own.

    Raises OSError where it is of another user, or in another container of this host.
    """
    with Path(path).open("r+b") as file:
        if _name(file.fileno()) != name:  # another process has that number here
            raise FileNotFoundError(path)
        access = mmap.ACCESS_WRITE if mine else mmap.ACCESS_READ
        return np.frombuffer(mmap.mmap(file.fileno(), max(size, 1), access=access), np.uint8)[:size]
