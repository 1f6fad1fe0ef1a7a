"""Tokens on disk, read: one stream of tokens in memory-mapped shards, and where its documents are.

A corpus is one stream of tokens. Each document stands in it as its start token, the tokens that are given (a prompt's)
and the tokens that are learned; end tokens are not stored, since packing knows where documents end. data/prepare.py
writes such corpora; data/foreign_shards.py reads those of other programs.
"""

import json
import mmap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

FORMAT = "jumok corpus 2"
DOCUMENT_COLUMNS = ("starts", "given", "bytes", "words")

# Python keeps a file open for as long as it is mapped, and a process may usually open 1,024. A corpus that
# data/plan.py divides has about _PIECES shards, which are fewer, so that all of them stay mapped.
_MAPPED_SHARDS = 512


class Shard(NamedTuple):
    """A file that holds `tokens` tokens of `dtype` behind `skipped` bytes of other things."""

    path: Path
    dtype: str
    tokens: int
    skipped: int = 0


class Column(Protocol):
    """A number for each document, read in slices."""

    def __len__(self) -> int:
        """How many documents there are."""
        ...

    def __getitem__(self, key: slice, /) -> np.ndarray:
        """The numbers of some documents, int64."""
        ...


class Corpus:
    """A stream of tokens, cut into documents.

    Args:
        digest: changes with the text and the tokenizer.
        shards: which hold the stream, one after another.
        starts: where in the stream each document's first token stands, int64 [n].
        given: how many of each document's tokens are given, its start token among them, int64 [n].
        begin, end: which tokens of the shards are the stream; all of them by default.
        ids: how many the tokenizer has; None where that is not known.

    Attributes:
        document_starts, document_given: the same.
        document_bytes, document_words: UTF-8 bytes and whitespace-separated words of each document's learned text.
        num_tokens, num_documents, num_bytes, num_words: their number in all.
        num_scored: how many tokens are learned, end tokens not counted.
        longest: the tokens of the longest document.
        labels: the number of each document's class, int32 [n], where texts are labelled.
        empty, refused: how many documents were left out because they had no text, or could not be read.
        refusals: the first few sentences that say why they could not.
    """

    text_is_counted = True
    document_bytes: Column
    document_words: Column
    num_bytes: int
    num_words: int
    num_scored: int
    longest: int
    labels: np.ndarray | None = None
    empty: int = 0
    refused: int = 0
    refusals: Sequence[str] = ()
    _remedy = "make its files anew"

    def __init__(
        self,
        digest: str,
        shards: Sequence[Shard],
        starts: np.ndarray,
        given: np.ndarray,
        begin: int = 0,
        end: int | None = None,
        ids: int | None = None,
    ):
        self.digest, self.document_starts, self.document_given = digest, starts, given
        self._shards = tuple(shards)
        sizes = [shard.tokens for shard in shards]
        self._bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.num_tokens = int(self._bounds[-1] if end is None else end) - begin
        self._bounds -= begin
        self.num_documents = len(starts)
        self._ids = ids
        self._dtype = np.result_type(*{shard.dtype for shard in shards})

    @property
    def learned_only(self) -> bool:
        """Whether nothing but start tokens is given, as in plain text."""
        return self.num_scored == self.num_tokens - self.num_documents

    def slice(self, start: int, stop: int) -> np.ndarray:
        """The stream's tokens from `start` up to `stop`, as stored (unsigned).

        Raises:
            ValueError: they are damaged: an id is among them that the tokenizer has not.
        """
        return self._checked(self._slice(start, stop))

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` tokens from each start (int64 [n]) on: [n, length], zero beyond the stream's end.

        Raises:
            ValueError: as `slice`.
        """
        return self._checked(self._windows(starts, length))

    def document(self, number: int) -> np.ndarray:
        """A document's tokens, its start token first."""
        following = number + 1
        stop = self.document_starts[following] if following < self.num_documents else self.num_tokens
        return self.slice(int(self.document_starts[number]), int(stop))

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens as they are, which a device would not refuse: it would take another row of a table, or none."""
        if self._ids is not None and tokens.size and (largest := int(tokens.max())) >= self._ids:
            folder = self._shards[0].path.parent
            raise ValueError(
                f"{folder} is damaged: it holds the id {largest}, and its tokenizer has the ids 0 to {self._ids - 1}; "
                f"{self._remedy}"
            )
        return tokens

    def _slice(self, start: int, stop: int) -> np.ndarray:
        number = int(np.searchsorted(self._bounds, start, "right")) - 1
        result, done = np.empty(stop - start, self._dtype), 0
        while start < stop:
            low, high = self._bounds[number : number + 2].tolist()
            tokens = _mapped(self._shards[number])[start - low : min(stop, high) - low]
            if len(tokens) == len(result):
                return tokens
            result[done : done + len(tokens)] = tokens
            start, done, number = high, done + len(tokens), number + 1
        return result

    def _windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        numbers = np.searchsorted(self._bounds, starts, "right") - 1
        offsets = starts - self._bounds[numbers]
        inside = starts + length <= np.minimum(self._bounds[numbers + 1], self.num_tokens)
        if len(starts) and inside.all() and (numbers == numbers[0]).all():  # one copy in C for all of them
            shard = _mapped(self._shards[numbers[0]])
            return np.lib.stride_tricks.sliding_window_view(shard, length)[offsets]
        result = np.zeros((len(starts), length), self._dtype)
        for row, number, offset in zip(
            np.flatnonzero(inside), numbers[inside].tolist(), offsets[inside].tolist(), strict=True
        ):
            result[row] = _mapped(self._shards[number])[offset : offset + length]
        for row in np.flatnonzero(~inside):
            tokens = self._slice(int(starts[row]), min(int(starts[row]) + length, self.num_tokens))
            result[row, : len(tokens)] = tokens
        return result


class PreparedCorpus(Corpus):
    """A corpus that data/prepare.py wrote.

    Raises:
        ValueError: the folder holds no corpus, or its files are not of the recorded sizes.
    """

    _remedy = "delete that folder, and it is made anew"

    def __init__(self, folder: Path):
        try:
            index = json.loads((folder / "index.json").read_text())
            if index["format"] != FORMAT:
                raise ValueError(f"format {index['format']!r}")
            dtype = {"uint16": "<u2", "uint32": "<u4"}[index["dtype"]]
            shards = [Shard(folder / shard["file"], dtype, shard["tokens"]) for shard in index["shards"]]
            for shard in shards:
                check_size(shard.path, shard.tokens * np.dtype(dtype).itemsize)
            self.longest, self.empty, self.refused = index["longest"], index["empty"], index["refused"]
            self.num_bytes, self.num_words = index["bytes"], index["words"]
            self.num_scored, self.refusals = index["tokens"] - index["given"], tuple(index["refusals"])
            columns = {name: column(folder / f"{name}.bin", index["documents"]) for name in index["columns"]}
            given = columns.get("given", np.broadcast_to(np.int64(1), index["documents"]))
            # Corpora of earlier versions do not say how many ids their tokenizer has.
            super().__init__(index["digest"], shards, columns["starts"], given, ids=index.get("ids"))
            self.document_bytes, self.document_words = columns["bytes"], columns["words"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} is not a whole corpus of this program ({error}); {self._remedy}") from error


def check_size(path: Path, size: int) -> None:
    """Refuses a file that has not `size` bytes.

    Raises:
        ValueError: with both sizes.
        OSError: there is no such file.
    """
    if (found := path.stat().st_size) != size:
        raise ValueError(f"{path.name} has {found} bytes instead of {size}")


def column(path: Path, length: int) -> np.ndarray:
    """A file of int64, memory-mapped.

    Raises:
        ValueError: it has not `length` of them.
        OSError: there is no such file.
    """
    check_size(path, length * 8)
    return np.memmap(path, "<i8", "r", shape=(length,)).view(np.ndarray)


@lru_cache(_MAPPED_SHARDS)
def _mapped(shard: Shard) -> np.ndarray:
    with shard.path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    return np.frombuffer(content, shard.dtype, shard.tokens, shard.skipped)
