"""Masked language modelling (BERT, Devlin et al. 2018), masked anew each time (RoBERTa, Liu et al. 2019).

Of the tokens of a row, start tokens and padding aside, a share is chosen to be predicted: most of them are replaced by
the mask token, some by a random one, and some stay. Which, is a function of the row's key alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.dataset import Prepare, RowKind
from data.loader import Batch
from data.order import mix
from data.tokenizers.base import Tokenizer
from train.objectives.cross_entropy import cross_entropy
from train.objectives.objective import DeviceBatch

_PASSES = 8  # in which text is scored: each masks every eighth token
_ROUNDS = 4  # in which words are looked for that still fit
_NEVER = np.uint64(1 << 63)  # the rank of what is never chosen, above all others


@dataclass(frozen=True)
class MaskedLMConfig:
    """`rate` of the tokens is predicted; of these `random` are replaced by random tokens, and `kept` stay as they are.

    `whole_words` chooses words, all tokens of them, rather than tokens.
    """

    rate: float = 0.15
    random: float = 0.1
    kept: float = 0.1
    whole_words: bool = False

    def validate(self, length: int) -> None:
        """Raise ValueError, in one sentence, for values that rows of `length` tokens do not allow."""
        if not 0 < self.rate < 1:
            raise ValueError(f"objective.rate={self.rate} must be more than 0 and less than 1")
        if min(self.random, self.kept) < 0 or self.random + self.kept > 1:
            raise ValueError(f"objective.random={self.random} and objective.kept={self.kept} must be shares of one")
        if length % _PASSES:
            raise ValueError(f"data.max_length={length} must be a multiple of {_PASSES} for masked language modelling")


class MaskedLM:
    """The mean negative log-probability of the chosen tokens."""

    length_multiple = _PASSES
    roles: tuple[str, ...] = ("mask",)
    rows: RowKind = "text"
    shifted = False  # a place's target is its own token
    definition = (
        f"sum of -log p(token) over every text token once, masked with every {_PASSES}th token of its window and given "
        "the others (pseudo-perplexity); start tokens and given text unscored; documents never joined; "
        "bits_per_byte = nats / (ln 2 x UTF-8 bytes); word_perplexity = exp(nats / whitespace-separated words)"
    )

    def __init__(self, config: MaskedLMConfig):
        self.config = config
        self.coefficients = {"masked_lm": 1.0}

    def preparation(self, tokenizer: Tokenizer) -> Prepare:
        """What masks rows: tokens [n, L] lose some; places, targets and scored [n, P] say which, P for all rows.

        Raises:
            ValueError: the tokenizer has no mask token.
        """
        mask = masking(self.config, tokenizer)

        def prepare(rows: Batch, keys: np.ndarray) -> Batch:
            segments = rows["segments"]
            # What is given is not learned: packing scores the place before each token that is.
            follows = np.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (1, 0)))
            learned = np.pad(rows["scored"][:, :-1], ((0, 0), (1, 0))) | ~follows
            masked = mask(rows["tokens"], (segments > 0) & learned, keys)
            return {"segments": segments, "positions": rows["positions"], **masked}

        return prepare

    def views(self, batch: Batch, tokenizer: Tokenizer) -> Iterator[Batch]:
        """The batches by which a batch of windows is scored: each masks other tokens, and all together each of them."""
        mask_id, length = tokenizer.special("mask"), batch["tokens"].shape[1]
        for number in range(_PASSES):
            places = np.arange(number, length, _PASSES, dtype=np.int32)
            scored, tokens = batch["scored"][:, places], batch["tokens"].copy()
            tokens[:, places] = np.where(scored, mask_id, tokens[:, places])
            yield {
                "tokens": tokens,
                "segments": batch["segments"],
                "positions": batch["positions"],
                "places": np.broadcast_to(places, scored.shape),
                "targets": batch["targets"][:, places],
                "scored": scored,
            }

    def weights(self, batch: DeviceBatch) -> dict[str, jax.Array]:
        """The number of chosen tokens."""
        return {"masked_lm": batch["scored"].sum(dtype=jnp.int32)}

    def loss(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> dict[str, jax.Array]:
        """Summed nats of the chosen tokens."""
        return {"masked_lm": self._nats(model, batch, key).sum()}

    def evaluate(self, model: Any, batch: DeviceBatch) -> dict[str, jax.Array]:
        """Nats and the number of chosen tokens, each [B]."""
        return {"nats": self._nats(model, batch, None).sum(1), "tokens": batch["scored"].sum(1, dtype=jnp.int32)}

    def _nats(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> jax.Array:
        hidden_BLD, _ = model.hidden(batch["tokens"], batch["positions"], batch["segments"], key=key)
        return masked_nats(masked_logits(model, hidden_BLD, batch), batch)


def masked_logits(model: Any, hidden_BLD: jax.Array, batch: DeviceBatch) -> jax.Array:
    """Logits [B, P, V] of the tokens at the batch's places."""
    return model.logits(jnp.take_along_axis(hidden_BLD, batch["places"][..., None], axis=1))


