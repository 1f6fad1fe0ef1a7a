"""Attention, softmax(q k^T * scale + bias + mask) v, in several implementations with one signature.

`reference` says what is computed, in the fewest words, and also does what fused kernels cannot: hand out its
probabilities and drop some of them. `xla` is for every backend: it carries its own gradient and, where the mask is
causal, works by blocks of queries that never meet the keys after them. `splash` (model/splash.py) is for TPUs and
`cudnn` (model/cudnn.py) for NVIDIA GPUs: they never hold the scores.
"""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.cudnn import cudnn, cudnn_failure, cudnn_obstacle
from model.mask import MASKED, Mask
from model.sharding import constrain, device_platform, spread
from model.splash import splash, splash_obstacle

_MAX_BLOCKS = 8


def attend(
    q_BLHK: jax.Array,
    k_BMGK: jax.Array,
    v_BMGU: jax.Array,
    mask: Mask,
    *,
    scale: float,
    bias_BHLM: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Attention of H query heads over G key/value heads, [B, L, H, U] in q's dtype, with a float32 softmax.

    `bias_BHLM` is added to the scores; its first axis may be 1. The `implementation` is one of IMPLEMENTATIONS, or
    "auto": what is made for the devices. What a fused one cannot compute is computed by `xla`, with a warning.
    """
    q_BLGRK, k_BMGK, v_BMGU, bias = _grouped(q_BLHK, k_BMGK, v_BMGU, bias_BHLM)
    if implementation == "auto":
        implementation = _MADE_FOR.get(device_platform(), "xla")
    obstacle = _obstacle(implementation, q_BLGRK, k_BMGK, v_BMGU, mask, bias)
    if obstacle is not None:
        if mask.counts_from_start and q_BLHK.shape[1] > 1:  # of decoding nobody expects it
            warnings.warn(f"attention is computed by xla, not by {implementation}: {obstacle}", stacklevel=2)
        implementation = "xla"
    out = IMPLEMENTATIONS[implementation](q_BLGRK * scale, k_BMGK, v_BMGU, mask, bias)
    return out.reshape(*q_BLHK.shape[:3], -1)


def _obstacle(implementation: str, q_BLGRK, k_BMGK, v_BMGU, mask: Mask, bias) -> str | None:
    """Why an implementation cannot compute this, in words; None where it can."""
    if implementation == "splash":
        return splash_obstacle(q_BLGRK, k_BMGK, v_BMGU, mask, bias)
    if implementation != "cudnn":
        return None
    if device_platform() != "gpu":
        return "it is for NVIDIA GPUs"
    obstacle = cudnn_obstacle(q_BLGRK, k_BMGK, v_BMGU, mask, bias)
    # Programs may be compiled for GPUs where there are none to try it on.
    if obstacle is None and jax.default_backend() == "gpu":
        obstacle = cudnn_failure(q_BLGRK, k_BMGK, v_BMGU, mask, _reference)
    return obstacle


def attend_with_probabilities(
    q_BLHK: jax.Array,
    k_BMGK: jax.Array,
    v_BMGU: jax.Array,
    mask: Mask,
    *,
    scale: float,
    bias_BHLM: jax.Array | None = None,
    drop: Callable | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The reference's output [B, L, H, U], its masked scores and its probabilities, both [B, H, L, M] float32.

    `drop` is applied to the probabilities.
    """
    q_BLGRK, k_BMGK, v_BMGU, bias = _grouped(q_BLHK, k_BMGK, v_BMGU, bias_BHLM)
    out, scores, p = _reference_parts(q_BLGRK * scale, k_BMGK, v_BMGU, mask, bias, drop)
    flat = (p.shape[0], -1, *p.shape[3:])
    return out.reshape(*q_BLHK.shape[:3], -1), scores.reshape(flat), p.reshape(flat)


def _grouped(q_BLHK, k_BMGK, v_BMGU, bias_BHLM):
    """Queries as [B, L, G, R, K], and the bias as [B, G, R, L, M].

    Key/value heads that the tensor axis replicates are repeated, so that query heads can stay split over it.
    """
    B, L, H, K = q_BLHK.shape
    G = k_BMGK.shape[2]
    if G % spread("act_kv_heads"):
        k_BMGK, v_BMGU = (
            constrain(jnp.repeat(x, H // G, axis=2), "act_batch", "act_memory", "act_heads", "act_head_dim")
            for x in (k_BMGK, v_BMGU)
        )
        G = H
    if bias_BHLM is not None:
        bias_BHLM = bias_BHLM.reshape(bias_BHLM.shape[0], G, H // G, *bias_BHLM.shape[2:])
    return q_BLHK.reshape(B, L, G, H // G, K), k_BMGK, v_BMGU, bias_BHLM


def _reference(q_BLGRK, k_BMGK, v_BMGU, mask: Mask, bias_BGRLM):
    return _reference_parts(q_BLGRK, k_BMGK, v_BMGU, mask, bias_BGRLM, None)[0]


def _reference_parts(q_BLGRK, k_BMGK, v_BMGU, mask: Mask, bias_BGRLM, drop: Callable | None):
    scores_BGRLM = _scores(q_BLGRK, k_BMGK, mask.allowed(q_BLGRK.shape[1], k_BMGK.shape[1]), bias_BGRLM)
    p_BGRLM = jax.nn.softmax(scores_BGRLM, axis=-1)
    used_BGRLM = p_BGRLM if drop is None else drop(p_BGRLM)
    out = jnp.einsum("BGRLM,BMGU->BLGRU", used_BGRLM.astype(v_BMGU.dtype), v_BMGU, preferred_element_type=jnp.float32)
    return out.astype(q_BLGRK.dtype), scores_BGRLM, p_BGRLM


def _scores(q_BLGRK, k_BMGK, allowed_BLM, bias_BGRLM):
    scores = jnp.einsum("BLGRK,BMGK->BGRLM", q_BLGRK, k_BMGK, preferred_element_type=jnp.float32)
    if bias_BGRLM is not None:
        scores = scores + bias_BGRLM.astype(jnp.float32)
    return jnp.where(allowed_BLM[:, None, None], scores, MASKED)


def _xla(q_BLGRK, k_BMGK, v_BMGU, mask: Mask, bias_BGRLM):
    length = q_BLGRK.shape[1]
    allowed_BLM = mask.allowed(length, k_BMGK.shape[1])
    block = _block_length(length) if mask.is_plainly_causal and spread("act_length") == 1 else length

    def attend_from(i: int):
        end = i + block if block < length else k_BMGK.shape[1]
        bias = None if bias_BGRLM is None else bias_BGRLM[..., i : i + block, :end]
        return _attend_block(
            q_BLGRK[:, i : i + block], k_BMGK[:, :end], v_BMGU[:, :end], allowed_BLM[:, i : i + block, :end], bias
        )

    outs = [attend_from(i) for i in range(0, length, block)]
    return checkpoint_name(outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1), "attention_out")


def _block_length(length: int) -> int:
    """Queries a block: at most 8 blocks, none under 64 queries, and only lengths that divide."""
    block = max(64, -(-length // _MAX_BLOCKS))
    return block if length % block == 0 else length


@jax.custom_vjp
def _attend_block(q_BLGRK, k_BMGK, v_BMGU, allowed_BLM, bias_BGRLM):
    return _attend_block_forward(q_BLGRK, k_BMGK, v_BMGU, allowed_BLM, bias_BGRLM)[0]


def _attend_block_forward(q_BLGRK, k_BMGK, v_BMGU, allowed_BLM, bias_BGRLM):
    p_BGRLM = jax.nn.softmax(_scores(q_BLGRK, k_BMGK, allowed_BLM, bias_BGRLM), axis=-1).astype(v_BMGU.dtype)
    out = jnp.einsum("BGRLM,BMGU->BLGRU", p_BGRLM, v_BMGU, preferred_element_type=jnp.float32)
    like = None if bias_BGRLM is None else bias_BGRLM[:, :0]  # carries its sizes and dtype, and holds nothing
    return out.astype(q_BLGRK.dtype), (q_BLGRK, k_BMGK, v_BMGU, p_BGRLM, like)


def _attend_block_backward(residuals, g_BLGRU):
    q_BLGRK, k_BMGK, v_BMGU, p_BGRLM, like = residuals
    dtype = q_BLGRK.dtype
    dv = jnp.einsum("BGRLM,BLGRU->BMGU", p_BGRLM, g_BLGRU, preferred_element_type=jnp.float32)
    dp = jnp.einsum("BLGRU,BMGU->BGRLM", g_BLGRU, v_BMGU, preferred_element_type=jnp.float32)
    p32 = p_BGRLM.astype(jnp.float32)
    # Masked scores have probability zero, hence gradient zero: the mask itself is not needed here.
    ds32 = p32 * (dp - (dp * p32).sum(-1, keepdims=True))
    ds = ds32.astype(dtype)
    dq = jnp.einsum("BGRLM,BMGK->BLGRK", ds, k_BMGK, preferred_element_type=jnp.float32)
    dk = jnp.einsum("BGRLM,BLGRK->BMGK", ds, q_BLGRK, preferred_element_type=jnp.float32)
    dbias = None
    if like is not None:
        dbias = (ds32 if like.shape[0] > 1 else ds32.sum(0, keepdims=True)).astype(like.dtype)
    return dq.astype(dtype), dk.astype(dtype), dv.astype(dtype), None, dbias


_attend_block.defvjp(_attend_block_forward, _attend_block_backward)

IMPLEMENTATIONS: dict[str, Callable] = {"reference": _reference, "xla": _xla, "splash": splash, "cudnn": cudnn}
_MADE_FOR = {"tpu": "splash", "gpu": "cudnn"}  # platforms
