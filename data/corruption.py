"""Rows of text to pairs: a source with holes, and as its target what was there.

Span corruption (T5, Raffel et al. 2020) and denoising (BART, Lewis et al. 2020). Each document of a row, or all of a
row that is packed contiguously, is corrupted by itself, and its source and its target have the same segment number.
What is drawn is a function of the row's key and of places in the row alone. Everything in a row counts as text, what is
given of it too, but the start tokens of documents, which are left out.
"""

from typing import NamedTuple

import numpy as np

from data.loader import Batch
from data.order import mix
from data.packing import ranges
from data.tokenizers.base import Tokenizer

# What is drawn for a token or a document, so that draws for different ends are independent.
_CHOSEN, _NOISE, _PLAIN, _LENGTH, _PLACE, _SENTENCE = range(6)
_MULTIPLE = 8  # of which the lengths of corrupted rows are multiples, so that a mesh can split them


class SpanLengths(NamedTuple):
    """How long the two sides become, and by how many spans."""

    source: int
    target: int
    spans: int


def longest_spans(length: int, rate: float, mean_span: float) -> SpanLengths:
    """The most that span corruption makes of one document of up to `length` tokens."""
    counts = np.arange(2, max(length, 2) + 1)
    noise, spans = _noise(counts, rate, mean_span)
    source, target = _span_sizes(counts, noise, spans).max(0)
    return SpanLengths(int(source), int(target), int(spans.max()))


