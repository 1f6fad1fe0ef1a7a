"""Sentence pairs: each token in one stretch, two parts that belong together or not, and a layout that tells nothing."""

import json
import re

import numpy as np
import pytest

from data.prepare import prepare_corpus
from data.reading import Reading
from data.sentence_pairs import SentencePairRows, join, sentence_ends
from data.sources import open_source
from data.tokenizers.plain import ByteTokenizer

pytestmark = pytest.mark.core
BYTES = ByteTokenizer()
START, SEPARATOR, LENGTH = 256, 257, 32
ROOM = LENGTH - 3


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """Documents of some sentences; each byte of one says which document it is of, but for stops and spaces."""
    random = np.random.default_rng(0)
    return [
        " ".join(chr(97 + number) * size + "?!"[:stops] for size, stops in random.integers(1, [9, 3], (sentences, 2)))
        for number, sentences in enumerate([1, 9, 30, 2, 6, 40, 12])
    ] + ["", "x"]


@pytest.fixture(scope="module")
def corpus(documents, tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return prepare_corpus(open_source(str(path)), BYTES)


@pytest.fixture(scope="module")
def rows(corpus) -> SentencePairRows:
    return SentencePairRows(corpus, LENGTH)


def texts(arrays: np.ndarray, sizes: np.ndarray) -> list[str]:
    return [bytes(row[:size].tolist()).decode() for row, size in zip(arrays, sizes, strict=True)]


def test_stretches_are_the_documents_one_after_the_other(rows, documents):
    batch = rows.take(np.arange(len(rows)))
    stretches = texts(batch["text"], batch["sizes"])
    assert "".join(stretches) == "".join(documents[:-2])
    assert rows.left_out == "1 documents of fewer than two tokens left out"  # no text at all is no document
    used = sum(map(len, stretches)) + 3 * len(stretches)
    assert rows.fill == used / (len(rows) * LENGTH)
    assert batch["text"].dtype == batch["sizes"].dtype == np.int32
    assert not batch["text"][np.arange(ROOM) >= batch["sizes"][:, None]].any()
    for document in documents[:-2]:
        sizes = [len(stretch) for stretch in stretches if stretch.strip("?! ") and stretch.strip("?! ")[0] in document]
        assert len(sizes) == -(-len(document) // ROOM)
        assert max(sizes) - min(sizes) <= 1


def test_the_other_stretch_is_of_another_document_and_always_the_same(rows, corpus, tmp_path):
    batch = rows.take(np.arange(len(rows)))
    own, other = texts(batch["text"], batch["sizes"]), texts(batch["other_text"], batch["other_sizes"])
    assert all(not (set(one) & set(two)) - set("?! ") for one, two in zip(own, other, strict=True))
    assert set(other) <= set(own)
    assert len(set(other)) > len(own) / 3  # they differ
    again = rows.take(np.array([5, 0, 5]))
    for name, values in again.items():
        np.testing.assert_array_equal(values, batch[name][[5, 0, 5]])

    (tmp_path / "one.txt").write_text("".join(map(chr, range(33, 127))))
    alone = SentencePairRows(prepare_corpus(open_source(str(tmp_path / "one.txt")), BYTES), LENGTH)
    batch = alone.take(np.arange(len(alone)))
    assert (batch["text"][:, 0] != batch["other_text"][:, 0]).all()


def joined(rows, relation, epochs=40):
    """Many examples of each row: the stretch, the other one, the two parts, and the arrays."""
    indices = np.tile(np.arange(len(rows)), epochs)
    batch = rows.take(indices)
    keys = np.random.default_rng(1).integers(0, 2**63, len(indices), np.uint64)
    ends = np.append(sentence_ends(BYTES), [False])
    arrays = join(batch, keys, relation, START, SEPARATOR, ends)
    parts = []
    for tokens, types, segments in zip(arrays["tokens"], arrays["types"], arrays["segments"], strict=True):
        assert tokens[0] == START
        assert (tokens == SEPARATOR).sum() == 2
        size = segments.sum()
        assert tokens[size - 1] == SEPARATOR
        middle = int(np.flatnonzero(tokens == SEPARATOR)[0])
        np.testing.assert_array_equal(types, (np.arange(LENGTH) > middle) & (np.arange(LENGTH) < size))
        np.testing.assert_array_equal(segments, np.arange(LENGTH) < size)
        assert not tokens[size:].any()
        parts.append(tuple(bytes(part.tolist()).decode() for part in (tokens[1:middle], tokens[middle + 1 : size - 1])))
    np.testing.assert_array_equal(arrays["positions"], np.arange(LENGTH) * (arrays["segments"] > 0))
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int32)}
    own, other = texts(batch["text"], batch["sizes"]), texts(batch["other_text"], batch["other_sizes"])
    return own, other, parts, arrays


