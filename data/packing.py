"""Documents to rows of one length, by concatenating and cutting: each stored token is a target exactly once.

Row r holds the stream's tokens [r L, r L + L), and as targets the ones after them. Where the next token opens a new
document the target is the end token, so that a start token is a target of nothing, and the model learns to end.
"""

from typing import Literal

import numpy as np

from data.shards import Corpus

Packing = Literal["isolated", "contiguous"]


class ConcatenatedRows:
    """The rows of a corpus.

    Args:
        corpus: what is cut.
        length: tokens a row.
        packing: "isolated" numbers the documents of a row from 1 in `segments`, by which attention keeps them apart,
            and counts positions from a document's or the row's start; "contiguous" makes a row one segment.
        end_id: the target after a document's last token.
    """

    def __init__(self, corpus: Corpus, length: int, packing: Packing, end_id: int):
        self.corpus, self.length, self.packing, self.end_id = corpus, length, packing, end_id

    def __len__(self) -> int:
        return -(-self.corpus.num_tokens // self.length)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers (int64 [n]), as arrays [n, length].

        Returns:
            tokens int32, targets int32, scored bool, segments int32 (0 where the last row is padded), positions int32.
        """
        corpus, length = self.corpus, self.length
        starts = np.asarray(indices, np.int64) * length
        window = corpus.windows(starts, length + 1).astype(np.int32)
        opens = np.zeros(window.shape, bool)
        first = np.searchsorted(corpus.document_starts, starts)
        counts = np.searchsorted(corpus.document_starts, starts + length + 1) - first
        row_of = np.repeat(np.arange(len(starts)), counts)
        number = np.arange(len(row_of)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        opens[row_of, corpus.document_starts[number] - starts[row_of]] = True

        tokens, targets = window[:, :-1].copy(), window[:, 1:].copy()
        targets[opens[:, 1:]] = self.end_id
        targets[starts + length >= corpus.num_tokens, (corpus.num_tokens - 1) % length] = (
            self.end_id
        )  # the last one ends
        place = np.arange(length, dtype=np.int32)
        scored = place < (corpus.num_tokens - starts)[:, None]
        if self.packing == "isolated":
            opens[:, 0] = True
            segments = np.cumsum(opens[:, :-1], axis=1, dtype=np.int32)
            positions = place - np.maximum.accumulate(np.where(opens[:, :-1], place, 0), axis=1)
        else:
            segments = np.ones_like(tokens)
            positions = np.broadcast_to(place, tokens.shape).copy()
        for row in np.flatnonzero(~scored[:, -1]):  # at most the corpus's last row, however often it is asked for
            for values in (tokens, targets, segments, positions):
                values[row, ~scored[row]] = 0
        return {"tokens": tokens, "targets": targets, "scored": scored, "segments": segments, "positions": positions}