def span_row_lengths(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Places of a source and of a target in rows that span corruption makes of rows of `length` tokens.

    One document always fits. Each document more costs an end token and what is rounded up, for which there is a
    sixteenth of the row besides: enough for documents of 20 tokens.
    """
    longest, allowance = longest_spans(length, rate, mean_span), length // 16
    return _rounded_up(longest.source + allowance), _rounded_up(longest.target + allowance)


def corrupt_spans(
    rows: Batch, keys: np.ndarray, tokenizer: Tokenizer, sentinels: np.ndarray, *, rate: float, mean_span: float
) -> Batch:
    """T5's span corruption of packed rows (tokens, segments, positions, ... [n, L]), by their keys, uint64 [n].

    Of a document of k tokens, round(rate k) in round(of these / mean_span) spans are noise, at least one each; lengths
    of spans, and of what is between them, are drawn evenly from all ways to divide them. A document begins with what is
    no noise and ends with noise, so that the only span of a short one is its end; T5 packs contiguously. In its source
    a sentinel stands for each span, the first ones of `sentinels` in their order; its target has each sentinel and the
    tokens that it stands for. Both end with the end token and, as in seqio, there is no sentinel before the target's.

    Documents of one token are left out, and where a row has no room for all (`span_row_lengths`), some; which ones, is
    drawn.

    Returns:
        source_tokens, source_segments, source_positions: int32 [n, M].
        tokens (what the decoder reads), targets, segments, positions: int32 [n, T]; scored: bool [n, T].
    """
    count, length = rows["tokens"].shape
    documents = _documents(rows, keys, rows["tokens"] != tokenizer.start_id)
    documents = documents.only(documents.counts >= 2)
    noise, spans = _noise(documents.counts, rate, mean_span)
    noise_lengths = _divided(documents, noise, spans, _NOISE)
    plain_lengths = _divided(documents, documents.counts - noise, spans, _PLAIN)

    lengths = np.stack([plain_lengths, noise_lengths], axis=1)
    is_noise = np.repeat(np.tile([False, True], len(lengths)), lengths.reshape(-1))
    opens = np.diff(is_noise, prepend=True)  # a document begins with what is plain, and ends with noise
    sentinel = np.repeat(sentinels[_within(spans)], lengths.sum(1))

    def marked(left_out: np.ndarray) -> np.ndarray:
        """The tokens with a sentinel in place of each stretch that is left out."""
        return np.where(left_out, sentinel, documents.tokens)[~left_out | opens]

    sizes = _span_sizes(documents.counts, noise, spans)
    source = np.insert(marked(is_noise), np.cumsum(sizes[:, 0] - 1), tokenizer.end_id)
    target = np.insert(marked(~is_noise), np.cumsum(sizes[:, 1] - 1), tokenizer.end_id)
    shapes = tuple((count, places) for places in span_row_lengths(length, rate, mean_span))
    return _pairs(documents, _Side(source, sizes[:, 0]), _Side(target, sizes[:, 1]), shapes, tokenizer.start_id)


def denoise(
    rows: Batch,
    keys: np.ndarray,
    tokenizer: Tokenizer,
    mask_id: int,
    ends_sentence: np.ndarray | None,
    *,
    rate: float,
    mean_span: float,
) -> Batch:
    """BART's noise on packed rows (tokens, segments, positions, ... [n, L]), by their keys, uint64 [n].

    A source is the document's sentences in a random order, in which ceil(rate k) of its k tokens are left out, in spans
    of Poisson(mean_span) tokens; each span, also one of none, becomes one mask. The last span has what is missing from
    the count, and a document has fewer spans than tokens that are left out, unless that is one. The source begins with
    the start token and ends with the end token. The target is the document, and the end token.

    The first token of a segment, its document's start token unless it was cut, gives its place to the end token, so
    that targets are as long as rows are; sources are, where more than one token is left out. Where very short documents
    become longer, some may have no room and are left out; which ones, is drawn.

    Args:
        rows: arrays [n, L].
        keys: of what is drawn.
        tokenizer: whose start and end tokens are taken.
        mask_id: what stands for a span.
        ends_sentence: bool [vocabulary], the tokens that end a sentence; where several follow on each other, the last
            one does. None leaves sentences in their order.
        rate: the share of tokens that is left out.
        mean_span: tokens a span.

    Returns:
        As `corrupt_spans`, every array [n, L].
    """
    documents = _documents(rows, keys, (rows["tokens"] != tokenizer.start_id) & (rows["positions"] > 0))
    counts = documents.counts
    tokens = documents.tokens if ends_sentence is None else _shuffled_sentences(documents, ends_sentence)

    left_out = np.ceil(rate * counts).astype(np.int64)
    lengths, spans = _poisson_spans(documents, left_out, mean_span)
    # Masks and tokens that stay in a random order; each takes its place in the text: a mask its span, a token itself.
    items = counts - left_out + spans
    ranks = _ranks(documents.first_draws(_PLACE, items), items)
    is_mask = ranks < np.repeat(spans, items)
    taken = np.ones(len(ranks), np.int64)
    taken[is_mask] = lengths[(ranks + np.repeat(_begins(spans), items))[is_mask]]
    infilled = np.where(is_mask, mask_id, tokens[np.minimum(_begins(taken), len(tokens) - 1)])

    edges = np.stack([_begins(items), np.cumsum(items)], axis=1)
    source = np.insert(infilled, edges.reshape(-1), np.tile([tokenizer.start_id, tokenizer.end_id], len(edges)))
    target = np.insert(documents.tokens, np.cumsum(counts), tokenizer.end_id)
    shape = rows["tokens"].shape
    return _pairs(documents, _Side(source, items + 2), _Side(target, counts + 1), (shape, shape), tokenizer.start_id)


class _Documents(NamedTuple):
    """The texts of some rows, one after another.

    Attributes:
        tokens: int32 [tokens].
        places: of the tokens in their rows, int64 [tokens].
        seeds: of what is drawn for a token, uint64 [tokens].
        rows: of the texts, int64 [texts].
        counts: of their tokens, int64 [texts].
    """

    tokens: np.ndarray
    places: np.ndarray
    seeds: np.ndarray
    rows: np.ndarray
    counts: np.ndarray

    def only(self, kept: np.ndarray) -> "_Documents":
        """Those that are kept, bool [texts]."""
        inside = np.repeat(kept, self.counts)
        tokens, places, seeds = (values[inside] for values in (self.tokens, self.places, self.seeds))
        return _Documents(tokens, places, seeds, self.rows[kept], self.counts[kept])

    def first_draws(self, purpose: int, counts: np.ndarray) -> np.ndarray:
        """A number for each of the first `counts` [texts] tokens of each text, uint64, independent for each purpose."""
        return mix(self.seeds[ranges(_begins(self.counts), counts)], purpose)


class _Side(NamedTuple):
    """What becomes of some texts, one after another: tokens int32 and how many each has."""

    tokens: np.ndarray
    counts: np.ndarray


def _documents(rows: Batch, keys: np.ndarray, is_text: np.ndarray) -> _Documents:
    row, place = np.nonzero(is_text & (rows["segments"] > 0))
    segment = rows["segments"][row, place]
    begins = np.flatnonzero((np.diff(row, prepend=-1) != 0) | (np.diff(segment, prepend=0) != 0))
    counts = np.diff(begins, append=len(row))
    return _Documents(rows["tokens"][row, place], place, mix(keys[row], place), row[begins], counts)


def _noise(counts: np.ndarray, rate: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """How many of so many tokens are noise, and in how many spans: as T5's random_spans_noise_mask."""
    noise = np.clip(np.round(counts * rate).astype(np.int64), 1, counts - 1)
    spans = np.round(noise / mean_span).astype(np.int64)
    return noise, np.clip(spans, 1, np.minimum(noise, counts - noise))


def _span_sizes(counts: np.ndarray, noise: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Tokens of the source and of the target, [texts, 2], end tokens included."""
    return np.stack([counts - noise, noise], axis=1) + spans[:, None] + 1


def _divided(documents: _Documents, items: np.ndarray, parts: np.ndarray, purpose: int) -> np.ndarray:
    """The lengths of the parts, none of them empty, that each text's items are divided into, each way as likely."""
    draws = documents.first_draws(purpose, items)
    draws[_begins(items)] = 0  # the first item opens the first part, and others open the others
    opens = _ranks(draws, items) < np.repeat(parts, items)
    return np.diff(np.flatnonzero(opens), append=len(opens))


def _poisson_spans(documents: _Documents, left_out: np.ndarray, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """The lengths of spans which together have `left_out` tokens [texts], and how many spans each text has."""
    most = np.maximum(left_out - 1, 1)
    draws = documents.first_draws(_LENGTH, most)
    lengths = np.searchsorted(_poisson(mean), draws / 2.0**64, side="right")
    lengths[np.cumsum(most) - 1] = left_out  # the last one takes all that is missing
    before = _begins(lengths)
    before -= np.repeat(before[_begins(most)], most)
    missing = np.repeat(left_out, most) - before
    used = missing > 0
    spans = np.bincount(np.repeat(np.arange(len(most)), most)[used], minlength=len(most))
    return np.minimum(lengths, missing)[used], spans


def _poisson(mean: float) -> np.ndarray:
    """The probabilities of at most 0, 1, 2, ... under the Poisson distribution, as far as they matter."""
    numbers = np.arange(1, int(mean + 12 * np.sqrt(mean)) + 20)
    return np.cumsum(np.exp(-mean) * np.append(1.0, np.cumprod(mean / numbers)))


def _shuffled_sentences(documents: _Documents, ends_sentence: np.ndarray) -> np.ndarray:
    """The tokens of all texts, the sentences of each in a random order."""
    ends = ends_sentence[documents.tokens]
    opens = np.diff(documents.places, prepend=0) != 1  # a start token stood before
    opens[1:] |= ends[:-1] & ~ends[1:]
    opens[_begins(documents.counts)] = True
    begins = np.flatnonzero(opens)
    text = np.repeat(np.arange(len(documents.counts)), documents.counts)[begins]
    order = _order(text, mix(documents.seeds[begins], _SENTENCE))
    return documents.tokens[ranges(begins[order], np.diff(begins, append=len(ends))[order])]


def _pairs(
    documents: _Documents,
    source: _Side,
    target: _Side,
    shapes: tuple[tuple[int, int], ...],
    start_id: int,
) -> Batch:
    """Rows of the pairs that fit, side by side, in the order of their documents."""
    read = np.roll(target.tokens, 1)
    read[_begins(target.counts)] = start_id
    kept = _fitting(documents, np.stack([source.counts, target.counts], axis=1), [length for _, length in shapes])
    rows = documents.rows[kept]

    def spread(shape: tuple[int, int], counts: np.ndarray, **values: np.ndarray) -> Batch:
        inside, counts = np.repeat(kept, counts), counts[kept]
        before = _begins(counts)
        first = np.searchsorted(rows, rows)  # of the row
        places = ranges(rows * shape[1] + before - before[first], counts)
        arrays = {name: of_tokens[inside] for name, of_tokens in values.items()}
        arrays["segments"] = np.repeat(np.arange(len(rows)) - first + 1, counts)
        arrays["positions"] = _within(counts)
        result = {name: np.zeros(shape, np.int32) for name in arrays}
        for name, of_tokens in arrays.items():
            result[name].reshape(-1)[places] = of_tokens
        return result

    sources = spread(shapes[0], source.counts, tokens=source.tokens)
    targets = spread(shapes[1], target.counts, tokens=read, targets=target.tokens)
    return {**{f"source_{n}": a for n, a in sources.items()}, **targets, "scored": targets["segments"] > 0}


def _fitting(documents: _Documents, sizes: np.ndarray, room: list[int]) -> np.ndarray:
    """Whether each text, of `sizes` [texts, 2], has room in its row; in a random order, as far as there is some."""
    order = _order(documents.rows, mix(documents.seeds[_begins(documents.counts)], _CHOSEN))
    total = np.cumsum(sizes[order], axis=0)
    first = np.searchsorted(documents.rows, documents.rows)
    before = (total - sizes[order])[first]  # rows stand in their order, and only texts within them in another
    fits = np.empty(len(order), bool)
    fits[order] = (total - before <= room).all(1)
    return fits


def _ranks(draws: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The place of each draw in the order of those of its text; the texts have so many each."""
    order = _order(np.repeat(np.arange(len(counts)), counts), draws)
    ranks = np.empty(len(draws), np.int64)
    ranks[order] = _within(counts)
    return ranks


def _order(groups: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The order of rising groups, in each of rising draws; by one number for both, a third of the time of two."""
    return np.argsort(groups.astype(np.uint64) << np.uint64(40) | draws >> np.uint64(24), kind="stable")


def _begins(counts: np.ndarray) -> np.ndarray:
    """Where each of some stretches begins that follow on each other."""
    return np.cumsum(counts) - counts


def _within(counts: np.ndarray) -> np.ndarray:
    """The places 0, 1, ... in each of some stretches, one after another."""
    return ranges(np.zeros_like(counts), counts)


def _rounded_up(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE
