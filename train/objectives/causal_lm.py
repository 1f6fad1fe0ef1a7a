"""Next-token prediction (Radford and others, 2018).

An optional z-loss keeps the softmax's normaliser near 1 (Chowdhery and others, 2022).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from data.dataset import RowKind
from data.loader import Batch
from data.tokenizers.base import Tokenizer
from train.objectives.cross_entropy import token_losses
from train.objectives.objective import DeviceBatch


@dataclass(frozen=True)
class CausalLMConfig:
    """`z_loss` is the coefficient of log(Z)^2.

    `loss_chunks` computes the logits of a row in that many parts, so that only one is held at a time.
    """

    z_loss: float = 0.0
    loss_chunks: int = field(default=1, metadata={"operational": True})

    def validate(self, length: int) -> None:
        """Raise ValueError, in one sentence, for values that rows of `length` tokens do not allow."""
        if self.z_loss < 0:
            raise ValueError(f"objective.z_loss={self.z_loss} must be at least 0")
        if self.loss_chunks < 1 or length % self.loss_chunks:
            raise ValueError(
                f"objective.loss_chunks={self.loss_chunks} must be at least 1 and divide data.max_length={length}"
            )


class CausalLM:
    """The mean negative log-probability of the scored targets."""

    shifted = True
    roles: tuple[str, ...] = ()
    rows: RowKind = "text"
    definition = (
        "sum of -log p(token) over every text token once, given its document's start token and the text before it in "
        "its window; given text (prompts) and end tokens unscored; documents never joined; "
        "bits_per_byte = nats / (ln 2 x UTF-8 bytes); word_perplexity = exp(nats / whitespace-separated words)"
    )

    def __init__(self, config: CausalLMConfig):
        self.config = config
        self.length_multiple = config.loss_chunks
        self.coefficients = {"causal_lm": 1.0} | ({"z_loss": config.z_loss} if config.z_loss else {})

    def preparation(self, tokenizer: Tokenizer) -> None:
        """Rows are learned as they were packed."""

    def views(self, batch: Batch, tokenizer: Tokenizer) -> Iterator[Batch]:
        """All is scored at once."""
        yield batch

    def weights(self, batch: DeviceBatch) -> dict[str, jax.Array]:
        """The number of scored targets."""
        return dict.fromkeys(self.coefficients, batch["scored"].sum(dtype=jnp.int32))

    def loss(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> dict[str, jax.Array]:
        """Summed nats (and squared log-normalisers) of the scored targets."""
        terms_BL = self._terms(model, batch, key)
        return {name: terms_BL[name].sum() for name in self.coefficients}

    def evaluate(self, model: Any, batch: DeviceBatch) -> dict[str, jax.Array]:
        """Nats and the number of scored targets, each [B]: summed over rows on the host."""
        nats_BL = self._terms(model, batch, None)["causal_lm"]
        return {"nats": nats_BL.sum(1), "tokens": batch["scored"].sum(1, dtype=jnp.int32)}

    def _terms(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> dict[str, jax.Array]:
        hidden_BLD, _ = model.hidden(batch["tokens"], batch["positions"], batch.get("segments"), key=key)
        nats_BL, log_z_BL = token_losses(model, hidden_BLD, batch["targets"], chunks=self.config.loss_chunks)
        terms = {"causal_lm": nats_BL, "z_loss": jnp.square(log_z_BL)}
        return {name: jnp.where(batch["scored"], term_BL, 0) for name, term_BL in terms.items()}
