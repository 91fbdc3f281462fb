"""Batches of a rank: its share of each global batch, augmented.

The order of an epoch is a permutation that depends on seed and epoch alone, and is cut into global batches before they
are shared out: at equal global batch, 1, 2 and 4 ranks see the same global batches of the same images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from job.data.arrays import SIDE, UInt8
from job.data.augmentation import Augmentation, augment
from job.data.draws import hashed, permutation
from job.data.splits import Indices
from job.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf

# What a hash of (purpose, seed, epoch, …) is for. A purpose keeps its number for ever.
_ORDER, _IMAGE, _MODEL = range(3)


@dataclass(frozen=True, slots=True)
class Batch:
    """A rank's share of one global batch of b images."""

    images: UInt8
    """Shape [b, 28, 28]."""
    labels: npt.NDArray[np.int32]
    """Shape [b]."""
    keys: npt.NDArray[np.int64]
    """Shape [b]: a hash of (seed, epoch, image), from which the model draws what it draws for each image."""
    global_count: int
    """How many images the global batch has, in all ranks together."""


def steps_per_epoch(count: int, global_batch: int, accumulate: int = 1) -> int:
    """How many steps an epoch of `count` images has: `accumulate` for each `global_batch` of images or fewer."""
    return accumulate * -(-count // global_batch)


def checked_steps(count: int, global_batch: int, size: int, accumulate: int) -> int:
    """As `steps_per_epoch`. Raises InputError: a rank would have a step without an image."""
    steps = steps_per_epoch(count, global_batch, accumulate)
    if count == 0 or count // steps < size:
        smallest = count // max(steps, 1)
        raise InputError(
            f"a rank would have a step without an image: received {count:,} images in global batches of {smallest} to "
            f"{global_batch // accumulate} for {size} ranks. Give a larger --global-batch, more images, or fewer ranks."
        )
    return steps


def batches(
    images: UInt8,
    labels: UInt8,
    indices: Indices,
    *,
    seed: int,
    epoch: int,
    global_batch: int,
    rank: int,
    size: int,
    augmentation: Augmentation,
    start_step: int = 0,
    accumulate: int = 1,
) -> Iterator[Batch]:
    """The batches of one rank in one epoch, from `start_step` on.

    An epoch of n images has S = accumulate · ⌈n / global_batch⌉ steps, and step t takes the images from ⌊t n / S⌋ to
    below ⌊(t + 1) n / S⌋ of the permutation: global batches differ by one image at most, and so do the ranks' shares
    of each. Every image comes exactly once.

    Args:
        images: uint8 of shape [N, 28, 28].
        labels: uint8 of shape [N].
        indices: which of the N images the epoch has, shape [n].
        seed: of the run.
        epoch: counted from 0.
        global_batch: images in an update, in all ranks together.
        rank: of this process, from 0 to size - 1.
        size: number of ranks.
        augmentation: what is done to each image.
        start_step: the first step to give, for a run that is resumed within an epoch.
        accumulate: steps of an update.

    Raises:
        InputError: a rank would have a step without an image.
    """
    count = len(indices)
    steps = checked_steps(count, global_batch, size, accumulate)
    order = indices[permutation(count, _ORDER, seed, epoch)]

    def made() -> Iterator[Batch]:
        for step in range(start_step, steps):
            whole = order[cut(count, step, steps) : cut(count, step + 1, steps)]
            mine = whole[cut(len(whole), rank, size) : cut(len(whole), rank + 1, size)]
            yield _batch(images, labels, mine, len(whole), seed, epoch, augmentation)

    return made()


def as_tf_dataset(made: Callable[[], Iterator[Batch]]) -> "tf.data.Dataset":
    """A `tf.data.Dataset` of batches, which `made` makes anew for each pass.

    Its elements are (images uint8 [b, 28, 28], labels int32 [b], keys int64 [b], global_count int32 []), with b unknown
    to the graph. Four batches are made ahead on one thread, so that the model never waits for them.
    """
    import tensorflow as tf

    def elements() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.int32]]:
        for batch in made():
            yield batch.images, batch.labels, batch.keys, np.int32(batch.global_count)

    signature = (
        tf.TensorSpec((None, SIDE, SIDE), tf.uint8),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None,), tf.int64),
        tf.TensorSpec((), tf.int32),
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    # TensorFlow's own threads are the model's.
    options.threading.private_threadpool_size = 1
    return tf.data.Dataset.from_generator(elements, output_signature=signature).prefetch(4).with_options(options)


def evaluation_batches(
    images: UInt8,
    labels: UInt8,
    indices: Indices,
    *,
    batch: int,
    rank: int,
    size: int,
    flip_seed: int | None = None,
    epoch: int = 0,
) -> Iterator[Batch]:
    """A rank's contiguous share of the images in order, every image once, in batches of `batch` or fewer.

    Shares differ by one image at most, so that one rank may have a batch more than another, or none where there are
    fewer images than ranks: nothing that all ranks wait for may depend on the number of batches.

    Args:
        images, labels, indices: as in `batches`.
        batch: the most images of this rank in one batch.
        rank: of this process, from 0 to size - 1.
        size: number of ranks.
        flip_seed: None, or mirror half of the images by this seed and the epoch, as the original experiment did.
        epoch: counted from 0.
    """
    mine = indices[cut(len(indices), rank, size) : cut(len(indices), rank + 1, size)]
    augmentation = Augmentation(flip=flip_seed is not None)
    for start in range(0, len(mine), batch):
        chosen = mine[start : start + batch]
        yield _batch(images, labels, chosen, len(chosen), flip_seed or 0, epoch, augmentation)


def cut(count: int, part: int, parts: int) -> int:
    """Where the given part begins of so many items in contiguous parts, whose sizes differ by one at most."""
    return part * count // parts


def _batch(
    images: UInt8, labels: UInt8, chosen: Indices, global_count: int, seed: int, epoch: int, augmentation: Augmentation
) -> Batch:
    return Batch(
        images=augment(images[chosen], hashed(_IMAGE, seed, epoch, chosen), augmentation),
        labels=labels[chosen].astype(np.int32),
        keys=hashed(_MODEL, seed, epoch, chosen).view(np.int64),
        global_count=global_count,
    )
