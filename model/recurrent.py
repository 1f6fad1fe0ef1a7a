"""Recurrent sequence-to-sequence models (Sutskever et al. 2014), without and with attention (Luong et al. 2015).

The encoder reads the source one token at a time and hands its last state to the decoder. Without attention that vector
of fixed size is all that the decoder ever learns of the source. With it, each target token looks back in five steps,
which `capture` makes visible by name:

    encoder_states           what the encoder made of each source token, [B, M, D]
    attention_scores         how well each of them fits the decoder's state, [B, L, M]
    attention_probabilities  the softmax of the scores over the source, [B, L, M]
    context_vector           the encoder's states, weighted by the probabilities, [B, L, D]
    combination              tanh(W [context vector; decoder's state]), from which the token is predicted, [B, L, D]

Pairs can be packed into rows. Where a segment begins, the encoder starts anew, and the decoder starts from what the
encoder made last of the source of the same segment; attention sees that source only.

Cells are those of torch: LSTM (Hochreiter & Schmidhuber 1997) with a forget gate, GRU (Cho et al. 2014) with the reset
gate applied after the product, as cuDNN has it, and the plain tanh network (Elman 1990). Inputs are projected for the
whole sequence as one matrix product; only what depends on the state runs token by token.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.beam import Beam, search
from model.config import check_least
from model.layers import Embedding, add_bias, dropout, split_key
from model.mask import MASKED
from model.parameters import normal, param, zeros
from model.positions import places_in_segments
from model.sharding import constrain, einsum

# A layer's h and, of LSTM, c: each [B, D], or with time before the batch; float32, so that sums over time do not round.
State = tuple[jax.Array, ...]


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """A recurrent encoder and decoder of one size. Fields that are None follow from the others.

    `vocab_size` is the target's; stored tables are rounded up to a multiple of `vocab_multiple`.
    """

    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    num_layers: int  # of the encoder, and of the decoder
    model_dim: int  # width of a state
    embedding_dim: int | None = None  # None: model_dim
    vocab_size: int
    source_vocab_size: int | None = None  # None: vocab_size
    max_length: int
    attention: Literal["none", "dot", "general", "concat", "location"] = "none"
    input_feeding: bool = False  # each combination also enters the decoder's next step
    reverse_source: bool = False  # the encoder reads from the last token to the first
    share_embeddings: bool = False  # one table for source and target
    tie_embeddings: bool = False  # the target's table is also the projection onto the vocabulary
    dropout: float = 0.0  # of what enters each layer and the projection onto the vocabulary, not of states
    init_std: float = 0.1 / 3**0.5  # as wide as Luong's uniform distribution from -0.1 to 0.1
    vocab_multiple: int = 128
    unroll: int = field(default=1, metadata={"operational": True})  # tokens a turn of the loop

    @property
    def embedding_size(self) -> int:
        """Width of an embedding."""
        return self.model_dim if self.embedding_dim is None else self.embedding_dim

    @property
    def source_vocab(self) -> int:
        """Number of source tokens."""
        return self.vocab_size if self.source_vocab_size is None else self.source_vocab_size

    def resolved(self) -> Self:
        """The same configuration with nothing left to follow from other fields."""
        return dataclasses.replace(self, embedding_dim=self.embedding_size, source_vocab_size=self.source_vocab)

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for a configuration that no model can have."""
        check_least(self, 1, *_COUNTS)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout} must be at least 0 and less than 1")
        if self.input_feeding and self.attention == "none":
            raise ValueError("model.input_feeding feeds back what attention makes; set model.attention, or turn it off")
        if self.share_embeddings and self.source_vocab != self.vocab_size:
            raise ValueError(
                f"model.share_embeddings needs one vocabulary, and source_vocab_size={self.source_vocab} is not "
                f"vocab_size={self.vocab_size}; make them equal, or turn it off"
            )
        if self.tie_embeddings and self.embedding_size != self.model_dim:
            raise ValueError(
                f"model.tie_embeddings needs embedding_dim={self.embedding_size} to be model_dim={self.model_dim}; "
                "make them equal, or turn it off"
            )


_COUNTS = (
    *("num_layers", "model_dim", "embedding_dim", "vocab_size", "source_vocab_size", "max_length"),
    *("vocab_multiple", "unroll"),
)


