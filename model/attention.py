"""Multi-head attention (Vaswani and others, 2017).

There are as many key/value heads as query heads, fewer (grouped-query: Ainslie and others, 2023), or one (multi-query).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from model.config import StackConfig
from model.kernels import attend, attend_with_probabilities
from model.layers import add_bias, dropout
from model.mask import Mask
from model.parameters import normal, param, zeros
from model.positions import rotate
from model.sharding import constrain, einsum


@partial(jax.tree_util.register_dataclass, data_fields=["k_BTGK", "v_BTGU"], meta_fields=[])
@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values so far; slot t of a row holds its token number t."""

    k_BTGK: jax.Array
    v_BTGU: jax.Array

    @classmethod
    def empty(cls, config: StackConfig, rows: int, length: int, dtype: Any) -> "LayerCache":
        """A cache with `length` slots a row."""

        def zeros(size: int) -> jax.Array:
            shape = (rows, length, config.kv_heads, size)
            return constrain(jnp.zeros(shape, dtype), "act_batch", "act_memory", "act_kv_heads", "act_head_dim")

        return cls(zeros(config.head_size), zeros(config.value_head_size))

    def write(self, k_BLGK: jax.Array, v_BLGU: jax.Array, slots_BL: jax.Array) -> "LayerCache":
        """With the keys and values of L more tokens in the given slots; slots past the end are dropped."""
        at = (jnp.arange(slots_BL.shape[0])[:, None], slots_BL)
        return LayerCache(self.k_BTGK.at[at].set(k_BLGK, mode="drop"), self.v_BTGU.at[at].set(v_BLGU, mode="drop"))


class Attention(nnx.Module):
    """Attention of a sequence to itself or to another's keys and values, with optional rotary positions and cache."""

    def __init__(self, config: StackConfig, rngs: nnx.Rngs):
        self.config = config
        D, H, G, K, U = (
            config.model_dim,
            config.num_heads,
            config.kv_heads,
            config.head_size,
            config.value_head_size,
        )
        std = normal(config.initial_std(D))
        # Queries are born smaller where scores are scaled down less (T5), so that scores begin alike.
        query_std = normal(config.initial_std(D) * config.head_size**-0.5 / config.score_scale)
        self.query = param(rngs, (D, H, K), ("embed", "heads", "head_dim"), query_std, "matrix")
        self.key = param(rngs, (D, G, K), ("embed", "kv_heads", "head_dim"), std, "matrix")
        self.value = param(rngs, (D, G, U), ("embed", "kv_heads", "head_dim"), std, "matrix")
        self.out = param(
            rngs, (H, U, D), ("heads", "head_dim", "embed"), normal(config.initial_std(H * U, back=True)), "matrix"
        )
        if config.has_attention_bias:
            self.query_bias = param(rngs, (H, K), ("heads", "head_dim"), zeros, "bias")
            self.key_bias = param(rngs, (G, K), ("kv_heads", "head_dim"), zeros, "bias")
            self.value_bias = param(rngs, (G, U), ("kv_heads", "head_dim"), zeros, "bias")
            self.out_bias = param(rngs, (D,), ("norm",), zeros, "bias")

    def keys_and_values(
        self, x_BMD: jax.Array, rope: tuple[jax.Array, jax.Array] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """What a sequence is attended to by: keys [B, M, G, K] and values [B, M, G, U]."""
        k_BMGK = einsum("BLD,DGK->BLGK", x_BMD, self.key[...])
        v_BMGU = einsum("BLD,DGU->BLGU", x_BMD, self.value[...])
        if self.config.has_attention_bias:
            k_BMGK, v_BMGU = add_bias(k_BMGK, self.key_bias[...]), add_bias(v_BMGU, self.value_bias[...])
        if rope is not None:
            k_BMGK = rotate(k_BMGK, rope)
        # Queries stay split along the length; every device gets all the keys and values (few heads of them), which is
        # context parallelism.
        k_BMGK = checkpoint_name(constrain(k_BMGK, "act_batch", "act_memory", "act_kv_heads", "act_head_dim"), "key")
        v_BMGU = checkpoint_name(constrain(v_BMGU, "act_batch", "act_memory", "act_kv_heads", "act_head_dim"), "value")
        return k_BMGK, v_BMGU

    def __call__(
        self,
        x_BLD: jax.Array,
        mask: Mask,
        *,
        bias_BHLM: jax.Array | None = None,
        rope: tuple[jax.Array, jax.Array] | None = None,
        memory: tuple[jax.Array, jax.Array] | None = None,
        cache: LayerCache | None = None,
        slots_BL: jax.Array | None = None,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, LayerCache | None, dict[str, jax.Array]]:
        """The attended values [B, L, D], the cache with this call's keys and values, and what was captured.

        `memory` is another sequence's `keys_and_values`, in place of x's own.
        """
        q_BLHK = einsum("BLD,DHK->BLHK", x_BLD, self.query[...])
        if self.config.has_attention_bias:
            q_BLHK = add_bias(q_BLHK, self.query_bias[...])
        if rope is not None:
            q_BLHK = rotate(q_BLHK, rope)
        q_BLHK = checkpoint_name(constrain(q_BLHK, "act_batch", "act_length", "act_heads", "act_head_dim"), "query")
        k_BMGK, v_BMGU = self.keys_and_values(x_BLD, rope) if memory is None else memory
        if cache is not None:
            assert slots_BL is not None
            cache = cache.write(k_BMGK, v_BMGU, slots_BL)
            k_BMGK, v_BMGU = cache.k_BTGK, cache.v_BTGU

        rate, scale = self.config.attention_dropout, self.config.score_scale
        captured = {}
        drops = key is not None and rate > 0
        if drops or {"attention_scores", "attention_probabilities"} & set(capture):
            drop = (lambda p: dropout(p, rate, key)) if drops else None
            out_BLHU, scores, p = attend_with_probabilities(
                q_BLHK, k_BMGK, v_BMGU, mask, scale=scale, bias_BHLM=bias_BHLM, drop=drop
            )
            captured = {n: a for n, a in (("attention_scores", scores), ("attention_probabilities", p)) if n in capture}
        else:
            out_BLHU = attend(
                q_BLHK,
                k_BMGK,
                v_BMGU,
                mask,
                scale=scale,
                bias_BHLM=bias_BHLM,
                implementation=self.config.attention,
            )
        out_BLHU = constrain(out_BLHU, "act_batch", "act_length", "act_heads", "act_head_dim")
        y_BLD = constrain(einsum("BLHU,HUD->BLD", out_BLHU, self.out[...]), "act_batch", "act_length", "act_embed")
        return (add_bias(y_BLD, self.out_bias[...]) if self.config.has_attention_bias else y_BLD), cache, captured
