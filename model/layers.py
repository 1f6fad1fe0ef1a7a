"""Norms, biases, embedding and dropout.

Norms carry their own gradients: statistics in float32, saved once, nothing else held.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from model.fsdp import gathered, on_own_rows
from model.mask import MASKED
from model.parameters import normal, ones, param, zeros
from model.sharding import constrain, einsum


class Norm(nnx.Module):
    """LayerNorm (Ba et al. 2016) or, without mean and bias, RMSNorm (Zhang & Sennrich 2019) over the last axis."""

    def __init__(self, dim: int, kind: str, epsilon: float, rngs: nnx.Rngs, *, bias: bool = True):
        self.kind, self.epsilon, self.has_bias = kind, epsilon, kind == "layer" and bias
        self.scale = param(rngs, (dim,), ("norm",), ones, "scale")
        if self.has_bias:
            self.bias = param(rngs, (dim,), ("norm",), zeros, "bias")

    def __call__(self, x: jax.Array) -> jax.Array:
        """The normed x, in its dtype."""
        if self.kind == "layer":
            scale = self.scale[...]
            return layer_norm(self.epsilon, x, scale, self.bias[...] if self.has_bias else jnp.zeros_like(scale))
        return rms_norm(self.epsilon, x, self.scale[...])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def layer_norm(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, statistics in float32."""
    return _layer_norm_forward(epsilon, x, scale, bias)[0]


def _layer_norm_forward(epsilon: float, x, scale, bias):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    rstd = jax.lax.rsqrt(jnp.square(x32 - mean).mean(-1, keepdims=True) + epsilon)
    normed = ((x32 - mean) * rstd).astype(x.dtype)
    return normed * _row(scale, x) + _row(bias, x), (x, mean, rstd, scale)


def _layer_norm_backward(epsilon: float, residuals, g):
    x, mean, rstd, scale = residuals
    g32 = g.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * rstd
    dnormed = g32 * _row(scale, g32)
    dx = rstd * (dnormed - dnormed.mean(-1, keepdims=True) - normed * (dnormed * normed).mean(-1, keepdims=True))
    return dx.astype(x.dtype), _sum_rows(g32 * normed, scale), _sum_rows(g32, scale)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def rms_norm(epsilon: float, x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, statistics in float32."""
    return _rms_norm_forward(epsilon, x, scale)[0]


def _rms_norm_forward(epsilon: float, x, scale):
    x32 = x.astype(jnp.float32)
    rstd = jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + epsilon)
    return (x32 * rstd).astype(x.dtype) * _row(scale, x), (x, rstd, scale)


def _rms_norm_backward(epsilon: float, residuals, g):
    x, rstd, scale = residuals
    g32 = g.astype(jnp.float32)
    normed = x.astype(jnp.float32) * rstd
    dnormed = g32 * _row(scale, g32)
    dx = rstd * (dnormed - normed * (dnormed * normed).mean(-1, keepdims=True))
    return dx.astype(x.dtype), _sum_rows(g32 * normed, scale)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x + a bias whose axes are the last of x's.

    Its gradient is summed in float32: it has a part of every token, which bfloat16 would round away.
    """
    return x + _row(bias, x)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), lambda bias, g: (g, _sum_rows(g.astype(jnp.float32), bias)))


def _row(weight: jax.Array, like: jax.Array) -> jax.Array:
    """`weight` in the dtype of `like`, shaped to broadcast against its last axes."""
    return weight.astype(like.dtype).reshape((1,) * (like.ndim - weight.ndim) + weight.shape)


def _sum_rows(x: jax.Array, like: jax.Array) -> jax.Array:
    """The sum of `x` over all but the axes of the parameter `like`, which are its last, in the dtype of that."""
    return x.sum(tuple(range(x.ndim - like.ndim))).astype(like.dtype)


