"""One transformer layer, norm first (Xiong et al. 2020): x + attention(norm(x)), then x + feed_forward(norm(x))."""

from dataclasses import dataclass
from functools import partial

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from model.attention import Attention, LayerCache
from model.config import StackConfig
from model.feed_forward import FeedForward
from model.layers import Norm, dropout
from model.mask import Mask


@partial(jax.tree_util.register_dataclass, data_fields=["mask", "rope", "slots_BL"], meta_fields=[])
@dataclass(frozen=True)
class Context:
    """What is the same for every layer of one call: mask, rotary tables if positions are rotary, slots if decoding."""

    mask: Mask
    rope: tuple[jax.Array, jax.Array] | None = None
    slots_BL: jax.Array | None = None


class Block(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: StackConfig, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.attention_norm = Norm(config.model_dim, config.norm, config.norm_epsilon, rngs)
        self.attention = Attention(config, rngs)
        self.mlp_norm = Norm(config.model_dim, config.norm, config.norm_epsilon, rngs)
        self.mlp = FeedForward(config, rngs)

    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        *,
        cache: LayerCache | None = None,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, LayerCache | None, dict[str, jax.Array]]:
        """The layer's output [B, L, D], its cache, and what `capture` names of it.

        That is "hidden" (the output), "attention_scores" and "attention_probabilities".
        """
        attention_key, residual_key, mlp_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        with jax.named_scope("attention"):
            y_BLD, cache, captured = self.attention(
                self.attention_norm(x_BLD),
                context.mask,
                rope=context.rope,
                cache=cache,
                slots_BL=context.slots_BL,
                key=attention_key,
                capture=capture,
            )
            x_BLD = checkpoint_name(x_BLD + dropout(y_BLD, self.dropout, residual_key), "residual")
        with jax.named_scope("mlp"):
            x_BLD = x_BLD + dropout(self.mlp(self.mlp_norm(x_BLD)), self.dropout, mlp_key)
        if "hidden" in capture:
            captured["hidden"] = x_BLD
        return x_BLD, cache, captured
