"""Whole documents to rows of one length, by first fit: pairs and instructions stay in one piece.

A document of n stored tokens takes n places: its tokens, and as targets the ones after them, the last one's the end
token. Of each 4,096 consecutive documents, every one goes, in order, into the first row that still has room for it;
then rows are begun anew, so that planning takes bounded memory, and time in proportion to the documents. The plan is
made once and memory-mapped from the cache. (First fit is within 1.7 of the best, Dósa and Sgall 2013; of many short
documents it leaves almost nothing empty.)
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from data.cache import cache_folder, cache_path, digest_of, written_atomically
from data.packing import Packing, Runs, describe, document_stops, ranges
from data.shards import Corpus, column

TooLong = Literal["refuse", "drop", "cut", "split"]

WINDOW = 4096
_FORMAT = "jumok rows 1"
_PLANNED = 64 * WINDOW  # documents that are planned at a time
_COLUMNS = ("documents", "offsets", "bounds")
_CHUNK = 64  # tokens that are copied at a time


class Places(NamedTuple):
    """A kind of places in a row: how many, the configuration's field that says so, and what stands in them."""

    number: int
    field: str
    name: str

    def __str__(self) -> str:
        return f"{self.number:,} {self.name}"


class Held(NamedTuple):
    """What some rows hold: pieces of documents, one row's after the other's.

    Attributes:
        counts: how many pieces each row has, int64 [rows].
        documents: of each piece, the number of the document, int64 [pieces].
        offsets: how far into the document it begins, int64 [pieces].
    """

    counts: np.ndarray
    documents: np.ndarray
    offsets: np.ndarray

    def runs(self, starts: np.ndarray, stops: np.ndarray, length: int) -> Runs:
        """A stretch of the stream for each piece, side by side in rows of `length` places."""
        before = np.cumsum(stops - starts) - (stops - starts)
        row_begins = np.arange(len(self.counts)) * length - before[np.cumsum(self.counts) - self.counts]
        return Runs(before + np.repeat(row_begins, self.counts), self.documents, starts, stops)


