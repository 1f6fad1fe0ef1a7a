"""Corrupted rows: nothing is lost between source and target, counts are exact, and the key decides everything."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.corruption import corrupt_spans, denoise, longest_spans, span_row_lengths
from data.order import mix
from data.tokenizers.export import to_files
from data.tokenizers.hugging_face import LibraryTokenizer
from data.tokenizers.plain import ByteTokenizer
from data.tokenizers.roles import sentinel_role
from data.tokenizers.sentence_piece import train_sentencepiece

pytestmark = pytest.mark.core

START, END, MASK = 1, 2, 3
SENTINELS = np.arange(999, 899, -1)
TOKENIZER: Any = SimpleNamespace(start_id=START, end_id=END)
FIRST = 1000  # of the ids of text, so that no mark is among them
ENDS = np.arange(10_000) % 7 == 0  # every seventh token ends a sentence


def packed(sizes, length, contiguous=False):
    """Rows of documents of so many stored tokens: a start token, and text of which no token comes twice in a row."""
    rows = {name: np.zeros((len(sizes), length), np.int32) for name in ("tokens", "segments", "positions")}
    for row, of_row in enumerate(sizes):
        rows["tokens"][row, : sum(of_row)] = FIRST + (np.arange(sum(of_row)) * 7919 + row) % 7907
        begin = 0
        for number, size in enumerate(of_row):
            at = row, slice(begin, begin + size)
            rows["tokens"][row, begin] = START
            rows["segments"][at] = 1 if contiguous else number + 1
            rows["positions"][at] = np.arange(size) + (begin if contiguous else 0)
            begin += size
    return rows


@st.composite
def batches(draw, shortest=1):
    """Rows of one to some documents that fill them or do not, of which the first may have begun in a row before."""
    length = draw(st.sampled_from([24, 40, 64]))
    sizes = []
    for _ in range(draw(st.integers(1, 3))):
        of_row = [draw(st.integers(shortest, length))]
        while sum(of_row) + shortest <= length and draw(st.booleans()):
            of_row.append(draw(st.integers(shortest, length - sum(of_row))))
        sizes.append(of_row)
    contiguous = draw(st.booleans())
    rows = packed(sizes, length, contiguous)
    if draw(st.booleans()):
        rows["tokens"][:, 0] = FIRST + 8000
    return rows, mix(draw(st.integers(0, 99)), np.arange(len(sizes)))


def texts(rows, row, names=("tokens", "segments")):
    """What each segment of a row holds, by its number."""
    tokens, segments = (rows[name][row] for name in names)
    return {number: tokens[segments == number].tolist() for number in range(1, segments.max() + 1)}


def originals(rows, row, dropped=0):
    """The text of each document, without start tokens and without the first `dropped` tokens of a segment."""
    return [[token for token in text[dropped:] if token != START] for text in texts(rows, row).values()]


def check_layout(pairs):
    """Segments numbered from 1 without gaps, the same on both sides; places from each one's begin; the decoder's view.

    All else is padding.
    """
    for side in ("source_", ""):
        tokens, segments = pairs[f"{side}tokens"], pairs[f"{side}segments"]
        opens = np.diff(segments, axis=1, prepend=0) != 0
        place = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
        begin = np.maximum.accumulate(np.where(opens, place, 0), 1)
        np.testing.assert_array_equal(pairs[f"{side}positions"], (place - begin) * (segments > 0))
        np.testing.assert_array_equal(np.cumsum(opens & (segments > 0), 1) * (segments > 0), segments)
        assert not tokens[segments == 0].any()
    np.testing.assert_array_equal(pairs["source_segments"].max(1), pairs["segments"].max(1))
    np.testing.assert_array_equal(pairs["scored"], pairs["segments"] > 0)
    opens = (pairs["positions"] == 0) & pairs["scored"]
    expected = np.where(opens, START, np.roll(pairs["targets"], 1, 1)) * pairs["scored"]
    np.testing.assert_array_equal(pairs["tokens"], expected)


def without_left_out(expected, found, key):
    """Documents that were found, each of them one of the expected and in their order."""
    remaining = iter(expected)
    assert all(any(key(document) == text for document in remaining) for text in found), (expected, found)


# Span corruption


def spans_of(rows, keys, rate=0.15, mean_span=3.0):
    return corrupt_spans(rows, keys, TOKENIZER, SENTINELS, rate=rate, mean_span=mean_span)


def filled_in(source, target):
    """The text that a source and a target give together, and the lengths of spans and of what is between them."""
    assert source.pop() == target.pop() == END
    places = [target.index(sentinel) for sentinel in SENTINELS if sentinel in target]
    spans = {target[a]: target[a + 1 : b] for a, b in pairwise([*places, len(target)])}
    assert list(spans) == SENTINELS[: len(spans)].tolist() == [token for token in source if token in spans]
    between, text = [0], []
    for token in source:
        text += spans.get(token, [token])
        between[-1] += token not in spans
        between += [0] * (token in spans)
    assert between.pop() == 0, "a document ends with noise"
    return text, [len(span) for span in spans.values()], between


@settings(max_examples=60)
@given(batches(), st.sampled_from([(0.15, 3.0), (0.5, 2.0), (0.15, 1.0)]))
def test_source_and_target_give_the_text(batch, how):
    (rows, keys), (rate, mean_span) = batch, how
    pairs = spans_of(rows, keys, rate, mean_span)
    source_length, target_length = span_row_lengths(rows["tokens"].shape[1], rate, mean_span)
    assert pairs["source_tokens"].shape == (len(keys), source_length)
    assert pairs["targets"].shape == (len(keys), target_length)
    check_layout(pairs)
    for row in range(len(keys)):
        expected = [text for text in originals(rows, row) if len(text) >= 2]
        sources = texts(pairs, row, ("source_tokens", "source_segments"))
        targets = texts(pairs, row, ("targets", "segments"))
        found = []
        for number, source in sources.items():
            text, spans, between = filled_in(source, targets[number])
            noise = min(max(round(rate * len(text)), 1), len(text) - 1)
            assert sum(spans) == noise
            assert len(spans) == min(max(round(noise / mean_span), 1), noise, len(text) - noise)
            assert min(spans + between) >= 1
            found.append(text)
        assert found or not expected
        without_left_out(expected, found, key=lambda text: text)


def test_lengths_are_those_of_t5():
    assert longest_spans(568, 0.15, 3.0)[:2] == (512, 114)  # published: 568 tokens become 512, and 114 of target
    for length in (16, 100, 512):
        rows = packed([[length]], length)
        rows["tokens"][0, 0] = FIRST + 8000
        pairs = spans_of(rows, np.zeros(1, np.uint64))
        exact = longest_spans(length, 0.15, 3.0)
        assert pairs["source_segments"].sum() == exact.source
        assert pairs["segments"].sum() == exact.target
        assert np.isin(pairs["source_tokens"], SENTINELS).sum() == exact.spans


def test_every_way_to_divide_is_as_likely():
    """20 tokens, of which 6 are noise in 2 spans: 5 ways to divide the noise, and 13 to divide the others."""
    count = 6500
    rows = packed([[21]] * count, 24)
    pairs = spans_of(rows, mix(5, np.arange(count)), rate=0.3)
    ways = Counter()
    for row in range(count):
        sides = texts(pairs, row, ("source_tokens", "source_segments")), texts(pairs, row, ("targets", "segments"))
        _, spans, between = filled_in(*(side[1] for side in sides))
        ways[spans[0], between[0]] += 1
    assert len(ways) == 65
    assert sum((seen - 100) ** 2 / 100 for seen in ways.values()) < 110  # chi squared, which is above once in 3,000


# Denoising


def noisy(rows, keys, rate=0.3, mean_span=3.0, ends_sentence=None):
    return denoise(rows, keys, TOKENIZER, MASK, ends_sentence, rate=rate, mean_span=mean_span)


@settings(max_examples=60)
@given(batches(), st.sampled_from([(0.3, 3.0), (0.1, 0.5), (0.6, 2.0)]), st.booleans())
def test_source_is_the_text_with_masks_and_target_is_the_text(batch, how, shuffled):
    (rows, keys), (rate, mean_span) = batch, how
    pairs = noisy(rows, keys, rate, mean_span, ENDS if shuffled else None)
    assert all(array.shape == rows["tokens"].shape for array in pairs.values())
    check_layout(pairs)
    for row in range(len(keys)):
        targets = texts(pairs, row, ("targets", "segments"))
        expected = [text for text in originals(rows, row, dropped=1) if text]
        assert all(target.pop() == END for target in targets.values())
        assert targets or not expected
        without_left_out(expected, list(targets.values()), key=lambda text: text)
        for number, source in texts(pairs, row, ("source_tokens", "source_segments")).items():
            text = targets[number]
            assert source.pop(0) == START
            assert source.pop() == END
            places = [text.index(token) for token in source if token != MASK]
            left_out = int(np.ceil(rate * len(text)))
            assert len(places) == len(set(places)) == len(text) - left_out
            assert 1 <= source.count(MASK) <= max(left_out - 1, 1)
            if not shuffled:
                check_gaps(source, text)


def check_gaps(source, text):
    """Tokens that stay are in their order, and where some are missing a mask stands for them."""
    last, masks = -1, 0
    for token in [*source, None]:
        if token == MASK:
            masks += 1
            continue
        place = len(text) if token is None else text.index(token)
        assert place > last
        assert masks or place == last + 1
        last, masks = place, 0


def test_spans_are_poisson():
    rows = packed([[512]] * 200, 512)
    pairs = noisy(rows, mix(1, np.arange(200)))
    spans = Counter()
    for row in range(200):
        text = texts(pairs, row, ("targets", "segments"))[1]
        source = texts(pairs, row, ("source_tokens", "source_segments"))[1][1:-1]
        for before, token, after in zip(source, source[1:], source[2:], strict=False):
            if token == MASK and MASK not in (before, after):  # where masks touch, one can't tell their spans apart
                spans[text.index(after) - text.index(before) - 1] += 1
    share = np.array([spans[length] for length in range(8)]) / spans.total()
    poisson = np.exp(-3.0) * 3.0 ** np.arange(8) / np.cumprod([1, *range(1, 8)])
    np.testing.assert_allclose(share, poisson, atol=0.02)
    assert spans.total() > 5000


def test_sentences_are_shuffled_whole():
    """Three sentences, of which the last does not end; of two marks of an end in a row, the second ends it."""
    rows = packed([[13]], 16)
    rows["tokens"][0, 1:13] = [5001, 5002, 7, 14, 5003, 5004, 5005, 7, 5006, 5007, 5008, 5009]
    sentence = dict.fromkeys([5001, 5002, 7, 14], 0) | dict.fromkeys([5003, 5004, 5005], 1)
    sentence |= dict.fromkeys([5006, 5007, 5008, 5009], 2)
    orders = Counter()
    for keys in mix(2, np.arange(600)).reshape(-1, 1):
        source = noisy(rows, keys, rate=0.01, ends_sentence=ENDS)["source_tokens"][0]
        shown = [token for token in source.tolist() if token > MASK and token != 7]  # that one stands in two of them
        numbers = [sentence[token] for token in shown]
        order = tuple(dict.fromkeys(numbers))
        # Each in one piece, its tokens in their order.
        assert numbers == sorted(numbers, key=order.index)
        assert all(a < b or a == 14 or b == 14 for a, b in pairwise(shown) if sentence[a] == sentence[b])
        orders[order] += 1
    assert len(orders) == 6
    assert min(orders.values()) > 70


def test_a_document_within_a_contiguous_row_begins_a_sentence():
    rows = packed([[5, 5]], 16, contiguous=True)
    begun = Counter()
    for keys in mix(2, np.arange(40)).reshape(-1, 1):
        source = noisy(rows, keys, rate=0.01, ends_sentence=np.zeros(10_000, bool))["source_tokens"][0]
        begun[source[1] in rows["tokens"][0, :4] or source[2] in rows["tokens"][0, :4]] += 1
    assert min(begun.values()) > 10
    assert len(begun) == 2


# Both


def corrupted(kind, rows, keys):
    return spans_of(rows, keys) if kind == "spans" else noisy(rows, keys, ends_sentence=ENDS)


kinds = pytest.mark.parametrize("kind", ["spans", "noise"])


@kinds
def test_a_row_is_a_function_of_its_key(kind):
    rows, keys = packed([[40, 56], [96], [10, 20, 60], [96]], 96), mix(4, np.arange(4))
    whole = corrupted(kind, rows, keys)
    part = corrupted(kind, {name: array[2:] for name, array in rows.items()}, keys[2:])
    others = corrupted(kind, rows, mix(5, np.arange(4)))
    for name, array in whole.items():
        np.testing.assert_array_equal(part[name], array[2:])
    assert (whole["source_tokens"] != others["source_tokens"]).any(1).all()
    assert all(array.dtype == (bool if name == "scored" else np.int32) for name, array in whole.items())


@kinds
def test_documents_of_a_row_stay_apart(kind):
    rows, keys = packed([[20, 24, 20]], 64), np.zeros(1, np.uint64)
    before = corrupted(kind, rows, keys)
    rows["tokens"][0, 21:44] += 7  # and the same tokens end sentences
    after = corrupted(kind, rows, keys)
    for side in ("source_tokens", "targets"):
        segments = before["source_segments" if side == "source_tokens" else "segments"]
        changed = before[side] != after[side]
        assert changed[segments == 2].any()
        assert not changed[segments != 2].any()


@kinds
def test_rows_of_many_short_documents_leave_some_out_by_turns(kind):
    """A row always holds a document; which ones it leaves out is drawn anew for each key."""
    count, size = 50, 3
    rows = packed([[size] * 21] * count, 64)
    pairs = corrupted(kind, rows, mix(6, np.arange(count)))
    check_layout(pairs)
    kept = pairs["segments"].max(1)
    if kind == "noise":
        # One of two tokens is left out, and the source then has one more than there was; four are too long.
        assert ((kept >= 16) & (kept < 21)).all()
    else:
        assert (kept == span_row_lengths(64, 0.15, 3.0)[1] // 3).all()
    first = [pairs["targets"][row][0] for row in range(count)] if kind == "noise" else pairs["source_tokens"][:, 0]
    assert len(set(first)) > 1


@kinds
def test_padding_and_no_rows_at_all(kind):
    for rows in (packed([[]] * 2, 32), packed([[1, 1]] * 2, 32)):
        pairs = corrupted(kind, rows, np.zeros(2, np.uint64))
        assert not any(array.any() for array in pairs.values())
    none = corrupted(kind, {name: array[:0] for name, array in packed([[32]], 32).items()}, np.zeros(0, np.uint64))
    assert none["targets"].shape[0] == 0


# Sentinels


def test_sentinels_are_trained_and_found_again(english):
    roles = ("mask", *map(sentinel_role, range(12)))
    tokenizer = train_sentencepiece([english], 320, roles=roles)
    ids = [tokenizer.special(role) for role in roles]
    assert len(set(ids)) == 13
    assert [tokenizer.pieces[token] for token in ids] == ["<mask>", *(f"<extra_id_{n}>" for n in range(12))]
    assert not np.isin(tokenizer.encode("a <extra_id_3> b <mask>"), ids).any()
    library = LibraryTokenizer(to_files(tokenizer))
    assert [library.special(role) for role in roles] == ids
    with pytest.raises(ValueError, match=r"no sentinel_12 token; .* are: start, end, unknown, mask, sentinel;"):
        tokenizer.special(sentinel_role(12))
    with pytest.raises(ValueError, match=r"this bytes tokenizer has no sentinel_0 token"):
        ByteTokenizer().special(sentinel_role(0))
