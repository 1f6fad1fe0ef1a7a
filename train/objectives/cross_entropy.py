"""Softmax cross-entropy with its own gradient: the logits, in the dtype they came in, are all that is held."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from model.fsdp import gathered, gradients_first, on_own_rows


def cross_entropy(
    logits_BLV: jax.Array, targets_BL: jax.Array, label_smoothing: float = 0.0, vocab_size: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """-log softmax(logits)[target] and the log of the softmax's normaliser, both [B, L] float32.

    `label_smoothing` is the share of a target that is spread evenly over all tokens (Szegedy et al. 2016): the first
    `vocab_size` of the logits, behind which there is only padding; by default all of them.
    """
    return _cross_entropy(logits_BLV, targets_BL, label_smoothing, vocab_size)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cross_entropy(logits_BLV, targets_BL, label_smoothing, vocab_size) -> Any:
    return _forward(logits_BLV, targets_BL, label_smoothing, vocab_size)[0]


def _forward(logits_BLV, targets_BL, label_smoothing, vocab_size):
    logits32 = logits_BLV.astype(jnp.float32)
    log_z_BL = jax.nn.logsumexp(logits32, axis=-1)
    target_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1)[..., 0].astype(jnp.float32)
    if label_smoothing:
        is_token, count = _tokens(logits_BLV, vocab_size)
        mean_BL = jnp.where(is_token, logits32, 0).sum(-1) / count
        target_BL = (1 - label_smoothing) * target_BL + label_smoothing * mean_BL
    return (log_z_BL - target_BL, log_z_BL), (logits_BLV, targets_BL, log_z_BL)


def _backward(label_smoothing, vocab_size, residuals, gradients):
    logits_BLV, targets_BL, log_z_BL = residuals
    g_nats_BL, g_log_z_BL = gradients
    p_BLV = jnp.exp(logits_BLV.astype(jnp.float32) - log_z_BL[..., None])
    is_target = jnp.arange(logits_BLV.shape[-1])[None, None] == targets_BL[..., None]
    d_BLV = p_BLV * (g_nats_BL + g_log_z_BL)[..., None]
    d_BLV -= jnp.where(is_target, (1 - label_smoothing) * g_nats_BL[..., None], 0)
    if label_smoothing:
        is_token, count = _tokens(logits_BLV, vocab_size)
        d_BLV -= jnp.where(is_token, (label_smoothing / count) * g_nats_BL[..., None], 0)
    return d_BLV.astype(logits_BLV.dtype), None


_cross_entropy.defvjp(_forward, _backward)


def _tokens(logits_BLV: jax.Array, vocab_size: int | None) -> tuple[jax.Array, int]:
    """Which logits are those of tokens, bool [1, 1, V], and how many these are."""
    rows = logits_BLV.shape[-1]
    count = rows if vocab_size is None else vocab_size
    return jnp.arange(rows)[None, None] < count, count


@jax.named_scope("loss")
def token_losses(
    model: Any, hidden_BLD: jax.Array, targets_BL: jax.Array, *, label_smoothing: float = 0.0, chunks: int = 1
) -> tuple[jax.Array, jax.Array]:
    """`cross_entropy` of the logits that a model has of its hidden states.

    The logits of a row are computed in so many `chunks`, which divide its length: only one of them is held at a time,
    and computed again for its gradient.
    """

    def losses(rows: tuple[jax.Array, jax.Array], model: Any) -> tuple[jax.Array, jax.Array]:
        model = gathered(model)  # once for all chunks; their gradients are summed before they leave the device

        def of_chunk(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            hidden_BLD, targets_BL = part
            return cross_entropy(model.logits(hidden_BLD), targets_BL, label_smoothing, model.config.vocab_size)

        if chunks == 1:
            return of_chunk(rows)

        # A chunk takes every chunks-th token, so that an axis split over devices stays split as it is.
        def chunked(x: jax.Array) -> jax.Array:
            return jnp.moveaxis(x.reshape(x.shape[0], -1, chunks, *x.shape[2:]), 2, 0)

        parts = jax.lax.map(jax.checkpoint(of_chunk), jax.tree.map(chunked, rows))
        nats_BL, log_z_BL = (jnp.moveaxis(part, 0, 2).reshape(rows[1].shape) for part in parts)
        return nats_BL, log_z_BL

    hidden_BLD, model = gradients_first(hidden_BLD, model)
    return on_own_rows(losses, (hidden_BLD, targets_BL), model, ("act_batch", "act_length"))
