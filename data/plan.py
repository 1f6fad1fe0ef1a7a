"""What is made of a source, piece by piece, and where: shared by all processes that prepare one corpus.

A source is divided into pieces, a pure function of its files, and each piece becomes a shard. While a corpus is made,
its folder is the cache's `corpora/DIGEST-DIVISION.partial`:

    lock-00003              locked by the process that makes shard 3
    corpus/tokens-00003.bin its tokens
    documents-00003.bin     its documents, a row each: start in the shard, tokens given, bytes and words learned
    shard-00003.json        what was made, written last: from now on, shard 3 is there

Every file is written elsewhere, flushed and renamed, and its content depends on nothing but the source and the
tokenizer. So a killed process costs the shards in its hands and nothing else, locks only keep two processes from doing
the same work, and the corpus is the same, byte by byte, whoever made it.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import cache_folder, digest_of, written_atomically
from data.shards import DOCUMENT_COLUMNS, check_size
from data.sources import Source
from data.tokenizers.base import Tokenizer
from data.tokenizers.load import load_tokenizer

# About so many, so that what a kill costs is little, and a corpus has not too many files: fewer than
# data/shards.py's _MAPPED_SHARDS, so that all of its shards stay mapped.
_PIECES = 400
_SMALLEST_PIECE = 1 << 24  # bytes as stored: a second or more of work


@dataclass(frozen=True)
class Plan:
    """What is made, piece by piece. `name` says to people what is read; `sizes` are the pieces' stored bytes."""

    folder: Path
    name: str
    target: Path
    tokenizer: Tokenizer
    pieces: tuple[Source, ...]
    sizes: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Of the stored tokens."""
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")

    @property
    def corpus(self) -> Path:
        """The folder that becomes the target."""
        return self.folder / "corpus"

    def tokens(self, number: int) -> Path:
        """The file of a shard's tokens."""
        return self.corpus / f"tokens-{number:05d}.bin"

    def documents(self, number: int) -> Path:
        """The file of a shard's documents, int64 [n, 4]; a first row that starts at -1 goes on with the one before."""
        return self.folder / f"documents-{number:05d}.bin"

    def record(self, number: int) -> Path:
        """The file that says that a shard is there."""
        return self.folder / f"shard-{number:05d}.json"

    def made(self, number: int) -> dict[str, Any] | None:
        """What a shard holds; None unless it is there, all of it."""
        with suppress(FileNotFoundError, ValueError):
            record = json.loads(self.record(number).read_text())
            check_size(self.tokens(number), record["tokens"] * self.dtype.itemsize)
            check_size(self.documents(number), record["rows"] * len(DOCUMENT_COLUMNS) * 8)
            return record
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values for another process on a host that sees the same files; the tokenizer goes into the folder."""
        if not (self.folder / "tokenizer").exists():
            with written_atomically(self.folder / "tokenizer") as temporary:
                self.tokenizer.save(temporary)
        return {
            "folder": str(self.folder),
            "name": self.name,
            "target": str(self.target),
            "pieces": [piece.to_json() for piece in self.pieces],
            "sizes": self.sizes,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Plan":
        """The plan of another process."""
        folder = Path(value["folder"])
        pieces = tuple(map(Source.from_json, value["pieces"]))
        tokenizer = load_tokenizer(folder / "tokenizer")
        return cls(folder, value["name"], Path(value["target"]), tokenizer, pieces, tuple(value["sizes"]))


def make_plan(target: Path, source: Source, tokenizer: Tokenizer) -> Plan:
    """The plan by which the source's documents become the corpus `target`."""
    pieces = source.divide(max(_SMALLEST_PIECE, source.stored_bytes // _PIECES), tokenizer.cuts)
    # Another version of this program may divide differently: its shards are not mixed with ours.
    division = digest_of([[(part.start, part.stop) for part in piece.parts] for piece in pieces])
    folder = cache_folder("corpora") / f"{target.name}-{division[:8]}.partial"
    sizes = tuple(piece.stored_bytes for piece in pieces)
    return Plan(folder, str(source), target, tokenizer, tuple(pieces), sizes)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process holds the lock; the kernel frees it when the holder ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks: everybody makes what is missing, and it comes out the same
            pass
        yield True
    finally:
        os.close(descriptor)
