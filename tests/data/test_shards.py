"""A prepared corpus holds the documents' tokens and counts, opens fast, and is refused when it is not whole."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data import shards, sources
from data.cache import cache_folder
from data.shards import Corpus, prepare_corpus
from data.sources import open_source
from data.tokenizer import ByteTokenizer, CharacterTokenizer, SentencePieceTokenizer, train_sentencepiece

pytestmark = pytest.mark.core


def source_of(folder, documents):
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return open_source(str(path))


def check(corpus, tokenizer, documents):
    documents = [text for text in documents if text]
    assert corpus.num_documents == len(documents)
    expected = [[tokenizer.start_id, *tokenizer.encode(text).tolist()] for text in documents]
    assert [corpus.document(i).tolist() for i in range(len(documents))] == expected
    stream = [token for tokens in expected for token in tokens]
    assert corpus.num_tokens == len(stream)
    assert corpus.slice(0, corpus.num_tokens).tolist() == stream
    assert corpus.document_bytes.tolist() == [len(text.encode()) for text in documents]
    assert corpus.document_words.tolist() == [len(text.split()) for text in documents]
    assert (corpus.num_bytes, corpus.num_words) == (sum(corpus.document_bytes), sum(corpus.document_words))
    starts = np.arange(corpus.num_tokens)
    windows = corpus.windows(starts, 5)
    padded = [*stream, 0, 0, 0, 0]
    assert windows.tolist() == [padded[start : start + 5] for start in starts]


@pytest.mark.parametrize("shard_tokens", [5, 64, 1 << 27])
@pytest.mark.parametrize("kind", ["bytes", "characters", "sentencepiece", "whole"])
def test_what_is_stored(tmp_path, monkeypatch, tricky, english, shard_tokens, kind):
    documents = [*tricky, english[:300], "", "last"]
    monkeypatch.setattr(shards, "_SHARD_TOKENS", shard_tokens)
    monkeypatch.setattr(sources, "_BLOCK", 40)
    monkeypatch.setattr(shards, "_BATCH", 100)
    monkeypatch.setattr(shards, "FORMAT", f"{shard_tokens} {kind}")  # not in one cache folder
    match kind:
        case "bytes":
            tokenizer = ByteTokenizer()
        case "characters":
            tokenizer = CharacterTokenizer.of(documents)
        case _:
            tokenizer = train_sentencepiece([english], 400)
            tokenizer.cuts = kind != "whole"  # a tokenizer that needs documents whole gets them whole
    source = source_of(tmp_path, documents)
    seen = []
    corpus = prepare_corpus(source, tokenizer, lambda done, total: seen.append((done, total)))
    check(corpus, tokenizer, documents)
    assert seen == sorted(seen)
    assert seen[-1] == (source.stored_bytes, source.stored_bytes)
    again = prepare_corpus(source, tokenizer, lambda done, total: pytest.fail("tokenized twice"))
    check(again, tokenizer, documents)
    assert again.digest == corpus.digest


@hypothesis_settings(max_examples=30)
@given(documents=st.lists(st.text(alphabet="ab \n\u2003", max_size=30), min_size=1, max_size=5).filter(any))
def test_words_and_bytes_are_of_the_text_however_it_is_cut(tmp_path_factory, documents):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_BLOCK", 4)
        check(
            prepare_corpus(source_of(tmp_path_factory.mktemp("d"), documents), ByteTokenizer()),
            ByteTokenizer(),
            documents,
        )


def test_large_vocabularies_take_four_bytes(tmp_path, english):
    tokenizer = train_sentencepiece([english], 400)
    tokenizer.vocab_size = 70_000
    corpus = prepare_corpus(source_of(tmp_path, ["four bytes a token"]), tokenizer)
    assert corpus.slice(0, 3).dtype == np.uint32
    assert prepare_corpus(source_of(tmp_path, ["two bytes"]), ByteTokenizer()).slice(0, 3).dtype == np.uint16


def test_changed_content_is_another_corpus(tmp_path):
    first = prepare_corpus(source_of(tmp_path, ["one"]), ByteTokenizer())
    second = prepare_corpus(source_of(tmp_path, ["two"]), ByteTokenizer())
    assert first.digest != second.digest
    assert ByteTokenizer().decode(second.document(0)) == "two"


@pytest.mark.parametrize("documents", [[""], ["", ""]])
def test_no_text(tmp_path, documents):
    with pytest.raises(ValueError, match=r"documents.jsonl holds no text; give a file with some"):
        prepare_corpus(source_of(tmp_path, documents), ByteTokenizer())


def test_a_failure_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "fine"}\n{"text": 3}\n'))
    before = set(cache_folder("corpora").iterdir())
    with pytest.raises(ValueError, match=r"a.jsonl.gz:2"):
        prepare_corpus(open_source(str(path)), ByteTokenizer())
    assert set(cache_folder("corpora").iterdir()) == before


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "tokens-00000.bin").write_bytes(b"12"), r"tokens-00000.bin has 2 bytes instead of 18"),
        (lambda f: (f / "tokens-00000.bin").unlink(), "No such file.*tokens-00000.bin"),
        (lambda f: (f / "starts.bin").write_bytes(b""), "starts.bin has 0 bytes instead of 8"),
        (lambda f: (f / "index.json").write_text("{"), "Expecting property name"),
        (lambda f: (f / "index.json").write_text("[]"), "indices must be"),
        (lambda f: (f / "index.json").write_text('{"format": "another"}'), "format 'another'"),
        (lambda f: (f / "index.json").unlink(), "No such file.*index.json"),
    ],
)
def test_damaged_or_foreign_shards(tmp_path, monkeypatch, damage, sentence):
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))
    source = source_of(tmp_path, ["damaged!"])
    prepare_corpus(source, ByteTokenizer())
    (folder,) = cache_folder("corpora").iterdir()
    damage(folder)
    with pytest.raises(
        ValueError, match=rf"is not a whole corpus of this program .*{sentence}.*delete that folder"
    ) as error:
        prepare_corpus(source, ByteTokenizer())
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"is not a whole corpus"):
        Corpus(tmp_path)


def test_a_sentencepiece_corpus_is_the_same_prepared_in_any_blocks(tmp_path, english, monkeypatch):
    tokenizer = train_sentencepiece([english], 400)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    path = tmp_path / "a.txt"
    path.write_text(english)
    streams = []
    for block in (64, 1000, 1 << 22):
        monkeypatch.setattr(sources, "_BLOCK", block)
        monkeypatch.setattr(shards, "FORMAT", f"block {block}")
        corpus = prepare_corpus(open_source(str(path)), tokenizer)
        streams.append(corpus.slice(0, corpus.num_tokens).tolist())
    assert streams[0] == streams[1] == streams[2] == [1, *tokenizer.processor.encode(english)]
