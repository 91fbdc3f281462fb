"""Batches: the same global batches at any number of ranks, every image once, resumable at any step."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.data import garments
from job.data.augmentation import Augmentation
from job.data.pipeline import Batch, as_tf_dataset, batches, evaluation_batches, steps_per_epoch
from job.errors import InputError

DATA = garments.draw(train=1_000, test=1)
IMAGES, LABELS = DATA.train_images, DATA.train_labels
INDICES = np.arange(300, 1_000)[::-1].copy()
ALL = Augmentation(flip=True, shift=2, erase=0.5)


def _epoch(rank: int = 0, size: int = 1, **changed) -> list[Batch]:
    given: dict[str, Any] = {
        "seed": 2017,
        "epoch": 3,
        "global_batch": 64,
        "augmentation": ALL,
        "indices": INDICES,
    } | changed
    return list(batches(IMAGES, LABELS, given.pop("indices"), rank=rank, size=size, **given))


def _together(shares: list[Batch]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate([getattr(share, name) for share in shares]) for name in ("images", "labels", "keys"))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_any_number_of_ranks_sees_the_same_global_batches_and_the_same_augmented_images(size):
    alone = _epoch()
    for whole, *shares in zip(alone, *(_epoch(rank, size) for rank in range(size)), strict=True):
        for together, single in zip(_together(shares), _together([whole]), strict=True):
            assert (together == single).all()
        assert {share.global_count for share in shares} == {len(whole.labels)} == {whole.global_count}


def test_shapes_and_types_are_those_of_the_contract():
    batch = _epoch()[0]
    count = len(batch.labels)
    assert (batch.images.shape, batch.images.dtype) == ((count, 28, 28), np.uint8)
    assert (batch.labels.dtype, batch.keys.shape, batch.keys.dtype) == (np.int32, (count,), np.int64)


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 400), global_batch=st.integers(1, 400), size=st.integers(1, 9))
def test_every_image_comes_once_in_shares_that_differ_by_one_or_the_sizes_are_refused(count, global_batch, size):
    # The number of an image stands in its first two pixels.
    numbered = np.zeros((count, 28, 28), np.uint8)
    numbered[:, 0, 0], numbered[:, 0, 1] = np.arange(count) // 256, np.arange(count) % 256
    steps = steps_per_epoch(count, global_batch)
    try:
        ranks = [
            list(
                batches(
                    numbered,
                    np.zeros(count, np.uint8),
                    np.arange(count),
                    seed=1,
                    epoch=0,
                    global_batch=global_batch,
                    rank=rank,
                    size=size,
                    augmentation=Augmentation(),
                )
            )
            for rank in range(size)
        ]
    except InputError:
        assert count // steps < size
        return
    assert all(len(rank) == steps for rank in ranks)
    sizes = np.array([[len(batch.labels) for batch in rank] for rank in ranks])
    assert sizes.min() >= 1 and (sizes.max(axis=0) - sizes.min(axis=0)).max() <= 1
    totals = sizes.sum(axis=0)
    assert totals.max() <= global_batch and totals.max() - totals.min() <= 1
    images = np.concatenate([batch.images for rank in ranks for batch in rank]).astype(int)
    assert sorted(images[:, 0, 0] * 256 + images[:, 0, 1]) == list(range(count))


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    first = _together(_epoch(augmentation=Augmentation()))[0]
    assert (first == _together(_epoch(augmentation=Augmentation(), global_batch=100))[0]).all()
    for changed in ({"seed": 1}, {"epoch": 4}):
        other = _together(_epoch(augmentation=Augmentation(), **changed))[0]
        assert (other != first).any(axis=(1, 2)).mean() > 0.9


def test_what_is_drawn_for_an_image_depends_on_the_epoch_and_not_on_its_place():
    def by_image(**changed) -> dict[bytes, int]:
        whole = _together(_epoch(augmentation=Augmentation(), **changed))
        return dict(zip((image.tobytes() for image in whole[0]), whole[2].tolist(), strict=True))

    keys = by_image()
    assert len(set(keys.values())) == len(INDICES)
    assert by_image(global_batch=7) == keys
    half = by_image(indices=INDICES[::2])
    assert half == {image: keys[image] for image in half}
    later = by_image(epoch=4)
    assert all(later[image] != key for image, key in keys.items())


@pytest.mark.parametrize("start", [0, 1, 5, 10, 11])
def test_an_epoch_that_is_resumed_gives_what_was_left(start):
    whole, rest = _epoch(1, 2), _epoch(1, 2, start_step=start)
    assert len(whole) == 11 and len(rest) == 11 - start
    for expected, found in zip(whole[start:], rest, strict=True):
        assert (found.images == expected.images).all() and (found.keys == expected.keys).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"size": 65, "global_batch": 64}, "received 700 images in global batches of 63 to 64 for 65 ranks"),
        ({"indices": INDICES[:0]}, "received 0 images"),
    ],
)
def test_a_step_without_an_image_for_a_rank_is_refused_before_the_first(changed, said):
    with pytest.raises(InputError, match=said):
        _epoch(**changed)


def test_tensorflow_gets_the_same_batches_in_each_pass():
    expected = _epoch(1, 2)
    pipeline = as_tf_dataset(lambda: iter(_epoch(1, 2)))
    for _ in range(2):
        found = list(pipeline.as_numpy_iterator())
        assert len(found) == len(expected) == 11
        for (images, labels, keys, count), batch in zip(found, expected, strict=True):
            assert (images == batch.images).all() and (labels == batch.labels).all() and (keys == batch.keys).all()
            assert count == batch.global_count and count.dtype == np.int32


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("flip_seed", [None, 5])
def test_evaluation_sees_every_image_once_and_in_order_at_any_number_of_ranks(size, flip_seed):
    def shares(size: int, batch: int) -> list[Batch]:
        given = {"batch": batch, "size": size, "flip_seed": flip_seed, "epoch": 2}
        return [
            part for rank in range(size) for part in evaluation_batches(IMAGES, LABELS, INDICES, rank=rank, **given)
        ]

    parts = shares(size, 50)
    images, labels, _ = _together(parts)
    assert max(len(part.labels) for part in parts) <= 50
    assert (labels == LABELS[INDICES]).all()
    assert (images == _together(shares(1, 1_000))[0]).all()
    unchanged = (images == IMAGES[INDICES]).all(axis=(1, 2)).mean()
    assert unchanged == 1 if flip_seed is None else 0.4 < unchanged < 0.6


def test_evaluation_with_more_ranks_than_images_leaves_some_without():
    parts = [list(evaluation_batches(IMAGES, LABELS, INDICES[:2], batch=8, rank=rank, size=4)) for rank in range(4)]
    assert sorted(len(part) for part in parts) == [0, 0, 1, 1]