class PlannedRows(ABC):
    """Rows that hold whole documents, by a plan that is made once.

    Args:
        corpus: where the documents are.
        places: what a row has, of each of k kinds.
        too_long: what becomes of documents that take more. "refuse": an error. "drop": they are left out. "cut": what
            goes beyond is cut off, and those of which nothing would be left to learn are left out. "split", where
            there is one kind of places and no given text: they become parts that fill a row alone, and a shorter last
            one.

    Attributes:
        noun: what the documents are called.
        num_dropped: how many are left out.
        num_cut: how many are cut off.

    Raises:
        ValueError: a document is too long where that is refused, or split although some of it is given; no document
            is left; or the plan in the cache is damaged.
    """

    noun = "documents"

    def __init__(self, corpus: Corpus, places: tuple[Places, ...], too_long: TooLong):
        self.corpus, self.places = corpus, places
        self._capacities = np.array([kind.number for kind in places])
        folder = cache_path("rows") / digest_of(_FORMAT, corpus.digest, *self._capacities.tolist(), too_long)
        if not folder.exists():  # what is there is only read, and the cache may be read-only
            self._refuse(too_long)
            with written_atomically(cache_folder("rows") / folder.name) as temporary:
                temporary.mkdir()
                self._plan(temporary, too_long)
        try:
            index = json.loads((folder / "index.json").read_text())
            self.num_dropped: int = index["dropped"]
            self.num_cut: int = index["cut"]
            self._tokens: int = index["tokens"]
            self._documents, self._offsets, self._bounds = (
                column(folder / f"{name}.bin", index[name]) for name in _COLUMNS
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder} is not a whole plan of rows of this program ({error}); delete that folder, and it is made "
                f"anew"
            ) from error

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @property
    def fill(self) -> float:
        """The share of places that hold tokens."""
        return self._tokens / (len(self) * int(self._capacities.sum()))

    @property
    def left_out(self) -> str:
        """In words, what of the corpus is in no row; "" where all of it is."""
        counts = ((self.num_dropped, "left out"), (self.num_cut, "cut off"))
        parts = [f"{count:,} {self.noun} {fate}" for count, fate in counts if count]
        return f"{' and '.join(parts)} at {self._room}" if parts else ""

    def held(self, indices: np.ndarray) -> Held:
        """What the rows of these numbers (int64 [n]) hold."""
        first = self._bounds[indices]
        counts = self._bounds[indices + 1] - first
        pieces = ranges(first, counts)
        return Held(counts, self._documents[pieces], self._offsets[pieces])

    @abstractmethod
    def sizes(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of these documents, the places of each kind that they take, and those that a cut must leave: int64 [n, k]."""

    @property
    def _room(self) -> str:
        return " and ".join(map(str, self.places))

    def _refuse(self, too_long: TooLong) -> None:
        if too_long == "split" and not self.corpus.learned_only:
            raise ValueError(
                "documents with prompts can't be split, since a part would lack its prompt; cut or drop them"
            )
        if too_long != "refuse" or self.corpus.longest <= self._capacities.min():  # no kind takes more than all tokens
            return
        count, longest = 0, np.zeros_like(self._capacities)
        for documents in _chunks(self.corpus):
            sizes, _ = self.sizes(documents)
            count += int(np.count_nonzero((sizes > self._capacities).any(1)))
            longest = np.maximum(longest, sizes.max(0))
        if not count:
            return
        exceeded = [(kind, int(most)) for kind, most in zip(self.places, longest, strict=True) if most > kind.number]
        limits = " or ".join(f"data.{kind.field}={kind.number} {kind.name}" for kind, _ in exceeded)
        larger = " ".join(f"{_option(kind)} {most}" for kind, most in exceeded)
        ways = "drop, cut or split" if self.corpus.learned_only else "drop or cut"
        raise ValueError(
            f"{count:,} of {self.corpus.num_documents:,} {self.noun} have more than {limits}, the longest "
            f"{' and '.join(f'{most:,}' for _, most in exceeded)}; pass {larger}, or --data.too-long {ways}"
        )

    def _plan(self, folder: Path, too_long: TooLong) -> None:
        """Writes what the rows hold: the document and offset of each piece, and the bounds of the rows."""
        pieces = rows = dropped = cut = tokens = 0
        with ExitStack() as files:
            documents_file, offsets_file, bounds_file = (
                files.enter_context((folder / f"{name}.bin").open("wb")) for name in _COLUMNS
            )
            bounds_file.write(np.zeros(1, np.int64).data)
            for documents in _chunks(self.corpus):
                sizes, least = self.sizes(documents)
                whole, rest = _pieces(sizes, least, self._capacities, too_long)
                fitted = first_fit(rest, self._capacities)
                order = np.argsort(fitted, kind="stable")[np.count_nonzero(fitted < 0) :]
                counts = np.concatenate([np.bincount(fitted[order]), np.ones(whole.sum(), np.int64)])
                offsets = np.concatenate([whole[order], ranges(np.zeros_like(whole), whole)]) * self._capacities[0]
                documents_file.write(np.concatenate([documents[order], np.repeat(documents, whole)]).data)
                offsets_file.write(offsets.data)
                bounds_file.write((pieces + np.cumsum(counts)).data)
                pieces, rows = pieces + int(counts.sum()), rows + len(counts)
                left = whole[:, None] * self._capacities + rest
                is_left = left.any(1)
                tokens += int(left.sum())
                dropped += int(np.count_nonzero(~is_left))
                cut += int(np.count_nonzero(is_left & (left < sizes).any(1)))
        if not rows:
            raise ValueError(
                f"none of the {self.corpus.num_documents:,} {self.noun} has room in rows of {self._room}; "
                f"pass a larger {' or '.join(map(_option, self.places))}"
            )
        index = {
            "documents": pieces,
            "offsets": pieces,
            "bounds": rows + 1,
            "tokens": tokens,
            "dropped": dropped,
            "cut": cut,
        }
        (folder / "index.json").write_text(json.dumps(index) + "\n")


class FittedRows(PlannedRows):
    """Rows of whole documents, each of which takes as many places as it has tokens.

    Args:
        corpus: where the documents are.
        length: places a row.
        packing: "isolated" numbers the documents of a row from 1 in `segments`, by which attention keeps them apart,
            and counts positions from a document's start; "contiguous" makes a row one segment.
        end_id: the target after a document's last token.
        too_long: what becomes of documents of more than `length` tokens, as `PlannedRows` has it. What is cut does
            not end, and is left out where nothing but given text would be left. A part of what is split begins with
            the token that was the last target of the part before, so that each token is still a target once.
    """

    def __init__(self, corpus: Corpus, length: int, packing: Packing, end_id: int, too_long: TooLong = "refuse"):
        super().__init__(corpus, (Places(length, "max_length", "tokens"),), too_long)
        self.length, self.end_id = length, end_id
        self.packing: Packing = packing

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers (int64 [n]), as arrays [n, length].

        Returns:
            tokens int32, targets int32, scored bool, segments int32 (0 in places without tokens), positions int32.
        """
        held = self.held(np.asarray(indices, np.int64))
        starts = self.corpus.document_starts[held.documents] + held.offsets
        stops = np.minimum(document_stops(self.corpus, held.documents), starts + self.length)
        runs = held.runs(starts, stops, self.length)
        rows = read(self.corpus, runs, (len(indices), self.length), self.packing)
        return {**rows, "targets": following(self.corpus, runs, rows["tokens"], self.end_id)}

    def sizes(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All of their tokens; a cut must leave the given ones, the last of which predicts the first learned one."""
        sizes = document_stops(self.corpus, documents) - self.corpus.document_starts[documents]
        return sizes[:, None], self.corpus.document_given[documents][:, None]


def read(corpus: Corpus, runs: Runs, shape: tuple[int, int], packing: Packing) -> dict[str, np.ndarray]:
    """Rows of `shape` [n, length] that hold these runs: tokens int32, and what `describe` says of them."""
    described = describe(corpus, runs, shape, packing)
    tokens = np.zeros(shape, np.int32)
    tokens[described["segments"] > 0] = _tokens(corpus, runs)
    return {"tokens": tokens, **described}


def following(corpus: Corpus, runs: Runs, tokens: np.ndarray, end_id: int) -> np.ndarray:
    """The targets of rows of runs, int32 [n, length]: the tokens after theirs, and after a document the end token."""
    targets = np.zeros_like(tokens)
    targets[:, :-1] = tokens[:, 1:]
    closes = runs.closes(corpus)
    targets.reshape(-1)[runs.ends[closes]] = end_id
    targets.reshape(-1)[runs.ends[~closes]] = corpus.windows(runs.stops[~closes], 1)[:, 0]
    return targets


def first_fit(lengths: np.ndarray, capacities: np.ndarray) -> np.ndarray:
    """Puts each example into the first row that has room for it, beginning anew after each `WINDOW` examples.

    Args:
        lengths: int [n, k], what an example takes of each of k kinds of places; zeros for an example that is left out.
        capacities: int [k], what a row has of each; no example takes more.

    Returns:
        The row of each example, int64 [n], numbered in the order in which rows are begun, window by window; -1 for
        those left out.
    """
    examples, kinds = lengths.shape
    windows = -(-examples // WINDOW)
    padded = np.zeros((kinds, windows * WINDOW), np.int32)
    padded[:, :examples] = lengths.T
    padded = padded.reshape(kinds, windows, WINDOW)
    # All windows are fitted side by side, an example of each at a time. None needs more rows than it has examples.
    room = np.broadcast_to(np.asarray(capacities, np.int32)[:, None, None], padded.shape).copy()
    rows = np.empty((windows, WINDOW), np.int64)
    every, begun = np.arange(windows), 0
    for place in range(min(examples, WINDOW)):
        needed = padded[:, :, place]
        first = (room[:, :, : begun + 1] >= needed[:, :, None]).all(0).argmax(1)
        room[:, every, first] -= needed
        rows[:, place] = first
        begun = max(begun, int(first.max()) + 1)
    rows = np.where(padded.any(0), rows, -1)
    used = rows.max(1, initial=-1) + 1
    rows += np.where(rows >= 0, (np.cumsum(used) - used)[:, None], 0)
    return rows.reshape(-1)[:examples]


def _pieces(
    sizes: np.ndarray, least: np.ndarray, capacities: np.ndarray, too_long: TooLong
) -> tuple[np.ndarray, np.ndarray]:
    """Of each document, how many parts fill a row alone, [n], and what is fitted, [n, k]; both 0: it is left out."""
    none = np.zeros(len(sizes), np.int64)
    match too_long:
        case "refuse":
            return none, sizes
        case "drop":
            return none, np.where((sizes > capacities).any(1, keepdims=True), 0, sizes)
        case "cut":
            return none, np.where((least > capacities).any(1, keepdims=True), 0, np.minimum(sizes, capacities))
        case "split":
            whole, rest = np.divmod(sizes, capacities)
            return whole[:, 0], rest


def _option(kind: Places) -> str:
    return f"--data.{kind.field.replace('_', '-')}"


def _chunks(corpus: Corpus) -> Iterator[np.ndarray]:
    """The numbers of the documents, some at a time."""
    for first in range(0, corpus.num_documents, _PLANNED):
        yield np.arange(first, min(first + _PLANNED, corpus.num_documents))


def _tokens(corpus: Corpus, runs: Runs) -> np.ndarray:
    """The tokens of some runs, one after another; copied by equal chunks, since numpy copies those fastest."""
    places = runs.stops - runs.starts
    chunks = -(-places // _CHUNK)
    offsets = ranges(np.zeros_like(chunks), chunks) * _CHUNK
    windows = corpus.windows(np.repeat(runs.starts, chunks) + offsets, _CHUNK)
    return windows[np.arange(_CHUNK) < (np.repeat(places, chunks) - offsets)[:, None]]
