"""Random numbers that are a pure function of what they are for: no state, no order, the same on every machine and rank.

A number is drawn by hashing its purpose, for example (seed, epoch, image, "flip"), with the finaliser of SplitMix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; David Stafford's Mix13).
"""

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def hashed(*words: int | npt.NDArray[np.integer]) -> UInt64:
    """Hash integers, or arrays of them that broadcast, in order: a uint64 array of at least one dimension.

    >>> int(hashed(0)[0]) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 from state 0
    True
    """
    state = np.zeros(1, np.uint64)
    for word in words:
        # Python integers may be negative or wide: two's complement keeps every 64-bit one distinct.
        value = np.uint64(word & 0xFFFFFFFFFFFFFFFF) if isinstance(word, int) else word.astype(np.uint64)
        state = (state ^ value) + _GOLDEN
        state ^= state >> np.uint64(30)
        state *= _FIRST
        state ^= state >> np.uint64(27)
        state *= _SECOND
        state ^= state >> np.uint64(31)
    return state


def uniform(*words: int | npt.NDArray[np.integer]) -> npt.NDArray[np.floating]:
    """float64 numbers in [0, 1) with 53 random bits, one for each hash of `words`."""
    return (hashed(*words) >> np.uint64(11)) * 2.0**-53


def permutation(count: int, *words: int) -> npt.NDArray[np.int64]:
    """A permutation of `count` numbers that `words` alone decide (NumPy's own may change with its version)."""
    return np.argsort(hashed(*words, np.arange(count)), kind="stable")
