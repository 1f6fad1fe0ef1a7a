"""Pairs to rows for encoder-decoders: several a row, each as a source that is read and a target that is written.

Of a document, what is given is the source and what is learned the target. A source is its tokens and the end token, as
Marian, T5 and BART have it; its target is its tokens and the end token, which the decoder, having read the start token,
predicts one after the other. Source and target of a pair have the same segment number.

A pair without a source has one of the end token alone; data/prepare.py leaves pairs without a target out.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.fitting import Places, PlannedRows, TooLong, following, read
from data.packing import document_stops
from data.shards import Corpus
from data.tokenizers.base import Tokenizer

_SHORTEST = 16  # tokens that batches of sources are padded to at least


class PairRows(PlannedRows):
    """Rows of whole pairs, fitted on both sides at once.

    Args:
        corpus: where the pairs are.
        source_length: places a row for sources, their end tokens among them.
        target_length: places a row for targets, their end tokens among them.
        tokenizer: whose end token closes sources and targets.
        too_long: what becomes of pairs with more, as `PlannedRows` has it. A source that is cut still has its end
            token; a target that is cut does not end.

    Raises:
        ValueError: as `PlannedRows`; nothing in the corpus is given; or the tokenizer lacks one of these tokens.
    """

    noun = "pairs"

    def __init__(
        self,
        corpus: Corpus,
        source_length: int,
        target_length: int,
        tokenizer: Tokenizer,
        too_long: TooLong = "refuse",
    ):
        if corpus.learned_only:
            raise ValueError(
                "an encoder-decoder learns from pairs, and nothing in this text is given; pass --data.source-path and "
                "--data.target-path, or --data.prompt and --data.response"
            )
        self.end_id = tokenizer.special("end")
        self.start_id = tokenizer.special("start")
        self.source_length, self.target_length = source_length, target_length
        places = (
            Places(source_length, "max_length", "source tokens"),
            Places(target_length, "target_length", "target tokens"),
        )
        super().__init__(corpus, places, too_long)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers (int64 [n]).

        Returns:
            source_tokens, source_segments, source_positions: int32 [n, source_length].
            tokens (what the decoder reads), targets, segments, positions: int32 [n, target_length].
            scored: bool [n, target_length], true of every target.
            Segments number a row's pairs from 1 and are 0 in places without tokens; positions count from a segment's
            begin.
        """
        held = self.held(np.asarray(indices, np.int64))
        begins = self.corpus.document_starts[held.documents]
        learned = begins + self.corpus.document_given[held.documents]
        # A source is what follows the start token, with the end token in the place of the first learned one.
        stops = np.minimum(learned, begins + self.source_length)
        runs = held.runs(begins, stops, self.source_length)
        source = read(self.corpus, runs, (len(indices), self.source_length), "isolated")
        source_tokens = following(self.corpus, runs, source["tokens"], self.end_id)
        source_tokens.reshape(-1)[runs.ends] = self.end_id
        # The decoder reads its start token in the place of the last given one.
        stops = np.minimum(document_stops(self.corpus, held.documents), learned - 1 + self.target_length)
        runs = held.runs(learned - 1, stops, self.target_length)
        target = read(self.corpus, runs, (len(indices), self.target_length), "isolated")
        targets = following(self.corpus, runs, target["tokens"], self.end_id)
        target["tokens"].reshape(-1)[runs.begins] = self.start_id
        return {
            "source_tokens": source_tokens,
            "source_segments": source["segments"],
            "source_positions": source["positions"],
            **target,
            "targets": targets,
        }

    def sizes(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of source and target; a cut must leave an end token and a start token."""
        given = self.corpus.document_given[documents]
        tokens = document_stops(self.corpus, documents) - self.corpus.document_starts[documents]
        # An end token takes the place of the document's start token, and before or behind the target stands one more.
        sizes = np.stack([given, tokens - given + 1], axis=1)
        return sizes, np.ones_like(sizes)


class SourceBatch(NamedTuple):
    """Some sources, padded to one length: `numbers` [n] says which of all they are, the first n rows.

    `tokens` and `segments` (1, and 0 for padding) are int32 [batch_size, length]; rows that hold no source are of one
    token.
    """

    numbers: np.ndarray
    tokens: np.ndarray
    segments: np.ndarray


def source_batches(sources: Sequence[np.ndarray], batch_size: int, longest: int) -> Iterator[SourceBatch]:
    """Sources in batches of `batch_size` rows and few lengths, so that a program compiles for few shapes.

    The longest come first, so that what has no room in memory fails at once. Lengths are powers of two, 16 at least
    and `longest` at most.

    Raises:
        ValueError: a source has more than `longest` tokens.
    """
    lengths = np.array([len(source) for source in sources], np.int64)
    if long := np.count_nonzero(lengths > longest):
        raise ValueError(
            f"{long:,} of {len(sources):,} sources have more than the {longest:,} tokens that the model reads, the "
            f"longest {lengths.max():,}; shorten them"
        )
    order = np.argsort(-lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        length = min(max(_SHORTEST, 1 << (int(lengths[numbers[0]]) - 1).bit_length()), longest)
        tokens = np.zeros((batch_size, length), np.int32)
        for row, number in enumerate(numbers):
            tokens[row, : lengths[number]] = sources[number]
        filled = np.ones(batch_size, np.int64)
        filled[: len(numbers)] = lengths[numbers]
        yield SourceBatch(numbers, tokens, (np.arange(length) < filled[:, None]).astype(np.int32))
