"""The decoder-only transformer (GPT-2, Llama and kin): embedding, a causal stack, a projection onto the vocabulary."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.attention import LayerCache
from model.block import Block, Context
from model.config import StackConfig, check_least
from model.layers import Embedding, Norm, dropout, look_up, split_key
from model.mask import Mask
from model.parameters import normal, param
from model.positions import rope_tables
from model.sharding import constrain
from model.stack import Stack, layer_contexts, layer_matrices, layer_parameters, norm_parameters


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(StackConfig):
    """A decoder. `vocab_size` is the model's own; the stored table is rounded up to a multiple of `vocab_multiple`."""

    vocab_size: int
    max_length: int
    tie_embeddings: bool = True
    logit_scale: float = 1.0  # what the projection onto the vocabulary is multiplied by
    vocab_multiple: int = 128

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for a configuration that no decoder can have."""
        super().validate()
        check_least(self, 1, "vocab_size", "max_length", "vocab_multiple")
        self._check_choices("decoders", _CHOICES)


_CHOICES = {
    "norm_position": ("before", "parallel"),
    "positions": ("learned", "rope", "none"),
    "share_layers": (False,),
}


class Decoder(nnx.Module):
    """Maps tokens to the logits of the token after each."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        D = config.model_dim
        rows = (config.vocab_size, config.vocab_multiple, D)
        self.embedding = Embedding(*rows, config.embedding_std, kind="embedding", rngs=rngs)
        if config.positions == "learned":
            self.positions = param(
                rngs, (config.max_length, D), ("positions", "embed"), normal(config.embedding_std), "embedding"
            )
        self.stack = Stack(config, rngs)
        self.norm = Norm(D, config.norm, config.norm_epsilon, rngs, bias=config.norm_bias)
        if not config.tie_embeddings:
            self.head = Embedding(*rows, config.initial_std(D), kind="matrix", rngs=rngs)

    def hidden(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The normed output of the stack [B, L, D] and what was captured of its layers.

        Positions default to 0, 1, ...; tokens of different segments do not see each other; `key` turns dropout on.
        """
        if positions_BL is None:
            positions_BL = jnp.arange(tokens_BL.shape[1])[None]
        embedding_key, stack_key = split_key(key)
        x_BLD = dropout(self.embed(tokens_BL, positions_BL), self.config.dropout, embedding_key)
        return self.transform(x_BLD, positions_BL, segments_BL, key=stack_key, capture=capture)

    def embed(self, tokens_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
        """The vectors [B, L, D] that enter the stack."""
        x_BLD = self.embedding(tokens_BL)
        if self.config.positions == "learned":
            x_BLD = x_BLD + look_up(constrain(self.positions[...], "positions", "act_embed"), positions_BL)
        return constrain(x_BLD, "act_batch", "act_length", "act_embed")

    def transform(
        self,
        x_BLD: jax.Array,
        positions_BL: jax.Array,
        segments_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What `hidden` returns, of vectors that are already embedded."""
        mask = Mask(causal=True, q_segments_BL=segments_BL, k_segments_BM=segments_BL)
        context = Context(mask, self.rope(positions_BL))
        x_BLD, captured = self.stack(x_BLD, context, key=key, capture=capture)
        return self.norm(x_BLD), captured

    def rope(self, positions_BL: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """Rotary tables for these positions, where positions are rotary."""
        if self.config.positions != "rope":
            return None
        return rope_tables(positions_BL, self.config.head_size, self.config.rope_theta, self.config.rope_scaling)

    def logits(self, hidden_BLD: jax.Array) -> jax.Array:
        """Unnormalised log-probabilities [B, L, V] of the next token, over the padded vocabulary."""
        with jax.named_scope("logits"):
            table = self.embedding if self.config.tie_embeddings else self.head
            return table.logits(hidden_BLD * self.config.logit_scale)

    def __call__(
        self, tokens_BL: jax.Array, positions_BL: jax.Array | None = None, segments_BL: jax.Array | None = None
    ) -> jax.Array:
        """Logits [B, L, V] over the padded vocabulary."""
        return self.logits(self.hidden(tokens_BL, positions_BL, segments_BL)[0])

    @staticmethod
    def example(config: DecoderConfig) -> dict[str, np.ndarray]:
        """Fixed inputs by which two models of this configuration are compared."""
        length = min(config.max_length, 64)
        tokens_BL = np.arange(2 * length, dtype=np.int32).reshape(2, length) * 7919 % config.vocab_size
        return {"tokens_BL": tokens_BL}

    def step(
        self, layers: tuple[Block, ...], caches: tuple[LayerCache, ...], tokens_BL: jax.Array, slots_BL: jax.Array
    ) -> tuple[jax.Array, tuple[LayerCache, ...]]:
        """Decode: L more tokens a row, each in its slot (its position in its row), seeing the slots up to its own.

        `layers` is `stack.unstacked()`. Returns the normed hidden states [B, L, D] and the caches with the new keys and
        values.
        """
        # Padding, where devices share the length, may lie behind the last position there is.
        x_BLD = self.embed(tokens_BL, jnp.minimum(slots_BL, self.config.max_length - 1))
        mask = Mask(causal=True, q_index_BL=slots_BL)
        context = Context(mask, self.rope(slots_BL), slots_BL=slots_BL)
        new_caches = []
        for block, layer_context, cache in zip(layers, layer_contexts(self.config, context), caches, strict=True):
            x_BLD, cache, _ = block(x_BLD, layer_context, cache=cache)
            new_caches.append(cache)
        return self.norm(x_BLD), tuple(new_caches)


def count_parameters(config: DecoderConfig) -> int:
    """Number of trainable parameters: tied tensors once, the padding of the vocabulary not at all."""
    D = config.model_dim
    positions = config.max_length * D if config.positions == "learned" else 0
    tables = config.vocab_size * D * (1 if config.tie_embeddings else 2)
    return tables + positions + config.num_layers * layer_parameters(config) + norm_parameters(config, D)


def matrix_parameters(config: DecoderConfig, predicted: float = 1.0) -> int:
    """Number of weights that a token is multiplied by on average, where a share `predicted` of the places predicts.

    A table is counted where it is multiplied, not where it is only looked up.
    """
    return config.num_layers * layer_matrices(config) + round(predicted * config.vocab_size * config.model_dim)
