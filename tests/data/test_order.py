"""The order of rows is a permutation for every size, another one for every seed and epoch, and a fair one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import mix, permute

pytestmark = pytest.mark.core


@pytest.mark.parametrize("size", [*range(1, 40), 64, 100, 257, 1000, 4097, 65_536, 99_991])
def test_a_permutation_of_every_size(size):
    result = permute(np.arange(size), size, mix(7, size))
    assert np.array_equal(np.sort(result), np.arange(size))


@settings(max_examples=50)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_for_every_key(size, key):
    assert len(set(permute(np.arange(size), size, np.uint64(key)).tolist())) == size


def test_large_sizes_take_no_memory():
    size = 10**15 + 37
    indices = np.array([0, 1, size // 2, size - 2, size - 1])
    result = permute(indices, size, mix(0, 0))
    assert ((result >= 0) & (result < size)).all()
    assert len(set(result.tolist())) == len(indices)


def test_each_index_goes_by_its_own_key():
    keys = mix(3, np.arange(50))
    together = permute(np.full(50, 5), 1000, keys)
    assert together.tolist() == [int(permute(np.array([5]), 1000, key)[0]) for key in keys]


def test_seeds_and_epochs_give_different_orders():
    orders = [tuple(permute(np.arange(50), 50, mix(seed, 0, epoch))) for seed in range(20) for epoch in range(20)]
    assert len(set(orders)) == 400


def test_every_place_is_as_likely_as_another():
    size, trials = 10, 20_000
    keys = mix(1, np.arange(trials))
    counts = np.zeros((size, size))
    successors = np.zeros((size, size))
    images = np.stack([permute(np.full(trials, i), size, keys) for i in range(size)])
    for i in range(size):
        counts[i] = np.bincount(images[i], minlength=size)
        successors += np.histogram2d(images[i], images[(i + 1) % size], bins=size, range=[[0, size], [0, size]])[0]
    # Chi-squared over its degrees of freedom is 1 for fair ones; a biased order is far off.
    assert ((counts - trials / size) ** 2 / (trials / size)).sum() / (size - 1) ** 2 < 1.5
    off_diagonal = successors[~np.eye(size, dtype=bool)]
    fair = off_diagonal.mean()
    assert ((off_diagonal - fair) ** 2 / fair).sum() / len(off_diagonal) < 1.5


def test_all_orders_of_a_few_rows_occur():
    orders = [tuple(permute(np.arange(4), 4, mix(key))) for key in range(2000)]
    frequencies = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(frequencies) == 24
    assert frequencies.min() > 40


def test_the_order_never_changes():
    """Runs resume by it: these numbers may change only with a new format of checkpoints."""
    assert permute(np.arange(12), 12, mix(0, 0, 0)).tolist() == [1, 6, 0, 11, 8, 7, 2, 9, 4, 10, 3, 5]
    assert mix(1, np.array([2, 3])).tolist() == [5886236958684341581, 7521888212171461645]
