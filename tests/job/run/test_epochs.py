"""Which batches an epoch has, and what is done to their images."""

import numpy as np
import pytest

from horovod_keras.collectives import SingleProcess
from job.config import resolve
from job.data import garments, pipeline
from job.data.arrow import DataSet
from job.data.augmentation import Augmentation
from job.data.splits import Splits
from job.run.checkpoints import Position
from job.run.epochs import Data, Part, augmentations, parts, training_batches

DRAWN = garments.draw(train=700, test=1)
INDICES = np.arange(700)[::-1].copy()
DATA = Data(DataSet(DRAWN.train_images, DRAWN.train_labels, 700, "", ""), Splits(INDICES, INDICES, INDICES))
CONFIG = resolve([{"recipe": "best", "stages": [], "epochs": 3, "clean": 0.34, "global_batch": 64}])


@pytest.mark.parametrize(("clean", "count"), [(0.0, 0), (0.1, 4), (1.0, 40)])
def test_the_last_epochs_are_clean_but_for_flips(clean: float, count: int) -> None:
    found = augmentations(resolve([{"recipe": "best", "clean": clean}]))
    full, flipped = Augmentation(flip=True, shift=2, erase=0.5), Augmentation(flip=True)
    assert found == [full] * (40 - count) + [flipped] * count


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 4), (1, 0), (1, 11), (2, 10)])
def test_the_batches_are_those_of_the_epochs_that_are_left_each_with_its_augmentation(epoch: int, step: int) -> None:
    expected = [
        batch
        for number, augmentation in enumerate(augmentations(CONFIG))
        for batch in pipeline.batches(
            DATA.set.images,
            DATA.set.labels,
            INDICES,
            seed=CONFIG.seed,
            epoch=number,
            global_batch=64,
            rank=0,
            size=1,
            augmentation=augmentation,
        )
    ][epoch * 11 + step :]
    part = Part(epoch, 3, step, 11, 56)
    found = list(training_batches(CONFIG, DATA, SingleProcess(), part).as_numpy_iterator())
    assert len(found) == len(expected) == 33 - epoch * 11 - step
    for (images, labels, keys, count), batch in zip(found, expected, strict=True):
        assert (images == batch.images).all() and (labels == batch.labels).all() and (keys == batch.keys).all()
        assert count == batch.global_count


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((0, 0), [(0, 2, 0, 32), (2, 3, 0, 48), (3, 5, 0, 56)]),
        ((0, 4), [(0, 1, 4, 32), (1, 2, 0, 32), (2, 3, 0, 48), (3, 5, 0, 56)]),  # within a stage
        ((1, 10), [(1, 2, 10, 32), (2, 3, 0, 48), (3, 5, 0, 56)]),  # before a change's last step
        ((2, 0), [(2, 3, 0, 48), (3, 5, 0, 56)]),  # at a change
        ((2, 1), [(2, 3, 1, 48), (3, 5, 0, 56)]),
        ((5, 0), []),
    ],
)
def test_a_run_is_cut_where_its_resolution_changes_and_where_it_is_resumed(
    place: tuple[int, int], expected: list[tuple[int, int, int, int]]
) -> None:
    config = resolve([{"recipe": "best", "epochs": 5, "stages": [[0.4, 32], [0.2, 48]], "clean": 0.0}])
    found = parts(config, Position(epoch=place[0], step=place[1]), 11)
    assert [(part.epoch, part.end, part.first_step, part.resolution) for part in found] == expected
    assert all(part.steps == 11 - part.first_step for part in found)
