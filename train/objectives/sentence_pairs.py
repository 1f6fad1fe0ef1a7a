"""BERT's two objectives in one: masked language modelling, and whether two sentences belong together.

The second is next-sentence prediction (BERT, Devlin et al. 2018) or, of two sentences that follow each other, which was
first (ALBERT, Lan et al. 2019).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.dataset import Prepare, RowKind
from data.loader import Batch
from data.sentence_pairs import Relation, join, sentence_ends
from data.tokenizers.base import Tokenizer
from model.encoder import EncoderConfig
from model.layers import split_key
from train.objectives.cross_entropy import cross_entropy
from train.objectives.masked_lm import MaskedLM, MaskedLMConfig, masked_logits, masked_nats, masking
from train.objectives.objective import DeviceBatch


@dataclass(frozen=True)
class SentencePairsConfig(MaskedLMConfig):
    """`relation` is what is learned of two sentences: whether the second is the "next", or their "order"."""

    relation: Relation = "next"

    def check(self, model: EncoderConfig) -> None:
        """Raise ValueError, in one sentence, for a model that can't tell sentences apart."""
        if model.num_types < 2:
            raise ValueError(f"model.num_types={model.num_types} must be at least 2, for the two sentences of a pair")


class SentencePairs:
    """The mean negative log-probability of the chosen tokens, and of the relation of each row's two sentences."""

    rows: RowKind = "sentence_pairs"
    length_multiple = MaskedLM.length_multiple
    roles: tuple[str, ...] = ("mask", "separator")
    definition = (
        "held-out rows, paired and masked by fixed keys; nats_per_token = mean of -log p(token) over masked tokens; "
        "relation_nats, accuracy = mean of -log p of whether the second sentence is the next one (or the two are in "
        "order), and how often that is right, over rows"
    )

    def __init__(self, config: SentencePairsConfig):
        self.config = config
        self.coefficients = {"masked_lm": 1.0, "sentence_pair": 1.0}

    def preparation(self, tokenizer: Tokenizer) -> Prepare:
        """What pairs sentences, and then masks some of both.

        Raises:
            ValueError: the tokenizer has no mask token, or no separator.
        """
        mask, ends = masking(self.config, tokenizer), sentence_ends(tokenizer)
        start_id, separator_id = tokenizer.special("start"), tokenizer.special("separator")

        def prepare(rows: Batch, keys: np.ndarray) -> Batch:
            pairs = join(rows, keys, self.config.relation, start_id, separator_id, ends)
            return pairs | mask(pairs["tokens"], pairs["segments"] > 0, keys)

        return prepare

    def weights(self, batch: DeviceBatch) -> dict[str, jax.Array]:
        """The number of chosen tokens, and of rows."""
        return {
            "masked_lm": batch["scored"].sum(dtype=jnp.int32),
            "sentence_pair": jnp.int32(batch["labels"].shape[0]),
        }

    def loss(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> dict[str, jax.Array]:
        """Summed nats of the chosen tokens, and of the relations."""
        nats_BP, nats_B, _ = self._scores(model, batch, key)
        return {"masked_lm": nats_BP.sum(), "sentence_pair": nats_B.sum()}

    def evaluate(self, model: Any, batch: DeviceBatch) -> dict[str, jax.Array]:
        """Nats of both, the number of chosen tokens, and 1 as "rows" and where the relation is "right", each [B]."""
        nats_BP, nats_B, right_B = self._scores(model, batch, None)
        return {
            "masked_lm": nats_BP.sum(1),
            "sentence_pair": nats_B,
            "tokens": batch["scored"].sum(1, dtype=jnp.int32),
            "rows": jnp.ones_like(batch["labels"]),
            "right": right_B.astype(jnp.int32),
        }

    def figures(self, sums: Mapping[str, np.ndarray]) -> dict[str, float | int]:
        """What is reported of summed rows; see `definition`."""
        return {
            "nats_per_token": float(sums["masked_lm"] / sums["tokens"]),
            "relation_nats": float(sums["sentence_pair"] / sums["rows"]),
            "accuracy": float(sums["right"] / sums["rows"]),
            "tokens": int(sums["tokens"]),
            "rows": int(sums["rows"]),
        }

    def _scores(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Nats of the chosen tokens [B, P] and of the relations [B], and whether these are right."""
        stack_key, head_key = split_key(key)
        inputs = (batch[name] for name in ("tokens", "positions", "segments", "types"))
        hidden_BLD, _ = model.hidden(*inputs, key=stack_key)
        nats_BP = masked_nats(masked_logits(model, hidden_BLD, batch), batch)
        classes_BC = model.class_logits(hidden_BLD, key=head_key)
        nats_B1, _ = cross_entropy(classes_BC[:, None], batch["labels"][:, None])
        return nats_BP, nats_B1[:, 0], classes_BC.argmax(-1) == batch["labels"]
