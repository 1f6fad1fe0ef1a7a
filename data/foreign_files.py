"""The files of other programs' ready shards: found, checked, and what they say of their documents.

| made by | files | tokens |
|---|---|---|
| nanoGPT | .bin | uint16 from the first byte on |
| llm.c, modded-nanogpt | .bin with a header of 256 int32: magic, version, tokens | by the magic uint16 or uint32 |
| Megatron | .bin, and beside it an .idx with the bounds of its documents | uint16 or int32 |
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.files import found
from data.shards import Shard

_CHUNK = 1 << 20  # entries of an index that are looked at together
_LLM_C = {20240520: (1, "<u2"), 20240801: (7, "<u4")}  # magic: version, tokens
_LLM_C_HEADER = 256 * 4
# How the names of all three say which text is in a file.
_NAMED = re.compile(r"(?P<before>(?:.*[/_-])?)(?P<text>train|val)(?P<rest>[_-][^/]*)?")
_INDEX_MAGIC = b"MMIDIDX\0\0"
_INDEX_HEADER = np.dtype(
    [("magic", "V9"), ("version", "<u8"), ("type", "u1"), ("sequences", "<u8"), ("documents", "<u8")]
)
_INDEX_TYPES = {4: "<u4", 8: "<u2"}  # int32 is read as unsigned: ids below zero are then too large for any tokenizer


class Index:
    """Megatron's .idx: what is where in a .bin. Documents are sequences of tokens, one or several.

    Attributes:
        path: of the file.
        dtype: of the tokens.
        sizes: the tokens of each sequence, int32 [sequences].
        pointers: the byte where each begins, int64 [sequences].
        documents: with which sequence each document begins, int64 [documents], and at last the number of sequences.

    Raises:
        ValueError: it is of no known kind, or not whole.
    """

    def __init__(self, path: str):
        self.path, size = path, os.path.getsize(path)
        if size < _INDEX_HEADER.itemsize:
            raise ValueError(f"{path} has {size} bytes, less than the header of an .idx of Megatron; copy it anew")
        header = np.fromfile(path, _INDEX_HEADER, 1)[0]
        if header["magic"].tobytes() != _INDEX_MAGIC:
            raise ValueError(f"{path} is no .idx of Megatron: it does not begin with {_INDEX_MAGIC[:7].decode()}")
        if header["version"] != 1:
            raise ValueError(f"{path} is of version {header['version']}, and version 1 is read; make it anew")
        if header["type"] not in _INDEX_TYPES:
            raise ValueError(
                f"{path} speaks of tokens of type {header['type']}; types 4 (int32) and 8 (uint16) are read"
            )
        self.dtype = _INDEX_TYPES[header["type"]]
        counts = [int(header["sequences"]), int(header["sequences"]), int(header["documents"])]
        offset, columns = _INDEX_HEADER.itemsize, []
        expected = offset + 4 * counts[0] + 8 * counts[1] + 8 * counts[2]
        if size != expected:
            raise ValueError(f"{path} has {size} bytes, and its header speaks of {expected}; copy it anew")
        for dtype, count in zip(("<i4", "<i8", "<i8"), counts, strict=True):
            if not count:
                raise ValueError(f"{path} speaks of no documents; leave it out")
            columns.append(np.memmap(path, dtype, "r", offset, (count,)))
            offset += count * columns[-1].itemsize
        self.sizes, self.pointers, self.documents = columns

    def check(self, tokens: str) -> int:
        """The number of tokens in the file `tokens`.

        Raises:
            ValueError: the index does not fit the file.
        """
        width, end = np.dtype(self.dtype).itemsize, 0
        for begin in range(0, len(self.sizes), _CHUNK):
            sizes = self.sizes[begin : begin + _CHUNK].astype(np.int64) * width
            ends = end + np.cumsum(sizes)
            if sizes.min() < 0 or not np.array_equal(self.pointers[begin : begin + _CHUNK], ends - sizes):
                raise ValueError(f"{self.path} speaks of sequences that do not lie one behind the other; make it anew")
            end = int(ends[-1])
        before = 0
        for begin in range(0, len(self.documents), _CHUNK):
            sequences = self.documents[begin : begin + _CHUNK]
            if (np.diff(sequences, prepend=before) < 0).any():
                raise ValueError(f"{self.path} speaks of documents that do not lie one behind the other; make it anew")
            before = int(sequences[-1])
        if self.documents[0] != 0 or before != len(self.sizes):
            raise ValueError(f"{self.path} speaks of sequences outside its documents; make it anew")
        if end != (size := os.path.getsize(tokens)):
            raise ValueError(f"{tokens} has {size} bytes, and {self.path} speaks of {end}; copy both anew")
        return end // width

    def document_starts(self) -> Iterator[np.ndarray]:
        """Where documents begin, in tokens, ascending: int64 arrays. Empty ones at the end are left out."""
        for begin in range(0, len(self.documents), _CHUNK):
            sequences = self.documents[begin : begin + _CHUNK]
            sequences = sequences[sequences < len(self.sizes)]
            yield self.pointers[sequences] // np.dtype(self.dtype).itemsize


class ForeignFile(NamedTuple):
    """A file of tokens, and its index where it has one."""

    shard: Shard
    index: Index | None = None


def is_foreign(path: str) -> bool:
    """Whether a path means ready shards: .bin or .idx files, a glob or folder of them, or the name of such a pair.

    A folder does only if it holds nothing else: a stray .bin among text is passed over like an image.
    """
    path = os.path.expanduser(path)
    if path.endswith((".bin", ".idx")) or os.path.isfile(f"{path}.idx"):
        return True
    files = found(path) if os.path.isdir(path) else []
    return bool(files) and all(file.endswith((".bin", ".idx")) for file in files)


def find_foreign(path: str) -> list[ForeignFile]:
    """The files at `path`: one, those of a folder or a glob, or the pair that shares this name. Others are passed over.

    Raises:
        ValueError: there are none, one is not whole or of no known kind, or training and validation text lie together.
    """
    if "://" in path:
        raise ValueError(f"{path} is not local, and ready shards are read where they lie; copy them to this machine")
    path = os.path.expanduser(path)
    listed = [f"{path}.idx"] if os.path.isfile(f"{path}.idx") else found(path)
    stems = sorted({file[:-4] for file in listed if file.endswith((".bin", ".idx"))})
    if not stems:
        raise ValueError(f"{path} holds no ready shards; give .bin files of nanoGPT, llm.c or Megatron")
    _refuse_both_texts(path, stems)
    indexed = [os.path.isfile(f"{stem}.idx") for stem in stems]
    for stem, has_index in zip(stems, indexed, strict=True):
        if not os.path.isfile(f"{stem}.bin"):
            raise ValueError(f"{stem}.idx has no {stem}.bin beside it, which would hold its tokens; copy both")
        if any(indexed) and not has_index:
            raise ValueError(
                f"{stem}.bin has no {stem}.idx beside it, as others there have; copy both, or leave it out"
            )
    return [
        _with_index(stem) if has_index else _plain(f"{stem}.bin")
        for stem, has_index in zip(stems, indexed, strict=True)
    ]


def _refuse_both_texts(path: str, stems: list[str]) -> None:
    """Refuses train.bin with val.bin, and fineweb_train_000001.bin with fineweb_val_000000.bin.

    Raises:
        ValueError: with the names that say which is which.
    """
    texts: dict[str, dict[str, str]] = {}
    for parts in filter(None, map(_NAMED.fullmatch, stems)):
        name = parts["before"] + parts["text"] + ("*" if parts["rest"] else "")
        texts.setdefault(parts["before"], {})[parts["text"]] = f"{name}.bin"
    for both in texts.values():
        if len(both) == 2:
            train, held_out = both["train"], both["val"]
            raise ValueError(
                f"{path} holds training and validation text, {train} and {held_out}; name the one with "
                f'--data.path "{train}" and the other with --data.valid-path "{held_out}"'
            )


def _plain(path: str) -> ForeignFile:
    size = os.path.getsize(path)
    magic, version, tokens = (*np.fromfile(path, "<i4", 3).tolist(), 0, 0, 0)[:3]
    if size >= _LLM_C_HEADER and magic in _LLM_C:
        known, dtype = _LLM_C[magic]
        if version != known:
            raise ValueError(f"{path} is of version {version}, and version {known} is read; make it anew")
        expected = _LLM_C_HEADER + tokens * np.dtype(dtype).itemsize
        if size != expected:
            raise ValueError(f"{path} has {size} bytes, and its header speaks of {expected}; copy it anew")
        return ForeignFile(_filled(Shard(Path(path), dtype, tokens, _LLM_C_HEADER)))
    if size % 2:
        raise ValueError(f"{path} has {size} bytes, an odd number, which are no uint16 tokens; copy it anew")
    return ForeignFile(_filled(Shard(Path(path), "<u2", size // 2)))


def _filled(shard: Shard) -> Shard:
    if not shard.tokens:
        raise ValueError(f"{shard.path} holds no tokens; leave it out")
    return shard


def _with_index(stem: str) -> ForeignFile:
    path, index = f"{stem}.bin", Index(f"{stem}.idx")
    return ForeignFile(_filled(Shard(Path(path), index.dtype, index.check(path))), index)
