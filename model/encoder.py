"""The encoder (BERT and kin): embeddings, a stack that sees both ways, and the heads that are trained on it.

BERT (Devlin et al. 2018) and, of the same form, RoBERTa (Liu et al. 2019), DistilBERT (Sanh et al. 2019), TinyBERT
(Jiao et al. 2019), ALBERT (Lan et al. 2019), ELECTRA (Clark et al. 2020) and Megatron-BERT (Shoeybi et al. 2019).
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.block import Context
from model.config import StackConfig, check_classes, check_least
from model.feed_forward import ACTIVATIONS
from model.layers import Dense, Embedding, Norm, dropout, look_up, padded, split_key
from model.mask import Mask
from model.parameters import normal, param, zeros
from model.positions import places_in_segments
from model.sharding import constrain
from model.stack import Stack, layer_matrices, layer_parameters, norm_parameters

Head = Literal[
    "none",
    "pooler",  # a summary of the row
    "masked_lm",
    "sentence_pair",  # next sentence, or sentence order
    "pretraining",  # masked_lm and sentence_pair
    "sequence_classification",
    "token_classification",
    "span",  # the start and the end of an answer
    "replaced_token",
]

_POOLING: tuple[Head, ...] = ("pooler", "sentence_pair", "pretraining", "sequence_classification")
CLASSIFYING: tuple[Head, ...] = ("sequence_classification", "token_classification")  # into classes of the user's
_POOLED = {"tanh": jnp.tanh, "gelu": ACTIVATIONS["gelu"], "relu": ACTIVATIONS["relu"]}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(StackConfig):
    """An encoder, by default as BERT is. `vocab_size` is as in DecoderConfig.

    Positions are counted from 0; the table's first `position_offset` rows are before them, and the last of those is
    the padding's. With `embedding_dim`, embeddings have that many numbers, and are projected to `model_dim`.
    """

    vocab_size: int
    max_length: int
    norm_position: Literal["before", "after"] = "after"
    norm_epsilon: float = 1e-12
    activation: Literal["relu", "gelu", "gelu_tanh"] = "gelu"
    init: Literal["gpt2", "normal", "fan_in"] = "normal"
    embedding_dim: int | None = None
    embedding_norm: bool = True
    num_types: int = 2  # of sentences, the first or the second of a pair; 0: none are told apart
    position_offset: int = 0
    head: Head = "masked_lm"
    num_classes: int = 2  # of sequence_classification and token_classification
    classes: tuple[str, ...] = ()  # their names, in order; empty: they have none
    pooler_activation: Literal["tanh", "gelu", "relu"] = "tanh"
    pooler_dropout: bool = False  # whether the pooler's input is dropped like the classifier's
    classifier_dropout: float | None = None  # of what is classified; None: dropout
    vocab_multiple: int = 128

    @property
    def embedding_size(self) -> int:
        """Width of the embeddings."""
        return self.model_dim if self.embedding_dim is None else self.embedding_dim

    @property
    def classifier_rate(self) -> float:
        """Dropout of what is classified."""
        if self.head not in CLASSIFYING:
            return 0.0
        return self.dropout if self.classifier_dropout is None else self.classifier_dropout

    @property
    def pools(self) -> bool:
        """Whether there is a summary of each row."""
        return self.head in _POOLING

    @property
    def predicts_tokens(self) -> bool:
        """Whether there are logits over the vocabulary."""
        return self.head in ("masked_lm", "pretraining")

    @property
    def head_dense_size(self) -> int | None:
        """Width of what a head makes of each token before it decides; None where it makes nothing."""
        if self.predicts_tokens:
            return self.embedding_size
        return self.model_dim if self.head == "replaced_token" else None

    @property
    def class_count(self) -> int | None:
        """Number of the classes that rows or tokens are told apart by; None where they are not."""
        if self.head in CLASSIFYING:
            return self.num_classes
        return {"sentence_pair": 2, "pretraining": 2, "span": 2, "replaced_token": 1}.get(self.head)

    def resolved(self) -> Self:
        """The same configuration with nothing left to follow from other fields."""
        rate = self.dropout if self.classifier_dropout is None else self.classifier_dropout
        return dataclasses.replace(super().resolved(), classifier_dropout=rate)

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for a configuration that no encoder can have."""
        super().validate()
        check_least(self, 1, "vocab_size", "max_length", "vocab_multiple", "embedding_dim", "num_classes")
        check_least(self, 0, "num_types", "position_offset")
        if self.classifier_dropout is not None and not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"model.classifier_dropout={self.classifier_dropout} must be at least 0 and less than 1")
        check_classes(self.classes, self.num_classes)
        self._check_choices("encoders", _CHOICES)