def _rnn(x_BCK: jax.Array, h_BCK: jax.Array, state: State) -> State:
    return (jnp.tanh(x_BCK[:, 0] + h_BCK[:, 0]),)


def _lstm(x_BCK: jax.Array, h_BCK: jax.Array, state: State) -> State:
    write, keep, new, read = jnp.moveaxis(x_BCK + h_BCK, 1, 0)  # of the memory c: input, forget, cell and output gate
    c_BD = jax.nn.sigmoid(keep) * state[1] + jax.nn.sigmoid(write) * jnp.tanh(new)
    return jax.nn.sigmoid(read) * jnp.tanh(c_BD), c_BD


def _gru(x_BCK: jax.Array, h_BCK: jax.Array, state: State) -> State:
    reset, keep = (jax.nn.sigmoid(x_BCK[:, i] + h_BCK[:, i]) for i in range(2))
    new = jnp.tanh(x_BCK[:, 2] + reset * h_BCK[:, 2])
    return ((1 - keep) * new + keep * state[0],)


@dataclass(frozen=True)
class _Kind:
    """A kind of cell: its number of gates, in torch's order; arrays in its state; the next state from both products."""

    gates: int
    arrays: int
    next_state: Callable[[jax.Array, jax.Array, State], State]


CELLS = {"rnn": _Kind(1, 1, _rnn), "lstm": _Kind(4, 2, _lstm), "gru": _Kind(3, 1, _gru)}


class Cell(nnx.Module):
    """One layer of cells, from inputs and states to the C gates of each cell, K of them, which are the next state's D.

    There is one bias a gate (torch has two, which it adds), and another for GRU's candidate.
    """

    def __init__(self, config: RecurrentConfig, inputs: int, rngs: nnx.Rngs):
        self.kind, self.unroll = config.cell, config.unroll
        C, D = CELLS[config.cell].gates, config.model_dim
        std = normal(config.init_std)
        self.input = param(rngs, (inputs, C, D), ("embed", "gate", "cells"), std, "matrix")
        self.hidden = param(rngs, (D, C, D), ("embed", "gate", "cells"), std, "matrix")
        self.bias = param(rngs, (C, D), ("gate", "cells"), _keeping if config.cell == "lstm" else zeros, "bias")
        if config.cell == "gru":
            self.candidate_bias = param(rngs, (D,), ("cells",), zeros, "bias")

    def project(self, x_LBE: jax.Array) -> jax.Array:
        """What the inputs of a whole sequence bring to the gates, [L, B, C, K]."""
        x_LBCK = add_bias(einsum("LBE,ECK->LBCK", x_LBE, self.input[...]), self.bias[...])
        return constrain(x_LBCK, "act_memory", "act_batch", "act_gate", "act_cells")

    def __call__(self, x_BCK: jax.Array, state: State) -> State:
        """The state after one more token, of which `project` gave `x_BCK`."""
        h_BCK = _gates(state[0].astype(x_BCK.dtype), self.hidden)
        if self.kind == "gru":
            h_BCK = add_bias(h_BCK, jnp.pad(self.candidate_bias[None], ((2, 0), (0, 0))))
        new = CELLS[self.kind].next_state(x_BCK, h_BCK, state)
        return tuple(constrain(a.astype(jnp.float32), "act_batch", "act_embed") for a in new)

    def run(
        self, x_LBE: jax.Array, begins_LB: jax.Array, starts: State | None = None, *, reverse: bool = False
    ) -> State:
        """The state after each token, arrays [L, B, D].

        Before a token that begins a segment it is that of `starts` [L, B, D] at its place, or zero.
        """
        zero = (jnp.zeros((x_LBE.shape[1], self.hidden.shape[0]), jnp.float32),) * CELLS[self.kind].arrays

        def step(state: State, scanned: tuple[jax.Array, jax.Array, State | None]):
            x_BCK, begins_B, start = scanned
            state = self(x_BCK, _renewed(state, begins_B, zero if start is None else start))
            return state, state

        scanned = self.project(x_LBE), begins_LB, starts
        return jax.lax.scan(step, zero, scanned, reverse=reverse, unroll=self.unroll)[1]