@jax.named_scope("loss")
def masked_nats(logits_BPV: jax.Array, batch: DeviceBatch) -> jax.Array:
    """Nats [B, P] of the chosen tokens, 0 where none was chosen."""
    nats_BP, _ = cross_entropy(logits_BPV, batch["targets"])
    return jnp.where(batch["scored"], nats_BP, 0)


def masking(config: MaskedLMConfig, tokenizer: Tokenizer) -> Callable[[np.ndarray, np.ndarray, np.ndarray], Batch]:
    """What masks tokens [n, L], given which may be chosen (bool [n, L]; special tokens never are) and the rows' keys.

    It returns the tokens with some replaced, and the places, the targets there and whether they are scored, [n, P].

    Raises:
        ValueError: the tokenizer has no mask token.
    """
    mask_id = tokenizer.special("mask")
    special = np.zeros(tokenizer.vocab_size, bool)
    special[list(tokenizer.specials.values())] = True
    ordinary = np.flatnonzero(~special).astype(np.int32)
    words = range(tokenizer.vocab_size) if config.whole_words else ()
    opens_word = np.array([_opens_word(tokenizer, token) for token in words])

    def mask(tokens: np.ndarray, candidates: np.ndarray, keys: np.ndarray) -> Batch:
        length, candidates = tokens.shape[1], candidates & ~special[tokens]
        units = np.broadcast_to(np.arange(length), tokens.shape)
        if config.whole_words:
            units = np.cumsum(opens_word[tokens] | ~candidates, axis=1)
        # Units in a random order, those that can't be chosen last; the tokens of a word stand together.
        rank = np.where(candidates, mix(keys[:, None], units) >> np.uint64(1), _NEVER)
        order = np.argsort(rank, axis=1, kind="stable")
        count = np.ceil(config.rate * candidates.sum(1)).astype(np.int64)
        chosen = _chosen(np.take_along_axis(rank, order, 1), count)
        places = np.sort(np.where(chosen, order, length), axis=1)[:, : _most(config, length)].astype(np.int32)
        scored = places < length
        places = np.where(scored, places, 0)
        targets = np.take_along_axis(tokens, places, 1)
        draw = mix(keys[:, None], length + places)
        share = draw / 2.0**64
        random = ordinary[(mix(keys[:, None], 2 * length + places) % np.uint64(len(ordinary))).astype(np.int64)]
        shown = np.where(share < config.random, random, mask_id)
        shown = np.where(share >= 1 - config.kept, targets, shown).astype(np.int32)
        masked = tokens.copy()
        row, place = np.nonzero(scored)
        masked[row, places[row, place]] = shown[row, place]
        return {"tokens": masked, "places": places, "targets": targets * scored, "scored": scored}

    return mask


def _most(config: MaskedLMConfig, length: int) -> int:
    """The P places of a row of `length` that may be chosen, rounded up so that a mesh can split them."""
    return -(-int(np.ceil(config.rate * length)) // _PASSES) * _PASSES


def _opens_word(tokenizer: Tokenizer, token: int) -> bool:
    """Whether a word may begin with this token: it begins with white space, or is none of text."""
    text = tokenizer.token_bytes(token)
    return not text or text[:1].isspace()


def _chosen(rank: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Of ranks in rising order, bool [n, L]: those of units that are chosen, all their tokens, `count` [n] at most.

    A unit that is too long for what is left is passed over.
    """
    length = rank.shape[1]
    opens = np.diff(rank, axis=1, prepend=_NEVER + np.uint64(1)) != 0
    starts = np.maximum.accumulate(np.where(opens, np.arange(length), 0), axis=1)
    following = np.where(opens, np.arange(length), length)[:, 1:]
    following = np.append(following, np.full((len(rank), 1), length), axis=1)
    stops = np.minimum.accumulate(following[:, ::-1], axis=1)[:, ::-1]
    chosen = np.zeros(rank.shape, bool)
    for _ in range(_ROUNDS):
        left = (count - chosen.sum(1))[:, None]
        fits = ~chosen & (stops - starts <= left) & (rank < _NEVER)
        if not fits.any():
            break
        chosen |= fits & (np.take_along_axis(np.cumsum(fits, axis=1), stops - 1, 1) <= left)
    return chosen
