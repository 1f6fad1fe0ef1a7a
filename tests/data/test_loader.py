"""A batch is a function of the examples seen: not of hosts, restarts or batch sizes."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import Loader, Rows, prefetch
from data.order import mix, permute

pytestmark = pytest.mark.core


class Numbers(Rows):
    """Rows that say which they are, and of which source."""

    def __init__(self, count, source=0):
        self.count, self.source = count, source

    def __len__(self):
        return self.count

    def take(self, indices):
        return {"row": np.asarray(indices).copy(), "of": np.full((len(indices), 2), self.source, np.int8)}


@settings(max_examples=40)
@given(rows=st.integers(1, 40), batch=st.integers(1, 24), seed=st.integers(0, 2**31), step=st.integers(0, 9))
def test_hosts_make_the_batch_together(rows, batch, seed, step):
    loader = Loader([Numbers(rows)], seed)
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
    loader = Loader([Numbers(rows)], seed=3)
    seen, taken = 0, []
    for size in sizes:
        taken += loader.rows_for(seen, range(size))["row"].tolist()
        seen += size
    assert taken == loader.rows_for(0, range(seen))["row"].tolist()
    for epoch in range(seen // rows):  # batches straddle epochs, and each has every row exactly once
        assert sorted(taken[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_epochs_and_seeds_have_their_own_orders():
    first, other = (Loader([Numbers(100)], seed).rows_for(0, range(300))["row"].reshape(3, 100) for seed in (0, 1))
    orders = {tuple(order) for order in (*first, *other)}
    assert len(orders) == 6
    assert tuple(range(100)) not in orders


def test_prepare_draws_from_the_seed_and_the_row_number_alone():
    def prepare(batch, keys):
        return batch | {"key": keys}

    loader = Loader([Numbers(10)], seed=5, prepare=prepare)
    whole = loader.rows_for(20, range(30))
    assert len(set(whole["key"].tolist())) == 30  # another for each epoch of the same row
    assert np.array_equal(loader.rows_for(27, range(4))["key"], whole["key"][7:11])
    assert not np.array_equal(Loader([Numbers(10)], 6, prepare).rows_for(20, range(30))["key"], whole["key"])


def test_the_order_of_one_source_never_changes():
    """Runs resume by it: these numbers may change only with a new format of checkpoints."""
    rows = Loader([Numbers(12)], seed=0).rows_for(0, range(24))["row"]
    assert rows[:12].tolist() == [1, 6, 0, 11, 8, 7, 2, 9, 4, 10, 3, 5]  # as in test_order.py
    assert rows[12:].tolist() == permute(np.arange(12), 12, mix(0, 0, 1)).tolist()


def test_rows_are_where_they_are_whatever_was_asked_before():
    loader = Loader([Numbers(1000), Numbers(70)], seed=1, weights=[2, 1])
    numbers = np.arange(20_000)
    whole = loader.locate(numbers)
    random = np.random.default_rng(0)
    asked = [np.arange(4000, 4200), np.array([19_999]), np.arange(8191, 8193), random.integers(0, 20_000, 300)]
    asked += [np.arange(4095, 8191), np.array([5, 3, 5]), np.arange(12_300, 12_310)[::-1], np.array([], np.int64)]
    for some in asked:
        for got, expected in zip(loader.locate(some), whole, strict=True):
            assert got.tolist() == expected[some].tolist()


# Several sources

sources = st.lists(st.tuples(st.integers(1, 30), st.floats(0.5, 20)), min_size=2, max_size=5)


def mixed(sources, seed=0, **options):
    rows = [Numbers(count, source) for source, (count, _) in enumerate(sources)]
    return Loader(rows, seed, weights=[weight for _, weight in sources], **options)


@settings(max_examples=40)
@given(sources, st.integers(0, 300_000), st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 4))
def test_batches_of_a_mixture_depend_on_the_position_alone(sources, begin, sizes, hosts):
    def prepare(batch, keys):
        return batch | {"key": keys}

    whole = mixed(sources, prepare=prepare).rows_for(begin, range(sum(sizes)))
    seen = 0
    for size in sizes:  # as from a run that was stopped after each step, and on several hosts
        bounds = [size * host // hosts for host in range(hosts + 1)]
        parts = [
            mixed(sources, prepare=prepare).rows_for(begin + seen, range(low, high))
            for low, high in pairwise(bounds)
            if high > low
        ]
        for name, values in whole.items():
            together = np.concatenate([part[name] for part in parts])
            assert together.dtype == values.dtype
            assert np.array_equal(together, values[seen : seen + size]), name
        seen += size


@settings(max_examples=40)
@given(sources, st.integers(0, 2**31), st.integers(1, 3000))
def test_each_source_has_epochs_of_its_own(sources, seed, examples):
    loader = mixed(sources, seed)
    batch, located = loader.rows_for(0, range(examples)), loader.locate(np.arange(examples))
    assert batch["of"][:, 0].tolist() == batch["of"][:, 1].tolist() == located.sources.tolist()
    assert batch["row"].tolist() == located.rows.tolist()
    drawn = loader.drawn(examples)
    assert drawn == np.bincount(located.sources, minlength=len(sources)).tolist()
    for source, (count, _) in enumerate(sources):
        rows, epochs = located.rows[located.sources == source], located.epochs[located.sources == source]
        assert epochs.tolist() == [number // count for number in range(drawn[source])]
        for epoch in range(drawn[source] // count):
            assert sorted(rows[epochs == epoch]) == list(range(count))
        last = rows[epochs == drawn[source] // count]
        assert len(set(last)) == len(last)


def test_sources_have_independent_orders():
    loader = Loader([Numbers(100)] * 3, seed=4)
    located = loader.locate(np.arange(900))
    orders = {
        tuple(located.rows[(located.sources == source) & (located.epochs == epoch)])
        for source in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    assert {len(set(order)) for order in orders} == {100}


def test_without_weights_all_sources_end_their_epochs_together():
    loader = Loader([Numbers(1000), Numbers(3000)], seed=0)
    assert loader.drawn(4000) == [1000, 3000]


def test_a_batch_of_one_source_among_several():
    loader = Loader([Numbers(50), Numbers(50, 1)], seed=0, weights=[1, 60_000], names=["rare", "common"])
    assert loader.names == ("rare", "common")
    batch = loader.rows_for(0, range(16))
    assert batch["of"].tolist() == [[1, 1]] * 16
    with pytest.raises(ValueError, match="the source 'rare' has"):
        Loader([Numbers(50), Numbers(50, 1)], seed=0, weights=[1, 70_000], names=["rare", "common"])


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
