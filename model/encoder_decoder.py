"""The encoder-decoder transformer (Vaswani et al. 2017; T5, BART and kin): one stack reads, another writes.

The encoder sees its whole source at once. The decoder sees what it wrote so far and, in each layer, attends to what the
encoder made of the source. Pairs can be packed into rows: a target sees only the source of its own segment.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.attention import LayerCache
from model.block import Block, Context, KeysAndValues
from model.config import StackConfig, check_least
from model.layers import Embedding, Norm, dropout, look_up, padded, split_key
from model.mask import Mask
from model.parameters import normal, param, zeros
from model.positions import places_in_segments, sinusoids
from model.sharding import constrain
from model.stack import Stack, layer_matrices, layer_parameters, norm_parameters


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(StackConfig):
    """An encoder of `num_layers` layers and a decoder of `num_decoder_layers`, alike in everything else.

    `vocab_size` is that of source and target; the stored tables are rounded up to a multiple of `vocab_multiple`.
    """

    vocab_size: int
    max_length: int  # of a source, and of a target
    num_decoder_layers: int | None = None  # None: num_layers
    share_embeddings: bool = True  # one table for source and target
    tie_embeddings: bool = True  # the target's table is also the projection onto the vocabulary
    scale_embeddings: bool = False  # by sqrt(model_dim)
    embedding_norm: bool = False  # of embedding and position, where they enter a stack
    position_offset: int = 0  # rows of a table of learned positions that come before that of position 0
    logit_scale: float = 1.0  # what the projection onto the vocabulary is multiplied by
    logit_bias: bool = False  # and what each token's logit has added
    decoder_start_id: int | None = None  # what a target begins with; None: the tokenizer's start token
    vocab_multiple: int = 128

    @property
    def decoder_layers(self) -> int:
        """Number of the decoder's layers."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def embedding_std(self) -> float:
        """Initial standard deviation of embeddings: with fan_in, such that they enter the stacks with variance 1."""
        return self.model_dim**-0.5 if self.scale_embeddings and self.init == "fan_in" else super().embedding_std

    def resolved(self) -> Self:
        """The same configuration with nothing left to follow from other fields."""
        return dataclasses.replace(super().resolved(), num_decoder_layers=self.decoder_layers)

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for a configuration that no encoder-decoder can have."""
        super().validate()
        check_least(self, 1, "vocab_size", "max_length", "num_decoder_layers", "vocab_multiple")
        if self.decoder_start_id is not None and not 0 <= self.decoder_start_id < self.vocab_size:
            raise ValueError(
                f"model.decoder_start_id={self.decoder_start_id} must be one of the {self.vocab_size} tokens, which "
                "are numbered from 0"
            )
        if self.position_offset < 0 or (self.position_offset and self.positions != "learned"):
            raise ValueError(
                f"model.position_offset={self.position_offset} must be at least 0, and 0 unless positions are learned "
                f"(positions={self.positions})"
            )
        self._check_choices("encoder-decoders", _CHOICES)


_CHOICES = {
    "norm_position": ("before", "after"),
    "positions": ("learned", "sinusoidal", "relative"),
    "share_layers": (False,),
    "window": (None,),
}


@partial(jax.tree_util.register_dataclass, data_fields=["layers", "memories", "segments_BM"], meta_fields=[])
@dataclass(frozen=True)
class PairCache:
    """What decoding keeps: each layer's cache of the target so far, and its keys and values of the source."""

    layers: tuple[LayerCache, ...]
    memories: tuple[KeysAndValues, ...]
    segments_BM: jax.Array


