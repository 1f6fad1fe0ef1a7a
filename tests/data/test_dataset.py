"""A configuration becomes tokenized text, and what doesn't fit is refused in a sentence."""

import json
import subprocess
import sys

import numpy as np
import pytest

from data import dataset, sources
from data.dataset import DataConfig, prepare_dataset
from data.loader import Loader
from data.packing import ConcatenatedRows
from data.tokenizer import ByteTokenizer, SentencePieceTokenizer, load_tokenizer, train_sentencepiece

pytestmark = pytest.mark.core


@pytest.fixture
def text_file(tmp_path, english):
    path = tmp_path / "english.txt"
    path.write_text(english)
    return str(path)


@pytest.mark.parametrize(("kind", "size"), [("bytes", 257), ("characters", 25), ("sentencepiece", 320)])
def test_each_tokenizer(text_file, english, kind, size):
    seen = []
    data = prepare_dataset(DataConfig(text_file, tokenizer=kind), size, 0, progress=lambda *p: seen.append(p))
    assert data.tokenizer.vocab_size == size
    text = "".join(data.tokenizer.decode(corpus.document(0)) for corpus in (data.train, data.valid))
    assert text == english
    assert data.train.num_bytes + data.valid.num_bytes == len(english)
    assert seen == sorted(seen)
    assert seen[-1] == (len(english), len(english))
    again = prepare_dataset(
        DataConfig(text_file, tokenizer=kind), size, 0, progress=lambda *p: pytest.fail("not cached")
    )
    assert again.digest == data.digest


def test_validation_files_of_its_own(text_file, tmp_path):
    valid = tmp_path / "valid.jsonl"
    valid.write_text('{"body": "held out"}\n{"body": "too"}\n')
    train = tmp_path / "train.jsonl"
    train.write_text('{"body": "learned"}\n')
    data = prepare_dataset(DataConfig(str(train), str(valid), text_column="body"), 257, 0)
    assert data.train.num_documents == 1
    assert [data.tokenizer.decode(data.valid.document(i)) for i in (0, 1)] == ["held out", "too"]


def test_the_embedded_corpus_is_the_default():
    data = prepare_dataset(DataConfig(), 50_257, 0)
    assert isinstance(data.tokenizer, ByteTokenizer)  # fewer ids than a model's vocabulary are fine
    assert data.train.num_bytes > 4_000_000
    assert 0.03 < data.valid.num_bytes / data.train.num_bytes < 0.2


def test_a_given_tokenizer_is_used(text_file, english, tmp_path):
    trained = train_sentencepiece([english], 300)
    data = prepare_dataset(DataConfig(text_file, tokenizer="sentencepiece"), 320, 0, tokenizer=trained)
    assert data.tokenizer is trained
    trained.save(tmp_path / "saved")
    for path in (tmp_path / "saved", tmp_path / "saved" / "tokenizer.model"):
        data = prepare_dataset(DataConfig(text_file, tokenizer=str(path)), 320, 0)
        assert data.tokenizer.digest == trained.digest


def test_a_trained_tokenizer_is_cached(text_file, monkeypatch):
    config = DataConfig(text_file, tokenizer="sentencepiece")
    first = prepare_dataset(config, 310, 0).tokenizer
    monkeypatch.setattr(dataset, "train_sentencepiece", lambda *_, **__: pytest.fail("trained twice"))
    assert isinstance(first, SentencePieceTokenizer)
    assert prepare_dataset(config, 310, 0).tokenizer.digest == first.digest


def test_digests_follow_text_and_tokenizer(text_file, english, tmp_path):
    config = DataConfig(text_file)
    before = prepare_dataset(config, 257, 0).digest
    assert prepare_dataset(DataConfig(text_file, tokenizer="characters"), 257, 0).digest != before
    (tmp_path / "english.txt").write_text(english + "more\n")
    assert prepare_dataset(config, 257, 0).digest != before


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (DataConfig(max_length=0), "data.max_length=0 must be at least 1; pass --data.max-length 1024"),
        (DataConfig(packing="loose"), "data.packing='loose' must be isolated or contiguous"),  # pyright: ignore[reportArgumentType]
        (DataConfig(path=""), "data.path is empty; pass --data.path with a value"),
        (DataConfig(tokenizer=""), "data.tokenizer is empty"),
        (DataConfig(path="absent.txt"), "the data path 'absent.txt' does not exist"),
        (DataConfig(tokenizer="no/such/folder"), "the tokenizer no/such/folder does not exist"),
    ],
)
def test_refusals(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        prepare_dataset(config, 257, 0)


def test_vocabularies_that_do_not_fit(text_file, english, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"the text has 24 different characters and one document mark, more than vocab_size=20; "
        r"pass --model.vocab-size 25",
    ):
        prepare_dataset(DataConfig(text_file, tokenizer="characters"), 20, 0)
    with pytest.raises(
        ValueError, match=r"256 bytes and one document mark, more than vocab_size=256; pass --model.vocab-size 257"
    ):
        prepare_dataset(DataConfig(text_file), 256, 0)
    with pytest.raises(ValueError, match=r"vocab_size=20000 is larger than the text allows"):
        prepare_dataset(DataConfig(text_file, tokenizer="sentencepiece"), 20_000, 0)
    train_sentencepiece([english], 300).save(tmp_path)
    with pytest.raises(ValueError, match=r"the sentencepiece tokenizer has 300 ids, more than vocab_size=299"):
        prepare_dataset(DataConfig(text_file, tokenizer=str(tmp_path)), 299, 0)


def test_a_tokenizer_that_cannot_be_run(text_file, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"carries a tokenizer .* cannot be run yet"):
        prepare_dataset(DataConfig(text_file, tokenizer=str(tmp_path)), 300, 0)


def test_opening_prepared_data_reads_no_text(text_file, monkeypatch):
    config = DataConfig(text_file)
    monkeypatch.setattr("data.cache._SETTLED_SECONDS", -1.0)
    first = prepare_dataset(config, 257, 0)
    monkeypatch.setattr(sources, "_file_digest", lambda path: pytest.fail("hashed anew"))
    assert prepare_dataset(config, 257, 0).digest == first.digest


def test_batches_of_real_text(shared_data):
    config = DataConfig(str(shared_data / "lm" / "tinyshakespeare.txt"), tokenizer="characters", max_length=64)
    data = prepare_dataset(config, 128, 0)
    assert data.tokenizer.vocab_size == 66
    rows = ConcatenatedRows(data.train, config.max_length, config.packing, data.tokenizer.end_id)
    loader = Loader(rows, seed=0)
    text = (shared_data / "lm" / "tinyshakespeare.txt").read_text()
    batch = loader.rows_for(10 * len(rows) - 6, range(12))  # straddles epochs
    for tokens, targets, scored in zip(batch["tokens"], batch["targets"], batch["scored"], strict=True):
        assert data.tokenizer.decode(targets[scored]) in text
        assert np.array_equal(tokens[1:][scored[1:]], targets[:-1][scored[1:]])


def test_this_room_brings_no_jax_along():
    code = "import data.dataset, data.loader, data.tokenizer_json, sys, json; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert not {"jax", "torch", "transformers", "tensorflow", "grain"} & set(loaded)
    assert load_tokenizer.__module__ == "data.tokenizer"
