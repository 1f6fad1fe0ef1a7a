"""A mixture gives each source its share, at every length of a run, and is refused where it can't."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixture import SLOTS, Mixture, Portion, parse_mixture

pytestmark = pytest.mark.core
weights_of_sources = st.lists(st.floats(1, 1000), min_size=1, max_size=8)


def mixture_of(weights):
    return Mixture(weights, [f"s{number}" for number in range(len(weights))])


@settings(max_examples=40)
@given(weights_of_sources)
def test_a_round_of_the_table_has_each_share_to_a_slot(weights):
    drawn = mixture_of(weights).drawn(SLOTS)
    assert sum(drawn) == SLOTS
    exact = [Fraction(weight) / sum(map(Fraction, weights)) * SLOTS for weight in weights]
    assert all(abs(got - quota) < 1 for got, quota in zip(drawn, exact, strict=True))


@settings(max_examples=30)
@given(weights_of_sources, st.integers(0, 10**12))
def test_every_prefix_has_each_share_to_a_few_rows(weights, examples):
    mixture = mixture_of(weights)
    shares = np.array(mixture.drawn(SLOTS)) / SLOTS
    prefixes = np.arange(SLOTS + 1)
    sources, _ = mixture.locate(prefixes[:-1])
    for source, share in enumerate(shares):
        drawn = np.append(0, np.cumsum(sources == source))
        assert np.abs(drawn - prefixes * share).max() <= 1 + share * len(weights) / 2
    assert np.abs(np.array(mixture.drawn(examples)) - examples * shares).max() <= 1 + len(weights) / 2 + 1e-3


@settings(max_examples=30)
@given(weights_of_sources, st.integers(0, 10**9), st.integers(1, 300))
def test_what_is_drawn_from_a_source_is_numbered_without_a_gap(weights, begin, count):
    mixture = mixture_of(weights)
    before = mixture.drawn(begin)
    sources, drawn = mixture.locate(np.arange(begin, begin + count))
    for source in range(len(weights)):
        mine = drawn[sources == source]
        assert mine.tolist() == list(range(before[source], before[source] + len(mine)))
        assert mixture.drawn(begin + count)[source] == before[source] + len(mine)


def test_turns_are_taken_evenly():
    sources, drawn = mixture_of([2, 1, 1]).locate(np.arange(8))
    assert sources.tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert drawn.tolist() == [0, 0, 0, 1, 2, 1, 1, 3]
    sources, drawn = mixture_of([5.0]).locate(np.array([0, SLOTS, 10**15 + 3]))
    assert (sources.tolist(), drawn.tolist()) == ([0, 0, 0], [0, SLOTS, 10**15 + 3])


def test_the_table_never_changes():
    """Runs resume by it: these numbers may change only with a new format of checkpoints."""
    sources, _ = mixture_of([3, 5, 0.5]).locate(np.arange(SLOTS))
    assert sources[:17].tolist() == [1, 0, 1, 1, 0, 1, 0, 1, 2, 1, 0, 1, 1, 0, 1, 0, 1]
    assert np.bincount(sources).tolist() == [23130, 38551, 3855]


def test_specs():
    assert parse_mixture(["web=3:a/b.jsonl", "books=0.5:gs://bucket/x=1/*.txt"]) == (
        Portion("web", "a/b.jsonl", 3.0),
        Portion("books", "gs://bucket/x=1/*.txt", 0.5),
    )
    portions = parse_mixture(["web=1epoch:a.txt", "books=2.5epochs:embedded"])
    assert portions == (Portion("web", "a.txt", 1.0, True), Portion("books", "embedded", 2.5, True))
    # Epochs weigh as much as the rows that they take.
    assert [portion.weight(rows) for portion, rows in zip(portions, (100, 40), strict=True)] == [100, 100]
    assert Portion("web", "a.txt", 3.0).weight(100) == 3.0


@pytest.mark.parametrize(
    ("specs", "sentence"),
    [
        (["a.txt"], "'a.txt' is not a source of a mixture; write NAME=WEIGHT:PATH, such as web=3:web.jsonl, or NAME=2"),
        (["web=3"], "'web=3' is not a source of a mixture"),
        (["=3:a.txt"], "'=3:a.txt' has an empty name; write NAME="),
        (["web=3:"], "'web=3:' has an empty path; write NAME="),
        (["held out=3:a.txt"], "no source can be named 'held out', as reports call the validation text"),
        (["web=much:a.txt"], "'much' in 'web=much:a.txt' is not a number; write NAME="),
        (["web=:a.txt"], "'' in 'web=:a.txt' is not a number"),
        (["web=nan:a.txt"], "'nan' in 'web=nan:a.txt' is not a number"),
        (["web=inf:a.txt"], "'inf' in 'web=inf:a.txt' is not a number"),
        (["web=0:a.txt"], "the source 'web' has a weight of 0, which must be above zero; leave the source out"),
        (["web=-2epochs:a.txt"], "the source 'web' has -2 epochs, which must be above zero"),
        (
            ["web=1:a.txt", "books=1:b.txt", "web=2:c.txt"],
            "two sources of the mixture are named 'web', a.txt and c.txt; give each a name of its own",
        ),
        (
            ["web=1:a.txt", "books=2epochs:b.txt"],
            "the mixture gives 'web' a weight and 'books' a number of epochs; give all sources weights, or all of them",
        ),
    ],
)
def test_specs_that_are_refused(specs, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_mixture(specs)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_that_are_none(weight):
    with pytest.raises(ValueError, match=r"the source 's1' has a weight of .*, which must be a number above zero"):
        mixture_of([1, weight])


def test_a_source_too_small_for_the_table():
    with pytest.raises(
        ValueError,
        match=r"the source 's1' has 1e-05 of the mixture, less than one row in 65,536; the least that works beside the "
        r"others is 1.53 times that",
    ):
        mixture_of([60_000, 0.6, 0.9])
    assert mixture_of([60_000, 0.6 * 1.53, 0.9 * 1.53]).drawn(SLOTS)[1] == 1
    assert mixture_of([65_535, 1]).drawn(SLOTS) == [65_535, 1]