def test_the_next_sentence_or_one_from_elsewhere(rows):
    own, other, parts, arrays = joined(rows, "next")
    natural = []
    for whole, elsewhere, (first, second), label in zip(own, other, parts, arrays["labels"], strict=True):
        assert first
        assert second
        assert whole.startswith(first)
        assert len(first + second) == len(whole)  # whichever it is
        assert second in elsewhere if label else first + second == whole
        text = elsewhere if label else whole
        places = [at.start() for at in re.finditer(f"(?={re.escape(second)})", text)]
        natural.append(second[0] != "!" and any(text[:place].endswith(("?", "!")) for place in places))
    labels = arrays["labels"]
    assert abs(labels.mean() - 0.5) < 0.05
    assert np.mean(natural) > 0.8
    # Neither where it is cut nor how long it is tells which it is.
    for told in (np.array(natural), np.array([len(first) / ROOM for first, _ in parts])):
        assert abs(told[labels == 0].mean() - told[labels == 1].mean()) < 0.03


def test_two_sentences_in_order_or_the_other_way_round(rows):
    own, _, parts, arrays = joined(rows, "order")
    for whole, (first, second), label in zip(own, parts, arrays["labels"], strict=True):
        assert whole == (second + first if label else first + second)
        assert first
        assert second
    assert abs(arrays["labels"].mean() - 0.5) < 0.05


def test_a_row_is_cut_by_its_key_alone(rows):
    ends = np.append(sentence_ends(BYTES), [False])
    keys = np.arange(8, dtype=np.uint64)
    many = join(rows.take(np.arange(8)), keys, "next", START, SEPARATOR, ends)
    one = join(rows.take(np.array([5])), keys[5:6], "next", START, SEPARATOR, ends)
    for name, values in one.items():
        np.testing.assert_array_equal(values[0], many[name][5])
    none = join(rows.take(np.arange(0)), keys[:0], "next", START, SEPARATOR, ends)
    assert {name: array.shape for name, array in none.items()} == {
        n: (0, *array.shape[1:]) for n, array in many.items()
    }
    cuts = [
        join(rows.take(np.array([5])), np.array([key], np.uint64), "next", START, SEPARATOR, ends)["types"].sum()
        for key in range(30)
    ]
    assert len(set(cuts)) > 1


def test_what_ends_a_sentence():
    ends = sentence_ends(BYTES)
    assert [chr(byte) for byte in np.flatnonzero(ends)] == ["\n", "!", ".", "?"]


def test_refusals(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"data.max_length=5 must be at least 6 for two sentences a row"):
        SentencePairRows(corpus, 5)
    (tmp_path / "short.txt").write_text("One sentence. And one.")
    with pytest.raises(ValueError, match=r"the text is enough for 1 row of 32 tokens, .* give more text"):
        SentencePairRows(prepare_corpus(open_source(str(tmp_path / "short.txt")), BYTES), LENGTH)
    (tmp_path / "prompts.jsonl").write_text('{"q": "a question", "a": "an answer"}\n')
    prompts = prepare_corpus(open_source(str(tmp_path / "prompts.jsonl"), Reading(prompt="{q}", response="{a}")), BYTES)
    with pytest.raises(ValueError, match=r"some of this text is given; leave prompts out"):
        SentencePairRows(prompts, LENGTH)
