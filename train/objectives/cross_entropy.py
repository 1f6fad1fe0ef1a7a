"""Softmax cross-entropy with its own gradient: the logits, in the dtype they came in, are all that is held."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def cross_entropy(logits_BLV: jax.Array, targets_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log softmax(logits)[target] and the log of the softmax's normaliser, both [B, L] float32."""
    return _forward(logits_BLV, targets_BL)[0]


def _forward(logits_BLV, targets_BL):
    logits32 = logits_BLV.astype(jnp.float32)
    log_z_BL = jax.nn.logsumexp(logits32, axis=-1)
    target_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1)[..., 0].astype(jnp.float32)
    return (log_z_BL - target_BL, log_z_BL), (logits_BLV, targets_BL, log_z_BL)


def _backward(residuals, gradients):
    logits_BLV, targets_BL, log_z_BL = residuals
    g_nats_BL, g_log_z_BL = gradients
    p_BLV = jnp.exp(logits_BLV.astype(jnp.float32) - log_z_BL[..., None])
    is_target = jnp.arange(logits_BLV.shape[-1])[None, None] == targets_BL[..., None]
    d_BLV = p_BLV * (g_nats_BL + g_log_z_BL)[..., None] - jnp.where(is_target, g_nats_BL[..., None], 0)
    return d_BLV.astype(logits_BLV.dtype), None


cross_entropy.defvjp(_forward, _backward)