def _renewed(state: Any, begins_B: jax.Array, start: Any) -> Any:
    """The state before the next token: that of `start` in the rows where it begins a segment."""
    return jax.tree.map(lambda old, new: jnp.where(begins_B[:, None], new, old), state, start)


def _keeping(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The initialiser of an LSTM: 1 for the forget gate, so that cells begin by keeping (Jozefowicz et al. 2015)."""
    return jnp.zeros(shape, dtype).at[1].set(1)


def _gates(x_BD: jax.Array, weight: nnx.Param) -> jax.Array:
    """What one step's x brings to the gates, [B, C, K].

    The weight [D, C, K] is gathered from the devices that share it: once, for a loop does not change it.
    """
    whole_DCK = constrain(weight[...], "act_embed", "act_gate", "act_cells")
    # As a sequence of one: without that axis XLA:CPU does not run the weight's gradient in bfloat16.
    return einsum("LBD,DCK->LBCK", x_BD[None], whole_DCK)[0]


def cells(config: RecurrentConfig, rngs: nnx.Rngs) -> nnx.List[Cell]:
    """The layers of an encoder or a decoder, of which the first reads embeddings."""
    inputs = [config.embedding_size] + [config.model_dim] * (config.num_layers - 1)
    return nnx.List([Cell(config, width, rngs) for width in inputs])


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["states_BMD", "keys_BMD", "segments_BM", "positions_BM", "layers"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Encoded:
    """Sources that were read: h of the last layer after each token, the same as scores see it, and their segments.

    `layers` are the states of all layers after each token, arrays [B, M, D]. Positions are only there for location
    scores. Every array begins with the batch's axis, so that its rows can be repeated for a beam.
    """

    states_BMD: jax.Array
    keys_BMD: jax.Array
    segments_BM: jax.Array
    positions_BM: jax.Array | None
    layers: tuple[State, ...]


@partial(jax.tree_util.register_dataclass, data_fields=["layers", "combination_BD"], meta_fields=[])
@dataclass(frozen=True)
class DecoderState:
    """Where a target stands: each layer's state and, with input feeding, the last combination.

    Every array begins with the batch's axis, so that a beam can reorder its rows.
    """

    layers: tuple[State, ...]
    combination_BD: jax.Array | None


class GlobalAttention(nnx.Module):
    """Luong's attention over all of the source, with one of his four scores of a state h and an encoder's state s.

    dot: h s. general: h W s. concat: v tanh(W [h; s]). location: h W, a score for each place, whatever stands there.
    """

    def __init__(self, config: RecurrentConfig, rngs: nnx.Rngs):
        self.score = config.attention
        D = config.model_dim
        std = normal(config.init_std)
        if config.attention == "general":
            self.weight = param(rngs, (D, D), ("embed", "cells"), std, "matrix")
        elif config.attention == "concat":
            self.weight = param(rngs, (2 * D, D), ("embed", "cells"), std, "matrix")
            self.vector = param(rngs, (D,), ("cells",), std, "scale")
        elif config.attention == "location":
            self.weight = param(rngs, (D, config.max_length), ("embed", "positions"), std, "matrix")
        self.combine = param(rngs, (2 * D, D), ("embed", "cells"), std, "matrix")

    def keys(self, states_BMD: jax.Array) -> jax.Array:
        """What scores need of the encoder's states, [B, M, D]; the same for every target token, so computed once."""
        if self.score != "concat":
            return states_BMD
        return einsum("BMD,DK->BMK", states_BMD, self.weight[states_BMD.shape[-1] :])

    def __call__(
        self,
        h_BLD: jax.Array,
        encoded: Encoded,
        segments_BL: jax.Array,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The combination [B, L, D] of each state with what it attends to, and of the steps those in `capture`."""
        scores_BLM = jnp.where(_seen(encoded, segments_BL), self.scores(h_BLD, encoded), MASKED)
        p_BLM = jax.nn.softmax(scores_BLM, axis=-1)
        context_BLD = _product("BLM,BMD->BLD", p_BLM.astype(h_BLD.dtype), encoded.states_BMD).astype(h_BLD.dtype)
        y_BLD = jnp.tanh(einsum("BLE,ED->BLD", jnp.concatenate([context_BLD, h_BLD], -1), self.combine[...]))
        y_BLD = constrain(y_BLD, "act_batch", "act_memory", "act_embed")
        steps = {
            "attention_scores": scores_BLM,
            "attention_probabilities": p_BLM,
            "context_vector": context_BLD,
            "combination": y_BLD,
        }
        return y_BLD, {name: step for name, step in steps.items() if name in capture}

    def scores(self, h_BLD: jax.Array, encoded: Encoded) -> jax.Array:
        """How well each of the encoder's states fits each of the decoder's, [B, L, M], float32."""
        keys_BMD = encoded.keys_BMD
        M, D = keys_BMD.shape[1:]
        match self.score:
            case "dot":
                return _product("BLD,BMD->BLM", h_BLD, keys_BMD)
            case "general":
                return _product("BLK,BMK->BLM", einsum("BLD,DK->BLK", h_BLD, self.weight[...]), keys_BMD)
            case "concat":
                sum_BLMK = einsum("BLD,DK->BLK", h_BLD, self.weight[:D])[:, :, None] + keys_BMD[:, None]
                return _product("BLMK,K->BLM", jnp.tanh(sum_BLMK), self.vector[...])
            case _:
                assert encoded.positions_BM is not None
                scores_BLM = einsum("BLD,DM->BLM", h_BLD, self.weight[:, :M]).astype(jnp.float32)
                return jnp.take_along_axis(scores_BLM, encoded.positions_BM[:, None], axis=2)


def _seen(encoded: Encoded, segments_BL: jax.Array) -> jax.Array:
    """Which source tokens are of each target token's segment, bool [B, L, M]."""
    return encoded.segments_BM[:, None] == segments_BL[:, :, None]


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


class Recurrent(nnx.Module):
    """Maps a source and the target so far to the logits of the target's next token."""

    def __init__(self, config: RecurrentConfig, rngs: nnx.Rngs):
        self.config = config

        def table(rows: int, dim: int, kind: str) -> Embedding:
            return Embedding(rows, config.vocab_multiple, dim, config.init_std, kind, rngs)

        if config.share_embeddings:
            self.embedding = table(config.vocab_size, config.embedding_size, "embedding")
        else:
            self.source_embedding = table(config.source_vocab, config.embedding_size, "embedding")
            self.target_embedding = table(config.vocab_size, config.embedding_size, "embedding")
        self.encoder = cells(config, rngs)
        self.decoder = cells(config, rngs)
        if config.input_feeding:
            shape = (config.model_dim, CELLS[config.cell].gates, config.model_dim)
            self.feed = param(rngs, shape, ("embed", "gate", "cells"), normal(config.init_std), "matrix")
        if config.attention != "none":
            self.attention = GlobalAttention(config, rngs)
        if not config.tie_embeddings:
            self.head = table(config.vocab_size, config.model_dim, "matrix")

    def encode(
        self,
        source_BM: jax.Array,
        positions_BM: jax.Array | None = None,
        segments_BM: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
    ) -> Encoded:
        """Read sources, each a segment of its row, numbered from 1; padding has segment 0. `key` turns dropout on.

        Positions, which only location scores use, default to places in the segment, and without segments a row is one.
        """
        config = self.config
        if config.attention == "location" and source_BM.shape[1] > config.max_length:
            raise ValueError(
                f"a source of {source_BM.shape[1]} tokens is longer than max_length={config.max_length}, the number of "
                "places that location attention scores; shorten it, or train with a larger max_length"
            )
        segments_BM = jnp.ones_like(source_BM) if segments_BM is None else segments_BM
        if config.attention != "location":
            positions_BM = None
        elif positions_BM is None:
            positions_BM = places_in_segments(segments_BM)
        begins_MB = _begins(segments_BM, reverse=config.reverse_source).T
        x_MBE = self._embed(self.embedding if config.share_embeddings else self.source_embedding, source_BM)
        layers = []
        for cell, layer_key in zip(self.encoder, split_key(key, config.num_layers), strict=True):
            states = cell.run(dropout(x_MBE, config.dropout, layer_key), begins_MB, reverse=config.reverse_source)
            layers.append(_swapped(states))
            x_MBE = states[0].astype(x_MBE.dtype)
        states_BMD = _swapped(x_MBE)
        keys_BMD = states_BMD if config.attention == "none" else self.attention.keys(states_BMD)
        return Encoded(states_BMD, keys_BMD, segments_BM, positions_BM, tuple(layers))

    def decode(
        self,
        target_BL: jax.Array,
        encoded: Encoded,
        segments_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What predicts the token after each of known targets, [B, L, D], and the steps of attention in `capture`.

        Without segments a row is one, number 1. Without input feeding the layers run one after the other over the whole
        row, and attention looks back from all of it at once. With it, a step needs the combination of the step before.
        """
        config, rate = self.config, self.config.dropout
        layers_key, output_key = split_key(key)
        segments_BL = jnp.ones_like(target_BL) if segments_BL is None else segments_BL
        begins_LB, starts = _begins(segments_BL).T, _swapped(self._handed_over(encoded, segments_BL))
        x_LBE = self._embed(self.target_table, target_BL)
        captured: dict[str, jax.Array] = {}
        if config.input_feeding:
            embedding_key, steps_key = split_key(layers_key)
            step_keys = None if steps_key is None else jax.random.split(steps_key, x_LBE.shape[0])
            first = self.start(encoded)

            def step(state: DecoderState, scanned: tuple[Any, ...]):
                x_BCK, begins_B, layers, segments_B, step_key = scanned
                state = _renewed(state, begins_B, dataclasses.replace(first, layers=layers))
                y_BD, state, found = self._advance(x_BCK, state, encoded, segments_B, key=step_key, capture=capture)
                return state, (y_BD, found)

            x_LBCK = self.decoder[0].project(dropout(x_LBE, rate, embedding_key))
            scanned = x_LBCK, begins_LB, starts, segments_BL.T, step_keys
            y_BLD, captured = _swapped(jax.lax.scan(step, first, scanned, unroll=config.unroll)[1])
        else:
            for cell, start, layer_key in zip(
                self.decoder, starts, split_key(layers_key, config.num_layers), strict=True
            ):
                h_LBD = cell.run(dropout(x_LBE, rate, layer_key), begins_LB, start)[0]
                x_LBE = h_LBD.astype(x_LBE.dtype)
            y_BLD = _swapped(x_LBE)
            if config.attention != "none":
                y_BLD, captured = self.attention(y_BLD, encoded, segments_BL, capture)
        return constrain(dropout(y_BLD, rate, output_key), "act_batch", "act_length", "act_embed"), captured

    def start(self, encoded: Encoded) -> DecoderState:
        """Where the target of a row's first segment begins: in the encoder's last states."""
        first_B1 = jnp.ones_like(encoded.segments_BM[:, :1])
        layers = jax.tree.map(lambda a_B1D: a_B1D[:, 0], self._handed_over(encoded, first_B1))
        fed_BD = jnp.zeros_like(layers[0][0], encoded.states_BMD.dtype) if self.config.input_feeding else None
        return DecoderState(layers, fed_BD)

    def _handed_over(self, encoded: Encoded, segments_BL: jax.Array) -> tuple[State, ...]:
        """Each layer's state after the last token that was read of the source of each segment, arrays [B, L, D]."""
        seen_BLM = _seen(encoded, segments_BL)
        last_BL = seen_BLM.argmax(-1)
        if not self.config.reverse_source:
            last_BL = seen_BLM.shape[-1] - 1 - seen_BLM[..., ::-1].argmax(-1)
        return jax.tree.map(lambda a_BMD: jnp.take_along_axis(a_BMD, last_BL[..., None], axis=1), encoded.layers)

    def step(self, tokens_B: jax.Array, state: DecoderState, encoded: Encoded) -> tuple[jax.Array, DecoderState]:
        """One more token of a row's only target: what predicts the token after it, [B, D], and the state with it."""
        x_BCK = self.decoder[0].project(self._embed(self.target_table, tokens_B[:, None]))[0]
        y_BD, state, _ = self._advance(x_BCK, state, encoded, jnp.ones_like(tokens_B))
        return y_BD, state

    def _advance(
        self,
        x_BCK: jax.Array,
        state: DecoderState,
        encoded: Encoded,
        segments_B: jax.Array,
        *,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> tuple[jax.Array, DecoderState, dict[str, jax.Array]]:
        """One step through all layers and attention, from the first layer's projected input."""
        if state.combination_BD is not None:
            x_BCK = x_BCK + _gates(state.combination_BD, self.feed)
        keys = split_key(key, self.config.num_layers)
        layers = []
        for i, (cell, before) in enumerate(zip(self.decoder, state.layers, strict=True)):
            if i > 0:
                y_BD = dropout(layers[-1][0].astype(x_BCK.dtype), self.config.dropout, keys[i])
                x_BCK = cell.project(y_BD[None])[0]
            layers.append(cell(x_BCK, before))
        y_BD, captured = layers[-1][0].astype(x_BCK.dtype), {}
        if self.config.attention != "none":
            y_B1D, captured = self.attention(y_BD[:, None], encoded, segments_B[:, None], capture)
            y_BD, captured = y_B1D[:, 0], {name: a[:, 0] for name, a in captured.items()}
        return y_BD, DecoderState(tuple(layers), y_BD if self.config.input_feeding else None), captured

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
        """What predicts the token after each of the target, [B, L, D], and what was captured of the five steps.

        The arguments are those of the transformer, of which the order of reading replaces the target's positions.
        """
        source_key, target_key = split_key(key)
        encoded = self.encode(source_BM, source_positions_BM, source_segments_BM, key=source_key)
        y_BLD, captured = self.decode(target_BL, encoded, target_segments_BL, key=target_key, capture=capture)
        if "encoder_states" in capture:
            captured["encoder_states"] = encoded.states_BMD
        return y_BLD, captured

    def logits(self, hidden_BLD: jax.Array) -> jax.Array:
        """Unnormalised log-probabilities [B, L, V] of the next token, over the padded vocabulary."""
        with jax.named_scope("logits"):
            return (self.target_table if self.config.tie_embeddings else self.head).logits(hidden_BLD)

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

    @staticmethod
    def example(config: RecurrentConfig) -> dict[str, np.ndarray]:
        """Two sources, one of them half as long, and two targets."""
        length = min(config.max_length, 16)
        number = np.arange(2 * length, dtype=np.int32).reshape(2, length)
        segments = np.ones((2, length), np.int32)
        segments[1, -(-length // 2) :] = 0
        return {
            "source_BM": number * 7919 % config.source_vocab,
            "target_BL": number * 104729 % config.vocab_size,
            "source_segments_BM": segments,
        }

    @property
    def target_table(self) -> Embedding:
        """The embedding of target tokens."""
        return self.embedding if self.config.share_embeddings else self.target_embedding

    def _embed(self, table: Embedding, tokens_BL: jax.Array) -> jax.Array:
        """The tokens' vectors [L, B, E]: time first, as loops read them, and whole on every device along it."""
        return constrain(table(tokens_BL.T), "act_memory", "act_batch", "act_embed")


def _begins(segments_BL: jax.Array, *, reverse: bool = False) -> jax.Array:
    """Which tokens are read first of their segment, bool [B, L]."""
    padded_BX = jnp.pad(segments_BL, ((0, 0), (0, 1) if reverse else (1, 0)), constant_values=-1)
    return padded_BX[:, 1:] != padded_BX[:, :-1]


def _swapped(arrays: Any) -> Any:
    """Arrays with time before the batch from those with the batch before time, or these from those."""
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), arrays)


@partial(jax.jit, static_argnames=("beam", "max_tokens"))
def beam_search(
    model: Recurrent,
    source_BM: jax.Array,
    segments_BM: jax.Array,
    limits_B: jax.Array,
    start_id: jax.Array | int,
    end_id: jax.Array | int,
    *,
    beam: Beam,
    max_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    """What `beam.search` finds for sources (segment 1, padding 0). Each beam is a row of its own."""
    B, W = source_BM.shape[0], beam.num_beams
    rows_BW = jnp.arange(B * W).reshape(B, W)
    encoded = model.encode(source_BM, segments_BM=segments_BM)
    encoded, start = jax.tree.map(lambda a: jnp.repeat(a, W, axis=0), (encoded, model.start(encoded)))

    def step(state: DecoderState, tokens_BW: jax.Array, parents_BW: jax.Array, n: jax.Array):
        parents = jnp.take_along_axis(rows_BW, parents_BW, axis=1).reshape(-1)
        y_XD, state = model.step(tokens_BW.reshape(-1), jax.tree.map(lambda a: a[parents], state), encoded)
        return model.logits(y_XD.reshape(B, W, -1)), state

    return search(step, start, limits_B, beam=beam, max_tokens=max_tokens, start_id=start_id, end_id=end_id)


def count_parameters(config: RecurrentConfig) -> int:
    """Number of trainable parameters: tied tensors once, the padding of vocabularies not at all."""
    kind, D, E = CELLS[config.cell], config.model_dim, config.embedding_size
    biases = config.num_layers * (kind.gates * D + (D if config.cell == "gru" else 0))
    tables = config.source_vocab * E + (0 if config.share_embeddings else config.vocab_size * E)
    head = 0 if config.tie_embeddings else config.vocab_size * D
    vector = D if config.attention == "concat" else 0
    return tables + head + 2 * (_layer_matrices(config) + biases) + _attention_matrices(config) + vector


def matrix_parameters(config: RecurrentConfig) -> tuple[int, int]:
    """Number of the weights that a token of the source, and a token of the target, is multiplied by, once each.

    A source token meets the encoder's layers and, of a concat score, the half of W that is for the encoder's states; a
    target token meets the rest and the projection onto the vocabulary, tied or not. Tables that are only looked up,
    vectors, biases and padding are not counted.
    """
    of_source = config.model_dim**2 if config.attention == "concat" else 0
    layers = _layer_matrices(config)
    head = config.vocab_size * config.model_dim
    return layers + of_source, layers + _attention_matrices(config) - of_source + head


def train_flops_per_row(config: RecurrentConfig, source_length: int, target_length: int) -> int:
    """Operations of the matrix products of one row, forward and backward, none recomputed: 6 a weight and token.

    A score and its part of the context multiply as many numbers as a state has, for each pair of tokens; a location's
    score is counted with the weights, of which those for the source's places are used.
    """
    source, target = matrix_parameters(dataclasses.replace(config, max_length=source_length))
    products = {"none": 0, "location": 1}.get(config.attention, 2) * config.model_dim
    return 6 * (source * source_length + target * target_length + products * source_length * target_length)


def _layer_matrices(config: RecurrentConfig) -> int:
    """The matrices of the encoder's layers, which are as large as the decoder's but for what feeding adds."""
    D = config.model_dim
    return CELLS[config.cell].gates * D * (config.embedding_size + (2 * config.num_layers - 1) * D)


def _attention_matrices(config: RecurrentConfig) -> int:
    """The matrices of attention: the score's, the combination's, and what feeds the combination back."""
    if config.attention == "none":
        return 0
    D = config.model_dim
    score = {"dot": 0, "general": D * D, "concat": 2 * D * D, "location": D * config.max_length}[config.attention]
    return score + 2 * D * D + (CELLS[config.cell].gates * D * D if config.input_feeding else 0)


_LUONG: dict[str, Any] = {
    "num_layers": 4,
    "vocab_size": 50_000,
    "max_length": 51,  # of at most 50 words, and an end
    "attention": "dot",
    "reverse_source": True,
    "dropout": 0.2,
}
# For tens of thousands of pairs. With attention or without, whatever the cell: transformer-tiny's 2.6 million, to 1 %.
_TINY: dict[str, Any] = {
    "num_layers": 2,
    "vocab_size": 10_000,
    "max_length": 128,
    "share_embeddings": True,
    "tie_embeddings": True,
    "dropout": 0.3,
}
PRESETS: dict[str, RecurrentConfig] = {
    "luong": RecurrentConfig(model_dim=1000, **_LUONG),
    "luong-feeding": RecurrentConfig(model_dim=1000, **_LUONG, input_feeding=True),
    "rnn-tiny": RecurrentConfig(cell="rnn", model_dim=220, **_TINY),
    "rnn-attention-tiny": RecurrentConfig(cell="rnn", model_dim=210, **_TINY, attention="general"),
    "lstm-tiny": RecurrentConfig(cell="lstm", model_dim=168, **_TINY),
    "lstm-attention-tiny": RecurrentConfig(cell="lstm", model_dim=164, **_TINY, attention="general"),
    "gru-tiny": RecurrentConfig(cell="gru", model_dim=180, **_TINY),
    "gru-attention-tiny": RecurrentConfig(cell="gru", model_dim=176, **_TINY, attention="general"),
}
