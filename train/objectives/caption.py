"""Naming: a text is learned given its image, as the next-token prediction of a decoder whose prompt is the image.

The texts are the names of the images' classes (data/captions.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.dataset import RowKind
from data.tokenizers.base import Tokenizer
from train.objectives.cross_entropy import cross_entropy
from train.objectives.objective import DeviceBatch
from train.pixels import pixel_values


@dataclass(frozen=True)
class CaptionConfig:
    """There is nothing to choose."""

    def validate(self, length: int) -> None:
        """Every length will do."""


class Caption:
    """The mean negative log-probability of each image's text, its end token included."""

    rows: RowKind = "captions"
    length_multiple = 1
    roles: tuple[str, ...] = ()
    definition = (
        "each text scored once, given its image; nats = sum of -log p(token) over its tokens and its end token; "
        "accuracy = the share of images whose whole text, to its end, is what the most probable tokens one after "
        "another write"
    )

    def __init__(self, config: CaptionConfig):
        self.config = config
        self.coefficients = {"caption": 1.0}

    def preparation(self, tokenizer: Tokenizer) -> None:
        """Rows are learned as they are read."""

    def weights(self, batch: DeviceBatch) -> dict[str, jax.Array]:
        """The number of scored targets."""
        return {"caption": batch["scored"].sum(dtype=jnp.int32)}

    def loss(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> dict[str, jax.Array]:
        """Summed nats of the scored targets."""
        return {"caption": _nats(self._logits(model, batch, key), batch).sum()}

    def evaluate(self, model: Any, batch: DeviceBatch) -> dict[str, jax.Array]:
        """Nats, the number of scored targets, and 1 as "examples" and where the text is "right", each [B]."""
        logits_BLV = self._logits(model, batch, None)
        # What is written token by token is the text exactly where, given the text so far, each next token is its own.
        missed_BL = batch["scored"] & (logits_BLV.argmax(-1) != batch["targets"])
        return {
            "nats": _nats(logits_BLV, batch).sum(1),
            "tokens": batch["scored"].sum(1, dtype=jnp.int32),
            "right": (~missed_BL.any(1)).astype(jnp.int32),
            "examples": jnp.ones(len(missed_BL), jnp.int32),
        }

    def figures(self, sums: Mapping[str, np.ndarray]) -> dict[str, float | int]:
        """What is reported of summed rows; see `definition`."""
        return {
            "nats_per_token": float(sums["nats"] / sums["tokens"]),
            "accuracy": float(sums["right"] / sums["examples"]),
            "tokens": int(sums["tokens"]),
            "examples": int(sums["examples"]),
        }

    def _logits(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> jax.Array:
        hidden_BLD, _ = model.hidden(pixel_values(batch["images"]), batch["tokens"], key=key)
        return model.logits(hidden_BLD)


@jax.named_scope("loss")
def _nats(logits_BLV: jax.Array, batch: DeviceBatch) -> jax.Array:
    """-log p of each scored target, [B, L] float32."""
    return jnp.where(batch["scored"], cross_entropy(logits_BLV, batch["targets"])[0], 0)
