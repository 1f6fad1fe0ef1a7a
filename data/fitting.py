"""Whole documents to rows of one length, by first fit: pairs and instructions stay in one piece.

A document of n stored tokens takes n places: its tokens, and as targets the ones after them, the last one's the end
token. Of each 4,096 consecutive documents, every one goes, in order, into the first row that still has room for it;
then rows are begun anew, so that planning takes bounded memory, and time in proportion to the documents. The plan is
made once and memory-mapped from the cache. (First fit is within 1.7 of the best, Dósa and Sgall 2013; of many short
documents it leaves almost nothing empty.)
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

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


class FittedRows:
    """Rows that hold whole documents.

    Args:
        corpus: where the documents are.
        length: places a row.
        packing: "isolated" numbers the documents of a row from 1 in `segments`, by which attention keeps them apart,
            and counts positions from a document's start; "contiguous" makes a row one segment.
        end_id: the target after a document's last token.
        too_long: what becomes of documents of more than `length` tokens. "refuse": an error. "drop": they are left
            out. "cut": what goes beyond is cut off, so that they do not end, and those of which nothing but given
            text would be left are left out. "split": for documents without given text, they become parts of `length`
            tokens, each alone in a row, and a shorter last one; a part begins with the token that was the last
            target of the part before, so that each token is still a target once.

    Attributes:
        num_dropped: how many documents are left out.
        num_cut: how many are cut off.

    Raises:
        ValueError: a document is too long where that is refused, or split although some of it is given; no document
            is left; or the plan in the cache is damaged.
    """

    def __init__(self, corpus: Corpus, length: int, packing: Packing, end_id: int, too_long: TooLong = "refuse"):
        self.corpus, self.length, self.end_id = corpus, length, end_id
        self.packing: Packing = packing
        folder = cache_path("rows") / digest_of(_FORMAT, corpus.digest, length, too_long)
        if not folder.exists():  # what is there is only read, and the cache may be read-only
            _refuse(corpus, length, too_long)
            with written_atomically(cache_folder("rows") / folder.name) as temporary:
                temporary.mkdir()
                _plan(temporary, corpus, length, too_long)
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
        return self._tokens / (len(self) * self.length)

    @property
    def left_out(self) -> str:
        """In words, what of the corpus is in no row; "" where all of it is."""
        counts = ((self.num_dropped, "left out"), (self.num_cut, "cut off"))
        parts = [f"{count:,} documents {fate}" for count, fate in counts if count]
        return " and ".join(parts) + f" at {self.length:,} tokens" if parts else ""

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers (int64 [n]), as arrays [n, length].

        Returns:
            tokens int32, targets int32, scored bool, segments int32 (0 in places without tokens), positions int32.
        """
        shape = len(indices), self.length
        runs = self._runs(np.asarray(indices, np.int64))
        described = describe(self.corpus, runs, shape, self.packing)
        inside = described["segments"] > 0
        tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        tokens[inside] = stretch = _tokens(self.corpus, runs)
        targets[inside] = np.append(stretch[1:], 0)
        closes = runs.closes(self.corpus)
        targets.reshape(-1)[runs.ends[closes]] = self.end_id
        targets.reshape(-1)[runs.ends[~closes]] = self.corpus.windows(runs.stops[~closes], 1)[:, 0]
        return {"tokens": tokens, "targets": targets, **described}

    def _runs(self, indices: np.ndarray) -> Runs:
        first = self._bounds[indices]
        counts = self._bounds[indices + 1] - first
        pieces = ranges(first, counts)
        documents = self._documents[pieces]
        starts = self.corpus.document_starts[documents] + self._offsets[pieces]
        stops = np.minimum(document_stops(self.corpus, documents), starts + self.length)
        before = np.cumsum(stops - starts) - (stops - starts)
        row_begins = np.arange(len(indices)) * self.length - before[np.cumsum(counts) - counts]
        return Runs(before + np.repeat(row_begins, counts), documents, starts, stops)


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


def _plan(folder: Path, corpus: Corpus, length: int, too_long: TooLong) -> None:
    """Writes which pieces of documents the rows hold: the document and offset of each, and the bounds of the rows."""
    pieces = rows = dropped = cut = tokens = 0
    with ExitStack() as files:
        documents_file, offsets_file, bounds_file = (
            files.enter_context((folder / f"{name}.bin").open("wb")) for name in _COLUMNS
        )
        np.zeros(1, np.int64).tofile(bounds_file)
        for documents in _chunks(corpus):
            sizes = document_stops(corpus, documents) - corpus.document_starts[documents]
            whole, rest = _pieces(sizes, corpus.document_given[documents], length, too_long)
            fitted = first_fit(rest[:, None], np.array([length]))
            order = np.argsort(fitted, kind="stable")[np.count_nonzero(rest == 0) :]
            counts = np.concatenate([np.bincount(fitted[order]), np.ones(whole.sum(), np.int64)])
            np.concatenate([documents[order], np.repeat(documents, whole)]).tofile(documents_file)
            np.concatenate([(whole * length)[order], ranges(np.zeros_like(whole), whole) * length]).tofile(offsets_file)
            (pieces + np.cumsum(counts)).tofile(bounds_file)
            pieces, rows = pieces + int(counts.sum()), rows + len(counts)
            left = whole * length + rest
            tokens += int(left.sum())
            dropped += int(np.count_nonzero(left == 0))
            cut += int(np.count_nonzero((left > 0) & (left < sizes)))
    if not rows:
        raise ValueError(
            f"none of the {corpus.num_documents:,} documents has room in rows of {length} tokens; "
            f"pass a larger --data.max-length"
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


def _pieces(sizes: np.ndarray, given: np.ndarray, length: int, too_long: TooLong) -> tuple[np.ndarray, np.ndarray]:
    """Of each document, how many parts fill a row alone, and the tokens of what is fitted; both 0: it is left out."""
    none = np.zeros_like(sizes)
    match too_long:
        case "refuse":
            return none, sizes
        case "drop":
            return none, np.where(sizes > length, 0, sizes)
        case "cut":
            only_given = (sizes > length) & (given > length)
            return none, np.where(only_given, 0, np.minimum(sizes, length))
        case "split":
            return np.divmod(sizes, length)


def _refuse(corpus: Corpus, length: int, too_long: TooLong) -> None:
    if too_long == "split" and not corpus.learned_only:
        raise ValueError("documents with prompts can't be split, since a part would lack its prompt; cut or drop them")
    if too_long == "refuse" and corpus.longest > length:
        long = sum(
            int(np.count_nonzero(document_stops(corpus, documents) - corpus.document_starts[documents] > length))
            for documents in _chunks(corpus)
        )
        ways = "drop, cut or split" if corpus.learned_only else "drop or cut"
        raise ValueError(
            f"{long:,} of {corpus.num_documents:,} documents have more than data.max_length={length} tokens, the "
            f"longest {corpus.longest:,}; pass --data.max-length {corpus.longest}, or --data.too-long {ways}"
        )


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
