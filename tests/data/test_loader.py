"""A batch is a function of the examples seen: not of hosts, restarts or batch sizes."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import Loader, prefetch

pytestmark = pytest.mark.core


class Numbers:
    """Rows that say which they are."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def take(self, indices):
        return {"row": np.asarray(indices).copy()}


@settings(max_examples=40)
@given(rows=st.integers(1, 40), batch=st.integers(1, 24), seed=st.integers(0, 2**31), step=st.integers(0, 9))
def test_hosts_make_the_batch_together(rows, batch, seed, step):
    loader = Loader(Numbers(rows), seed)
    whole = loader.rows_for(step * batch, range(batch))["row"]
    for hosts in (1, 2, 4):
        bounds = [batch * host // hosts for host in range(hosts + 1)]
        parts = [loader.rows_for(step * batch, np.arange(low, high))["row"] for low, high in pairwise(bounds)]
        assert np.concatenate(parts).tolist() == whole.tolist()
    assert loader.rows_for(step * batch, slice(0, batch))["row"].tolist() == whole.tolist()
    assert loader.rows_for(step * batch, np.array([batch - 1, 0]))["row"].tolist() == [whole[-1], whole[0]]


@settings(max_examples=40)
@given(rows=st.integers(1, 30), sizes=st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_batch_sizes_may_change(rows, sizes):
    loader = Loader(Numbers(rows), seed=3)
    seen, taken = 0, []
    for size in sizes:
        taken += loader.rows_for(seen, range(size))["row"].tolist()
        seen += size
    assert taken == loader.rows_for(0, range(seen))["row"].tolist()
    for epoch in range(seen // rows):  # batches straddle epochs, and each has every row exactly once
        assert sorted(taken[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_epochs_and_seeds_have_their_own_orders():
    first, other = (Loader(Numbers(100), seed).rows_for(0, range(300))["row"].reshape(3, 100) for seed in (0, 1))
    orders = {tuple(order) for order in (*first, *other)}
    assert len(orders) == 6
    assert tuple(range(100)) not in orders


def test_prepare_draws_from_the_seed_and_the_row_number_alone():
    def prepare(batch, keys):
        return batch | {"key": keys}

    loader = Loader(Numbers(10), seed=5, prepare=prepare)
    whole = loader.rows_for(20, range(30))
    assert len(set(whole["key"].tolist())) == 30  # another for each epoch of the same row
    assert np.array_equal(loader.rows_for(27, range(4))["key"], whole["key"][7:11])
    assert not np.array_equal(Loader(Numbers(10), 6, prepare).rows_for(20, range(30))["key"], whole["key"])


# Making batches ahead


def test_prefetch_keeps_the_order_and_works_ahead():
    made = []
    batches = prefetch(lambda i: made.append(i) or i * i, range(6), depth=2)
    assert next(batches) == 0
    deadline = time.time() + 5
    while made != [0, 1, 2] and time.time() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2]  # two ahead, and no more
    assert list(batches) == [1, 4, 9, 16, 25]


def test_prefetch_raises_in_its_turn_and_ends_its_thread():
    def make(i):
        if i == 2:
            raise ValueError("no row 2")
        return i

    batches = prefetch(make, range(5))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ValueError, match="no row 2"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_stops_with_its_consumer():
    def endless():
        number = 0
        while True:
            yield number
            number += 1

    batches = prefetch(lambda i: i, endless(), depth=3)
    assert [next(batches) for _ in range(10)] == list(range(10))
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert list(prefetch(lambda i: i, [])) == []
