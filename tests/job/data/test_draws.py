"""Random numbers that depend on their purpose alone."""

import numpy as np

from job.data.draws import hashed, permutation, uniform


def test_a_hash_of_zero_is_the_first_output_of_splitmix64():
    # The reference implementation, https://prng.di.unimi.it/splitmix64.c, gives this from state 0.
    assert int(hashed(0)[0]) == 0xE220A8397B1DCDAF


def test_an_array_is_hashed_as_each_of_its_elements_is():
    together = hashed(3, np.arange(50), -7)
    assert together.tolist() == [int(hashed(3, number, -7)[0]) for number in range(50)]


def test_the_order_of_the_words_matters():
    assert hashed(1, 2) != hashed(2, 1)
    assert hashed(1) != hashed(1, 0)


def test_uniform_numbers_fill_the_unit_interval_evenly():
    numbers = uniform(2017, np.arange(100_000))
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    # 5,000 are expected in each bin with a standard deviation of 69.
    assert np.abs(counts - 5000).max() < 350


def test_neighbouring_counters_are_uncorrelated():
    numbers = uniform(2017, np.arange(100_000))
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.015


def test_a_permutation_is_frozen_and_holds_each_number_once():
    assert permutation(10, 2017, 0).tolist() == [8, 1, 5, 6, 9, 3, 0, 4, 7, 2]
    assert sorted(permutation(1000, 5)) == list(range(1000))
