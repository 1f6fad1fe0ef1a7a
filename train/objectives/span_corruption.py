"""Span corruption (T5, Raffel et al. 2020): the spans that were left out of a text, each behind its sentinel."""

from dataclasses import dataclass

import numpy as np

from data.corruption import corrupt_spans, longest_spans, span_row_lengths
from data.dataset import Prepare, RowKind
from data.loader import Batch
from data.tokenizers.base import Tokenizer
from data.tokenizers.roles import sentinel_role
from train.objectives.seq2seq import Seq2Seq, Seq2SeqConfig


@dataclass(frozen=True)
class SpanCorruptionConfig(Seq2SeqConfig):
    """`rate` of the tokens is left out, in spans of `mean_span` tokens; `sentinels` are there to stand for them."""

    rate: float = 0.15
    mean_span: float = 3.0
    sentinels: int = 100

    def validate(self, length: int) -> None:
        """Raise ValueError, in one sentence, for values that rows of `length` tokens do not allow."""
        super().validate(length)
        if not 0 < self.rate < 1:
            raise ValueError(f"objective.rate={self.rate} must be more than 0 and less than 1")
        if self.mean_span < 1:
            raise ValueError(f"objective.mean_span={self.mean_span} must be at least 1")
        longest = longest_spans(length, self.rate, self.mean_span)
        if max(longest.source, longest.target) > length:
            raise ValueError(
                f"objective.rate={self.rate} and objective.mean_span={self.mean_span} make sources of up to "
                f"{longest.source} tokens and targets of up to {longest.target} of data.max_length={length}; pass a "
                "longer --objective.mean-span, or a longer --data.max-length"
            )
        if longest.spans > self.sentinels:
            raise ValueError(
                f"objective.sentinels={self.sentinels} is less than the {longest.spans} spans of a row of "
                f"data.max_length={length}; pass --objective.sentinels {longest.spans}, or shorter rows"
            )
        _, target = span_row_lengths(length, self.rate, self.mean_span)
        if target % self.loss_chunks:
            raise ValueError(f"objective.loss_chunks={self.loss_chunks} must divide the {target} places of a target")


class SpanCorruption(Seq2Seq):
    """The mean negative log-probability of the spans that were left out, of their sentinels and of the end token."""

    term = "span_corruption"
    rows: RowKind = "text"
    definition = (
        "sum of -log p(token) over every token that is left out of held-out rows corrupted with fixed keys, and over "
        "the sentinels before them, given the rest of the document and the target before it; end tokens unscored; "
        "label smoothing and z-loss left out; perplexity = exp(nats_per_token)"
    )

    config: SpanCorruptionConfig

    def __init__(self, config: SpanCorruptionConfig):
        super().__init__(config)
        self.length_multiple = 1  # of rows as packed; whether chunks divide the target's length is validated
        self.roles = tuple(map(sentinel_role, range(config.sentinels)))

    def preparation(self, tokenizer: Tokenizer) -> Prepare:
        """What makes pairs of rows of text.

        Raises:
            ValueError: the tokenizer lacks sentinels.
        """
        sentinels = np.array([tokenizer.special(role) for role in self.roles])
        rate, mean_span = self.config.rate, self.config.mean_span
        finish = super().preparation(tokenizer)

        def prepare(rows: Batch, keys: np.ndarray) -> Batch:
            return finish(corrupt_spans(rows, keys, tokenizer, sentinels, rate=rate, mean_span=mean_span), keys)

        return prepare
