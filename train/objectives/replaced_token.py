"""Replaced-token detection (ELECTRA, Clark et al. 2020): a generator fills masks, a discriminator finds what is new.

The generator learns by masked language modelling. What it draws for the masked tokens is put in their place, and the
discriminator learns of every token whether it is the original; a token drawn that happens to be the original is. No
gradient flows through the drawing. What is drawn for a row is a function of the row's key alone, so that it is the same
on every mesh and in every batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.dataset import Prepare, RowKind
from data.loader import Batch
from data.order import mix
from data.tokenizers.base import Tokenizer
from model.layers import split_key
from train.objectives.masked_lm import MaskedLM, MaskedLMConfig, masked_logits, masked_nats
from train.objectives.objective import DeviceBatch


@dataclass(frozen=True)
class ReplacedTokenConfig(MaskedLMConfig):
    """All chosen tokens are masked, and the discriminator's loss counts `discriminator_weight` times."""

    random: float = 0.0
    kept: float = 0.0
    discriminator_weight: float = 50.0

    def validate(self, length: int) -> None:
        """Raise ValueError, in one sentence, for values that rows of `length` tokens do not allow."""
        super().validate(length)
        if self.discriminator_weight <= 0:
            raise ValueError(f"objective.discriminator_weight={self.discriminator_weight} must be more than 0")


class ReplacedToken:
    """The mean negative log-probability of the chosen tokens, and of each token's being original or replaced."""

    rows: RowKind = "text"
    length_multiple = MaskedLM.length_multiple
    roles = MaskedLM.roles
    definition = (
        "held-out rows, masked and filled by fixed keys; nats_per_token = mean of the generator's -log p(token) over "
        "masked tokens; detection_nats, accuracy = mean of the discriminator's -log p, and how often it is right, over "
        "all tokens; replaced_recall = the share that it finds of the tokens that were replaced"
    )

    def __init__(self, config: ReplacedTokenConfig):
        self.coefficients = {"masked_lm": 1.0, "replaced_token": config.discriminator_weight}
        self._masking = MaskedLM(config)

    def preparation(self, tokenizer: Tokenizer) -> Prepare:
        """What masks rows as masked language modelling does; `draws`, int32 [n], is what their fillings are drawn by.

        Raises:
            ValueError: the tokenizer has no mask token.
        """
        mask = self._masking.preparation(tokenizer)

        def prepare(rows: Batch, keys: np.ndarray) -> Batch:
            draws = mix(keys, 3 * rows["tokens"].shape[1])  # below, masking draws
            return mask(rows, keys) | {"draws": (draws >> np.uint64(33)).astype(np.int32)}

        return prepare

    def weights(self, batch: DeviceBatch) -> dict[str, jax.Array]:
        """The number of chosen tokens, and of all."""
        return {name: count_B.sum() for name, count_B in _counts(batch).items()}

    def loss(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> dict[str, jax.Array]:
        """Summed nats of the chosen tokens, and of every token's being original or replaced."""
        nats_BP, _, nats_BL, _ = self._scores(model, batch, key)
        return {"masked_lm": nats_BP.sum(), "replaced_token": nats_BL.sum()}

    def evaluate(self, model: Any, batch: DeviceBatch) -> dict[str, jax.Array]:
        """Nats of both, and the numbers of tokens that they are of, that are found and that could be, each [B]."""
        nats_BP, replaced_BL, nats_BL, suspected_BL = self._scores(model, batch, None)
        right_BL = (batch["segments"] > 0) & (suspected_BL == replaced_BL)
        counts = {
            "right": right_BL.sum(1, dtype=jnp.int32),
            "found": (replaced_BL & suspected_BL).sum(1, dtype=jnp.int32),
            "replaced": replaced_BL.sum(1, dtype=jnp.int32),
            **{f"{name}_tokens": count_B for name, count_B in _counts(batch).items()},
        }
        return {"masked_lm": nats_BP.sum(1), "replaced_token": nats_BL.sum(1), **counts}

    def figures(self, sums: Mapping[str, np.ndarray]) -> dict[str, float | int]:
        """What is reported of summed rows; see `definition`."""
        tokens = int(sums["replaced_token_tokens"])
        return {
            "nats_per_token": float(sums["masked_lm"] / sums["masked_lm_tokens"]),
            "detection_nats": float(sums["replaced_token"] / tokens),
            "accuracy": float(sums["right"] / tokens),
            "replaced_recall": float(sums["found"] / np.maximum(sums["replaced"], 1)),
            "tokens": tokens,
        }

    def _scores(
        self, model: Any, batch: DeviceBatch, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The generator's nats [B, P]; where a token is replaced, the nats of that, and where suspected, all [B, L]."""
        generator_key, discriminator_key, head_key = split_key(key, 3)
        places = batch["positions"], batch["segments"]
        generator = model.whole_generator()
        hidden_BLD, _ = generator.hidden(batch["tokens"], *places, key=generator_key)
        logits_BPV = masked_logits(generator, hidden_BLD, batch)
        tokens_BL, replaced_BL = _filled(logits_BPV, batch)
        hidden_BLD, _ = model.discriminator.hidden(tokens_BL, *places, key=discriminator_key)
        odds_BL = model.discriminator.class_logits(hidden_BLD, key=head_key)[..., 0].astype(jnp.float32)
        with jax.named_scope("loss"):
            nats_BL = jax.nn.softplus(jnp.where(replaced_BL, -odds_BL, odds_BL))
        return masked_nats(logits_BPV, batch), replaced_BL, jnp.where(batch["segments"] > 0, nats_BL, 0), odds_BL > 0


def _counts(batch: DeviceBatch) -> dict[str, jax.Array]:
    """What each term is a mean over, [B]."""
    is_token_BL = batch["segments"] > 0
    return {
        "masked_lm": batch["scored"].sum(1, dtype=jnp.int32),
        "replaced_token": is_token_BL.sum(1, dtype=jnp.int32),
    }


@jax.named_scope("filling")
def _filled(logits_BPV: jax.Array, batch: DeviceBatch) -> tuple[jax.Array, jax.Array]:
    """The tokens with those drawn from the softmax at the chosen places, and whether they are not the original."""
    logits_BPV = jax.lax.stop_gradient(logits_BPV).astype(jnp.float32)
    keys_B = jax.vmap(jax.random.key)(batch["draws"])
    drawn_BP = jax.vmap(jax.random.categorical)(keys_B, logits_BPV).astype(jnp.int32)
    length = batch["tokens"].shape[1]
    at = jnp.arange(len(drawn_BP))[:, None], jnp.where(batch["scored"], batch["places"], length)  # beyond: dropped
    tokens_BL = batch["tokens"].at[at].set(drawn_BP, mode="drop")
    replaced_BL = jnp.zeros(tokens_BL.shape, bool).at[at].set(drawn_BP != batch["targets"], mode="drop")
    return tokens_BL, replaced_BL