class Side(nnx.Module):
    """One of the two stacks, with what stands before and behind it."""

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs, *, cross: bool):
        self.config = config
        D = config.model_dim
        if config.positions == "learned":
            rows = config.max_length + config.position_offset
            self.positions = param(rngs, (rows, D), ("positions", "embed"), normal(config.embedding_std), "embedding")
        if config.embedding_norm:
            self.embedding_norm = Norm(D, config.norm, config.norm_epsilon, rngs, bias=config.norm_bias)
        self.stack = Stack(config, rngs, cross)
        if config.norm_position == "before":
            self.norm = Norm(D, config.norm, config.norm_epsilon, rngs, bias=config.norm_bias)

    def __call__(
        self,
        x_BLD: jax.Array,
        positions_BL: jax.Array,
        context: Context,
        *,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the stack makes of token vectors, [B, L, D], and what was captured of its layers."""
        embedding_key, stack_key = split_key(key)
        x_BLD = dropout(self.enter(x_BLD, positions_BL), self.config.dropout, embedding_key)
        x_BLD, captured = self.stack(x_BLD, context, key=stack_key, capture=capture)
        return self.leave(x_BLD), captured

    def enter(self, x_BLD: jax.Array, positions_BL: jax.Array) -> jax.Array:
        """Token vectors as they enter the stack: with their positions, and normed."""
        if self.config.positions == "learned":
            table = constrain(self.positions[...], "positions", "act_embed")
            x_BLD = x_BLD + look_up(table, positions_BL + self.config.position_offset)
        elif self.config.positions == "sinusoidal":
            table = jnp.asarray(sinusoids(self.config.max_length, self.config.model_dim), x_BLD.dtype)
            x_BLD = x_BLD + table[positions_BL]
        if self.config.embedding_norm:
            x_BLD = self.embedding_norm(x_BLD)
        return constrain(x_BLD, "act_batch", "act_length", "act_embed")

    def leave(self, x_BLD: jax.Array) -> jax.Array:
        """The stack's output, normed where its layers have not done it."""
        return self.norm(x_BLD) if self.config.norm_position == "before" else x_BLD


class EncoderDecoder(nnx.Module):
    """Maps sources, and the targets so far, to the logits of the target's next tokens."""

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        self.config = config
        rows = (config.vocab_size, config.vocab_multiple, config.model_dim)
        table = partial(Embedding, *rows, config.embedding_std, kind="embedding", rngs=rngs)
        if config.share_embeddings:
            self.embedding = table()
        else:
            self.source_embedding, self.target_embedding = table(), table()
        self.encoder = Side(config, rngs, cross=False)
        self.decoder = Side(dataclasses.replace(config, num_layers=config.decoder_layers), rngs, cross=True)
        if not config.tie_embeddings:
            self.head = Embedding(*rows, config.initial_std(config.model_dim), kind="matrix", rngs=rngs)
        if config.logit_bias:
            self.logit_bias = param(rngs, (padded(*rows[:2]),), ("vocab",), zeros, "bias")

    def encode(
        self,
        source_BM: jax.Array,
        positions_BM: jax.Array | None = None,
        segments_BM: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the encoder makes of sources, [B, M, D], and what was captured of its layers.

        A token sees all of its segment; padding has segment 0. Positions default to places in the segment, and without
        segments a row is one. `key` turns dropout on.
        """
        mask = Mask(causal=False, q_segments_BL=segments_BM, k_segments_BM=segments_BM)
        x_BMD = self._embed(self.embedding if self.config.share_embeddings else self.source_embedding, source_BM)
        positions_BM = _positions(source_BM, positions_BM, segments_BM)
        return self.encoder(x_BMD, positions_BM, Context(mask), key=key, capture=capture)

    def decode(
        self,
        memory_BMD: jax.Array,
        target_BL: jax.Array,
        positions_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        memory_segments_BM: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The hidden states [B, L, D] of targets given what `encode` made of their sources, and what was captured.

        A token sees its segment up to itself, and the source of the same segment.
        """
        if (segments_BL is None) != (memory_segments_BM is None):
            if segments_BL is None:
                segments_BL = jnp.ones_like(target_BL)
            else:
                memory_segments_BM = jnp.ones(memory_BMD.shape[:2], segments_BL.dtype)
        mask = Mask(causal=True, q_segments_BL=segments_BL, k_segments_BM=segments_BL)
        memory_mask = Mask(causal=False, q_segments_BL=segments_BL, k_segments_BM=memory_segments_BM)
        context = Context(mask, memory_BMD=memory_BMD, memory_mask=memory_mask)
        positions_BL = _positions(target_BL, positions_BL, segments_BL)
        return self.decoder(self._embed(self.target_table, target_BL), positions_BL, context, key=key, capture=capture)

    def hidden(
        self,
        source_BM: jax.Array,
        target_BL: jax.Array,
        source_positions_BM: jax.Array | None = None,
        target_positions_BL: jax.Array | None = None,
        source_segments_BM: jax.Array | None = None,
        target_segments_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The decoder's hidden states [B, L, D], and what was captured: of the encoder with "encoder_" before its name.

        `target_BL` is what the decoder reads: the start token, and the target without its last token.
        """
        encoder_key, decoder_key = split_key(key)
        of_encoder = tuple(name for name in capture if name.startswith("encoder_"))
        memory_BMD, found = self.encode(
            source_BM,
            source_positions_BM,
            source_segments_BM,
            key=encoder_key,
            capture=tuple(name.removeprefix("encoder_") for name in of_encoder),
        )
        hidden_BLD, captured = self.decode(
            memory_BMD,
            target_BL,
            target_positions_BL,
            target_segments_BL,
            source_segments_BM,
            key=decoder_key,
            capture=tuple(name for name in capture if name not in of_encoder),
        )
        return hidden_BLD, captured | {f"encoder_{name}": array for name, array in found.items()}

    def logits(self, hidden_BLD: jax.Array) -> jax.Array:
        """Unnormalised log-probabilities [B, L, V] of the next token, over the padded vocabulary."""
        with jax.named_scope("logits"):
            table = self.target_table if self.config.tie_embeddings else self.head
            bias_V = self.logit_bias[...] if self.config.logit_bias else None
            return table.logits(hidden_BLD * self.config.logit_scale, bias_V)

    def __call__(
        self,
        source_BM: jax.Array,
        target_BL: jax.Array,
        source_positions_BM: jax.Array | None = None,
        target_positions_BL: jax.Array | None = None,
        source_segments_BM: jax.Array | None = None,
        target_segments_BL: jax.Array | None = None,
    ) -> jax.Array:
        """Logits [B, L, V] over the padded vocabulary."""
        hidden_BLD, _ = self.hidden(
            source_BM,
            target_BL,
            source_positions_BM,
            target_positions_BL,
            source_segments_BM,
            target_segments_BL,
        )
        return self.logits(hidden_BLD)

    def remember(
        self, layers: tuple[Block, ...], source_BM: jax.Array, segments_BM: jax.Array, cache_length: int
    ) -> PairCache:
        """Read the sources (segment 1, padding 0), for decoding in caches with `cache_length` slots a row.

        `layers` is the decoder's `stack.unstacked()`.
        """
        memory_BMD, _ = self.encode(source_BM, segments_BM=segments_BM)
        cache = LayerCache.empty(self.config, source_BM.shape[0], cache_length, memory_BMD.dtype)
        memories = tuple(block.memory_of(memory_BMD) for block in layers)
        return PairCache((cache,) * len(layers), memories, segments_BM)

    def step(
        self,
        layers: tuple[Block, ...],
        caches: PairCache,
        tokens_BL: jax.Array,
        slots_BL: jax.Array,
        mask: Mask | None = None,
    ) -> tuple[jax.Array, PairCache]:
        """Decode: L more tokens a row, each in its slot. Returns hidden states [B, L, D] and the caches with them.

        A token's slot is its position, and it sees the slots up to its own, unless `mask` says both.
        """
        mask = Mask(causal=True, q_index_BL=slots_BL) if mask is None else mask
        assert mask.q_index_BL is not None
        memory_mask = Mask(causal=False, q_segments_BL=jnp.ones_like(tokens_BL), k_segments_BM=caches.segments_BM)
        context = Context(mask, slots_BL=slots_BL, memory_mask=memory_mask)
        context = self.decoder.stack.positioned(context, tokens_BL.shape[1], caches.layers[0].k_BTGK.shape[1])
        x_BLD = self.decoder.enter(self._embed(self.target_table, tokens_BL), mask.q_index_BL)
        new_caches = []
        for block, cache, memory in zip(layers, caches.layers, caches.memories, strict=True):
            x_BLD, cache, _ = block(x_BLD, context, cache=cache, memory=memory)
            new_caches.append(cache)
        return self.decoder.leave(x_BLD), dataclasses.replace(caches, layers=tuple(new_caches))

    @staticmethod
    def example(config: EncoderDecoderConfig) -> dict[str, np.ndarray]:
        """Fixed inputs, by which two ways to the same model are compared: the second of two sources is padded."""
        length = min(config.max_length, 32)
        tokens = np.arange(4 * length, dtype=np.int32).reshape(4, length) * 7919 % config.vocab_size
        segments = np.ones((2, length), np.int32)
        segments[1, length // 2 + 1 :] = 0
        return {"source_BM": tokens[:2], "target_BL": tokens[2:], "source_segments_BM": segments}

    @property
    def target_table(self) -> Embedding:
        """The embedding of target tokens."""
        return self.embedding if self.config.share_embeddings else self.target_embedding

    def _embed(self, table: Embedding, tokens_BL: jax.Array) -> jax.Array:
        x_BLD = table(tokens_BL)
        return x_BLD * self.config.model_dim**0.5 if self.config.scale_embeddings else x_BLD


def _positions(tokens_BL: jax.Array, positions_BL: jax.Array | None, segments_BL: jax.Array | None) -> jax.Array:
    if positions_BL is not None:
        return positions_BL
    return jnp.arange(tokens_BL.shape[1])[None] if segments_BL is None else places_in_segments(segments_BL)


def count_parameters(config: EncoderDecoderConfig) -> int:
    """Number of trainable parameters: shared and tied tensors once, the padding of the vocabulary not at all."""
    D = config.model_dim
    tables = (1 if config.share_embeddings else 2) + (0 if config.tie_embeddings else 1)
    norms = config.embedding_norm + (config.norm_position == "before")
    positions = {
        "learned": (config.max_length + config.position_offset) * D,
        "sinusoidal": 0,
        "relative": config.relative_buckets * config.num_heads,
    }
    return (
        config.vocab_size * (tables * D + config.logit_bias)
        + 2 * (positions[config.positions] + norms * norm_parameters(config, D))
        + config.num_layers * layer_parameters(config)
        + config.decoder_layers * layer_parameters(config, cross=True)
    )


def matrix_parameters(config: EncoderDecoderConfig) -> tuple[int, int]:
    """Number of the weights that a token of the source, and a token of the target, is multiplied by, once each.

    A source token meets the encoder's layers and the projections to keys and values of the decoder's cross-attention; a
    target token meets the rest of the decoder and the projection onto the vocabulary, tied or not. Tables that are only
    looked up, positions, norms, biases and padding are not counted.
    """
    keys_and_values = config.model_dim * config.kv_heads * (config.head_size + config.value_head_size)
    source = config.num_layers * layer_matrices(config) + config.decoder_layers * keys_and_values
    target = config.decoder_layers * (layer_matrices(config, cross=True) - keys_and_values)
    return source, target + config.vocab_size * config.model_dim


def train_flops_per_row(config: EncoderDecoderConfig, source_length: int, target_length: int) -> int:
    """Operations of the matrix products of one row, forward and backward, none recomputed: 6 a weight and token.

    Causal attention counts as computed, for half of the square; the encoder's and cross-attention count whole.
    """
    source, target = matrix_parameters(config)
    scores = config.num_heads * (config.head_size + config.value_head_size)
    seen_by_target = source_length * target_length + target_length * target_length // 2
    attention = config.num_layers * source_length**2 + config.decoder_layers * seen_by_target
    return 6 * (source * source_length + target * target_length + scores * attention)
