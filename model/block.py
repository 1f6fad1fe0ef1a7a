"""One transformer layer: attention, attention to another sequence where there is one, and a feed-forward layer.

Each is added to what it was given. The norm stands before each of them (Xiong et al. 2020), after each sum (Vaswani et
al. 2017), or once before attention and feed-forward, which then run in parallel (Wang & Komatsuzaki 2021, PaLM).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from model.attention import Attention, LayerCache
from model.config import StackConfig
from model.feed_forward import FeedForward
from model.fsdp import gradients_first
from model.layers import Norm, dropout
from model.mask import Mask

KeysAndValues = tuple[jax.Array, jax.Array]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "rope", "bias_BHLM", "slots_BL", "memory_BMD", "memory_mask"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Context:
    """What is the same for every layer of one call.

    The mask; rotary tables or a bias of the scores, where positions are rotary or relative; slots if decoding; and the
    other sequence, with its mask, that layers with cross-attention attend to.
    """

    mask: Mask
    rope: tuple[jax.Array, jax.Array] | None = None
    bias_BHLM: jax.Array | None = None
    slots_BL: jax.Array | None = None
    memory_BMD: jax.Array | None = None
    memory_mask: Mask | None = None


class Block(nnx.Module):
    """A transformer layer, with attention to another sequence where `cross` says so."""

    def __init__(self, config: StackConfig, rngs: nnx.Rngs, cross: bool = False):
        def norm() -> Norm:
            return Norm(config.model_dim, config.norm, config.norm_epsilon, rngs, bias=config.norm_bias)

        self.dropout, self.norm_position, self.cross = config.dropout, config.norm_position, cross
        self.attention_norm = norm()
        self.attention = Attention(config, rngs)
        if cross:
            self.cross_norm = norm()
            self.cross_attention = Attention(config, rngs)
        if config.norm_position != "parallel":
            self.mlp_norm = norm()
        self.mlp = FeedForward(config, rngs)

    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        *,
        cache: LayerCache | None = None,
        memory: KeysAndValues | None = None,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, LayerCache | None, dict[str, jax.Array]]:
        """The layer's output [B, L, D], its cache, and what `capture` names of it.

        That is "hidden" (the output), "attention_scores" and "attention_probabilities", and the latter two of
        cross-attention with "cross_" before them. `memory` is `memory_of(context.memory_BMD)`, where it is known.
        """
        count = 5 if self.cross else 3
        keys = [None] * count if key is None else list(jax.random.split(key, count))
        attention_key, residual_key, mlp_key = keys[:3]
        captured: dict[str, jax.Array] = {}

        def attention(x_BLD: jax.Array) -> jax.Array:
            nonlocal cache
            y_BLD, cache, found = self.attention(
                x_BLD,
                context.mask,
                bias_BHLM=context.bias_BHLM,
                rope=context.rope,
                cache=cache,
                slots_BL=context.slots_BL,
                key=attention_key,
                capture=capture,
            )
            captured.update(found)
            return y_BLD

        def cross_attention(x_BLD: jax.Array) -> jax.Array:
            assert context.memory_mask is not None
            keys_and_values = self.memory_of(context.memory_BMD) if memory is None else memory
            wanted = tuple(name.removeprefix("cross_") for name in capture if name.startswith("cross_"))
            y_BLD, _, found = self.cross_attention(
                x_BLD, context.memory_mask, memory=keys_and_values, key=keys[3], capture=wanted
            )
            captured.update({f"cross_{name}": array for name, array in found.items()})
            return y_BLD

        if self.norm_position == "parallel":
            normed_BLD = self.attention_norm(x_BLD)
            with jax.named_scope("attention"):
                y_BLD = attention(normed_BLD)
            with jax.named_scope("mlp"):
                x_BLD = x_BLD + dropout(y_BLD + self.mlp(normed_BLD), self.dropout, residual_key)
        else:
            with jax.named_scope("attention"):
                x_BLD = self._added(x_BLD, attention, self.attention_norm, residual_key)
                x_BLD = checkpoint_name(x_BLD, "residual")
            if self.cross:
                with jax.named_scope("cross_attention"):
                    x_BLD = self._added(x_BLD, cross_attention, self.cross_norm, keys[4])
            with jax.named_scope("mlp"):
                x_BLD, mlp = gradients_first(x_BLD, self.mlp)
                x_BLD = self._added(x_BLD, mlp, self.mlp_norm, mlp_key)
        if "hidden" in capture:
            captured["hidden"] = x_BLD
        return x_BLD, cache, captured

    def memory_of(self, memory_BMD: jax.Array | None) -> KeysAndValues:
        """The keys and values of the other sequence, the same for every token that attends to it."""
        assert memory_BMD is not None
        return self.cross_attention.keys_and_values(memory_BMD)

    def _added(
        self, x_BLD: jax.Array, sublayer: Callable[[jax.Array], jax.Array], norm: Norm, key: jax.Array | None
    ) -> jax.Array:
        """x with what a sublayer makes of it, normed before or after."""
        if self.norm_position == "after":
            return norm(x_BLD + dropout(sublayer(x_BLD), self.dropout, key))
        return x_BLD + dropout(sublayer(norm(x_BLD)), self.dropout, key)
