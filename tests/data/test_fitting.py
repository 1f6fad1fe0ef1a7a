"""First fit: every document once and whole, in the first row that has room for it, with the right masks."""

import json
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import fitting
from data.cache import cache_folder, digest_of
from data.fitting import FittedRows, first_fit
from data.packing import Packing
from data.shards import Corpus

pytestmark = pytest.mark.core
START, END = 1, 2
Document = tuple[list[int], list[int]]
DTYPES = {"tokens": np.int32, "targets": np.int32, "scored": bool, "segments": np.int32, "positions": np.int32}
_number = count()


class Documents(Corpus):
    """A corpus of documents at hand, each the tokens that are given and those that are learned."""

    def __init__(self, documents: list[Document]):
        self.stored = [[START, *prompt, *response] for prompt, response in documents]
        sizes = np.array(list(map(len, self.stored)))
        self.digest = digest_of(self.stored, next(_number))  # its plan is nobody else's
        self.num_tokens, self.num_documents = int(sizes.sum()), len(documents)
        self.document_starts = np.cumsum(sizes) - sizes
        self.document_given = np.array([1 + len(prompt) for prompt, _ in documents])
        self.num_scored = self.num_tokens - int(self.document_given.sum())
        self.longest = int(sizes.max())
        self._stream = np.concatenate(self.stored).astype(np.uint16)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        padded = np.append(self._stream, np.zeros(length, np.uint16))
        return padded[starts[:, None] + np.arange(length)]


def numbered(sizes: list[tuple[int, int]]) -> list[Document]:
    """Documents of so many given and learned tokens; no token comes twice."""
    tokens = count(10)
    return [([next(tokens) for _ in range(p)], [next(tokens) for _ in range(r)]) for p, r in sizes]


def slow_first_fit(lengths: list[tuple[int, ...]], capacities: tuple[int, ...]) -> list[list[int]]:
    """The examples in each row, as one would do it by hand."""
    rooms: list[list[int]] = []
    rows: list[list[int]] = []
    for example, needed in enumerate(lengths):
        fits = (row for row, room in enumerate(rooms) if all(n <= r for n, r in zip(needed, room, strict=True)))
        row = next(fits, len(rows))
        if row == len(rows):
            rooms.append(list(capacities))
            rows.append([])
        rows[row].append(example)
        rooms[row] = [r - n for r, n in zip(rooms[row], needed, strict=True)]
    return rows


def places_of(document: Document) -> list[tuple[int, int, bool]]:
    """A document's tokens, targets and which of them are scored."""
    prompt, response = document
    tokens = [START, *prompt, *response]
    return list(zip(tokens, [*tokens[1:], END], [False] * len(prompt) + [True] * (len(response) + 1), strict=True))


def as_row(pieces: list[list[tuple[int, int, bool]]], length: int, packing: Packing) -> tuple:
    """What a row of these pieces is, a place at a time."""
    places = [
        (*place, segment if packing == "isolated" else 1, position)
        for segment, piece in enumerate(pieces, 1)
        for position, place in enumerate(piece)
    ]
    if packing == "contiguous":
        places = [(*place[:4], position) for position, place in enumerate(places)]
    return tuple(places + [(0, 0, False, 0, 0)] * (length - len(places)))


def rows_of(rows: FittedRows) -> list[tuple]:
    batch = rows.take(np.arange(len(rows)))
    assert {name: values.dtype for name, values in batch.items()} == DTYPES
    return [tuple(zip(*(batch[name][row].tolist() for name in DTYPES), strict=True)) for row in range(len(rows))]


lengths_of_kinds = st.integers(1, 3).flatmap(
    lambda kinds: st.tuples(
        st.lists(st.tuples(*[st.integers(0, 9)] * kinds), min_size=1, max_size=30),
        st.tuples(*[st.integers(9, 20)] * kinds),
    )
)


@settings(max_examples=100)
@given(lengths_of_kinds, st.integers(1, 12))
def test_each_example_goes_into_the_first_row_with_room(lengths_and_capacities, window):
    lengths, capacities = lengths_and_capacities
    expected, begun = [-1] * len(lengths), 0
    for first in range(0, len(lengths), window):
        present = [example for example in range(first, min(first + window, len(lengths))) if any(lengths[example])]
        rows = slow_first_fit([lengths[example] for example in present], capacities)
        for row, held in enumerate(rows, begun):
            for place in held:
                expected[present[place]] = row
        begun += len(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "WINDOW", window)
        assert first_fit(np.array(lengths), np.array(capacities)).tolist() == expected


sizes = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), min_size=1, max_size=25)


@settings(max_examples=60)
@given(sizes, st.integers(15, 30), st.sampled_from(["isolated", "contiguous"]), st.integers(1, 9), st.integers(1, 3))
def test_rows_hold_every_document_once_and_whole(sizes, length, packing, window, windows):
    documents = numbered(sizes)
    expected = []
    for first in range(0, len(documents), window):
        examples = [places_of(document) for document in documents[first : first + window]]
        held = slow_first_fit([(len(example),) for example in examples], (length,))
        expected += [as_row([examples[example] for example in row], length, packing) for row in held]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "WINDOW", window)
        patch.setattr(fitting, "_PLANNED", window * windows)
        corpus = Documents(documents)
        rows = FittedRows(corpus, length, packing, END)
    assert rows_of(rows) == expected
    assert (rows.num_dropped, rows.num_cut) == (0, 0)
    assert rows.fill == corpus.num_tokens / (len(expected) * length)
    # Any order, and a row twice.
    chosen = np.random.default_rng(0).permutation(len(rows)).repeat(2)
    whole, some = rows.take(np.arange(len(rows))), rows.take(chosen)
    assert all(np.array_equal(whole[name][chosen], some[name]) for name in whole)


