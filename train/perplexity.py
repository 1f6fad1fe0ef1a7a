"""Perplexity, defined once: every learned text token of every document is scored exactly once.

It is given its document's start token and as much of the text before it as a window holds. A document is cut into
windows of `window` inputs, `stride` apart; a window scores the targets that no earlier window did. Given text, such as
the prompt of a pair, and end tokens are not scored, and documents are never joined: short ones share a row only as
separate segments. Nats are computed in float32 and summed on the host in float64.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data.loader import Batch
from data.shards import Corpus
from data.tokenizers.base import Tokenizer
from model.parameters import Params
from model.sharding import axis_size
from train.mesh import place_batch
from train.objectives.objective import WindowObjective
from train.state import Blueprint
from train.step import make_evaluation

_STRETCH = 1 << 22  # tokens that are counted at a time


@dataclass(frozen=True)
class Score:
    """What a text cost: the sum of nats over `tokens` tokens, which are `bytes` bytes and `words` words of text."""

    nats: float
    tokens: int
    bytes: int
    words: int

    def figures(self) -> dict[str, float | int]:
        """The figures that are reported together."""
        return {
            "nats_per_token": self.nats / self.tokens,
            "perplexity": _exp(self.nats / self.tokens),
            "bits_per_byte": self.nats / (math.log(2) * self.bytes),
            "word_perplexity": _exp(self.nats / self.words) if self.words else math.inf,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "words": self.words,
        }


class PerplexityMeter:
    """Scores text with a model; compiled once for all the texts it is used on.

    `precision` is the compute dtype; in float32, matrix products are not rounded below it on any device.
    """

    def __init__(
        self,
        plan: Blueprint,
        objective: WindowObjective,
        mesh: Mesh,
        *,
        window: int,
        stride: int,
        batch_size: int,
        precision: str = "float32",
    ):
        longest = plan.config.max_length
        least = 1 if objective.shifted else 2  # a start token, and one that is scored
        if not least <= window <= longest:
            raise ValueError(f"window={window} must be at least {least} and at most the model's max_length={longest}")
        if not 1 <= stride <= window:
            raise ValueError(
                f"stride={stride} must be at least 1 and at most window={window}, or tokens would be left out"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        # A place that is its own target leaves a window one target less, since that of the start token is none.
        self._room = window if objective.shifted else window - 1
        self.mesh, self.window, self.stride, self.objective = mesh, window, min(stride, self._room), objective
        replicas, context = axis_size(mesh, "act_batch"), axis_size(mesh, "act_length")
        self._rows = math.ceil(batch_size / replicas) * replicas
        multiple = context * objective.length_multiple
        self._length = math.ceil(window / multiple) * multiple
        self._evaluate = make_evaluation(plan, objective, mesh, precision)

    def score(
        self,
        params: Params,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        limit: int = 0,
        progress: Callable[[int, int], None] | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> Score:
        """Scores a corpus, or its first `limit` learned tokens; `progress` gets the tokens done and in all.

        `between` is called between batches: what it raises breaks the scoring off.
        """
        total = min(limit, corpus.num_scored) if limit else corpus.num_scored
        if total == 0:
            raise ValueError("the evaluation text has no tokens to score; give a text that is not empty")
        nats, tokens, waiting = 0.0, 0, None
        with jax.set_mesh(self.mesh):
            for batch in self._batches(corpus, total, tokenizer):
                between()
                placed = place_batch(
                    self.mesh, self._rows, lambda places, batch=batch: {n: a[places] for n, a in batch.items()}
                )
                result, waiting = (
                    waiting,
                    self._evaluate(params, placed),
                )  # the devices work on one batch while the host reads another
                nats, tokens = _add(nats, tokens, result)
                if progress:
                    progress(tokens, total)
            nats, tokens = _add(nats, tokens, waiting)
        assert tokens == total, (tokens, total)
        if progress:
            progress(total, total)
        return Score(nats, tokens, *_text_size(corpus, tokenizer, total))

    def _batches(self, corpus: Corpus, total: int, tokenizer: Tokenizer) -> Iterator[Batch]:
        """The objective's views of batches of windows, short ones side by side in a row as separate segments."""
        shape = (self._rows, self._length)

        def empty() -> Batch:
            return {
                n: np.zeros(shape, bool if n == "scored" else np.int32)
                for n in ("tokens", "targets", "scored", "segments", "positions")
            }

        batch, row, used, segment = empty(), 0, 0, 0
        for inputs, targets, scored in self._pieces(corpus, total):
            n = len(inputs)
            if used + n > self.window:
                row, used, segment = row + 1, 0, 0
                if row == self._rows:
                    yield from self.objective.views(batch, tokenizer)
                    batch, row = empty(), 0
            segment += 1
            at = (row, slice(used, used + n))
            batch["tokens"][at], batch["targets"][at], batch["scored"][at] = inputs, targets, scored
            batch["segments"][at], batch["positions"][at] = segment, np.arange(n)
            used += n
        yield from self.objective.views(batch, tokenizer)

    def _pieces(self, corpus: Corpus, total: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Inputs, targets and which of them are scored, of each window."""
        if self.objective.shifted:
            yield from _windows(corpus, self.window, self.stride, total)
            return
        for inputs, targets, scored in _windows(corpus, self._room, self.stride, total):
            tokens = np.append(inputs, targets[-1])
            yield tokens, tokens, np.append(False, scored)


def _windows(
    corpus: Corpus, window: int, stride: int, total: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Inputs, targets and which of them are scored, of each window of each document, until `total` are scored."""
    for number in range(corpus.num_documents):
        given = int(corpus.document_given[number])
        document = corpus.document(number)[: given + total].astype(np.int32)
        length = len(document) - 1
        done = given - 1  # the targets before are given
        for start in range(0, length, stride):
            stop = min(start + window, length)
            if stop > done:
                yield document[start:stop], document[start + 1 : stop + 1], np.arange(start, stop) >= done
                done = stop
            if stop == length:
                break
        total -= len(document) - given
        if total <= 0:
            return


def _text_size(corpus: Corpus, tokenizer: Tokenizer, total: int) -> tuple[int, int]:
    """UTF-8 bytes and whitespace-separated words of the first `total` learned tokens."""
    counts = np.diff(np.append(corpus.document_starts, corpus.num_tokens)) - corpus.document_given
    whole = int(np.searchsorted(np.cumsum(counts), total, side="right"))
    size, words = int(corpus.document_bytes[:whole].sum()), int(corpus.document_words[:whole].sum())
    rest = total - int(counts[:whole].sum())
    if rest:
        tokens = corpus.document(whole)[corpus.document_given[whole] :][:rest]
        size += sum(len(tokenizer.token_bytes(int(token))) for token in tokens)
        words += len(tokenizer.decode(tokens).split())
    return size, words


def unigram_score(train: Sequence[Corpus], valid: Corpus, vocab_size: int, *, limit: int = 20_000_000) -> Score:
    """What a model of token frequencies alone, counted on the first `limit` training tokens, pays for `valid`.

    Given text is neither counted nor paid for. Of several corpora each is read as far as its equal part of the limit.
    """
    each = limit // len(train)
    counts = [_learned_counts(corpus, min(each, corpus.num_tokens), vocab_size) for corpus in train]
    frequency = np.sum(counts, axis=0) + 1
    scored = _learned_counts(valid, valid.num_tokens, vocab_size)
    nats = float(-(scored * np.log(frequency / frequency.sum())).sum())
    return Score(nats, int(scored.sum()), valid.num_bytes, valid.num_words)


def _learned_counts(corpus: Corpus, stop: int, vocab_size: int) -> np.ndarray:
    """How often each id stands among the stream's first `stop` tokens, start tokens and given text left out."""
    total = np.zeros(vocab_size, np.int64)
    for begin in range(0, stop, _STRETCH):
        end = min(begin + _STRETCH, stop)
        first = int(np.searchsorted(corpus.document_starts, begin, "right")) - 1
        documents = slice(first, int(np.searchsorted(corpus.document_starts, end)))
        opens = corpus.document_starts[documents]
        # +1 where given tokens begin and -1 where they end, which may be where the next ones begin.
        edges = np.zeros(end - begin + 1, np.int8)
        edges[np.clip(opens - begin, 0, None)] += 1
        edges[np.clip(opens + corpus.document_given[documents] - begin, 0, end - begin)] -= 1
        learned = np.cumsum(edges[:-1], dtype=np.int8) == 0
        total += np.bincount(corpus.slice(begin, end)[learned], minlength=vocab_size)
    return total


def _add(nats: float, tokens: int, result: Any) -> tuple[float, int]:
    if result is None:
        return nats, tokens
    host = jax.device_get(result)
    return nats + float(host["nats"].astype(np.float64).sum()), tokens + int(host["tokens"].sum())


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
