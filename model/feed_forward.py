"""The feed-forward layer: ReLU (Vaswani et al. 2017), GELU, SiLU (Hendrycks & Gimpel 2016) or gated (Shazeer 2020)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from model.config import GATED, StackConfig
from model.layers import add_bias
from model.parameters import normal, param, zeros
from model.sharding import constrain, einsum


class FeedForward(nnx.Module):
    """x -> activation(x W_in + b_in) W_out + b_out.

    A gated layer's gate and up projections are one weight [D, 2, F].
    """

    def __init__(self, config: StackConfig, rngs: nnx.Rngs):
        self.config = config
        D, F = config.model_dim, config.mlp_size
        std = normal(config.initial_std(D))
        if config.activation in GATED:
            self.gate_up = param(rngs, (D, 2, F), ("embed", "gate", "mlp"), std, "matrix")
        else:
            self.up = param(rngs, (D, F), ("embed", "mlp"), std, "matrix")
        self.down = param(rngs, (F, D), ("mlp", "embed"), normal(config.initial_std(F, back=True)), "matrix")
        if config.use_bias:
            self.up_bias = param(rngs, (F,), ("mlp",), zeros, "bias")
            self.down_bias = param(rngs, (D,), ("norm",), zeros, "bias")

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """Each position's output, [B, L, D]."""
        if self.config.activation in GATED:
            h_BLCF = einsum("BLD,DCF->BLCF", x_BLD, self.gate_up[...])
            h_BLCF = checkpoint_name(constrain(h_BLCF, "act_batch", "act_length", "act_gate", "act_mlp"), "up")
            h_BLF: Any = _gated(self.config.activation, h_BLCF)
        else:
            h_BLF = einsum("BLD,DF->BLF", x_BLD, self.up[...])
            h_BLF = checkpoint_name(constrain(h_BLF, "act_batch", "act_length", "act_mlp"), "up")
            h_BLF = add_bias(h_BLF, self.up_bias[...]) if self.config.use_bias else h_BLF
            h_BLF = ACTIVATIONS[self.config.activation](h_BLF)
        y_BLD = constrain(einsum("BLF,FD->BLD", h_BLF, self.down[...]), "act_batch", "act_length", "act_embed")
        return add_bias(y_BLD, self.down_bias[...]) if self.config.use_bias else y_BLD


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gated(activation: str, h_BLCF: jax.Array) -> jax.Array:
    """The activation of the gate times up. Only these are held for the gradient, which is made as one array."""
    return ACTIVATIONS[activation](h_BLCF[:, :, 0]) * h_BLCF[:, :, 1]


def _gated_backward(activation: str, h_BLCF: jax.Array, g_BLF: jax.Array):
    act_BLF, back = jax.vjp(ACTIVATIONS[activation], h_BLCF[:, :, 0])
    return (jnp.stack([*back(g_BLF * h_BLCF[:, :, 1]), g_BLF * act_BLF], axis=2),)


_gated.defvjp(lambda activation, h_BLCF: (_gated(activation, h_BLCF), h_BLCF), _gated_backward)


@jax.custom_vjp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Only x is held for the gradient."""
    return jax.nn.gelu(x, approximate=True)


def _gelu_tanh_backward(x: jax.Array, g: jax.Array):
    c = math.sqrt(2 / math.pi)
    t = jnp.tanh(c * (x + 0.044715 * x * x * x))
    return (g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)),)


gelu_tanh.defvjp(lambda x: (gelu_tanh(x), x), _gelu_tanh_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x times the probability that a standard normal number is less than x. Only x is held for the gradient."""
    return jax.nn.gelu(x, approximate=False)


def _gelu_backward(x: jax.Array, g: jax.Array):
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return (g * (0.5 * (1 + jax.lax.erf(x / math.sqrt(2))) + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)

# A gated layer's is that of its gate.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": jax.nn.silu,
    "swiglu": jax.nn.silu,
    "geglu": gelu_tanh,
}
