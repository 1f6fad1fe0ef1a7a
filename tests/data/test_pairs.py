"""Pairs: every one once and whole, first-fit on both sides, with the ids, segments and targets that both sides need."""

import gzip
from itertools import count, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import fitting
from data.cache import digest_of
from data.loader import Rows
from data.pairs import PairRows, source_batches
from data.prepare import prepare_corpus
from data.reading import Reading
from data.shards import Corpus, Shard
from data.sources import open_pairs
from data.tokenizers.plain import ByteTokenizer

pytestmark = pytest.mark.core
START, END = 256, 256
SOURCE, TARGET = (
    ("source_tokens", "source_segments", "source_positions"),
    ("tokens", "segments", "positions", "targets"),
)
_number = count()
Pair = tuple[list[int], list[int]]


@pytest.fixture(scope="module")
def corpus_of(tmp_path_factory):
    """Makes a corpus of pairs of token lists."""
    folder = tmp_path_factory.mktemp("pairs")

    def make(pairs: list[Pair]) -> Corpus:
        number = next(_number)
        stored = [[START, *source, *target] for source, target in pairs]
        sizes = np.array(list(map(len, stored)))
        path = folder / f"{number}.bin"
        np.concatenate(stored).astype("<u2").tofile(path)
        given_tokens = np.array([1 + len(source) for source, _ in pairs])
        shard = Shard(path, "<u2", int(sizes.sum()))
        corpus = Corpus(digest_of(stored, number), [shard], np.cumsum(sizes) - sizes, given_tokens)
        corpus.num_scored, corpus.longest = int(sizes.sum() - given_tokens.sum()), int(sizes.max())
        return corpus

    return make


def numbered(sizes: list[tuple[int, int]]) -> list[Pair]:
    """Pairs of so many tokens; none comes twice."""
    tokens = count(1000)
    return [([next(tokens) for _ in range(s)], [next(tokens) for _ in range(t)]) for s, t in sizes]


def sides_of(pair: Pair, source_length: int, target_length: int) -> tuple[list[int], list[int], list[int]]:
    """What the encoder reads, what the decoder reads, and its targets, of a pair that may have to be cut."""
    source, target = pair
    return (
        [*source[: source_length - 1], END],
        [START, *target][:target_length],
        [*target, END][:target_length],
    )


def expected_rows(pairs: list[Pair], source_length: int, target_length: int, window: int) -> list[dict]:
    """The definition, a token at a time."""
    rows: list[dict] = []
    for first in range(0, len(pairs), window):
        open_rows: list[dict] = []
        for pair in pairs[first : first + window]:
            source, read, targets = sides_of(pair, source_length, target_length)
            for row in open_rows:
                fits = len(row["source_tokens"]) + len(source) <= source_length
                if fits and len(row["tokens"]) + len(read) <= target_length:
                    break
            else:
                row = {name: [] for name in (*SOURCE, *TARGET)}
                open_rows.append(row)
            segment = max(row["segments"], default=0) + 1
            row["source_tokens"] += source
            row["source_segments"] += [segment] * len(source)
            row["source_positions"] += range(len(source))
            row["tokens"] += read
            row["segments"] += [segment] * len(read)
            row["positions"] += range(len(read))
            row["targets"] += targets
        rows += open_rows
    for row in rows:
        row["scored"] = [True] * len(row["targets"]) + [False] * (target_length - len(row["targets"]))
        for name in SOURCE:
            row[name] += [0] * (source_length - len(row[name]))
        for name in TARGET:
            row[name] += [0] * (target_length - len(row[name]))
    return rows


def as_lists(rows: PairRows) -> list[dict]:
    batch = rows.take(np.arange(len(rows)))
    assert batch.keys() == {*SOURCE, *TARGET, "scored"}
    assert {values.dtype for name, values in batch.items() if name != "scored"} == {np.dtype(np.int32)}
    assert batch["scored"].dtype == bool
    return [{name: values[row].tolist() for name, values in batch.items()} for row in range(len(rows))]


sizes = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), min_size=1, max_size=25).filter(
    lambda sizes: any(source for source, _ in sizes)
)


