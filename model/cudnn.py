"""Attention on NVIDIA GPUs by cuDNN's flash attention (Dao and others, 2022), through jax.nn.

It is tried beside the reference before it is used: what it can do depends on the GPU, on the version of cuDNN that is
installed, and on JAX.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from model.mask import Mask
from model.sharding import on_each_device, partition_spec, spread

_LARGEST_HEAD = 128
_TOLERANCE = 0.03  # of a tensor's largest: a few roundings to bfloat16


def cudnn_obstacle(q_BLGRK, k_BMGK, v_BMGU, mask: Mask, bias_BGRLM) -> str | None:
    """Why this cannot be computed by cuDNN; None where it can."""
    length, memory, head, value_head = q_BLGRK.shape[1], k_BMGK.shape[1], q_BLGRK.shape[-1], v_BMGU.shape[-1]
    if bias_BGRLM is not None:
        return "it is given no bias of the scores"
    if q_BLGRK.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in 16 bits, not in {q_BLGRK.dtype}"
    if head != value_head or head % 8 or head > _LARGEST_HEAD:
        return f"heads of {head} (values {value_head}) are not of one size, a multiple of 8 up to {_LARGEST_HEAD}"
    if spread("act_length") > 1:
        return "a row's queries are split over devices"
    if not mask.counts_from_start or mask.seen_BLM is not None:
        return "the mask is not one of places in a row"
    if isinstance(mask.window, jax.Array):
        return "its window would have to be that of every layer (model.window_every=1)"
    if mask.window is not None and not mask.causal:
        return "its window goes with a causal mask only"
    if mask.segments and (length % 2 or memory % 2):
        return f"with several documents in a row, {length} queries and {memory} keys are not both even"
    return None


def cudnn(q_BLGRK, k_BMGK, v_BMGU, mask: Mask, bias_BGRLM: None) -> jax.Array:
    """Attention of scaled queries, [B, L, G, R, U].

    A causal mask and a window cost nothing. Segments are a matrix [B, 1, L, M] that every layer reads; rows of one
    segment, as contiguous packing makes them, go without.
    """
    B, L, G, R, K = q_BLGRK.shape
    q_BLHK = q_BLGRK.reshape(B, L, G * R, K)

    window = mask.window
    assert not isinstance(window, jax.Array)  # cudnn_obstacle() has seen to it

    def attend(q_BLHK, k_BMGK, v_BMGU, segments) -> jax.Array:
        return jax.nn.dot_product_attention(
            q_BLHK,
            k_BMGK,
            v_BMGU,
            mask=segments and segments[0][:, None, :, None] == segments[1][:, None, None, :],
            scale=1.0,
            is_causal=mask.causal,
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn",
        )

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        q_spec = partition_spec(("act_batch", "act_length", "act_heads", None), q_BLHK.shape, mesh)
        kv_spec = partition_spec(("act_batch", "act_memory", "act_kv_heads", None), k_BMGK.shape, mesh)
        segment_specs = mask.segments and (PartitionSpec(q_spec[0], q_spec[1]), PartitionSpec(q_spec[0], kv_spec[1]))
        attend = on_each_device(attend, (q_spec, kv_spec, kv_spec, segment_specs), q_spec)
    out_BLHU = attend(q_BLHK, k_BMGK, v_BMGU, mask.segments)
    return checkpoint_name(out_BLHU, "attention_out").reshape(B, L, G, R, -1)


class _Kind(NamedTuple):
    """What is tried of cuDNN: attention of this kind."""

    dtype: Any
    head: int
    queries_per_key: int
    causal: bool
    windowed: bool
    segmented: bool


def cudnn_failure(q_BLGRK, k_BMGK, v_BMGU, mask: Mask, reference: Callable) -> str | None:
    """How cuDNN fails, beside `reference`, at attention of this kind on the GPU that is here; None where it does not.

    A small example is computed and its gradient taken, once for each kind.
    """
    *_, R, K = q_BLGRK.shape
    return _failure(
        _Kind(q_BLGRK.dtype, K, R, mask.causal, mask.window is not None, mask.segments is not None), reference
    )


@cache
def _failure(kind: _Kind, reference: Callable) -> str | None:
    # In a thread of its own nothing of what is being traced here, and of its mesh, is in force.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_compare, kind, reference).result()


def _compare(kind: _Kind, reference: Callable) -> str | None:
    B, L, G, R, K = 2, 128, 2, kind.queries_per_key, kind.head
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((B, L, G, R, K), (B, L, G, K), (B, L, G, K), (B, L, G, R, K))
    *operands, weights = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    operands[0] *= K**-0.5
    segments_BL = jnp.broadcast_to((jnp.arange(L) >= 48).astype(jnp.int32)[None], (B, L)) if kind.segmented else None
    mask = Mask(kind.causal, 40 if kind.windowed else None, q_segments_BL=segments_BL, k_segments_BM=segments_BL)

    def outcome(run: Callable) -> tuple[jax.Array, ...]:
        def weighed(*operands: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = run(*operands, mask, None).astype(jnp.float32)
            return (out * weights).sum(), out

        gradients, out = jax.jit(jax.grad(weighed, argnums=(0, 1, 2), has_aux=True))(
            *(operand.astype(kind.dtype) for operand in operands)
        )
        return (out, *(gradient.astype(jnp.float32) for gradient in gradients))

    try:
        found = outcome(cudnn)
    except Exception as error:  # whatever cuDNN, XLA or JAX raise of what is missing here
        return f"it fails ({type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''})"
    for name, actual, expected in zip(
        ("output", "queries' gradient", "keys' gradient", "values' gradient"), found, outcome(reference), strict=True
    ):
        difference = float(jnp.abs(actual - expected).max() / jnp.abs(expected).max())
        if not difference <= _TOLERANCE:
            return f"its {name} differs from the reference's by {difference:.2g} of the largest"
    return None
