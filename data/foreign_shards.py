"""Ready shards of other programs, read where they lie: their tokens are mapped, never copied.

Several files (data/foreign_files.py) are one stream, in the order of their names. Its documents are found by the tokens
that stand between them, here called marks: the tokenizer's start and end token. A document begins with the run of
marks before its text, and all of the run is given: so the end token that others store behind a document opens the one
after it, documents without text vanish, and marks at the stream's end are left off. With an .idx, documents begin
where it says, or with the marks that touch that place, and marks elsewhere are text. A document without marks, as a
stream's first one often is, has its first token given in place of a start token. Where only end tokens are used, they
are read as start tokens, since those are what documents begin with here.
"""

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.cache import cache_folder, cache_path, digest_of, written_atomically
from data.files import file_digest
from data.foreign_files import ForeignFile, find_foreign
from data.progress import Progress
from data.shards import Corpus, Shard, column
from data.tokenizers.base import Tokenizer

_FORMAT = "jumok foreign documents 1"
_CHUNK = 1 << 22  # tokens that are searched together


class ForeignCorpus(Corpus):
    """Ready shards, or a stretch of them, as a corpus. `open_foreign` makes it."""

    text_is_counted = False

    def __init__(self, searched: "_Searched", tokenizer: Tokenizer, begin: int, end: int):
        first, last = np.searchsorted(searched.starts, [begin, end])
        starts, given = searched.starts[first:last], searched.given[first:last]
        if begin:
            starts = starts - begin
        if not len(starts) or starts[0]:  # it begins within a document
            starts, given = np.insert(starts, 0, 0), np.insert(given, 0, 1)
        digest = digest_of(_FORMAT, searched.identity, tokenizer.digest, begin, end)
        super().__init__(digest, searched.shards, starts, given, begin, end, tokenizer.vocab_size)
        self._searched, self._begin, self._tokenizer = searched, begin, tokenizer
        self.num_scored = self.num_tokens - int(given.sum())
        self._counted = np.zeros((len(starts), 2), np.int64)  # 0 where it has not been counted yet

    def slice(self, start: int, stop: int) -> np.ndarray:
        """The stream's tokens from `start` up to `stop` (unsigned)."""
        return self._opened(super().slice(start, stop))

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` tokens from each start (int64 [n]) on: [n, length], zero beyond the stream's end."""
        return self._opened(super().windows(starts, length))

    def split(self) -> tuple["ForeignCorpus", "ForeignCorpus"]:
        """Holds out the last tenth: from the first document on that begins in it, or else from within a document.

        Raises:
            ValueError: too little to hold anything out.
        """
        place = self.num_tokens * 9 // 10
        following = self.document_starts[np.searchsorted(self.document_starts, place) :]
        place = self._begin + int(following[0] if len(following) else place)
        end = self._begin + self.num_tokens
        if not self._begin < place < end:
            raise ValueError(
                f"{self._searched.path} is too small to hold out a tenth of it for validation; give more, "
                f"or pass --data.valid-path FILE"
            )
        parts = [
            ForeignCorpus(self._searched, self._tokenizer, *bounds) for bounds in ((self._begin, place), (place, end))
        ]
        return parts[0], parts[1]

    @cached_property
    def longest(self) -> int:
        """The tokens of the longest document."""
        longest = 0
        for first in range(0, self.num_documents, _CHUNK):
            starts = self.document_starts[first : first + _CHUNK + 1]
            end = [] if len(starts) > _CHUNK else [self.num_tokens]
            longest = max(longest, int(np.diff(starts, append=end).max()))
        return longest

    @cached_property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all learned text, counted by decoding it."""
        return int(self.document_bytes[:].sum())

    @cached_property
    def num_words(self) -> int:
        """Whitespace-separated words of all learned text, counted by decoding it."""
        return int(self.document_words[:].sum())

    @property
    def document_bytes(self) -> "_Counted":
        """UTF-8 bytes of the documents' learned text, counted by decoding those that are asked for."""
        return _Counted(self, 0)

    @property
    def document_words(self) -> "_Counted":
        """Whitespace-separated words of the documents' learned text, likewise."""
        return _Counted(self, 1)

    def _opened(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens, where end tokens open the documents as start tokens."""
        if not self._searched.ends_open:
            return tokens
        start, end = tokens.dtype.type(self._tokenizer.start_id), self._tokenizer.end_id
        return np.where(tokens == end, start, tokens)

    def count(self, documents: range) -> np.ndarray:
        """Bytes and words of the learned text of some documents: int64 [n, 2]."""
        for number in documents:
            if not self._counted[number, 0]:
                text = self._tokenizer.decode(self.document(number)[self.document_given[number] :])
                self._counted[number] = len(text.encode()), len(text.split())
        return self._counted[documents]


class _Counted:
    """A column that is counted when it is asked for."""

    def __init__(self, corpus: ForeignCorpus, which: int):
        self._corpus, self._which = corpus, which

    def __len__(self) -> int:
        return self._corpus.num_documents

    def __getitem__(self, documents: slice, /) -> np.ndarray:
        return self._corpus.count(range(len(self))[documents])[:, self._which]


def open_foreign(path: str, tokenizer: Tokenizer, progress: Progress | None = None) -> ForeignCorpus:
    """The ready shards at `path` as a corpus. Where its documents begin is searched once, and kept in the cache.

    Args:
        path: local: a file, a folder, a glob, or the name that an .idx and a .bin share.
        tokenizer: whose ids the tokens are.
        progress: called now and then, while documents are searched, with the tokens searched and those in all.

    Raises:
        ValueError: files that are no such shards, or not whole ones, or ids that the tokenizer has not.
    """
    files = find_foreign(path)
    digests = [[file_digest(str(shard.path)), index and file_digest(index.path)] for shard, index in files]
    marks = sorted({tokenizer.start_id, tokenizer.end_id})
    name = digest_of(_FORMAT, digests, marks)
    folder = cache_path("foreign") / name
    if not folder.exists():
        with written_atomically(cache_folder("foreign") / name) as temporary:
            temporary.mkdir()
            _search(temporary, files, marks, progress)
    try:
        index = json.loads((folder / "index.json").read_text())
        starts, given = (column(folder / f"{name}.bin", index["documents"]) for name in ("starts", "given"))
        stop, largest, present = index["tokens"], index["largest"], index["marks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} does not say where documents begin ({error}); delete that folder, and it is made anew"
        ) from error
    for file, token in zip(files, largest, strict=True):
        if token >= tokenizer.vocab_size:
            shown = token if token < 1 << 31 else token - (1 << 32)
            raise ValueError(
                f"{file.shard.path} holds the id {shown}, and the {tokenizer.kind} tokenizer has the ids 0 to "
                f"{tokenizer.vocab_size - 1}; name the tokenizer that made the file with --data.tokenizer"
            )
    names = [os.path.relpath(file.shard.path, files[0].shard.path.parent) for file in files]
    ends_open = tokenizer.start_id != tokenizer.end_id and present == [tokenizer.end_id]
    searched = _Searched(path, [names, digests], [file.shard for file in files], starts, given, ends_open)
    return ForeignCorpus(searched, tokenizer, 0, stop)


class _Searched(NamedTuple):
    """Files, and where the documents in all of them begin. `ends_open`: end tokens open them, as if start tokens."""

    path: str
    identity: Any
    shards: Sequence[Shard]
    starts: np.ndarray
    given: np.ndarray
    ends_open: bool


def _search(folder: Path, files: Sequence[ForeignFile], marks: list[int], progress: Progress | None) -> None:
    """Writes into a folder where the documents of files begin, what is given of each, and what ids there are.

    Raises:
        ValueError: there is no text.
    """
    none = np.zeros(0, np.int64)
    stream = Corpus("", [file.shard for file in files], none, none)
    total = stop = stream.num_tokens
    bounds = np.cumsum([0, *(file.shard.tokens for file in files)])
    places = _indexed_places(folder / "places.bin", files, bounds) if files[0].index else None
    largest, present, documents = np.zeros(len(files), np.int64), set(), 0
    with (folder / "starts.bin").open("wb") as starts, (folder / "given.bin").open("wb") as given:
        begin, size = 0, _CHUNK
        while begin < total:
            end = min(begin + size, total)
            tokens = stream.slice(begin, end)
            within = slice(np.searchsorted(bounds, begin, "right") - 1, np.searchsorted(bounds, end))  # these files
            by_file = np.maximum.reduceat(tokens, np.maximum(bounds[within] - begin, 0))
            largest[within] = np.maximum(largest[within], by_file)
            marked = np.isin(tokens, marks)
            present.update(np.unique(tokens[marked]).tolist())
            runs = begin + np.flatnonzero(np.diff(marked, prepend=False, append=False)).reshape(-1, 2)
            settled = end
            if marked[-1]:  # a run that may go on
                settled, runs = int(runs[-1, 0]), runs[:-1]
                if end == total:
                    stop = settled
                elif settled == begin:
                    size *= 2
                    continue
            if places is not None:
                opened = places[slice(*np.searchsorted(places, [begin, settled]))]
            else:
                opened = runs[:, 0]
                if begin == 0 < settled and not marked[0]:
                    opened = np.insert(opened, 0, 0)
            rows = _documents(opened, runs)
            starts.write(np.ascontiguousarray(rows[:, 0]).data)
            given.write(np.ascontiguousarray(rows[:, 1]).data)
            documents += len(rows)
            begin, size = settled if end < total else total, _CHUNK
            if progress:
                progress(begin, total)
    if not documents:
        raise ValueError(f"{files[0].shard.path} holds no text, only marks of documents; give files with some")
    if places is not None:
        (folder / "places.bin").unlink()
    index = {"documents": documents, "tokens": stop, "largest": largest.tolist(), "marks": sorted(present)}
    (folder / "index.json").write_text(json.dumps(index) + "\n")


def _documents(places: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Where documents begin that are said to begin at `places`, and what is given of each: int64 [n, 2].

    `runs` [m, 2] are the beginnings and ends of the runs of marks.
    """
    runs = np.concatenate([[[-2, -2]], runs])  # so that there is one before every place
    nearest = runs[np.searchsorted(runs[:, 0], places, "right") - 1]
    touches = places <= nearest[:, 1]
    starts = np.where(touches, nearest[:, 0], places)
    given = np.where(touches, nearest[:, 1] - nearest[:, 0], 1)
    once = np.diff(starts, prepend=-1) > 0  # a run that several places touch opens one document
    return np.stack([starts, given], axis=1)[once]


def _indexed_places(path: Path, files: Sequence[ForeignFile], bounds: np.ndarray) -> np.ndarray:
    """The places where documents begin by the files' indices, int64 [n], kept in a file for as long as is searched."""
    with path.open("wb") as file:
        for (_, index), bound in zip(files, bounds, strict=False):
            assert index
            for places in index.document_starts():
                file.write(np.ascontiguousarray(places + bound, "<i8").data)
    return np.memmap(path, "<i8", "r")
