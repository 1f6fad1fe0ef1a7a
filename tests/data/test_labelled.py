"""Each document keeps its class: in every format, whatever is left out, held out or cut."""

import csv
import gzip
import io
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import labelled
from data.cache import cache_folder
from data.dataset import DataConfig, make_rows
from data.labelled import LabelledRows, find_classes, read_labels
from data.prepare import prepare_corpus
from data.reading import Document, Part, Reading
from data.shards import Corpus
from data.sources import Source, open_pairs, open_source, split_source
from data.tokenizers.plain import ByteTokenizer

pytestmark = pytest.mark.core

TOKENIZER = ByteTokenizer()
LABELLED = Reading(label_column="label")
ROWS = [
    {"text": "one, two", "label": "ham"},
    {"text": "", "label": "spam"},
    {"text": "세 번째", "label": " spam "},
    {"text": "four", "label": "ham"},
]


def as_csv(rows):
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


WRITERS = {
    ".jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    ".json": json.dumps,
    ".csv": as_csv,
    ".tsv": lambda rows: "".join(
        "\t".join(map(str, row)) + "\n" for row in [list(rows[0]), *(r.values() for r in rows)]
    ),
}


def write(path, content):
    content = content.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def parquet(path, columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(columns), str(path))
    return str(path)