def plain(sizes: list[int]) -> list[Document]:
    return numbered([(0, size) for size in sizes])


@settings(max_examples=60)
@given(sizes, st.integers(1, 10), st.sampled_from(["drop", "cut"]))
def test_documents_that_are_too_long_are_dropped_or_cut(sizes, length, too_long):
    documents = numbered(sizes)
    examples = [places_of(document) for document in documents]
    left = [
        example[:length] if len(example) <= length or too_long == "cut" else []  # a cut one does not end
        for example in examples
    ]
    left = [
        kept if len(kept) == len(whole) or any(s for *_, s in kept) else []
        for kept, whole in zip(left, examples, strict=True)
    ]
    cut = sum(0 < len(kept) < len(whole) for kept, whole in zip(left, examples, strict=True))
    left = [kept for kept in left if kept]
    if not left:
        with pytest.raises(
            ValueError, match=f"none of the {len(documents)} documents has room in rows of {length} tokens"
        ):
            FittedRows(Documents(documents), length, "isolated", END, too_long)
        return
    rows = FittedRows(Documents(documents), length, "isolated", END, too_long)
    held = slow_first_fit([(len(example),) for example in left], (length,))
    assert rows_of(rows) == [as_row([left[example] for example in row], length, "isolated") for row in held]
    assert (rows.num_dropped, rows.num_cut) == (len(documents) - len(left), cut)
    assert rows.fill == sum(map(len, left)) / (len(held) * length)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 12), st.integers(1, 9))
def test_long_documents_are_split(sizes, length, window):
    documents = plain(sizes)
    expected = []
    for first in range(0, len(documents), window):
        rest = []
        for document in documents[first : first + window]:
            places = places_of(document)
            while len(places) > length:
                expected.append(as_row([places[:length]], length, "isolated"))
                places = places[length:]
            rest.append(places)
        held = slow_first_fit([(len(places),) for places in rest], (length,))
        expected += [as_row([rest[piece] for piece in row], length, "isolated") for row in held]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "WINDOW", window)
        patch.setattr(fitting, "_PLANNED", 2 * window)
        corpus = Documents(documents)
        rows = FittedRows(corpus, length, "isolated", END, "split")
    assert sorted(rows_of(rows)) == sorted(expected)
    batch = rows.take(np.arange(len(rows)))
    assert sorted(batch["targets"][batch["scored"]]) == sorted(
        token for document in corpus.stored for token in (*document[1:], END)
    )


def test_the_plan_never_changes():
    """Runs resume by it: the order of these rows may change only with a new format of plans."""
    rows = FittedRows(Documents(plain([9, 2, 7, 3, 1, 2])), 6, "isolated", END, "split")
    batch = rows.take(np.arange(len(rows)))
    assert batch["tokens"].tolist() == [
        [15, 16, 17, 18, 26, 27],  # what is left of the first document and of the third
        [START, 19, 20, START, 31, 0],
        [START, 28, 29, 30, 0, 0],
        [START, 32, 33, 0, 0, 0],
        [START, 10, 11, 12, 13, 14],
        [START, 21, 22, 23, 24, 25],
    ]


def test_many_short_documents_leave_almost_nothing_empty():
    sizes = np.random.default_rng(0).integers(5, 60, 10_000)
    corpus = Documents([([], [7] * size) for size in sizes])
    rows = FittedRows(corpus, 1024, "isolated", END)
    assert rows.fill > 0.98
    assert rows.take(np.arange(len(rows)))["scored"].sum() == corpus.num_tokens


def test_refusals():
    corpus = Documents(numbered([(0, 3), (4, 5), (2, 9), (0, 1)]))
    with pytest.raises(
        ValueError,
        match=r"2 of 4 documents have more than data.max_length=9 tokens, the longest 12; pass --data.max-length 12, "
        r"or --data.too-long drop or cut$",
    ):
        FittedRows(corpus, 9, "isolated", END)
    with pytest.raises(ValueError, match=r"or --data.too-long drop, cut or split"):
        FittedRows(Documents(plain([3, 12])), 9, "isolated", END)
    with pytest.raises(ValueError, match="documents with prompts can't be split"):
        FittedRows(corpus, 9, "isolated", END, "split")
    assert len(FittedRows(corpus, 12, "isolated", END)) == 3


def test_a_plan_is_made_once_and_refused_when_it_is_damaged(monkeypatch):
    corpus = Documents(plain([3, 4, 5]))
    first = rows_of(FittedRows(corpus, 8, "isolated", END))
    monkeypatch.setattr(FittedRows, "_plan", lambda *_: pytest.fail("planned twice"))
    monkeypatch.setattr(fitting, "cache_folder", lambda _: pytest.fail("asked to write"))  # the cache may be read-only
    assert rows_of(FittedRows(corpus, 8, "isolated", END)) == first
    (folder,) = (
        path.parent
        for path in cache_folder("rows").glob("*/index.json")
        if path.parent.name == digest_of(fitting._FORMAT, corpus.digest, 8, "refuse")
    )
    bounds = (folder / "bounds.bin").read_bytes()
    (folder / "bounds.bin").write_bytes(bounds[:-1])
    sentence = (
        r"is not a whole plan of rows of this program \(bounds.bin has 31 bytes instead of 32\); delete that folder"
    )
    with pytest.raises(ValueError, match=sentence):
        FittedRows(corpus, 8, "isolated", END)
    (folder / "index.json").write_text(json.dumps({"dropped": 0}))
    with pytest.raises(ValueError, match=r"is not a whole plan of rows"):
        FittedRows(corpus, 8, "isolated", END)
