"""Two stretches of text a row, of which the second follows the first or does not: BERT's and ALBERT's "sentences".

A document is cut into stretches, each as long as a row has room for or a little shorter, so that all of a document are
of nearly the same length; a row is one stretch, cut in two. What else the second part may be is a part of another
stretch. A row is one example, never several: its summary is made of its first token.
"""

from typing import Literal

import numpy as np

from data.loader import Batch, Rows
from data.order import mix
from data.packing import document_stops
from data.shards import Corpus
from data.tokenizers.base import Tokenizer

Relation = Literal["next", "order"]

_MARKS = 3  # the start token, and a separator after each part
_SHORTEST = 2  # tokens of a stretch that can be cut in two
_CUT, _BEGIN, _RELATION = range(3)  # what is drawn by a row's key
_ENDS = tuple(mark.encode() for mark in (".", "!", "?", "\n", "\N{IDEOGRAPHIC FULL STOP}"))
_CLOSING = b" \"')]"


class SentencePairRows(Rows):
    """Stretches of documents, and for each another one: the same each time, of another document where there is one.

    Args:
        corpus: plain text.
        length: places a row, of which three are for special tokens.

    Raises:
        ValueError: some of the text is given, there are fewer than two stretches, or no room for them.
    """

    def __init__(self, corpus: Corpus, length: int):
        self.corpus, self.length, self.room = corpus, length, length - _MARKS
        if self.room <= _SHORTEST:
            least = _MARKS + _SHORTEST + 1
            raise ValueError(f"data.max_length={length} must be at least {least} for two sentences a row")
        if not corpus.learned_only:
            raise ValueError("sentences are paired in plain text, and some of this text is given; leave prompts out")
        sizes = self._sizes(np.arange(corpus.num_documents))
        counts = np.where(sizes < _SHORTEST, 0, -(-sizes // self.room))
        self._bounds = np.concatenate([[0], np.cumsum(counts)])  # the first row of each document
        self._num_short, self._tokens = int((counts == 0).sum()), int(sizes[counts > 0].sum())
        if len(self) < 2:
            raise ValueError(
                f"the text is enough for {len(self)} row of {length} tokens, and two sentences that do not belong "
                "together take two rows; give more text"
            )

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @property
    def fill(self) -> float:
        """The share of places that hold tokens."""
        return (self._tokens + _MARKS * len(self)) / (len(self) * self.length)

    @property
    def left_out(self) -> str:
        """In words, what of the corpus is in no row; "" where all of it is."""
        return f"{self._num_short:,} documents of fewer than two tokens left out" if self._num_short else ""

    def take(self, indices: np.ndarray) -> Batch:
        """The rows of these numbers (int64 [n]), for `join`.

        Returns:
            text, other_text: int32 [n, length - 3], the stretches, padded by zeros.
            sizes, other_sizes: int32 [n], how long they are.
        """
        indices = np.asarray(indices, np.int64)
        text, sizes = self._stretches(indices)
        other_text, other_sizes = self._stretches(self._others(indices))
        return {"text": text, "sizes": sizes, "other_text": other_text, "other_sizes": other_sizes}

    def _stretches(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        documents = self._documents(indices)
        first, size = self._bounds[documents], self._sizes(documents)
        count = self._bounds[documents + 1] - first
        begins, stops = ((indices - first + more) * size // count for more in (0, 1))
        text = self.corpus.windows(self.corpus.document_starts[documents] + 1 + begins, self.room).astype(np.int32)
        sizes = (stops - begins).astype(np.int32)
        return text * (np.arange(self.room) < sizes[:, None]), sizes

    def _others(self, indices: np.ndarray) -> np.ndarray:
        """For each row one that is not of its document, or not itself where all are of one document."""
        documents = self._documents(indices)
        first, stop = self._bounds[documents], self._bounds[documents + 1]
        alone = stop - first == len(self)
        first, stop = np.where(alone, indices, first), np.where(alone, indices + 1, stop)
        number = mix(indices) % (len(self) - stop + first).astype(np.uint64)
        return (stop + number.astype(np.int64)) % len(self)

    def _documents(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._bounds, indices, "right") - 1

    def _sizes(self, documents: np.ndarray) -> np.ndarray:
        """The tokens of documents without their start tokens."""
        return document_stops(self.corpus, documents) - self.corpus.document_starts[documents] - 1


def join(
    rows: Batch, keys: np.ndarray, relation: Relation, start_id: int, separator_id: int, ends: np.ndarray
) -> Batch:
    """Makes examples of `SentencePairRows`: [start] first part [separator] second part [separator].

    A stretch is cut before a sentence, where it has one, else anywhere. In half of the rows, by their keys, the second
    part is of the other stretch, "next" (BERT, Devlin et al. 2018), or the two change places, "order" (ALBERT, Lan et
    al. 2019). Lengths tell nothing: what could stand in a place has the same length.

    Args:
        rows: arrays as `SentencePairRows.take` gives them.
        keys: uint64 [n].
        relation: what is learned.
        start_id: of the row.
        separator_id: after each part.
        ends: bool [vocabulary], the tokens that end a sentence, as `sentence_ends` finds them.

    Returns:
        tokens, segments (1, and 0 for padding), positions, types (0, and 1 for the second part): int32 [n, length].
        labels: int32 [n], 1 where the second part is another's, or stood first; 0 where it follows.
    """
    text, sizes = rows["text"], rows["sizes"].astype(np.int64)
    other = (rows["other_text"], rows["other_sizes"].astype(np.int64)) if relation == "next" else (text, sizes)
    cut, begin = _cuts((text, sizes), other, keys, ends)
    labels = (mix(keys, _RELATION) & np.uint64(1)).astype(np.int32)
    if relation == "next":
        first_begins, first_sizes = np.zeros_like(cut), cut
        second_begins = np.where(labels, text.shape[1] + begin, cut)
    else:
        first_begins, first_sizes = np.where(labels, cut, 0), np.where(labels, sizes - cut, cut)
        second_begins = np.where(labels, 0, cut)

    place = np.arange(text.shape[1] + _MARKS)
    middle, end = first_sizes[:, None] + 1, sizes[:, None] + 2  # where the separators stand
    is_second, inside = place > middle, place <= end
    source = np.concatenate([text, other[0]], axis=1)
    at = np.where(is_second, second_begins[:, None] + place - middle - 1, first_begins[:, None] + place - 1)
    tokens = np.take_along_axis(source, np.clip(at, 0, source.shape[1] - 1), axis=1)
    tokens[:, 0] = start_id
    tokens[(place == middle) | (place == end)] = separator_id
    return {
        "tokens": tokens * inside,
        "segments": inside.astype(np.int32),
        "positions": (place * inside).astype(np.int32),
        "types": (is_second & inside).astype(np.int32),
        "labels": labels,
    }


def sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """Which tokens end a sentence, bool [vocabulary]: those that end with a full stop or its like, or a line feed."""
    texts = (tokenizer.token_bytes(token).rstrip(_CLOSING) for token in range(tokenizer.vocab_size))
    return np.array([text.endswith(_ENDS) for text in texts])


def _cuts(
    own: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], keys: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the second part begins, in a row's own stretch and in the other one, so that both parts are as long."""
    (text, sizes), (other_text, other_sizes) = own, other
    place = np.arange(text.shape[1])
    opens, other_opens = _opens(text, sizes, ends), _opens(other_text, other_sizes, ends)
    # Of the other, there are at most so many tokens from the begin of a sentence on.
    most = np.where(other_opens.any(1), other_sizes - other_opens.argmax(1), 0)
    natural = opens & (sizes[:, None] - place <= most[:, None])
    is_natural = natural.any(1, keepdims=True)
    anywhere = (place >= np.maximum(sizes - other_sizes, 1)[:, None]) & (place < sizes[:, None])
    cut = _drawn(np.where(is_natural, natural, anywhere), keys, _CUT)
    enough = place <= (other_sizes - sizes + cut)[:, None]
    return cut, _drawn(np.where(is_natural, other_opens & enough, enough), keys, _BEGIN)


def _opens(text: np.ndarray, sizes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Where sentences begin after others, bool [n, room]; where several tokens end one, after the last of them."""
    is_end = ends[text]
    return np.pad(is_end[:, :-1], ((0, 0), (1, 0))) & ~is_end & (np.arange(text.shape[1]) < sizes[:, None])


def _drawn(allowed: np.ndarray, keys: np.ndarray, purpose: int) -> np.ndarray:
    """One of the allowed places of each row, int64 [n]."""
    rank = mix(keys[:, None], purpose, np.arange(allowed.shape[1])) | np.uint64(1)
    return np.where(allowed, rank, np.uint64(0)).argmax(1)
