"""N blocks as one: stacked weights run by a scan, so that compile time does not grow with depth.

A stack opens in three places and no others: `capture` hands out what each layer computes, `per_layer` feeds each layer
its own data, and `unroll` (of the configuration) says how many layers one turn of the scan runs. Decoding reads the
layers one by one (`unstacked`): a scan would copy every weight, each token.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from model.block import Block, Context
from model.config import StackConfig
from model.parameters import stack

_POLICIES = jax.checkpoint_policies
REMAT: dict[str, Callable | None] = {
    "dots": _POLICIES.dots_with_no_batch_dims_saveable,
    "attention": _POLICIES.save_only_these_names("query", "key", "value", "attention_out", "residual"),
    "full": _POLICIES.nothing_saveable,
}


class Stack(nnx.Module):
    """`num_layers` blocks of one shape."""

    def __init__(self, config: StackConfig, rngs: nnx.Rngs):
        self.config = config
        self.layers = stack(lambda layer_rngs: Block(config, layer_rngs), rngs, config.num_layers)

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
        layer axis (window sizes, say).
        """

        def layer(x_BLD, scanned):
            block, layer_key, data = scanned
            layer_context = context if per_layer is None else per_layer(context, data)
            y_BLD, _, captured = block(x_BLD, layer_context, key=layer_key, capture=capture)
            return y_BLD, captured

        if self.config.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[self.config.remat], prevent_cse=False)
        keys = None if key is None else jax.random.split(key, self.config.num_layers)
        return jax.lax.scan(layer, x_BLD, (self.layers, keys, per_layer_data), unroll=self.config.unroll)

    def unstacked(self) -> tuple[Block, ...]:
        """The blocks one by one, each with its own copy of its weights."""
        return tuple(jax.tree.map(lambda a, i=i: a[i], self.layers) for i in range(self.config.num_layers))