def labelled_texts(source: Source, classes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each document of the source's corpus with its class."""
    corpus, labels = prepare_corpus(source, TOKENIZER), read_labels(source, classes)
    assert (labels.dtype, len(labels)) == (np.int32, corpus.num_documents)
    texts = [TOKENIZER.decode(corpus.document(number)) for number in range(corpus.num_documents)]
    return [(text, classes[label]) for text, label in zip(texts, labels, strict=True)]


# Labels


@pytest.mark.parametrize("suffix", [*WRITERS, ".tsv.gz", ".jsonl.gz"])
def test_labels_of_records(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", WRITERS[suffix.removesuffix(".gz")](ROWS))
    source = open_source(path, LABELLED)
    assert find_classes(source) == ("ham", "spam")
    expected = [(row["text"], row["label"].strip()) for row in ROWS if row["text"]]
    assert labelled_texts(source, ("spam", "rare", "ham")) == expected


def test_labels_of_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": ["a", "", "b", "c"], "label": [1.0, 2.0, 10.0, 2.5]})
    source = open_source(path, LABELLED)
    assert find_classes(source) == ("1", "10", "2.5")
    assert labelled_texts(source, ("10", "1", "2.5")) == [("a", "1"), ("b", "10"), ("c", "2.5")]


def test_classes_are_in_order_of_their_numbers(tmp_path):
    first = open_source(write(tmp_path / "a.csv", "text,label\nx,10\ny,9\nz,-1\n"), LABELLED)
    second = open_source(write(tmp_path / "a.jsonl", '{"text": "x", "label": 100}\n'), LABELLED)
    assert find_classes(first) == ("-1", "9", "10")
    assert find_classes(first, second) == ("-1", "9", "10", "100")


record = st.tuples(st.sampled_from(["", "a", "b", None]), st.sampled_from(["ham", "spam", 3, True, None, " "]))


@settings(max_examples=25)
@given(st.lists(record, min_size=1, max_size=8))
def test_what_is_left_out_takes_its_label_along(tmp_path_factory, records):
    """Each text is numbered, so that a label which has slipped is seen."""
    texts = [text and f"{text}{number}" for number, (text, _) in enumerate(records)]
    rows = [{"text": text, "label": label} for text, (_, label) in zip(texts, records, strict=True)]
    names = {"ham": "ham", "spam": "spam", 3: "3", True: "true"}
    expected = [(row["text"], names[row["label"]]) for row in rows if row["text"] and row["label"] in names]
    path = write(tmp_path_factory.mktemp("rows") / "a.jsonl", WRITERS[".jsonl"](rows))
    source = open_source(path, replace(LABELLED, bad="skip"))
    if expected:
        assert labelled_texts(source, ("3", "ham", "spam", "true")) == expected
    else:
        with pytest.raises(ValueError, match=r"a.jsonl holds no text with a label; give a file with some"):
            read_labels(source, ("ham", "spam"))


def test_labels_are_read_once(tmp_path, monkeypatch):
    source = open_source(write(tmp_path / "once.csv", as_csv(ROWS)), LABELLED)
    before = set(cache_folder("labels").iterdir())
    labels = read_labels(source, ("ham", "spam")).tolist()
    (folder,) = set(cache_folder("labels").iterdir()) - before
    monkeypatch.setattr(labelled, "_read", lambda _: pytest.fail("read twice"))
    monkeypatch.setattr(labelled, "cache_folder", lambda _: pytest.fail("asked to write"))  # it may be read-only
    assert read_labels(source, ("ham", "spam")).tolist() == labels
    assert find_classes(source) == ("ham", "spam")
    (folder / "numbers.bin").write_bytes(b"torn")
    with pytest.raises(
        ValueError, match=r"does not hold the labels of a source \(numbers.bin has 4 bytes instead of 24"
    ):
        find_classes(source)


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.tsv", "text\tlabel\na\tham\n\tx\nb\tx\n", "a.tsv:4"),
        ("a.csv", 'text,label\n"a\nb",ham\nb,x\n', "a.csv:4"),
        ("a.jsonl", '{"text": "a", "label": "ham"}\n\n{"text": "b", "label": "x"}\n', "a.jsonl:3"),
        ("a.json", '[{"text": "a", "label": "ham"}, {"text": "b", "label": "x"}]', "a.json, record 2,"),
    ],
)
def test_a_label_that_is_none_of_the_models_classes(tmp_path, name, content, place):
    source = open_source(write(tmp_path / name, content), LABELLED)
    sentence = (
        f"{place} has the label 'x', which is not among the model's classes: ham, spam; correct the label, leave that "
        f"out, or train a new head for other --model.classes"
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read_labels(source, ("ham", "spam"))


def test_many_classes_are_not_all_named(tmp_path):
    source = open_source(write(tmp_path / "a.csv", "text,label\nx,100\ny,0\n"), LABELLED)
    with pytest.raises(ValueError, match=r"classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more; correct"):
        read_labels(source, tuple(map(str, range(12))))


@pytest.mark.parametrize(
    ("name", "content", "reading", "sentence"),
    [
        ("a.txt", "text", LABELLED, r"a.txt is one document of text, and has no labels; give .csv, .tsv"),
        (
            "a.csv",
            "text,label\nx,a\ny,a\n",
            LABELLED,
            r"a.csv must have labels of at least two classes, and all of it ",
        ),
        (
            "a.csv",
            "text,label\nx,\n",
            LABELLED,
            r"a.csv:2 has no label in the column 'label'; give it one, or leave it",
        ),
        ("a.jsonl", '{"text": "x", "label": null}\n', LABELLED, r"a.jsonl:1 has no label in the column 'label'"),
        ("a.jsonl", '{"text": "x", "label": NaN}\n', LABELLED, r"a.jsonl:1 has no label in the column 'label'"),
        (
            "a.jsonl",
            '{"text": "x", "label": [1]}\n',
            LABELLED,
            r"a.jsonl:1 holds a list in the column 'label', not text",
        ),
        ("a.jsonl", '{"text": "x"}\n', LABELLED, r"a.jsonl:1 has no column 'label'; .* pass --data.label-column NAME"),
        ("a.csv", "text,y\nx,a\n", LABELLED, r"the columns there are 'text', 'y'; pass --data.label-column NAME"),
        ("a.csv", "t,label\nx,a\n", LABELLED, r"the columns there are 't', 'label'; pass --data.text-column NAME"),
        ("a.csv", "text,label\n,a\n", LABELLED, r"a.csv holds no text with a label; give a file with some"),
        ("a.csv", "text,label\nx,a\n", Reading(), r"the column of .*a.csv's labels has no name; pass --data.label-col"),
    ],
)
def test_data_without_classes(tmp_path, name, content, reading, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        find_classes(open_source(write(tmp_path / name, content), reading))
    assert "\n" not in str(error.value)


def test_readings_that_cannot_be(tmp_path):
    with pytest.raises(
        ValueError, match=r"the label column 'c' is for text with a class, and the response '{a}' makes"
    ):
        Reading(response="{a}", label_column="c").validate()
    with pytest.raises(ValueError, match=r"the column 'text' can't be both the text and its label; pass --data.text-"):
        Reading(label_column="text").validate()
    path = write(tmp_path / "a.txt", "a\n")
    with pytest.raises(ValueError, match=r"the label column 'label' is for text with a class"):
        open_pairs(path, path, LABELLED)


# What is held out


def test_a_tenth_is_held_out_by_the_text_alone(tmp_path):
    """Of a file that is sorted by class, and in which each text comes twice, once as another class."""
    rows = [{"text": f"text {i}", "label": label} for label in ("a", "b") for i in range(500)]
    source = open_source(write(tmp_path / "a.jsonl", WRITERS[".jsonl"](rows)), LABELLED)
    parts = split_source(source)
    assert len({source.digest, *(part.digest for part in parts)}) == 3
    assert all(Source.from_json(json.loads(json.dumps(part.to_json()))) == part for part in parts)
    train, valid = (labelled_texts(part, ("a", "b")) for part in parts)
    assert Counter(train + valid) == Counter((row["text"], row["label"]) for row in rows)
    assert not {text for text, _ in train} & {text for text, _ in valid}
    assert 0.07 < len(valid) / len(rows) < 0.13
    assert Counter(label for _, label in valid)["a"] == len(valid) / 2
    # Wherever a text stands, and whatever stands beside it, it is on the same side.
    other = open_source(write(tmp_path / "b.csv", as_csv(rows[::-7])), LABELLED)
    assert set(labelled_texts(split_source(other)[1], ("a", "b"))) <= set(valid)
    # Pieces that are prepared apart hold the same.
    pieces = parts[1].divide(4000, True)
    assert len(pieces) > 3
    assert [text for piece in pieces for text in piece.texts()] == [text for text, _ in valid]


def test_what_cannot_be_read_is_reported_once(tmp_path):
    rows = "".join(f"text {i},{'' if i % 3 else i % 2}\n" for i in range(200))
    source = open_source(write(tmp_path / "a.csv", "text,label\n" + rows), replace(LABELLED, bad="skip"))
    train, valid = (prepare_corpus(part, TOKENIZER) for part in split_source(source))
    assert (train.refused, valid.refused) == (133, 0)
    assert train.num_documents + valid.num_documents == 67


def test_too_few_documents_to_hold_any_out(tmp_path):
    texts = {held: [text for text in map(str, range(99)) if is_held_out(text) == held] for held in (False, True)}
    for first, second, *_ in texts.values():  # either side may be left without any
        source = open_source(write(tmp_path / "a.csv", f"text,label\n{first},0\n{second},1\n"), LABELLED)
        with pytest.raises(
            ValueError, match=r"a.csv holds too few documents to hold out a tenth .* pass --data.valid-path"
        ):
            split_source(source)


def is_held_out(text: str) -> bool:
    return Document("", text, "").is_held_out


def test_other_sources_are_known_by_the_same_digest_as_ever(tmp_path, monkeypatch):
    """Their corpora are found by it."""
    monkeypatch.setattr("data.sources.file_digest", lambda path: "content")
    source = Source((Part("a.jsonl", 0, 90), Part("b.jsonl")), Reading("body"))
    assert source.digest == "305d5a7c1b613ed8164f76f520c475ca8785173bbb2557a517c17cd5defebeb1"
    assert replace(source, reading=Reading("body", label_column="label")).digest != source.digest


# Rows


class Documents(Corpus):
    """A corpus of documents at hand: the tokens of their text."""

    def __init__(self, texts: list[list[int]]):
        stored = [[1, *text] for text in texts]
        sizes = np.array(list(map(len, stored)))
        self.num_tokens, self.num_documents = int(sizes.sum()), len(texts)
        self.document_starts = np.cumsum(sizes) - sizes
        self._stream = np.concatenate(stored).astype(np.uint16)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        padded = np.append(self._stream, np.full(length, 999, np.uint16))
        return padded[starts[:, None] + np.arange(length)]


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(10, 99), max_size=9), min_size=1, max_size=12),
    st.integers(1, 12),
    st.sampled_from(["refuse", "drop", "cut"]),
)
def test_a_row_is_a_document_from_its_start_to_its_end_token(texts, length, too_long):
    corpus, labels = Documents(texts), np.arange(len(texts), dtype=np.int32)[::-1] % 3
    long = [len(text) + 2 > length for text in texts]
    if any(long) and too_long == "refuse":
        longest = max(map(len, texts)) + 2
        sentence = (
            rf"^{sum(long)} of {len(texts)} documents have more than data.max_length={length} tokens, the longest "
            rf"{longest}; pass --data.max-length {longest}, or --data.too-long drop or cut$"
        )
        with pytest.raises(ValueError, match=sentence):
            LabelledRows(corpus, labels, length, 2, too_long)
        return
    if all(long) and too_long == "drop":
        sentence = rf"none of the {len(texts)} documents has room in rows of {length} tokens; pass a larger"
        with pytest.raises(ValueError, match=sentence):
            LabelledRows(corpus, labels, length, 2, too_long)
        return
    expected = [
        [*[1, *text][: length - 1], 2]
        for text, is_long in zip(texts, long, strict=True)
        if not (is_long and too_long == "drop")
    ]
    kept = [label for label, is_long in zip(labels, long, strict=True) if not (is_long and too_long == "drop")]
    rows = LabelledRows(corpus, labels, length, 2, too_long)
    order = np.random.default_rng(0).permutation(len(rows)).repeat(2)
    batch = rows.take(order)
    assert {name: (values.dtype, values.shape) for name, values in batch.items()} == {
        **dict.fromkeys(("tokens", "segments", "positions"), (np.int32, (len(order), length))),
        "labels": (np.int32, (len(order),)),
    }
    for place, number in enumerate(order):
        tokens = expected[number]
        padding = [0] * (length - len(tokens))
        assert batch["tokens"][place].tolist() == tokens + padding
        assert batch["segments"][place].tolist() == [1] * len(tokens) + padding
        assert batch["positions"][place].tolist() == list(range(len(tokens))) + padding
        assert batch["labels"][place] == kept[number]
    assert rows.fill == sum(map(len, expected)) / (len(rows) * length)
    fate = {"drop": "left out", "cut": "cut off"}.get(too_long)
    assert rows.left_out == (f"{sum(long)} documents {fate} at {length} tokens" if any(long) else "")
    assert (rows.num_dropped, rows.num_cut) == {"drop": (sum(long), 0)}.get(too_long, (0, sum(long)))