class Dense(nnx.Module):
    """x W + b over the last axis: a projection outside of the blocks. `shape` is [in, out], with its logical `axes`."""

    def __init__(self, shape: tuple[int, int], axes: tuple[str, str], init: Callable, rngs: nnx.Rngs):
        self.weight = param(rngs, shape, axes, init, "matrix")
        self.bias = param(rngs, shape[1:], axes[1:], zeros, "bias")

    def __call__(self, x: jax.Array) -> jax.Array:
        """The projected x, [B, out] or [B, L, out]."""
        rows = "BL"[: x.ndim - 1]
        return add_bias(einsum(f"{rows}D,DE->{rows}E", x, self.weight[...]), self.bias[...])


class Embedding(nnx.Module):
    """A table of token vectors, also used as output projection where it is tied.

    Rows from `vocab_size` up to the next multiple of `vocab_multiple` are zero, get zero gradient, and are masked in
    the logits.
    """

    def __init__(self, vocab_size: int, vocab_multiple: int, dim: int, std: float, kind, rngs: nnx.Rngs):
        self.vocab_size = vocab_size
        rows = padded(vocab_size, vocab_multiple)
        self.table = param(rngs, (rows, dim), ("vocab", "embed"), normal(std, vocab_size), kind)

    def __call__(self, tokens_BL: jax.Array) -> jax.Array:
        """The tokens' vectors, [B, L, D]."""

        def look_up_own(tokens_BL: jax.Array, embedding: Embedding) -> jax.Array:
            return look_up(constrain(gathered(embedding).table[...], "vocab", "act_embed"), tokens_BL)

        return on_own_rows(look_up_own, tokens_BL, self, ("act_batch", "act_length"))

    def logits(self, x_BLD: jax.Array, bias_V: jax.Array | None = None) -> jax.Array:
        """Unnormalised log-probabilities [B, L, V] over the padded vocabulary, the padding masked."""
        logits_BLV = einsum("BLD,VD->BLV", x_BLD, self.table[...])
        logits_BLV = constrain(logits_BLV, "act_batch", "act_length", "act_vocab")
        if bias_V is not None:
            logits_BLV = add_bias(logits_BLV, bias_V)
        rows = logits_BLV.shape[-1]
        if rows == self.vocab_size:
            return logits_BLV
        return jnp.where((jnp.arange(rows) < self.vocab_size)[None, None], logits_BLV, MASKED)


def padded(vocab_size: int, vocab_multiple: int) -> int:
    """The number of stored rows: a function of the model alone, so that any mesh restores any checkpoint."""
    return math.ceil(vocab_size / vocab_multiple) * vocab_multiple


def look_up(table_VD: jax.Array, tokens_BL: jax.Array) -> jax.Array:
    """The rows [B, L, D] of a table.

    The table must be whole along D (constrain it first): where both its axes are split, XLA rematerialises the whole
    batch. Its gradient is summed in float32: a frequent token gathers thousands of them, which bfloat16 would round
    away.
    """
    return _look_up(table_VD, tokens_BL)


def _take_rows(table_VD: jax.Array, tokens_BL: jax.Array) -> jax.Array:
    return jnp.take(table_VD, tokens_BL, axis=0)


def _look_up_forward(table_VD, tokens_BL):
    # An empty slice carries the table's size and dtype to the gradient without holding the table.
    return _take_rows(table_VD, tokens_BL), (tokens_BL, table_VD[:, :0])


def _look_up_backward(residuals, g_BLD):
    tokens_BL, like = residuals
    gradient = jnp.zeros((like.shape[0], g_BLD.shape[-1]), jnp.float32).at[tokens_BL].add(g_BLD.astype(jnp.float32))
    return gradient.astype(like.dtype), None


_look_up = jax.custom_vjp(_take_rows)
_look_up.defvjp(_look_up_forward, _look_up_backward)


def split_key(key: jax.Array | None, num: int = 2) -> Sequence[jax.Array | None]:
    """`num` keys from one, or as many times None from none, by which nothing is dropped."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each element with probability `rate` and scale the rest; without a key, or at rate 0, return x."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
