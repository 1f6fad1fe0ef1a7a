"""Decoding with a key/value cache: the prompt in one pass, then several tokens a call, each chosen on the device.

An encoder-decoder reads its source first; then its target is continued as a decoder's prompt is.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from model.attention import LayerCache
from model.block import Block
from model.decoder import Decoder
from model.encoder_decoder import EncoderDecoder
from model.mask import MASKED
from model.sharding import constrain

Model = TypeVar("Model", Decoder, EncoderDecoder)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Temperature 0 takes the most probable. Otherwise it is drawn from the `top_k` most probable (0: all), and of those
    from the fewest whose probabilities reach `top_p`, both after the temperature.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for values out of range."""
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be at least 0 (0 takes the most probable token)")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be at least 0 (0 for all tokens)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be more than 0 and at most 1")


@partial(
    jax.tree_util.register_dataclass, data_fields=["caches", "logits_BV", "lengths_B", "stopped_B"], meta_fields=[]
)
@dataclass(frozen=True)
class Decoding:
    """Where the rows stand: caches, logits of the next token, how many tokens each has, and which have stopped."""

    caches: Any  # what the model's `step` takes
    logits_BV: jax.Array
    lengths_B: jax.Array
    stopped_B: jax.Array


def unstack(model: Model) -> tuple[Model, tuple[Block, ...]]:
    """The model without the layers that write, and those one by one. `model` is taken apart: use it no more."""
    stack = model.stack if isinstance(model, Decoder) else model.decoder.stack
    layers = stack.unstacked()
    del stack.layers
    return model, layers


@partial(jax.jit, static_argnames="cache_length")
def start(
    model: Decoder, layers: tuple[Block, ...], tokens_BL: jax.Array, lengths_B: jax.Array, *, cache_length: int
) -> Decoding:
    """Read the prompts, right-padded to one length L, with room for `cache_length` tokens a row in all."""
    cache = LayerCache.empty(model.config, len(tokens_BL), cache_length, model.embedding.table[...].dtype)
    return _read(model, layers, (cache,) * len(layers), tokens_BL, lengths_B)


@partial(jax.jit, static_argnames="cache_length")
def start_from_source(
    model: EncoderDecoder,
    layers: tuple[Block, ...],
    source_BM: jax.Array,
    segments_BM: jax.Array,
    tokens_BL: jax.Array,
    lengths_B: jax.Array,
    *,
    cache_length: int,
) -> Decoding:
    """Read the sources (segment 1, padding 0) and, as `start` does prompts, the beginnings of their targets."""
    caches = model.remember(layers, source_BM, segments_BM, cache_length)
    return _read(model, layers, caches, tokens_BL, lengths_B)


def _read(model: Any, layers: tuple[Block, ...], caches: Any, tokens_BL: jax.Array, lengths_B: jax.Array) -> Decoding:
    slots_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1])[None], tokens_BL.shape)
    # The padding's keys land in slots that each row writes again before it looks at them.
    hidden_BLD, caches = model.step(layers, caches, tokens_BL, slots_BL)
    last_B1D = jnp.take_along_axis(hidden_BLD, (lengths_B - 1)[:, None, None], axis=1)
    logits_BV = model.logits(last_B1D)[:, 0].astype(jnp.float32)
    return Decoding(caches, logits_BV, lengths_B, jnp.zeros(lengths_B.shape, bool))


@partial(jax.jit, static_argnames=("num_tokens", "sampling"), donate_argnames="decoding")
def extend(
    model: Decoder | EncoderDecoder,
    layers: tuple[Block, ...],
    decoding: Decoding,
    key: jax.Array,
    stop_S: jax.Array,
    *,
    num_tokens: int,
    sampling: Sampling,
) -> tuple[Decoding, jax.Array, jax.Array]:
    """`num_tokens` more tokens a row, and their log-probabilities, each [B, num_tokens].

    Probabilities are the model's, before temperature and truncation.
    A row that has drawn a token of `stop_S` draws no more: its later tokens are -1. What a row draws depends on its
    number, its length and the key alone.
    """
    B = decoding.lengths_B.shape[0]
    row_keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(B))

    def one(d: Decoding, _: Any):
        keys = jax.vmap(jax.random.fold_in)(row_keys, d.lengths_B)
        token_B = choose(d.logits_BV, keys, sampling)
        log_p_B = jnp.take_along_axis(jax.nn.log_softmax(d.logits_BV, axis=-1), token_B[:, None], axis=-1)[:, 0]
        stopped_B = d.stopped_B | (token_B[:, None] == stop_S[None]).any(-1)
        hidden_B1D, caches = model.step(layers, d.caches, token_B[:, None], d.lengths_B[:, None])
        logits_BV = model.logits(hidden_B1D)[:, 0].astype(jnp.float32)
        drawn_B, drawn_log_p_B = jnp.where(d.stopped_B, -1, token_B), jnp.where(d.stopped_B, 0, log_p_B)
        return Decoding(caches, logits_BV, d.lengths_B + ~d.stopped_B, stopped_B), (drawn_B, drawn_log_p_B)

    decoding, (tokens, log_p) = jax.lax.scan(one, decoding, None, length=num_tokens)
    return decoding, constrain(tokens.T, None, None), constrain(log_p.T, None, None)  # whole on every host


def choose(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """One token a row, [B] int32."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        least_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, MASKED, logits_BV)
    if sampling.top_p < 1:
        falling_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
        p_BV = jax.nn.softmax(falling_BV, axis=-1)
        needed_BV = p_BV.cumsum(-1) - p_BV < sampling.top_p  # up to and including the token that reaches top_p
        least_B1 = jnp.where(needed_BV, falling_BV, jnp.inf).min(-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < least_B1, MASKED, logits_BV)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
