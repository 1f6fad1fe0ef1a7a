"""N blocks as one: stacked weights run by a scan, so that compile time does not grow with depth.

A stack opens in three places and no others: `capture` hands out what each layer computes, `per_layer` feeds each layer
its own data, and `unroll` (of the configuration) says how many layers one turn of the scan runs. Decoding reads the
layers one by one (`unstacked`): a scan would copy every weight, each token.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.block import Block, Context
from model.config import GATED, StackConfig
from model.fsdp import GATHERED, gathered, on_own_rows, splits_weights
from model.parameters import stack
from model.positions import RelativeBias

_POLICIES = jax.checkpoint_policies
_QKV = ("query", "key", "value")
REMAT: dict[str, Callable] = {  # what is held of each layer for its gradient; the rest is computed again
    "none": _POLICIES.save_anything_except_these_names(GATHERED),
    "dots": _POLICIES.save_only_these_names(*_QKV, "attention_out", "up"),
    "attention": _POLICIES.save_only_these_names(*_QKV, "attention_out"),
    "projections": _POLICIES.save_only_these_names(*_QKV, "residual"),
    "qkv": _POLICIES.save_only_these_names(*_QKV),
    "full": _POLICIES.nothing_saveable,
    "offload": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[*_QKV],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
_UNLIMITED = 2**30  # a window that hides nothing


class Stack(nnx.Module):
    """`num_layers` blocks of one shape; with `share_layers`, one block applied that many times (Lan et al. 2019)."""

    def __init__(self, config: StackConfig, rngs: nnx.Rngs, cross: bool = False):
        self.config = config
        if config.share_layers:
            self.layers = Block(config, rngs, cross)
        else:
            self.layers = stack(lambda layer_rngs: Block(config, layer_rngs, cross), rngs, config.num_layers)
        if config.positions == "relative":
            self.relative = RelativeBias(
                config.num_heads, config.relative_buckets, config.relative_distance, config.init_std, rngs
            )

    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        *,
        per_layer: Callable[[Context, Any], Context] | None = None,
        per_layer_data: Any = None,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The last layer's output [B, L, D] and, by name, what was captured of each layer, [N, ...].

        `per_layer(context, data)` makes a layer's context from its slice of `per_layer_data`, arrays with a leading
        layer axis.
        """
        config = self.config
        context = self.positioned(context, x_BLD.shape[1])
        windows, same_window = None, config.windows[0]  # what is known before the scan, a kernel can be made for
        if len(set(config.windows)) > 1:
            windows = np.array([w or _UNLIMITED for w in config.windows], np.int32)
        drops = max(config.dropout, config.attention_dropout) > 0
        keys = None if key is None or not drops else jax.random.split(key, config.num_layers)
        # What is drawn for the batch as a whole, or looked into, is XLA's to divide.
        own_rows = splits_weights() and not (keys is not None or capture or per_layer or config.share_layers)

        def run(rows: tuple[jax.Array, Context], layers: Block):
            x_BLD, context = rows

            def layer(x_BLD, scanned):
                block, layer_key, window, data = scanned
                layer_context = _windowed(context, same_window if windows is None else window)
                layer_context = layer_context if per_layer is None else per_layer(layer_context, data)
                block = layers if config.share_layers else gathered(block)
                y_BLD, _, captured = block(x_BLD, layer_context, key=layer_key, capture=capture)
                return y_BLD, captured

            if config.remat != "none" or own_rows:
                layer = jax.checkpoint(layer, policy=REMAT[config.remat], prevent_cse=False)
            scanned = (None if config.share_layers else layers, keys, windows, per_layer_data)
            return jax.lax.scan(layer, x_BLD, scanned, length=config.num_layers, unroll=config.unroll)

        rows = (x_BLD, context)
        return on_own_rows(run, rows, self.layers) if own_rows else run(rows, self.layers)

    def positioned(self, context: Context, length: int, memory: int | None = None) -> Context:
        """The context with the bias of relative positions, where positions are relative; made once for all layers.

        There are `length` queries, and as many keys or, in a cache, `memory`.
        """
        if self.config.positions != "relative":
            return context
        mask = context.mask
        q_index_BL = jnp.arange(length)[None] if mask.q_index_BL is None else mask.q_index_BL
        k_index_BM = jnp.arange(memory or length)[None] if mask.k_index_BM is None else mask.k_index_BM
        return replace(context, bias_BHLM=self.relative(q_index_BL, k_index_BM, bidirectional=not mask.causal))

    def unstacked(self) -> tuple[Block, ...]:
        """The blocks one by one, each with its own copy of its weights."""
        if self.config.share_layers:
            return (self.layers,) * self.config.num_layers
        return tuple(jax.tree.map(lambda a, i=i: a[i], self.layers) for i in range(self.config.num_layers))


def layer_matrices(config: StackConfig, cross: bool = False) -> int:
    """Number of the weights of one layer that a token is multiplied by, once each."""
    D, H, G, K, U = config.model_dim, config.num_heads, config.kv_heads, config.head_size, config.value_head_size
    attention = D * (H + G) * K + D * G * U + H * U * D
    mlp = (3 if config.activation in GATED else 2) * D * config.mlp_size
    return (2 if cross else 1) * attention + mlp


def layer_parameters(config: StackConfig, cross: bool = False) -> int:
    """Number of the weights of one layer."""
    D, H, G, K, U = config.model_dim, config.num_heads, config.kv_heads, config.head_size, config.value_head_size
    attentions = 2 if cross else 1
    norms = attentions if config.norm_position == "parallel" else attentions + 1
    attention_biases = (H + G) * K + G * U + D if config.has_attention_bias else 0
    mlp_biases = config.mlp_size + D if config.use_bias else 0
    biases = attentions * attention_biases + mlp_biases
    return layer_matrices(config, cross) + biases + norms * norm_parameters(config, D)


def norm_parameters(config: StackConfig, dim: int) -> int:
    """Number of the weights of one norm of `dim` numbers."""
    return (2 if config.norm == "layer" and config.norm_bias else 1) * dim


def layer_contexts(config: StackConfig, context: Context) -> list[Context]:
    """The context of each layer, for layers that are run one by one."""
    return [_windowed(context, window) for window in config.windows]


def _windowed(context: Context, window: jax.Array | int | None) -> Context:
    return context if window is None else replace(context, mask=replace(context.mask, window=window))
