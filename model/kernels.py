"""Attention, softmax(q k^T * scale + mask) v, in several implementations with one signature.

`reference` says what is computed, in the fewest words, and also does what fused kernels cannot: hand out its
probabilities and drop some of them. `xla` is for every backend: it carries its own gradient and, where the mask is
causal, works by blocks of queries that never meet the keys after them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.mask import MASKED, Mask
from model.sharding import constrain, spread

_MAX_BLOCKS = 8


def attend(
    q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, mask: Mask, *, scale: float, implementation: str = "xla"
) -> jax.Array:
    """Attention of H query heads over G key/value heads, [B, L, H, K] in q's dtype, with a float32 softmax."""
    q_BLGRK, k_BMGK, v_BMGK = _grouped(q_BLHK, k_BMGK, v_BMGK)
    return IMPLEMENTATIONS[implementation](q_BLGRK * scale, k_BMGK, v_BMGK, mask).reshape(q_BLHK.shape)


def attend_with_probabilities(
    q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, mask: Mask, *, scale: float, drop: Callable | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The reference's output [B, L, H, K], its masked scores and its probabilities, both [B, H, L, M] float32.

    `drop` is applied to the probabilities.
    """
    q_BLGRK, k_BMGK, v_BMGK = _grouped(q_BLHK, k_BMGK, v_BMGK)
    out, scores, p = _reference_parts(q_BLGRK * scale, k_BMGK, v_BMGK, mask, drop)
    flat = (p.shape[0], -1, *p.shape[3:])
    return out.reshape(q_BLHK.shape), scores.reshape(flat), p.reshape(flat)


def _grouped(q_BLHK, k_BMGK, v_BMGK):
    """Queries as [B, L, G, R, K].

    Key/value heads that the tensor axis replicates are repeated, so that query heads can stay split over it.
    """
    B, L, H, K = q_BLHK.shape
    G = k_BMGK.shape[2]
    if G % spread("act_kv_heads"):
        k_BMGK, v_BMGK = (
            constrain(jnp.repeat(x, H // G, axis=2), "act_batch", "act_memory", "act_heads", "act_head_dim")
            for x in (k_BMGK, v_BMGK)
        )
        G = H
    return q_BLHK.reshape(B, L, G, H // G, K), k_BMGK, v_BMGK


def _reference(q_BLGRK, k_BMGK, v_BMGK, mask: Mask):
    return _reference_parts(q_BLGRK, k_BMGK, v_BMGK, mask, None)[0]


def _reference_parts(q_BLGRK, k_BMGK, v_BMGK, mask: Mask, drop: Callable | None):
    scores_BGRLM = jnp.einsum("BLGRK,BMGK->BGRLM", q_BLGRK, k_BMGK, preferred_element_type=jnp.float32)
    allowed_BLM = mask.allowed(q_BLGRK.shape[1], k_BMGK.shape[1])
    scores_BGRLM = jnp.where(allowed_BLM[:, None, None], scores_BGRLM, MASKED)
    p_BGRLM = jax.nn.softmax(scores_BGRLM, axis=-1)
    used_BGRLM = p_BGRLM if drop is None else drop(p_BGRLM)
    out = jnp.einsum("BGRLM,BMGK->BLGRK", used_BGRLM.astype(v_BMGK.dtype), v_BMGK, preferred_element_type=jnp.float32)
    return out.astype(q_BLGRK.dtype), scores_BGRLM, p_BGRLM


def _xla(q_BLGRK, k_BMGK, v_BMGK, mask: Mask):
    length = q_BLGRK.shape[1]
    allowed_BLM = mask.allowed(length, k_BMGK.shape[1])
    block = _block_length(length) if mask.is_plainly_causal and spread("act_length") == 1 else length
    outs = [
        _attend_block(q_BLGRK[:, i : i + block], k_BMGK[:, :end], v_BMGK[:, :end], allowed_BLM[:, i : i + block, :end])
        for i in range(0, length, block)
        for end in (i + block if block < length else k_BMGK.shape[1],)
    ]
    return checkpoint_name(outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1), "attention_out")


def _block_length(length: int) -> int:
    """Queries a block: at most 8 blocks, none under 64 queries, and only lengths that divide."""
    block = max(64, -(-length // _MAX_BLOCKS))
    return block if length % block == 0 else length


@jax.custom_vjp
def _attend_block(q_BLGRK, k_BMGK, v_BMGK, allowed_BLM):
    return _attend_block_forward(q_BLGRK, k_BMGK, v_BMGK, allowed_BLM)[0]


def _attend_block_forward(q_BLGRK, k_BMGK, v_BMGK, allowed_BLM):
    scores = jnp.einsum("BLGRK,BMGK->BGRLM", q_BLGRK, k_BMGK, preferred_element_type=jnp.float32)
    p_BGRLM = jax.nn.softmax(jnp.where(allowed_BLM[:, None, None], scores, MASKED), axis=-1).astype(v_BMGK.dtype)
    out = jnp.einsum("BGRLM,BMGK->BLGRK", p_BGRLM, v_BMGK, preferred_element_type=jnp.float32)
    return out.astype(q_BLGRK.dtype), (q_BLGRK, k_BMGK, v_BMGK, p_BGRLM)


def _attend_block_backward(residuals, g_BLGRK):
    q_BLGRK, k_BMGK, v_BMGK, p_BGRLM = residuals
    dtype = q_BLGRK.dtype
    dv = jnp.einsum("BGRLM,BLGRK->BMGK", p_BGRLM, g_BLGRK, preferred_element_type=jnp.float32)
    dp = jnp.einsum("BLGRK,BMGK->BGRLM", g_BLGRK, v_BMGK, preferred_element_type=jnp.float32)
    p32 = p_BGRLM.astype(jnp.float32)
    # Masked scores have probability zero, hence gradient zero: the mask itself is not needed here.
    ds = (p32 * (dp - (dp * p32).sum(-1, keepdims=True))).astype(dtype)
    dq = jnp.einsum("BGRLM,BMGK->BLGRK", ds, k_BMGK, preferred_element_type=jnp.float32)
    dk = jnp.einsum("BGRLM,BLGRK->BMGK", ds, q_BLGRK, preferred_element_type=jnp.float32)
    return dq.astype(dtype), dk.astype(dtype), dv.astype(dtype), None


_attend_block.defvjp(_attend_block_forward, _attend_block_backward)

IMPLEMENTATIONS: dict[str, Callable] = {"reference": _reference, "xla": _xla}