def test_rows_that_cannot_be():
    corpus = Documents([[10], [11]])
    with pytest.raises(ValueError, match=r"there are 3 labels of 2 documents, as when a file changes while it is read"):
        LabelledRows(corpus, np.zeros(3, np.int32), 9, 2)
    with pytest.raises(
        ValueError, match=r'data.too_long="split" is for text without classes; pass refuse, drop or cut'
    ):
        LabelledRows(corpus, np.zeros(2, np.int32), 9, 2, "split")
    with pytest.raises(ValueError, match=r"ready shards hold tokens without classes; give records of text and class"):
        make_rows(corpus, DataConfig(label_column="label"), TOKENIZER, "labelled")


# Public data


@pytest.mark.parametrize(
    ("name", "reading", "counts"),
    [
        ("sms_spam.tsv", Reading("SMS", label_column="Label"), {"ham": 4827, "spam": 747}),
        ("nsmc_test.tsv.gz", Reading("document", label_column="label"), {"0": 8000, "1": 8000}),
        ("movie_reviews.jsonl.gz", LABELLED, {"neg": 1000, "pos": 1000}),
    ],
)
def test_public_data(shared_data, name, reading, counts):
    source = open_source(str(shared_data / "classify" / name), reading)
    classes = find_classes(source)
    found = Counter(classes[label] for label in read_labels(source, classes).tolist())
    assert found == counts
    held_out = Counter(classes[label] for label in read_labels(split_source(source)[1], classes).tolist())
    assert held_out.keys() == counts.keys()
    assert 0.09 < held_out.total() / found.total() < 0.11
