"""Documents to rows of one length, by concatenating and cutting: each stored token is a target exactly once.

Row r holds the stream's tokens [r L, r L + L), and as targets the ones after them. Where the next token opens a new
document the target is the end token, so that a start token is a target of nothing, and the model learns to end. A
target that is given, as those of prompts are, is not scored.
"""

from typing import Literal, NamedTuple

import numpy as np

from data.shards import Corpus

Packing = Literal["isolated", "contiguous"]


class ConcatenatedRows:
    """The rows of a corpus; `left_out`, in words, what of it is in none of them: nothing.

    Args:
        corpus: what is cut.
        length: tokens a row.
        packing: "isolated" numbers the documents of a row from 1 in `segments`, by which attention keeps them apart,
            and counts positions from a document's or the row's start; "contiguous" makes a row one segment.
        end_id: the target after a document's last token.
    """

    left_out = ""

    def __init__(self, corpus: Corpus, length: int, packing: Packing, end_id: int):
        self.corpus, self.length, self.end_id = corpus, length, end_id
        self.packing: Packing = packing

    def __len__(self) -> int:
        return -(-self.corpus.num_tokens // self.length)

    @property
    def fill(self) -> float:
        """The share of places that hold tokens."""
        return self.corpus.num_tokens / (len(self) * self.length)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers (int64 [n]), as arrays [n, length].

        Returns:
            tokens int32, targets int32, scored bool, segments int32 (0 where the last row is padded), positions int32.
        """
        starts = np.asarray(indices, np.int64) * self.length
        window = self.corpus.windows(starts, self.length + 1)
        tokens, targets = window[:, :-1].astype(np.int32), window[:, 1:].astype(np.int32)
        runs = self._runs(starts)
        targets.reshape(-1)[runs.ends[runs.closes(self.corpus)]] = self.end_id
        return {"tokens": tokens, "targets": targets, **describe(self.corpus, runs, tokens.shape, self.packing)}

    def _runs(self, row_starts: np.ndarray) -> "Runs":
        row_stops = row_starts + self.length
        first = np.searchsorted(self.corpus.document_starts, row_starts, "right") - 1
        counts = np.searchsorted(self.corpus.document_starts, row_stops) - first
        rows, documents = np.repeat(np.arange(len(row_starts)), counts), ranges(first, counts)
        starts = np.maximum(self.corpus.document_starts[documents], row_starts[rows])
        stops = np.minimum(document_stops(self.corpus, documents), row_stops[rows])
        return Runs(rows * self.length + starts - row_starts[rows], documents, starts, stops)


class Runs(NamedTuple):
    """The stretches of documents that some rows hold, each int64 [runs], in the rows' order.

    Every row begins with one; they follow each other without gaps, and what is left of a row is padding.

    Attributes:
        begins: the first place, counted through all rows.
        documents: the number of the document.
        starts: where in the stream it starts.
        stops: where in the stream it stops.
    """

    begins: np.ndarray
    documents: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        """The last place of each."""
        return self.begins + (self.stops - self.starts) - 1

    def closes(self, corpus: Corpus) -> np.ndarray:
        """Whether each reaches its document's end."""
        return self.stops == document_stops(corpus, self.documents)


def describe(corpus: Corpus, runs: Runs, shape: tuple[int, int], packing: Packing) -> dict[str, np.ndarray]:
    """What rows of `shape` [n, length] say beside tokens and targets: scored bool, segments int32, positions int32."""
    rows, length = shape
    place = np.arange(length, dtype=np.int32)
    row_of = runs.begins // length
    counts = np.bincount(row_of, minlength=rows)
    stretches = np.diff(runs.begins, append=rows * length)  # the last one of a row goes on through its padding
    filled = runs.ends[np.cumsum(counts) - 1] + 1 - np.arange(rows) * length
    inside = place < filled[:, None]

    scored = inside
    if not corpus.learned_only:
        given_until = corpus.document_starts[runs.documents] + corpus.document_given[runs.documents]
        unscored = np.clip(given_until - 1 - runs.starts, 0, runs.stops - runs.starts)  # the next token is given
        parts = np.stack([unscored, stretches - unscored], axis=1).reshape(-1)
        scored = inside & np.repeat(np.tile([False, True], len(unscored)), parts).reshape(shape)

    if packing == "contiguous":
        segments, positions = np.ones(shape, np.int32), np.broadcast_to(place, shape).copy()
    else:
        numbers = ranges(np.ones_like(counts), counts).astype(np.int32)
        segments = np.repeat(numbers, stretches).reshape(shape)
        begins = (runs.begins - row_of * length).astype(np.int32)
        positions = place - np.repeat(begins, stretches).reshape(shape)
    if not inside.all():
        segments *= inside
        positions *= inside
    return {"scored": scored, "segments": segments, "positions": positions}


def document_stops(corpus: Corpus, documents: np.ndarray) -> np.ndarray:
    """Where in the stream the documents of these numbers stop."""
    following = np.minimum(documents + 1, corpus.num_documents - 1)
    return np.where(documents + 1 < corpus.num_documents, corpus.document_starts[following], corpus.num_tokens)


def ranges(firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """For each `first` and `count`, the integers first, ..., first + count - 1, one after another (int64)."""
    return np.arange(counts.sum()) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
