"""Denoising (BART, Lewis et al. 2020): a text, given its sentences in disorder with masks for some of its spans."""

from dataclasses import dataclass

import numpy as np

from data.corruption import denoise
from data.dataset import Prepare, RowKind
from data.loader import Batch
from data.sentence_pairs import sentence_ends
from data.tokenizers.base import Tokenizer
from train.objectives.seq2seq import Seq2Seq, Seq2SeqConfig


@dataclass(frozen=True)
class DenoisingConfig(Seq2SeqConfig):
    """`rate` of the tokens is left out, in spans of `mean_span`; `permute_sentences` shuffles sentences before."""

    rate: float = 0.3
    mean_span: float = 3.0
    permute_sentences: bool = True

    def validate(self, length: int) -> None:
        """Raise ValueError, in one sentence, for values that rows of `length` tokens do not allow."""
        super().validate(length)
        if not 0 < self.rate < 1:
            raise ValueError(f"objective.rate={self.rate} must be more than 0 and less than 1")
        if self.rate * (length - 1) <= 1:
            raise ValueError(
                f"objective.rate={self.rate} leaves out less than two tokens of data.max_length={length}; take a "
                "larger rate, or longer rows"
            )
        if self.mean_span <= 0:
            raise ValueError(f"objective.mean_span={self.mean_span} must be more than 0")


class Denoising(Seq2Seq):
    """The mean negative log-probability of the texts, their end tokens included."""

    term = "denoising"
    rows: RowKind = "text"
    roles: tuple[str, ...] = ("mask",)
    definition = (
        "sum of -log p(token) over every text token of held-out rows, given its document corrupted with fixed keys and "
        "the text before it; end tokens unscored; label smoothing and z-loss left out; perplexity = "
        "exp(nats_per_token)"
    )
    config: DenoisingConfig

    def preparation(self, tokenizer: Tokenizer) -> Prepare:
        """What makes pairs of rows of text.

        Raises:
            ValueError: the tokenizer has no mask token.
        """
        mask_id, config, ends_sentence = tokenizer.special("mask"), self.config, None
        if config.permute_sentences:
            ends_sentence = sentence_ends(tokenizer)
        finish = super().preparation(tokenizer)

        def prepare(rows: Batch, keys: np.ndarray) -> Batch:
            pairs = denoise(rows, keys, tokenizer, mask_id, ends_sentence, rate=config.rate, mean_span=config.mean_span)
            return finish(pairs, keys)

        return prepare
