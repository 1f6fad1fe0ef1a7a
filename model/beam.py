"""Beam search with a length penalty (Sutskever et al. 2014; Wu et al. 2016), for a whole batch in one compiled loop.

A row keeps its best unfinished and its best finished hypotheses, and is done when no unfinished one, however long it
may become, can beat the worst of its finished ones. As in fairseq and transformers, an end counts only where it is
among the row's best continuations, and a hypothesis that reaches the row's limit is finished as it stands.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from model.block import Block
from model.encoder_decoder import EncoderDecoder
from model.mask import Mask
from model.sharding import constrain


@dataclass(frozen=True)
class Beam:
    """How hypotheses are kept and compared.

    The score of one with n tokens, its end included, is its log-probability divided by ((5 + n) / 6) ** length_penalty
    ("gnmt": Wu et al. 2016) or by n ** length_penalty ("power": fairseq, transformers); 0 compares log-probabilities.
    """

    num_beams: int = 4
    length_penalty: float = 0.6
    penalty: Literal["gnmt", "power"] = "gnmt"

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for values out of range."""
        if self.num_beams < 1:
            raise ValueError(f"num_beams={self.num_beams} must be at least 1")
        if not self.length_penalty >= 0:
            raise ValueError(f"length_penalty={self.length_penalty} must be at least 0 (0 for none)")
        if self.penalty not in ("gnmt", "power"):
            raise ValueError(f"penalty={self.penalty} must be one of gnmt, power")

    def divisor(self, length: jax.Array) -> jax.Array:
        """What the log-probability of a hypothesis of `length` tokens is divided by."""
        length = length.astype(jnp.float32)
        return ((5 + length) / 6 if self.penalty == "gnmt" else length) ** self.length_penalty


class _Search(NamedTuple):
    """Where the search stands after n tokens; hypotheses are best first, and -1 stands behind their last token."""

    n: jax.Array
    state: Any  # of the model
    tokens_BWT: jax.Array  # unfinished
    scores_BW: jax.Array  # their log-probabilities
    parents_BW: jax.Array  # which of the beams before each one continues
    finished_BWT: jax.Array
    finished_scores_BW: jax.Array  # divided by the penalty; -inf where there is none yet
    done_B: jax.Array