@settings(max_examples=40)
@given(sizes, st.integers(7, 20), st.integers(9, 20), st.integers(1, 9), st.integers(1, 3))
def test_rows_hold_every_pair_once_and_whole(corpus_of, sizes, source_length, target_length, window, windows):
    pairs = numbered(sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "WINDOW", window)
        patch.setattr(fitting, "_PLANNED", window * windows)
        rows = PairRows(corpus_of(pairs), source_length, target_length, ByteTokenizer())
    expected = expected_rows(pairs, source_length, target_length, window)
    assert as_lists(rows) == expected
    assert (rows.num_dropped, rows.num_cut, rows.left_out) == (0, 0, "")
    tokens = sum(len(source) + 1 + len(target) + 1 for source, target in pairs)
    assert rows.fill == tokens / (len(expected) * (source_length + target_length))
    # Any order, and a row twice; and none.
    whole = rows.take(np.arange(len(rows)))
    chosen = np.random.default_rng(0).permutation(len(rows)).repeat(2)
    for indices in (chosen, chosen[:0]):
        some = rows.take(indices)
        assert all(np.array_equal(whole[name][indices], some[name]) for name in whole)


@settings(max_examples=40)
@given(sizes, st.integers(1, 8), st.integers(1, 8))
def test_pairs_that_are_too_long_are_dropped_or_cut(corpus_of, sizes, source_length, target_length):
    pairs = numbered(sizes)
    short = [pair for pair in pairs if len(pair[0]) < source_length and len(pair[1]) < target_length]
    make = (source_length, target_length, ByteTokenizer())
    rows = PairRows(corpus_of(pairs), *make, "cut")
    assert as_lists(rows) == expected_rows(pairs, source_length, target_length, len(pairs))
    assert (rows.num_dropped, rows.num_cut) == (0, len(pairs) - len(short))
    if not short:
        sentence = (
            f"none of the {len(pairs)} pairs has room in rows of {source_length} source tokens and {target_length} "
            "target tokens; pass a larger --data.max-length or --data.target-length$"
        )
        with pytest.raises(ValueError, match=sentence):
            PairRows(corpus_of(pairs), *make, "drop")
        return
    rows = PairRows(corpus_of(pairs), *make, "drop")
    assert as_lists(rows) == expected_rows(short, source_length, target_length, len(pairs))
    assert (rows.num_dropped, rows.num_cut) == (len(pairs) - len(short), 0)


def test_a_cut_source_ends_and_a_cut_target_does_not(corpus_of):
    rows = PairRows(corpus_of([([1, 2, 3, 4], [5, 6, 7, 8]), ([9], [10])]), 4, 3, ByteTokenizer(), "cut")
    batch = {name: values.tolist() for name, values in rows.take(np.arange(2)).items()}
    assert batch["source_tokens"] == [[1, 2, 3, END], [9, END, 0, 0]]
    assert batch["tokens"] == [[START, 5, 6], [START, 10, 0]]
    assert batch["targets"] == [[5, 6, 7], [10, END, 0]]
    assert rows.left_out == "1 pairs cut off at 4 source tokens and 3 target tokens"


def test_refusals(corpus_of):
    corpus = corpus_of(numbered([(4, 3), (7, 2), (2, 11), (9, 9)]))
    with pytest.raises(
        ValueError,
        match=r"^3 of 4 pairs have more than data.max_length=6 source tokens or data.target_length=5 target tokens, "
        r"the longest 10 and 12; pass --data.max-length 10 --data.target-length 12, or --data.too-long drop or cut$",
    ):
        PairRows(corpus, 6, 5, ByteTokenizer())
    with pytest.raises(
        ValueError,
        match=r"^1 of 4 pairs have more than data.target_length=10 target tokens, the longest 12; pass "
        r"--data.target-length 12, or --data.too-long drop or cut$",
    ):
        PairRows(corpus, 10, 10, ByteTokenizer())
    assert len(PairRows(corpus, 10, 12, ByteTokenizer())) == 4
    with pytest.raises(ValueError, match="documents with prompts can't be split"):
        PairRows(corpus, 10, 12, ByteTokenizer(), "split")
    with pytest.raises(ValueError, match=r"nothing in this text is given; pass --data.source-path and"):
        PairRows(corpus_of(numbered([(0, 3), (0, 2)])), 10, 10, ByteTokenizer())


