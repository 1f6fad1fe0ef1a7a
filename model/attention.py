"""Multi-head attention (Vaswani and others, 2017).

There are as many key/value heads as query heads, fewer (grouped-query: Ainslie and others, 2023), or one (multi-query).
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from model.config import StackConfig
from model.kernels import attend, attend_with_probabilities
from model.layers import dropout
from model.mask import Mask
from model.parameters import normal, param, zeros
from model.positions import rotate
from model.sharding import constrain, einsum


@partial(jax.tree_util.register_dataclass, data_fields=["k_BTGK", "v_BTGK"], meta_fields=[])
@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values so far; slot t of a row holds its token number t."""

    k_BTGK: jax.Array
    v_BTGK: jax.Array

    def write(self, k_BLGK: jax.Array, v_BLGK: jax.Array, slots_BL: jax.Array) -> "LayerCache":
        """With the keys and values of L more tokens in the given slots; slots past the end are dropped."""
        at = (jnp.arange(slots_BL.shape[0])[:, None], slots_BL)
        return LayerCache(self.k_BTGK.at[at].set(k_BLGK, mode="drop"), self.v_BTGK.at[at].set(v_BLGK, mode="drop"))


class Attention(nnx.Module):
    """Self-attention with optional rotary positions and an optional cache."""

    def __init__(self, config: StackConfig, rngs: nnx.Rngs):
        self.config = config
        D, H, G, K = config.model_dim, config.num_heads, config.kv_heads, config.head_size
        std = normal(config.init_std)
        self.query = param(rngs, (D, H, K), ("embed", "heads", "head_dim"), std, "matrix")
        self.key = param(rngs, (D, G, K), ("embed", "kv_heads", "head_dim"), std, "matrix")
        self.value = param(rngs, (D, G, K), ("embed", "kv_heads", "head_dim"), std, "matrix")
        self.out = param(rngs, (H, K, D), ("heads", "head_dim", "embed"), normal(config.out_std), "matrix")
        if config.use_bias:
            self.query_bias = param(rngs, (H, K), ("heads", "head_dim"), zeros, "bias")
            self.key_bias = param(rngs, (G, K), ("kv_heads", "head_dim"), zeros, "bias")
            self.value_bias = param(rngs, (G, K), ("kv_heads", "head_dim"), zeros, "bias")
            self.out_bias = param(rngs, (D,), ("norm",), zeros, "bias")

    def __call__(
        self,
        x_BLD: jax.Array,
        mask: Mask,
        *,
        rope: tuple[jax.Array, jax.Array] | None = None,
        cache: LayerCache | None = None,
        slots_BL: jax.Array | None = None,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, LayerCache | None, dict[str, jax.Array]]:
        """The attended values [B, L, D], the cache with this call's keys and values, and what was captured."""
        q_BLHK = einsum("BLD,DHK->BLHK", x_BLD, self.query[...])
        k_BMGK = einsum("BLD,DGK->BLGK", x_BLD, self.key[...])
        v_BMGK = einsum("BLD,DGK->BLGK", x_BLD, self.value[...])
        if self.config.use_bias:
            q_BLHK, k_BMGK, v_BMGK = (
                x + bias[None, None]
                for x, bias in ((q_BLHK, self.query_bias), (k_BMGK, self.key_bias), (v_BMGK, self.value_bias))
            )
        if rope is not None:
            q_BLHK, k_BMGK = rotate(q_BLHK, rope), rotate(k_BMGK, rope)
        # Queries stay split along the length; every device gets all the keys and values (few heads of them), which is
        # context parallelism.
        q_BLHK = checkpoint_name(constrain(q_BLHK, "act_batch", "act_length", "act_heads", "act_head_dim"), "query")
        k_BMGK = checkpoint_name(constrain(k_BMGK, "act_batch", "act_memory", "act_kv_heads", "act_head_dim"), "key")
        v_BMGK = checkpoint_name(constrain(v_BMGK, "act_batch", "act_memory", "act_kv_heads", "act_head_dim"), "value")
        if cache is not None:
            assert slots_BL is not None
            cache = cache.write(k_BMGK, v_BMGK, slots_BL)
            k_BMGK, v_BMGK = cache.k_BTGK, cache.v_BTGK

        rate = self.config.attention_dropout
        scale = self.config.head_size**-0.5
        captured = {}
        drops = key is not None and rate > 0
        if drops or {"attention_scores", "attention_probabilities"} & set(capture):
            drop = (lambda p: dropout(p, rate, key)) if drops else None
            out_BLHK, scores, p = attend_with_probabilities(q_BLHK, k_BMGK, v_BMGK, mask, scale=scale, drop=drop)
            captured = {n: a for n, a in (("attention_scores", scores), ("attention_probabilities", p)) if n in capture}
        else:
            out_BLHK = attend(q_BLHK, k_BMGK, v_BMGK, mask, scale=scale, implementation=self.config.attention)
        out_BLHK = constrain(out_BLHK, "act_batch", "act_length", "act_heads", "act_head_dim")
        y_BLD = constrain(einsum("BLHK,HKD->BLD", out_BLHK, self.out[...]), "act_batch", "act_length", "act_embed")
        return (y_BLD + self.out_bias[None, None] if self.config.use_bias else y_BLD), cache, captured
