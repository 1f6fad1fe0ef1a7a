"""Texts translated by beam search, many at a time: in batches of like lengths, whose few shapes compile once each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data.pairs import SourceBatch, source_batches
from data.tokenizers.base import Tokenizer
from data.tokenizers.marks import decode_marked, encode_marked
from model import beam as transformer
from model import recurrent
from model.beam import Beam
from model.decode import unstack
from model.encoder_decoder import EncoderDecoderConfig
from model.parameters import Params
from model.recurrent import RecurrentConfig
from model.sharding import axis_size
from train.mesh import place_rows, replicated
from train.state import Blueprint

LONGER = 50  # tokens that a translation may have more than its source (Vaswani et al. 2017)


@dataclass(frozen=True)
class Translation:
    """What was made of a source: its text, and its tokens without the end."""

    text: str
    tokens: list[int]


class Translator:
    """An encoder-decoder, a transformer or recurrent, ready to translate with weights that lie on a mesh.

    `precision` is the compute dtype; in float32, matrix products are not rounded below it on any device. Sources are
    ids, the end token behind them (`encode_source`).
    """

    def __init__(self, plan: Blueprint, params: Params, tokenizer: Tokenizer, mesh: Mesh, precision: str = "float32"):
        self.tokenizer, self.mesh, self._params = tokenizer, mesh, params
        self.longest, self._start_id = plan.config.max_length, decoder_start_id(plan.config, tokenizer)
        dtype = jnp.dtype(precision)
        self._matmul_precision = "highest" if dtype == jnp.float32 else None

        model_of = partial(plan.model, dtype=dtype)

        def log_p(params: Params, source: jax.Array, segments: jax.Array, read: jax.Array, targets: jax.Array):
            model = model_of(params)
            hidden, _ = model.hidden(source, read, source_segments_BM=segments)
            log_p = jax.nn.log_softmax(model.logits(hidden).astype(jnp.float32))
            return jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]

        self._log_p = jax.jit(log_p, out_shardings=replicated(mesh))
        with jax.set_mesh(mesh):
            if isinstance(plan.config, RecurrentConfig):
                self._search = partial(recurrent.beam_search, jax.jit(model_of)(params))
            else:
                self._search = partial(transformer.beam_search, *jax.jit(lambda p: unstack(model_of(p)))(params))

    def translate(
        self,
        sources: Sequence[np.ndarray],
        beam: Beam,
        *,
        batch_size: int = 32,
        max_tokens: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Translation]:
        """The best translation of each source that beam search finds; one beam is greedy.

        It has at most 50 tokens more than its source, its end among them, and at most `max_tokens`, by default the
        model's length. `progress` gets the sources done and in all. Raises ValueError for a source that is too long.
        """
        beam.validate()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        most = self.longest if max_tokens is None else max_tokens
        if not 1 <= most <= self.longest:
            raise ValueError(f"max_tokens={most} must be between 1 and the model's max_length={self.longest}")
        found: dict[int, Translation] = {}
        waiting: tuple[np.ndarray, jax.Array] | None = None
        place = partial(place_rows, self.mesh)
        with jax.set_mesh(self.mesh), jax.default_matmul_precision(self._matmul_precision):
            for batch in self._batches(sources, batch_size):
                limits = np.ones(len(batch.tokens), np.int32)  # rows that hold no source are done at once
                limits[: len(batch.numbers)] = batch.segments[: len(batch.numbers)].sum(1) + LONGER
                tokens, _ = self._search(
                    *map(place, (batch.tokens, batch.segments, np.minimum(limits, most))),
                    self._start_id,
                    self.tokenizer.end_id,
                    beam=beam,
                    max_tokens=min(batch.tokens.shape[1] + LONGER, most),
                )
                # The devices work on one batch while the host reads another.
                result, waiting = waiting, (batch.numbers, tokens)
                self._read(found, result)
                if progress:
                    progress(len(found), len(sources))
            self._read(found, waiting)
        if progress:
            progress(len(sources), len(sources))
        return [found[number] for number in range(len(sources))]

    def log_probabilities(
        self, sources: Sequence[np.ndarray], translations: Sequence[Translation]
    ) -> list[list[float]]:
        """The log-probability of each token of each translation, given its source and the tokens before it.

        All are computed at once: for a few.
        """
        (batch,) = self._batches(sources, len(sources))
        longest = max(len(translation.tokens) for translation in translations)
        targets = np.zeros((len(batch.tokens), min(max(16, 1 << longest.bit_length()), self.longest)), np.int32)
        for row, number in enumerate(batch.numbers):
            targets[row, : len(translations[number].tokens)] = translations[number].tokens
        read = np.concatenate([np.full((len(targets), 1), self._start_id, np.int32), targets[:, :-1]], axis=1)
        with jax.set_mesh(self.mesh), jax.default_matmul_precision(self._matmul_precision):
            placed = (place_rows(self.mesh, x) for x in (batch.tokens, batch.segments, read, targets))
            log_p = np.asarray(self._log_p(self._params, *placed))
        rows = np.argsort(batch.numbers)
        return [
            log_p[row, : len(translation.tokens)].tolist() for row, translation in zip(rows, translations, strict=True)
        ]

    def _batches(self, sources: Sequence[np.ndarray], batch_size: int) -> Iterator[SourceBatch]:
        replicas = axis_size(self.mesh, "act_batch")
        return source_batches(sources, -(-batch_size // replicas) * replicas, self.longest)

    def _read(self, found: dict[int, Translation], result: tuple[np.ndarray, jax.Array] | None) -> None:
        """Adds what a batch's search found, once it is done."""
        if result is None:
            return
        numbers, tokens = result
        for number, best in zip(numbers.tolist(), np.asarray(tokens)[:, 0], strict=False):
            written = best[(best >= 0) & (best != self.tokenizer.end_id)].tolist()
            found[number] = Translation(decode_marked(self.tokenizer, written), written)


def encode_source(text: str, tokenizer: Tokenizer, longest: int, *, begins: bool = False) -> np.ndarray:
    """What an encoder-decoder with room for `longest` tokens reads of a text, whose masks and sentinels may be named.

    It ends with the end token, and begins with the start token where the model has learned it so, as BART has.
    Raises ValueError for a text that is too long.
    """
    start = [tokenizer.special("start")] if begins else []
    tokens = np.concatenate([start, encode_marked(tokenizer, text), [tokenizer.special("end")]]).astype(np.int32)
    if len(tokens) > longest:
        raise ValueError(
            f"the source has {len(tokens)} tokens, its end among them, more than the model's max_length={longest}; "
            "shorten it"
        )
    return tokens


def decoder_start_id(config: EncoderDecoderConfig | RecurrentConfig, tokenizer: Tokenizer) -> int:
    """The token that the decoder reads first: the model's own, or the tokenizer's start token."""
    own = getattr(config, "decoder_start_id", None)
    return tokenizer.special("start") if own is None else own
