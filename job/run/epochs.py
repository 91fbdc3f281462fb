"""The epochs of a run: at which resolution, with which batches on which rank, and `fit`."""

from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from horovod_keras import Collectives
from job.config import Config
from job.data import pipeline
from job.data.arrays import SIDE, UInt8
from job.data.arrow import DataSet
from job.data.augmentation import Augmentation
from job.data.splits import Splits
from job.model.mobilenet import evaluation_batch
from job.model.training import TrainingModel
from job.run.checkpoints import Position


@dataclass(frozen=True)
class Data:
    """The images and which of them are for what."""

    set: DataSet
    splits: Splits


@dataclass(frozen=True)
class Part:
    """Consecutive epochs, or the rest of one, that one call of `fit` trains at one resolution."""

    epoch: int
    """First epoch, from 0."""
    end: int
    """Epoch after the last."""
    first_step: int
    """Batches of the first epoch that are done already."""
    steps: int
    """Batches of each epoch in this part."""
    resolution: int


def steps_per_epoch(config: Config, data: Data) -> int:
    """Batches of an epoch: forward and backward passes, of which `accumulate` make an update."""
    return pipeline.steps_per_epoch(len(data.splits.train), config.global_batch, config.accumulate)


def share(count: int, ranks: Collectives) -> tuple[int, int]:
    """The first of this rank's contiguous share of so many items, and the one after its last."""
    return pipeline.cut(count, ranks.rank, ranks.size), pipeline.cut(count, ranks.rank + 1, ranks.size)


def augmentations(config: Config) -> list[Augmentation]:
    """What is done to the training images in each epoch."""
    clean = round(config.clean * config.epochs)
    full = Augmentation(flip=config.flip, shift=config.shift, erase=config.erase)
    return [full] * (config.epochs - clean) + [Augmentation(flip=config.flip)] * clean


def training_batches(config: Config, data: Data, ranks: Collectives, part: Part) -> tf.data.Dataset:
    """This rank's batches of a part: (images, labels, keys, global count)."""
    augmented = augmentations(config)

    def made() -> Iterator[pipeline.Batch]:
        for epoch in range(part.epoch, part.end):
            yield from pipeline.batches(
                data.set.images,
                data.set.labels,
                data.splits.train,
                seed=config.seed,
                epoch=epoch,
                global_batch=config.global_batch,
                rank=ranks.rank,
                size=ranks.size,
                augmentation=augmented[epoch],
                start_step=part.first_step if epoch == part.epoch else 0,
                accumulate=config.accumulate,
            )

    return pipeline.as_tf_dataset(made)


def validation_batches(
    config: Config, data: Data, ranks: Collectives, model: TrainingModel, steps: int
) -> tf.data.Dataset:
    """This rank's share of the validation split: (images, labels); mirrored at random only by the protocol of 2017."""

    images = evaluation_batch(model.resolution)

    def elements() -> Iterator[tuple[UInt8, npt.NDArray[np.int32]]]:
        for batch in pipeline.evaluation_batches(
            data.set.images,
            data.set.labels,
            data.splits.validation,
            batch=images,
            rank=ranks.rank,
            size=ranks.size,
            flip_seed=config.seed if config.protocol == "original" and config.flip else None,
            epoch=int(model.optimizer._iterations) // steps,
        ):
            yield batch.images, batch.labels

    signature = (tf.TensorSpec((None, SIDE, SIDE), tf.uint8), tf.TensorSpec((None,), tf.int32))
    first, last = share(len(data.splits.validation), ranks)
    batches = tf.data.Dataset.from_generator(elements, output_signature=signature).prefetch(2)
    return batches.apply(tf.data.experimental.assert_cardinality(-(-(last - first) // images)))


def parts(config: Config, position: Position, steps: int) -> list[Part]:
    """The rest of a run from a position, cut where the resolution changes."""
    resolutions = config.resolutions()
    result, epoch = [], position.epoch
    if position.step:
        result.append(Part(epoch, epoch + 1, position.step, steps - position.step, resolutions[epoch]))
        epoch += 1
    while epoch < config.epochs:
        end = epoch
        while end < config.epochs and resolutions[end] == resolutions[epoch]:
            end += 1
        result.append(Part(epoch, end, 0, steps, resolutions[epoch]))
        epoch = end
    return result


def fit(
    model: TrainingModel,
    config: Config,
    ranks: Collectives,
    data: Data,
    position: Position,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    """Train from a position to the last epoch; what is to be kept is the callbacks' matter."""
    steps = steps_per_epoch(config, data)
    for part in parts(config, position, steps):
        model.at_resolution(part.resolution)
        model.fit(
            training_batches(config, data, ranks, part),
            validation_data=validation_batches(config, data, ranks, model, steps),
            steps_per_epoch=part.steps,
            initial_epoch=part.epoch,
            epochs=part.end,
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )
