"""Rows: each stored token is a target exactly once an epoch, and documents end with the end token."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.packing import ConcatenatedRows, Packing
from data.prepare import prepare_corpus
from data.reading import Reading
from data.shards import Corpus, Shard
from data.sources import open_source
from data.tokenizers.plain import ByteTokenizer

pytestmark = pytest.mark.core
START = END = 256
PACKINGS: list[Packing] = ["isolated", "contiguous"]


def corpus_of(folder, documents, shard_tokens=1000):
    """A corpus of texts, or of pairs of given and learned text."""
    pairs = [("", document) if isinstance(document, str) else document for document in documents]
    tokens = [[START, *prompt.encode(), *response.encode()] for prompt, response in pairs]
    stream, sizes = np.concatenate(tokens).astype("<u2"), np.array(list(map(len, tokens)))
    shards = []
    for begin in range(0, len(stream), shard_tokens):
        shards.append(Shard(folder / f"{begin}.bin", "<u2", len(stream[begin : begin + shard_tokens])))
        stream[begin : begin + shard_tokens].tofile(shards[-1].path)
    given = np.array([1 + len(prompt.encode()) for prompt, _ in pairs])
    corpus = Corpus("", shards, np.cumsum(sizes) - sizes, given)
    corpus.num_scored = corpus.num_tokens - int(given.sum())
    return corpus


def expected_rows(documents, length, packing, end_id):
    """The definition, a token at a time."""
    stream = [
        (token, d, i, i <= len(prompt))  # and whether it is given
        for d, (prompt, response) in enumerate(documents)
        for i, token in enumerate([START, *prompt.encode(), *response.encode()])
    ]
    rows = []
    for begin in range(0, len(stream), length):
        row = {name: [] for name in ("tokens", "targets", "scored", "segments", "positions")}
        for place in range(length):
            at = begin + place
            inside = at < len(stream)
            token, document, within, _ = stream[at] if inside else (0, 0, 0, False)
            following = stream[at + 1] if at + 1 < len(stream) else (0, None, 0, False)
            goes_on = following[1] == document
            row["tokens"].append(token)
            row["targets"].append((following[0] if goes_on else end_id) if inside else 0)
            row["scored"].append(inside and not (goes_on and following[3]))
            isolated = packing == "isolated"
            row["segments"].append((document - stream[begin][1] + 1 if isolated else 1) if inside else 0)
            row["positions"].append((min(place, within) if isolated else place) if inside else 0)
        rows.append(row)
    return rows


texts = st.text(alphabet="abc", max_size=12)


@settings(max_examples=80)
@given(
    documents=st.lists(st.tuples(st.just(""), texts) | st.tuples(texts, texts), min_size=1, max_size=8),
    length=st.integers(1, 9),
    packing=st.sampled_from(PACKINGS),
    shard_tokens=st.sampled_from([3, 1000]),
)
def test_rows_are_the_definition(tmp_path_factory, documents, length, packing, shard_tokens):
    corpus = corpus_of(tmp_path_factory.mktemp("packing"), documents, shard_tokens)
    rows = ConcatenatedRows(corpus, length, packing, 300)
    expected = expected_rows(documents, length, packing, 300)
    assert len(rows) == len(expected)
    assert rows.fill == corpus.num_tokens / (len(rows) * length)
    order = np.random.default_rng(0).permutation(len(rows))
    for chosen in (np.concatenate([order, order[:1]]), order[:0]):  # any order, and a row twice; and none
        got = rows.take(chosen)
        for name, dtype in {
            "tokens": np.int32,
            "targets": np.int32,
            "scored": bool,
            "segments": np.int32,
            "positions": np.int32,
        }.items():
            assert got[name].dtype == dtype
            assert got[name].tolist() == [expected[row][name] for row in chosen], name


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("length", [4, 7, 1000])
def test_each_stored_token_is_a_target_exactly_once_an_epoch(tmp_path, packing, length):
    texts = ["first", "a second document", "3", "and the last one of them"]
    corpus = corpus_of(tmp_path, texts)
    rows = ConcatenatedRows(corpus, length, packing, END)
    batch = rows.take(np.arange(len(rows)))
    scored = batch["targets"][batch["scored"]]
    assert scored.tolist() == [token for text in texts for token in (*text.encode(), END)]
    assert batch["scored"].sum() == corpus.num_tokens
    assert batch["tokens"][batch["scored"]].tolist() == corpus.slice(0, corpus.num_tokens).tolist()


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_tail_row_is_padded(tmp_path, packing):
    rows = ConcatenatedRows(corpus_of(tmp_path, ["abcdef"]), 5, packing, END)
    assert len(rows) == 2
    tail = {name: values[0].tolist() for name, values in rows.take(np.array([1])).items()}
    assert tail == {
        "tokens": [ord("e"), ord("f"), 0, 0, 0],
        "targets": [ord("f"), END, 0, 0, 0],
        "scored": [True, True, False, False, False],
        "segments": [1, 1, 0, 0, 0],
        "positions": [0, 1, 0, 0, 0],
    }


def test_packings_differ_in_segments_and_positions_alone(tmp_path):
    corpus = corpus_of(tmp_path, ["one", "two", "three"] * 4)
    isolated, contiguous = (ConcatenatedRows(corpus, 16, packing, END).take(np.arange(3)) for packing in PACKINGS)
    for name in ("tokens", "targets", "scored"):
        assert np.array_equal(isolated[name], contiguous[name])
    assert isolated["segments"].max() > 3
    assert contiguous["segments"].max() == 1


def test_a_text_may_look_like_a_start(tmp_path, monkeypatch):
    """Documents begin where the index says, not where a token looks like it."""
    corpus = corpus_of(tmp_path, ["abc", "def"])
    monkeypatch.setattr(corpus, "windows", lambda *_: np.array([[START, 97, START, 99, START, 100, 101, 102, 0]]))
    batch = ConcatenatedRows(corpus, 8, "isolated", END).take(np.array([0]))
    assert batch["segments"].tolist() == [[1, 1, 1, 1, 2, 2, 2, 2]]
    assert batch["targets"].tolist() == [[97, START, 99, END, 100, 101, 102, END]]


@pytest.mark.parametrize("length", [8, 1000])
def test_prompts_are_read_and_not_learned(tmp_path, length):
    pairs = [("question", "answer"), ("", "no question"), ("nothing else", "")]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in pairs))
    corpus = prepare_corpus(open_source(str(path), Reading(prompt="{q}:", response="{a}")), ByteTokenizer())
    rows = ConcatenatedRows(corpus, length, "isolated", END)
    batch = rows.take(np.arange(len(rows)))
    learned = batch["targets"][batch["scored"]]
    assert learned.tolist() == [token for _, answer in pairs if answer for token in (*answer.encode(), END)]
    assert batch["scored"].sum() == corpus.num_scored + corpus.num_documents
    inside = batch["segments"] > 0
    assert batch["tokens"][inside].tolist() == corpus.slice(0, corpus.num_tokens).tolist()
