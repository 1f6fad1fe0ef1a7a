"""Tokens on disk: a corpus is tokenized once into memory-mapped shards, and read from there ever after.

A corpus is one stream of tokens. Each document stands in it as its start token and then its own tokens; end tokens
are not stored, since packing knows where documents end. Beside the tokens stand, for each document, where it starts,
and the UTF-8 bytes and whitespace-separated words of its text, which evaluation reports by.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.cache import cache_folder, digest_of, written_atomically
from data.sources import Block, Source
from data.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""Called with the stored bytes done and the stored bytes in all."""

FORMAT = "jumok corpus 1"
_SHARD_TOKENS = 1 << 27
_BATCH = 1 << 21  # characters that are encoded together: enough for every core, little enough for a moving bar
_DOCUMENT_ARRAYS = ("starts", "bytes", "words")


class Corpus:
    """A tokenized corpus, memory-mapped.

    `document_starts`, `document_bytes` and `document_words` are int64 arrays with an element a document: where in the
    stream its start token stands, its UTF-8 bytes, and its words.

    Raises:
        ValueError: the folder holds no corpus, or its files are not of the recorded sizes.
    """

    def __init__(self, folder: Path):
        try:
            index = json.loads((folder / "index.json").read_text())
            if index["format"] != FORMAT:
                raise ValueError(f"format {index['format']!r}")
            dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[index["dtype"]])
            self.digest: str = index["digest"]
            sizes = [shard["tokens"] for shard in index["shards"]]
            self._shards = [_mapped(folder / shard["file"], dtype, shard["tokens"]) for shard in index["shards"]]
            columns = {
                name: _mapped(folder / f"{name}.bin", np.dtype("<i8"), index["documents"]) for name in _DOCUMENT_ARRAYS
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder} is not a whole corpus of this program ({error}); delete that folder, and it is made anew"
            ) from error
        self.document_starts, self.document_bytes, self.document_words = (columns[name] for name in _DOCUMENT_ARRAYS)
        self._bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.num_tokens = int(self._bounds[-1])
        self.num_documents = len(self.document_starts)
        self.num_bytes: int = index["bytes"]
        self.num_words: int = index["words"]

    def slice(self, start: int, stop: int) -> np.ndarray:
        """The stream's tokens from `start` up to `stop`, as stored (unsigned)."""
        first = int(np.searchsorted(self._bounds, start, "right")) - 1
        if stop <= self._bounds[first + 1]:
            offset = self._bounds[first]
            return self._shards[first][start - offset : stop - offset]
        pieces = []
        for shard, low, high in zip(self._shards, self._bounds[:-1], self._bounds[1:], strict=True):
            if low < stop and high > start:
                pieces.append(shard[max(start - low, 0) : min(stop, high) - low])
        return np.concatenate(pieces)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` tokens from each start (int64 [n]) on: [n, length], zero beyond the stream's end."""
        result = np.zeros((len(starts), length), self._shards[0].dtype)
        inside = np.zeros(len(starts), bool)
        for shard, low in zip(self._shards, self._bounds, strict=False):
            rows = np.flatnonzero((starts >= low) & (starts + length <= low + len(shard)))
            if rows.size:  # one copy in C for all the rows that lie in one shard
                result[rows] = np.lib.stride_tricks.sliding_window_view(shard, length)[starts[rows] - low]
                inside[rows] = True
        for row in np.flatnonzero(~inside):
            tokens = self.slice(int(starts[row]), min(int(starts[row]) + length, self.num_tokens))
            result[row, : len(tokens)] = tokens
        return result

    def document(self, number: int) -> np.ndarray:
        """A document's tokens, its start token first."""
        following = number + 1
        stop = self.document_starts[following] if following < self.num_documents else self.num_tokens
        return self.slice(int(self.document_starts[number]), int(stop))


def prepare_corpus(source: Source, tokenizer: Tokenizer, progress: Progress | None = None) -> Corpus:
    """The source's documents as tokens: from the cache, or tokenized into it.

    Raises:
        ValueError: whatever is wrong with a file, text that the tokenizer can't encode, or no text at all.
    """
    digest = digest_of(FORMAT, source.digest, tokenizer.digest)
    folder = cache_folder("corpora") / digest
    if not folder.exists():
        with written_atomically(folder) as temporary:
            temporary.mkdir()
            _write(temporary, source, tokenizer, digest, progress)
    return Corpus(folder)


def _mapped(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    size = path.stat().st_size
    if size != length * dtype.itemsize:
        raise ValueError(f"{path.name} has {size} bytes instead of {length * dtype.itemsize}")
    return np.memmap(path, dtype, "r", shape=(length,)).view(np.ndarray)


@dataclass
class _Piece:
    """Text that is encoded in one go: a block, or a document where the tokenizer needs it whole."""

    text: str
    opens: bool
    words: int
    read: int


def _write(folder: Path, source: Source, tokenizer: Tokenizer, digest: str, progress: Progress | None) -> None:
    total, dtype = source.stored_bytes, np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    writer = _ShardWriter(folder, dtype)
    starts, sizes, words = [], [], []
    for batch in _batches(_pieces(source.blocks(), tokenizer.cuts)):
        for piece, tokens in zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True):
            if piece.opens:
                starts.append(writer.position)
                sizes.append(0)
                words.append(0)
                writer.write(np.array([tokenizer.start_id], dtype))
            writer.write(tokens.astype(dtype))
            sizes[-1] += len(piece.text.encode())
            words[-1] += piece.words
        if progress:
            progress(batch[-1].read, total)
    writer.close()
    if not starts:
        raise ValueError(f"{source} holds no text; give a file with some")
    for name, values in zip(_DOCUMENT_ARRAYS, (starts, sizes, words), strict=True):
        np.array(values, "<i8").tofile(folder / f"{name}.bin")
    index = {
        "format": FORMAT,
        "digest": digest,
        "tokenizer": tokenizer.digest,
        "source": str(source),
        "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
        "tokens": writer.position,
        "documents": len(starts),
        "bytes": sum(sizes),
        "words": sum(words),
        "shards": writer.shards,
    }
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")


def _pieces(blocks: Iterator[Block], cuts: bool) -> Iterator[_Piece]:
    """The blocks that hold text, joined to documents unless the tokenizer cuts; documents without text are left out."""
    waiting: list[str] = []
    opens, in_word = True, False
    for text, last, read in blocks:
        waiting.append(text)
        if last or cuts:
            text = "".join(waiting)
            waiting = []
            if text:
                straddles = in_word and not text[0].isspace()  # a word that the block before began
                yield _Piece(text, opens, len(text.split()) - straddles, read)
                opens, in_word = False, not text[-1].isspace()
        if last:
            opens, in_word = True, False


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    held = 0
    for piece in pieces:
        batch.append(piece)
        held += len(piece.text)
        if held >= _BATCH:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


class _ShardWriter:
    """Appends tokens to files of about `_SHARD_TOKENS` tokens."""

    def __init__(self, folder: Path, dtype: np.dtype):
        self.position = 0
        self.shards: list[dict[str, str | int]] = []
        self._folder, self._dtype = folder, dtype
        self._file: BinaryIO | None = None
        self._opened_at = 0

    def write(self, tokens: np.ndarray) -> None:
        if self._file is None:
            self._opened_at = self.position
            self._file = (self._folder / f"tokens-{len(self.shards):05d}.bin").open("wb")
        self._file.write(tokens.tobytes())
        self.position += len(tokens)
        if self.position - self._opened_at >= _SHARD_TOKENS:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            name = f"tokens-{len(self.shards):05d}.bin"
            self.shards.append({"file": name, "tokens": self.position - self._opened_at})