def test_a_plan_is_made_once_for_each_pair_of_lengths(corpus_of, monkeypatch):
    corpus = corpus_of(numbered([(2, 3), (4, 2), (1, 7)]))
    first, other = (as_lists(PairRows(corpus, length, 8, ByteTokenizer())) for length in (5, 12))
    assert len(first) != len(other)
    monkeypatch.setattr(PairRows, "_plan", lambda *_: pytest.fail("planned twice"))
    assert as_lists(PairRows(corpus, 5, 8, ByteTokenizer())) == first


def test_parallel_files_become_pairs(tmp_path):
    """Of texts: an empty line is a source of an end token alone, and a pair without a target is left out."""
    (tmp_path / "train.en").write_text("a dog\n\nno\nthe end\n")
    (tmp_path / "train.de").write_text("ein Hund\nleer\n\ndas Ende\n")
    reading = Reading(prompt="{source}", response="{target}")
    corpus = prepare_corpus(
        open_pairs(str(tmp_path / "train.en"), str(tmp_path / "train.de"), reading), ByteTokenizer()
    )
    assert corpus.empty == 1
    rows = PairRows(corpus, 24, 32, ByteTokenizer())
    batch = {name: values[0].tolist() for name, values in rows.take(np.arange(1)).items()}
    source, target = [*b"a dog", END, END, *b"the end", END], [*b"ein Hund", END, *b"leer", END, *b"das Ende", END]
    assert batch["source_tokens"] == source + [0] * (24 - len(source))
    assert batch["targets"] == target + [0] * (32 - len(target))


def test_multi30k_leaves_almost_nothing_empty(shared_data, tmp_path):
    for language in ("en", "de"):
        with gzip.open(shared_data / "mt" / "multi30k" / f"train.{language}.gz", "rt", encoding="utf-8") as text:
            (tmp_path / language).write_text("".join(islice(text, 3000)), "utf-8")
    source = open_pairs(str(tmp_path / "en"), str(tmp_path / "de"), Reading(prompt="{source}", response="{target}"))
    corpus = prepare_corpus(source, ByteTokenizer(), workers=1)
    rows: Rows = PairRows(corpus, 512, 640, ByteTokenizer())
    assert rows.fill > 0.85
    batch = rows.take(np.arange(len(rows)))
    assert batch["scored"].sum() == corpus.num_scored + corpus.num_documents
    np.testing.assert_array_equal(batch["source_segments"].max(1), batch["segments"].max(1))


@settings(max_examples=40)
@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 9), st.integers(40, 80))
def test_sources_come_in_batches_of_few_lengths_longest_first(lengths, batch_size, longest):
    ids = [np.arange(length, dtype=np.int32) + 100 * number for number, length in enumerate(lengths)]
    found: list[int] = []
    for numbers, tokens, segments in source_batches(ids, batch_size, longest):
        assert tokens.shape == segments.shape
        assert tokens.dtype == segments.dtype == np.int32
        assert len(tokens) == batch_size
        assert tokens.shape[1] in (16, 32, min(64, longest))
        assert tokens.shape[1] < 2 * max(lengths[numbers[0]], 9)
        for row, number in enumerate(numbers):
            np.testing.assert_array_equal(tokens[row][segments[row] == 1], ids[number])
            assert segments[row, : lengths[number]].all()
        assert (segments[len(numbers) :].sum(1) == 1).all()
        found += numbers.tolist()
    assert found == sorted(range(len(lengths)), key=lambda number: -lengths[number])


def test_sources_longer_than_the_model_reads_are_refused():
    sources = [np.zeros(length, np.int32) for length in (3, 20, 17)]
    with pytest.raises(
        ValueError, match="2 of 3 sources have more than the 16 tokens that the model reads, the longest"
    ):
        next(source_batches(sources, 4, 16))
