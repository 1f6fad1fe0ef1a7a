"""Text with a class: the labels of documents, and rows of one document each.

The text of labelled records becomes tokens like any other (data/prepare.py). Their labels are read in a second pass
over the records, which leaves out the same ones, and are kept in the cache.
"""

import json
from array import array
from typing import NamedTuple

import numpy as np

from data.cache import cache_folder, cache_path, digest_of, written_atomically
from data.classes import no_class, order_classes
from data.fitting import TooLong
from data.packing import document_stops
from data.shards import Corpus, column
from data.sources import Source

_FORMAT = "jumok labels 1"


def find_classes(*sources: Source) -> tuple[str, ...]:
    """The labels of all documents of some sources, each once, in the order in which classes are numbered.

    Raises:
        ValueError: there are fewer than two; or as `read_labels`.
    """
    names = (name for source in sources for name in _found(source).names)
    return order_classes(names, " and ".join(map(str, sources)))


def read_labels(source: Source, classes: tuple[str, ...]) -> np.ndarray:
    """The number of each document's class among `classes`, int32 [documents]: those of the corpus made of the source.

    Raises:
        ValueError: a document's label is none of them, or the source has no labels.
    """
    found = _found(source)
    numbers = {name: number for number, name in enumerate(classes)}
    for name in found.names:
        if name not in numbers:
            place = next(place for label, place in source.labels() if label == name)
            raise ValueError(f"{place} {no_class(name, classes)}")
    return np.array([numbers[name] for name in found.names], np.int32)[found.numbers]


class LabelledRows:
    """Rows of one document each, from its start token to an end token, padded to one length.

    Args:
        corpus: where the documents are.
        labels: the number of each document's class, int32 [documents].
        length: places a row.
        end_id: the token after a document's last one.
        too_long: what becomes of documents with more tokens. "refuse": an error. "drop": they are left out. "cut": what
            goes beyond is cut off before the end token.

    Attributes:
        num_dropped: how many documents are left out.
        num_cut: how many are cut off.

    Raises:
        ValueError: a document is too long where that is refused; no document is left; or there are not as many labels
            as documents.
    """

    def __init__(self, corpus: Corpus, labels: np.ndarray, length: int, end_id: int, too_long: TooLong = "refuse"):
        if len(labels) != corpus.num_documents:
            raise ValueError(
                f"there are {len(labels):,} labels of {corpus.num_documents:,} documents, as when a file changes while "
                f"it is read; run again"
            )
        if too_long == "split":
            raise ValueError('data.too_long="split" is for text without classes; pass refuse, drop or cut')
        self.corpus, self.labels, self.length, self.end_id = corpus, labels, length, end_id
        every = np.arange(corpus.num_documents)
        sizes = self._sizes(every)
        is_long = sizes > length
        num_long = int(np.count_nonzero(is_long))
        if num_long and too_long == "refuse":
            raise ValueError(
                f"{num_long:,} of {corpus.num_documents:,} documents have more than data.max_length={length} tokens, "
                f"the longest {sizes.max():,}; pass --data.max-length {sizes.max()}, or --data.too-long drop or cut"
            )
        self.num_dropped, self.num_cut = (num_long, 0) if too_long == "drop" else (0, num_long)
        self._documents = every[~is_long] if self.num_dropped else every
        if not len(self._documents):
            raise ValueError(
                f"none of the {corpus.num_documents:,} documents has room in rows of {length} tokens; "
                f"pass a larger --data.max-length"
            )
        self._tokens = int(np.minimum(sizes[self._documents], length).sum())

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def fill(self) -> float:
        """The share of places that hold tokens."""
        return self._tokens / (len(self) * self.length)

    @property
    def left_out(self) -> str:
        """In words, what of the corpus is in no row; "" where all of it is."""
        count, fate = (self.num_dropped, "left out") if self.num_dropped else (self.num_cut, "cut off")
        return f"{count:,} documents {fate} at {self.length:,} tokens" if count else ""

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers (int64 [n]).

        Returns:
            tokens, segments (1, and 0 for padding), positions: int32 [n, length]. labels: int32 [n].
        """
        documents = self._documents[indices]
        sizes = np.minimum(self._sizes(documents), self.length)
        tokens = self.corpus.windows(self.corpus.document_starts[documents], self.length).astype(np.int32)
        place = np.arange(self.length, dtype=np.int32)
        inside = place < sizes[:, None]
        tokens *= inside
        tokens[np.arange(len(documents)), sizes - 1] = self.end_id
        return {
            "tokens": tokens,
            "segments": inside.astype(np.int32),
            "positions": place * inside,
            "labels": self.labels[documents],
        }

    def _sizes(self, documents: np.ndarray) -> np.ndarray:
        """The tokens of some documents, their end tokens among them."""
        return document_stops(self.corpus, documents) - self.corpus.document_starts[documents] + 1


class _Labels(NamedTuple):
    """The labels that a source has, and of each document which of them it has, integers [documents]."""

    names: list[str]
    numbers: np.ndarray


def _found(source: Source) -> _Labels:
    """The labels of a source: from the cache, or read into it."""
    folder = cache_path("labels") / digest_of(_FORMAT, source.digest)
    if not folder.exists():  # what is there is only read, and the cache may be read-only
        names, numbers = _read(source)
        with written_atomically(cache_folder("labels") / folder.name) as temporary:
            temporary.mkdir()
            (temporary / "numbers.bin").write_bytes(numbers.astype("<i8").data)
            (temporary / "index.json").write_text(json.dumps({"documents": len(numbers), "names": names}) + "\n")
    try:
        index = json.loads((folder / "index.json").read_text())
        return _Labels(index["names"], column(folder / "numbers.bin", index["documents"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} does not hold the labels of a source ({error}); delete that folder, and it is made anew"
        ) from error


def _read(source: Source) -> _Labels:
    names: dict[str, int] = {}
    numbers = array("i", (names.setdefault(label, len(names)) for label, _ in source.labels()))
    if not names:
        raise ValueError(f"{source} holds no text with a label; give a file with some")
    return _Labels(list(names), np.asarray(numbers))
