"""Attention on TPUs by splash attention, JAX's kernel for flash attention (Dao and others, 2022).

Scores are made block by block on the chip and never held, and blocks that the mask empties are not visited. XLA cannot
divide a kernel among devices, so it runs inside `shard_map`, on each device's own rows, heads and queries.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from model.mask import Mask
from model.sharding import device_platform, on_each_device, partition_spec, spread

_LANES = 128  # numbers that a TPU's vector unit has side by side
_BLOCKS = (512, 384, 256, 128)  # of so many queries, or keys, the first that divides


def splash_obstacle(q_BLGRK, k_BMGK, v_BMGU, mask: Mask, bias_BGRLM) -> str | None:
    """Why this cannot be computed by splash attention; None where it can."""
    length, memory = q_BLGRK.shape[1], k_BMGK.shape[1]
    if bias_BGRLM is not None:
        return "it adds no bias to the scores"
    if length % (_LANES * spread("act_length")) or memory % _LANES:
        return f"on each device, {length} queries and {memory} keys are not both multiples of {_LANES}"
    if not mask.counts_from_start or mask.seen_BLM is not None:
        return "the mask is not one of places in a row"
    if isinstance(mask.window, jax.Array):
        return "its window would have to be that of every layer (model.window_every=1)"
    return None


def splash(q_BLGRK, k_BMGK, v_BMGU, mask: Mask, bias_BGRLM: None) -> jax.Array:
    """Attention of scaled queries, [B, L, G, R, U]. Where there is no TPU the kernel is interpreted, for tests."""
    B, L, G, R, K = q_BLGRK.shape
    kernel = _kernel(mask, G * R, L, k_BMGK.shape[1])
    q_BHLK, k_BGMK, v_BGMU = (jnp.moveaxis(x, 1, 2) for x in (q_BLGRK.reshape(B, L, G * R, K), k_BMGK, v_BMGU))
    segments = mask.segments

    mesh = jax.sharding.get_abstract_mesh()
    attend = _attend_rows
    if not mesh.empty:
        q_spec = partition_spec(("act_batch", "act_heads", "act_length", None), q_BHLK.shape, mesh)
        kv_spec = partition_spec(("act_batch", "act_kv_heads", "act_memory", None), k_BGMK.shape, mesh)
        whole = AbstractMesh(mesh.axis_sizes, mesh.axis_names)  # whatever part of it is a device's own already
        kernel_spec = kernel.manual_sharding_spec(NamedSharding(whole, PartitionSpec(*q_spec[1:3])))
        segment_specs = segments and (PartitionSpec(q_spec[0], q_spec[2]), PartitionSpec(q_spec[0], kv_spec[2]))
        attend = on_each_device(_attend_rows, (kernel_spec, q_spec, kv_spec, kv_spec, segment_specs), q_spec)
    out_BHLU = attend(kernel, q_BHLK, k_BGMK, v_BGMU, segments)
    return jnp.moveaxis(out_BHLU, 1, 2).reshape(B, L, G, R, -1)


def _attend_rows(kernel: Any, q_BHLK, k_BGMK, v_BGMU, segments) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    return jax.vmap(kernel)(q_BHLK, k_BGMK, v_BGMU, segments and SegmentIds(*segments))


def _kernel(mask: Mask, heads: int, length: int, memory: int) -> Any:
    """The kernel of a mask, divided among devices as the ambient mesh divides heads and queries."""
    # Pallas takes a second to import, which only those pay who use it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape, parts, window = (length, memory), spread("act_length"), mask.window
    assert not isinstance(window, jax.Array)  # splash_obstacle() has seen to it
    if window is not None:
        places = masks.LocalMask(shape, (window - 1, 0 if mask.causal else None), 0)
    else:
        places = masks.CausalMask(shape) if mask.causal else masks.FullMask(shape)
    q, k = (next(block for block in _BLOCKS if n % block == 0) for n in (length // parts, memory))
    return kernels.make_splash_mha(
        masks.MultiHeadMask([places] * heads),
        block_sizes=kernels.BlockSizes(
            block_q=q, block_kv=k, block_q_dkv=q, block_kv_dkv=k, block_q_dq=q, block_kv_dq=k
        ),
        head_shards=spread("act_heads"),
        q_seq_shards=parts,
        residual_checkpoint_name="attention_out",
        interpret=device_platform() != "tpu",
    )