def search(
    step: Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]],
    state: Any,
    limits_B: jax.Array,
    *,
    beam: Beam,
    max_tokens: int,
    start_id: jax.Array | int,
    end_id: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
    """The best hypotheses of each row and their scores, best first: [B, W, max_tokens] and [B, W].

    A hypothesis ends with `end_id` or at its row's limit (1 to `max_tokens`); behind it are -1. A score of -inf is of
    no hypothesis. `step(state, tokens_BW, parents_BW, n)` gives the logits [B, W, V] after these tokens, number n of
    their beams (0 the start token), and the new state; its beam w continues what was beam `parents_BW[:, w]`.
    """
    B, W = limits_B.shape[0], beam.num_beams
    none_BWT = jnp.full((B, W, max_tokens), -1, jnp.int32)
    never_BW = jnp.full((B, W), -jnp.inf)

    def advance(s: _Search) -> _Search:
        last_BW = jnp.where(s.n == 0, start_id, s.tokens_BWT[:, :, s.n - 1])
        logits_BWV, state = step(s.state, last_BW, s.parents_BW, s.n)
        # The best 2W of a row are among the best 2W of each beam; that many, because W of them may end.
        logits_BWV = logits_BWV.astype(jnp.float32)
        best_BWC, tokens_BWC = jax.lax.top_k(logits_BWV, min(2 * W, logits_BWV.shape[-1]))
        log_p_BWC = best_BWC - jax.nn.logsumexp(logits_BWV, axis=-1, keepdims=True)
        C = log_p_BWC.shape[-1]
        scores_BC, chosen_BC = jax.lax.top_k((s.scores_BW[:, :, None] + log_p_BWC).reshape(B, W * C), min(2 * W, W * C))
        token_BC = jnp.take_along_axis(tokens_BWC.reshape(B, W * C), chosen_BC, axis=1)
        parents_BC = chosen_BC // C
        tokens_BCT = _pick(s.tokens_BWT, parents_BC).at[:, :, s.n].set(token_BC)
        n = s.n + 1
        ends_BC = (token_BC == end_id) | (n >= limits_B)[:, None]

        counts_BC = ends_BC & (jnp.arange(ends_BC.shape[1]) < W)[None] & ~s.done_B[:, None]
        ended_scores_BC = jnp.where(counts_BC, scores_BC / beam.divisor(n), -jnp.inf)
        both_scores = jnp.concatenate([s.finished_scores_BW, ended_scores_BC], axis=1)
        finished_scores_BW, kept_BW = jax.lax.top_k(both_scores, W)
        finished_BWT = _pick(jnp.concatenate([s.finished_BWT, tokens_BCT], axis=1), kept_BW)

        scores_BW, kept_BW = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, scores_BC), W)
        parents_BW = jnp.take_along_axis(parents_BC, kept_BW, axis=1)
        # A log-probability only falls, and its divisor grows up to that of the limit.
        within_reach_B = scores_BW[:, 0] / beam.divisor(limits_B)
        done_B = s.done_B | (n >= limits_B) | (within_reach_B <= finished_scores_BW[:, -1])
        tokens_BWT = _pick(tokens_BCT, kept_BW)
        return _Search(n, state, tokens_BWT, scores_BW, parents_BW, finished_BWT, finished_scores_BW, done_B)

    first = _Search(
        n=jnp.int32(0),
        state=state,
        tokens_BWT=none_BWT,
        scores_BW=never_BW.at[:, 0].set(0.0),  # all beams are alike: only the first is continued
        parents_BW=jnp.zeros((B, W), jnp.int32),
        finished_BWT=none_BWT,
        finished_scores_BW=never_BW,
        done_B=jnp.zeros(B, bool),
    )
    last = jax.lax.while_loop(lambda s: ~s.done_B.all(), advance, first)
    return constrain(last.finished_BWT, None, None, None), constrain(last.finished_scores_BW, None, None)


def _pick(x_BWT: jax.Array, beams_BW: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BWT, beams_BW[:, :, None], axis=1)


@partial(jax.jit, static_argnames=("beam", "max_tokens"))
def beam_search(
    model: EncoderDecoder,
    layers: tuple[Block, ...],
    source_BM: jax.Array,
    segments_BM: jax.Array,
    limits_B: jax.Array,
    start_id: jax.Array | int,
    end_id: jax.Array | int,
    *,
    beam: Beam,
    max_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    """What `search` finds for sources (segment 1, padding 0); `model` and `layers` are `decode.unstack`'s.

    The beams of a row are queries of one sequence. Each writes its keys and values into slots of its own, and sees
    those of its ancestors: no cache is ever copied when beams are born and die, and the source is held once a row.
    """
    (B, _), W, T = source_BM.shape, beam.num_beams, max_tokens
    beams_W = jnp.arange(W)
    times_1T = (jnp.arange(T * W) // W)[None]  # slot t W + w is beam w's at time t

    def step(state, tokens_BW: jax.Array, parents_BW: jax.Array, n: jax.Array):
        caches, ancestors_BWT = state
        ancestors_BWT = _pick(ancestors_BWT, parents_BW).at[:, :, n].set(beams_W[None])
        seen_BLM = (ancestors_BWT[..., None] == beams_W[None, None, None]).reshape(B, W, T * W)
        mask = Mask(True, q_index_BL=jnp.full((1, W), n), k_index_BM=times_1T, seen_BLM=seen_BLM)
        slots_BL = jnp.broadcast_to((n * W + beams_W)[None], (B, W))
        hidden_BLD, caches = model.step(layers, caches, tokens_BW, slots_BL, mask)
        return model.logits(hidden_BLD), (caches, ancestors_BWT)

    caches = model.remember(layers, source_BM, segments_BM, T * W)
    state = caches, jnp.zeros((B, W, T), jnp.int32)
    return search(step, state, limits_B, beam=beam, max_tokens=T, start_id=start_id, end_id=end_id)
