"""What is done to the images in which epoch."""

import pytest

from job.config import resolve
from job.data.augmentation import Augmentation
from job.run.epochs import augmentations


@pytest.mark.parametrize(("clean", "count"), [(0.0, 0), (0.1, 4), (1.0, 40)])
def test_the_last_epochs_are_clean_but_for_flips(clean: float, count: int) -> None:
    found = augmentations(resolve([{"recipe": "best", "clean": clean}]))
    full, flipped = Augmentation(flip=True, shift=2, erase=0.5), Augmentation(flip=True)
    assert found == [full] * (40 - count) + [flipped] * count
