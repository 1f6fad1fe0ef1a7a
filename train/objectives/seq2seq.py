"""Sequence to sequence (Sutskever et al. 2014): the next token of a target, given its source and the target so far.

Label smoothing (Szegedy et al. 2016; Vaswani et al. 2017) and z-loss (Chowdhery et al. 2022) are in the loss alone,
never in what is reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.dataset import Prepare, RowKind
from data.loader import Batch
from data.tokenizers.base import Tokenizer
from train.objectives.cross_entropy import token_losses
from train.objectives.objective import DeviceBatch


@dataclass(frozen=True)
class Seq2SeqConfig:
    """`label_smoothing` is the share of a target that is spread over all tokens; `z_loss` the coefficient of log(Z)^2.

    `loss_chunks` computes the logits of a row in that many parts, so that only one is held at a time.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    loss_chunks: int = field(default=1, metadata={"operational": True})

    def validate(self, length: int) -> None:
        """Raise ValueError, in one sentence, for values that rows of `length` tokens do not allow."""
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"objective.label_smoothing={self.label_smoothing} must be at least 0 and less than 1")
        if self.z_loss < 0:
            raise ValueError(f"objective.z_loss={self.z_loss} must be at least 0")
        if self.loss_chunks < 1:
            raise ValueError(f"objective.loss_chunks={self.loss_chunks} must be at least 1")


class Seq2Seq:
    """The mean negative log-probability of the targets, their end tokens included."""

    term = "seq2seq"
    rows: RowKind = "pairs"
    roles: tuple[str, ...] = ()
    definition = (
        "sum of -log p(token) over every token of every target once, given its source and the target before it; end "
        "tokens unscored; label smoothing and z-loss left out; perplexity = exp(nats_per_token)"
    )

    def __init__(self, config: Seq2SeqConfig):
        self.config = config
        self.length_multiple = config.loss_chunks
        self.coefficients = {self.term: 1.0} | ({"z_loss": config.z_loss} if config.z_loss else {})

    def preparation(self, tokenizer: Tokenizer) -> Prepare:
        """What says which targets are `reported`, bool [n, L]: those that are scored and no end tokens."""
        end_id = tokenizer.special("end")

        def prepare(rows: Batch, keys: np.ndarray) -> Batch:
            return {**rows, "reported": rows["scored"] & (rows["targets"] != end_id)}

        return prepare

    def weights(self, batch: DeviceBatch) -> dict[str, jax.Array]:
        """The number of scored targets."""
        return dict.fromkeys(self.coefficients, batch["scored"].sum(dtype=jnp.int32))

    def loss(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> dict[str, jax.Array]:
        """Summed nats, smoothed as the configuration says, and squared log-normalisers of the scored targets."""
        nats_BL, log_z_BL = self._losses(model, batch, key, self.config.label_smoothing)
        terms = {self.term: nats_BL, "z_loss": jnp.square(log_z_BL)}
        return {name: jnp.where(batch["scored"], terms[name], 0).sum() for name in self.coefficients}

    def evaluate(self, model: Any, batch: DeviceBatch) -> dict[str, jax.Array]:
        """Nats and the number of reported targets, each [B]."""
        nats_BL, _ = self._losses(model, batch, None, 0.0)
        reported_BL = batch["reported"]
        return {"nats": jnp.where(reported_BL, nats_BL, 0).sum(1), "tokens": reported_BL.sum(1, dtype=jnp.int32)}

    def figures(self, sums: Mapping[str, np.ndarray]) -> dict[str, float | int]:
        """What is reported of summed rows; see `definition`."""
        tokens = int(sums["tokens"])
        if tokens == 0:
            raise ValueError("the held-out targets have no tokens to score; give targets that are not empty")
        nats = float(sums["nats"]) / tokens
        with np.errstate(over="ignore"):
            return {"nats_per_token": nats, "perplexity": float(np.exp(nats)), "tokens": tokens}

    def _losses(
        self, model: Any, batch: DeviceBatch, key: jax.Array | None, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        hidden_BLD, _ = model.hidden(
            batch["source_tokens"],
            _read(model, batch),
            batch["source_positions"],
            batch["positions"],
            batch["source_segments"],
            batch["segments"],
            key=key,
        )
        targets_BL, chunks = batch["targets"], self.config.loss_chunks
        return token_losses(model, hidden_BLD, targets_BL, label_smoothing=label_smoothing, chunks=chunks)


def _read(model: Any, batch: DeviceBatch) -> jax.Array:
    """What the decoder reads: each target after the start token, or the token that the model has in place of it."""
    own = getattr(model.config, "decoder_start_id", None)
    if own is None:
        return batch["tokens"]
    begins_BL = (batch["positions"] == 0) & (batch["segments"] > 0)
    return jnp.where(begins_BL, own, batch["tokens"])