_CHOICES = {
    "norm_position": ("before", "after"),
    "activation": ("relu", "gelu", "gelu_tanh"),
    "positions": ("learned",),
    "window": (None,),
}


class Encoder(nnx.Module):
    """Maps tokens to vectors that have seen their whole text, and those to what the configuration's head says."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.config = config
        D, E, C, head_dense = config.model_dim, config.embedding_size, config.class_count, config.head_dense_size
        spread, std = normal(config.embedding_std), normal(config.initial_std(D))
        size, multiple = config.vocab_size, config.vocab_multiple
        self.embedding = Embedding(size, multiple, E, config.embedding_std, kind="embedding", rngs=rngs)
        rows = config.max_length + config.position_offset
        self.positions = param(rngs, (rows, E), ("positions", "embed"), spread, "embedding")
        if config.num_types:
            self.types = param(rngs, (config.num_types, E), ("types", "embed"), spread, "embedding")
        if config.embedding_norm:
            self.embedding_norm = self._norm(E, rngs)
        if config.embedding_dim is not None:
            self.projection = Dense((E, D), ("embed", "features"), normal(config.initial_std(E)), rngs)
        self.stack = Stack(config, rngs)
        if config.norm_position == "before":
            self.norm = self._norm(D, rngs)
        if config.pools:
            self.pooler = Dense((D, D), ("embed", "features"), std, rngs)
        if head_dense is not None:
            self.head_dense = Dense((D, head_dense), ("embed", "features"), std, rngs)
        if config.predicts_tokens:
            self.head_norm = self._norm(E, rngs)
            self.vocab_bias = param(rngs, (padded(size, multiple),), ("vocab",), zeros, "bias")
        if C is not None:
            self.classifier = Dense((D, C), ("embed", "classes"), std, rngs)

    def _norm(self, dim: int, rngs: nnx.Rngs) -> Norm:
        return Norm(dim, self.config.norm, self.config.norm_epsilon, rngs, bias=self.config.norm_bias)

    def hidden(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        types_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The output of the stack [B, L, D] and what was captured: of its layers, and "embedding", what it was given.

        Positions default to each token's place in its segment. Segments keep packed documents apart, 0 is padding, and
        without them all tokens are one document's. Types tell the sentences of a pair apart, and default to 0. `key`
        turns dropout on.
        """
        embedding_key, stack_key = split_key(key)
        x_BLD = self.embed(tokens_BL, positions_BL, segments_BL, types_BL, key=embedding_key)
        y_BLD, captured = self.transform(x_BLD, segments_BL, key=stack_key, capture=capture)
        return y_BLD, captured | ({"embedding": x_BLD} if "embedding" in capture else {})

    def embed(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        types_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The vectors [B, L, D] that enter the stack."""
        if positions_BL is None:
            one_document = jnp.arange(tokens_BL.shape[1])[None]
            positions_BL = one_document if segments_BL is None else places_in_segments(segments_BL)
        rows_BL = positions_BL + self.config.position_offset
        if self.config.position_offset and segments_BL is not None:
            rows_BL = jnp.where(segments_BL == 0, self.config.position_offset - 1, rows_BL)
        x_BLE = self.embedding(tokens_BL)
        x_BLE = x_BLE + look_up(constrain(self.positions[...], "positions", "act_embed"), rows_BL)
        if self.config.num_types:
            types_BL = jnp.zeros_like(tokens_BL) if types_BL is None else types_BL
            x_BLE = x_BLE + look_up(constrain(self.types[...], "types", "act_embed"), types_BL)
        x_BLE = self.embedding_norm(x_BLE) if self.config.embedding_norm else x_BLE
        x_BLE = dropout(x_BLE, self.config.dropout, key)
        x_BLD = x_BLE if self.config.embedding_dim is None else self.projection(x_BLE)
        return constrain(x_BLD, "act_batch", "act_length", "act_embed")

    def transform(
        self,
        x_BLD: jax.Array,
        segments_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What `hidden` returns, of vectors that are already embedded."""
        mask = Mask(causal=False, q_segments_BL=segments_BL, k_segments_BM=segments_BL)
        y_BLD, captured = self.stack(x_BLD, Context(mask), key=key, capture=capture)
        return (self.norm(y_BLD) if self.config.norm_position == "before" else y_BLD), captured

    def logits(self, hidden_BLD: jax.Array) -> jax.Array:
        """Unnormalised log-probabilities [B, L, V] of the token at each place, over the padded vocabulary.

        `hidden_BLD` may hold some places of each row only, such as those that are masked.
        """
        with jax.named_scope("logits"):
            return self.embedding.logits(self.head_norm(self._head_hidden(hidden_BLD)), self.vocab_bias[...])

    def pool(self, hidden_BLD: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """A summary of each row [B, D], made of its first token: a row is then one example, never several packed."""
        first_BD = dropout(hidden_BLD[:, 0], self.config.classifier_rate if self.config.pooler_dropout else 0.0, key)
        pooled_BD = _POOLED[self.config.pooler_activation](self.pooler(first_BD))
        return constrain(pooled_BD, "act_batch", "act_embed")

    def class_logits(self, hidden_BLD: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Unnormalised log-probabilities of the classes: of each row [B, C] where the head pools, or token [B, L, C].

        A span's two classes are its start and its end, to be normalised over the places; replaced_token's only one is
        the log-odds that the token was replaced.
        """
        pool_key, key = split_key(key)
        if self.config.pools:
            x = self.pool(hidden_BLD, key=pool_key)
        else:
            x = hidden_BLD if self.config.head_dense_size is None else self._head_hidden(hidden_BLD)
        return self.classifier(dropout(x, self.config.classifier_rate, key))

    def _head_hidden(self, hidden_BLD: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.config.activation](self.head_dense(hidden_BLD))

    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        types_BL: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """What the head says, by name: "logits" and "class_logits" as it has them, or else "hidden" and "pooled"."""
        hidden_BLD, _ = self.hidden(tokens_BL, positions_BL, segments_BL, types_BL)
        said = {}
        if self.config.predicts_tokens:
            said["logits"] = self.logits(hidden_BLD)
        if self.config.class_count is not None:
            said["class_logits"] = self.class_logits(hidden_BLD)
        if not said:
            said["hidden"] = hidden_BLD
            if self.config.pools:
                said["pooled"] = self.pool(hidden_BLD)
        return said

    @staticmethod
    def example(config: EncoderConfig) -> dict[str, np.ndarray]:
        """Fixed inputs by which two models of this configuration are compared: a pair and, padded, a single text."""
        length = min(config.max_length, 64)
        tokens_BL = np.arange(2 * length, dtype=np.int32).reshape(2, length) * 7919 % config.vocab_size
        place_BL = np.broadcast_to(np.arange(length, dtype=np.int32), (2, length))
        segments_BL = (place_BL < np.array([[length], [length - length // 3]])).astype(np.int32)
        types_BL = (place_BL >= length // 2) & (np.arange(2) == 0)[:, None] & (config.num_types > 1)
        return {"tokens_BL": tokens_BL, "segments_BL": segments_BL, "types_BL": types_BL.astype(np.int32)}


def count_parameters(config: EncoderConfig) -> int:
    """Number of trainable parameters: tied tensors and shared layers once, the padding of the vocabulary not at all."""
    D, E = config.model_dim, config.embedding_size
    total = E * (config.vocab_size + config.max_length + config.position_offset + config.num_types)
    total += norm_parameters(config, E) if config.embedding_norm else 0
    total += 0 if config.embedding_dim is None else (E + 1) * D
    total += (1 if config.share_layers else config.num_layers) * layer_parameters(config)
    total += norm_parameters(config, D) if config.norm_position == "before" else 0
    total += (D + 1) * D if config.pools else 0
    total += (D + 1) * (config.head_dense_size or 0)
    total += norm_parameters(config, E) + config.vocab_size if config.predicts_tokens else 0
    return total + (D + 1) * (config.class_count or 0)


def matrix_parameters(config: EncoderConfig, predicted: float = 1.0) -> int:
    """Number of weights that a token is multiplied by on average: those of a shared layer as often as it is applied.

    A head that predicts tokens does so at a share `predicted` of the places. Tables are counted where they are
    multiplied, not where they are only looked up; what is done once a row, the pooler and what classifies its output,
    is left out.
    """
    D, E = config.model_dim, config.embedding_size
    total = config.num_layers * layer_matrices(config) + (0 if config.embedding_dim is None else E * D)
    if config.predicts_tokens:
        total += round(predicted * (D * (config.head_dense_size or 0) + config.vocab_size * E))
    else:
        total += D * (config.head_dense_size or 0)
    return total + (0 if config.pools else D * (config.class_count or 0))
