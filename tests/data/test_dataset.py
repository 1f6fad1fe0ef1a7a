"""A configuration becomes tokenized text, and what doesn't fit is refused in a sentence."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import dataset
from data.dataset import DataConfig, prepare_dataset, prepare_held_out
from data.tokenizers.load import load_tokenizer
from data.tokenizers.plain import ByteTokenizer
from data.tokenizers.sentence_piece import SentencePieceTokenizer, train_sentencepiece

pytestmark = pytest.mark.core


@pytest.fixture
def text_file(tmp_path, english):
    path = tmp_path / "english.txt"
    path.write_text(english)
    return str(path)


@pytest.mark.parametrize(("kind", "size"), [("bytes", 257), ("characters", 25), ("sentencepiece", 320)])
def test_each_tokenizer(tmp_path, english, kind, size):
    text_file = str(tmp_path / "only_here.txt")  # other tests, which share the cache, have not prepared this one
    Path(text_file).write_text(english)
    seen = []
    data = prepare_dataset(DataConfig(text_file, tokenizer=kind), size, 0, progress=lambda *p: seen.append(p))
    assert data.tokenizer.vocab_size == size
    text = "".join(data.tokenizer.decode(corpus.document(0)) for corpus in (data.corpora[0], data.valid))
    assert text == english
    assert data.corpora[0].num_bytes + data.valid.num_bytes == len(english)
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
    assert data.corpora[0].num_documents == 1
    assert [data.tokenizer.decode(data.valid.document(i)) for i in (0, 1)] == ["held out", "too"]


def test_the_embedded_corpus_is_the_default():
    data = prepare_dataset(DataConfig(), 50_257, 0)
    assert isinstance(data.tokenizer, ByteTokenizer)  # fewer ids than a model's vocabulary are fine
    assert data.corpora[0].num_bytes > 4_000_000
    assert 0.03 < data.valid.num_bytes / data.corpora[0].num_bytes < 0.2


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
    monkeypatch.setattr(dataset, "cache_folder", lambda name: pytest.fail("asked for a folder to write in"))
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
        (DataConfig(source_path="a"), "data.source_path and data.target_path go together"),
        (DataConfig(source_path="a", target_path="b", mixture=("a=1:b",)), "can't be given together"),
        (DataConfig(valid_path="a", valid_source_path="a", valid_target_path="b"), "are two validation texts"),
        (DataConfig(prompt="{q}"), "stands without a response to learn"),
        (DataConfig(response="{a}", too_long="split"), "these are pairs; pass refuse, drop or cut"),
        (DataConfig("a.txt", mixture=("a=1:b",)), "'a.txt' and data.mixture are two texts to learn from"),
        (DataConfig(workers=0), "data.workers=0 must be at least 1"),
        (DataConfig(mixture=("a=1:x", "a=2:y")), "two sources of the mixture are named 'a'"),
        (DataConfig(mixture=("a=0:x",)), "a weight of 0, which must be above zero"),
        (DataConfig("tokens.bin", "embedded"), "embedded is text and tokens.bin is tokens"),
        (DataConfig("tokens.bin", tokenizer="sentencepiece"), "a sentencepiece tokenizer cannot be made from them"),
    ],
)
def test_refusals(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        prepare_dataset(config, 257, 0)


def test_text_that_is_held_out_is_named_as_such(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "some text"}\n' * 18 + '{"text": ""}\n' * 2)
    sentence = rf"^the held-out part of {path} holds no text; pass --data.valid-path FILE$"
    with pytest.raises(ValueError, match=sentence):
        prepare_dataset(DataConfig(str(path)), 257, 0)
    path.write_text('{"text": ""}\n' * 20)
    with pytest.raises(ValueError, match=rf"^{path} holds no text; give a file with some$"):
        prepare_dataset(DataConfig(str(path)), 257, 0)


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
    with pytest.raises(ValueError, match=r"this tokenizer \(tokenizer.json\) cannot be run"):
        prepare_dataset(DataConfig(text_file, tokenizer=str(tmp_path)), 300, 0)


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl.gz", ".csv.gz"])
def test_opening_prepared_data_reads_no_text(tmp_path, english, monkeypatch, suffix):
    lines = {".jsonl.gz": [json.dumps({"text": line}) for line in english.split("\n") if line]}
    content = "\n".join(lines.get(suffix, ["text", *english.split("\n")])).encode()
    path = tmp_path / f"english{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    monkeypatch.setattr("data.cache._SETTLED_SECONDS", -1.0)
    monkeypatch.setattr("data.files._REMEMBERED_BYTES", 0)
    first = prepare_dataset(DataConfig(str(path)), 257, 0)
    monkeypatch.setattr("data.files.chunks", lambda content: pytest.fail("hashed anew"))
    monkeypatch.setattr("data.files._inflated", lambda path, stored: pytest.fail("decompressed anew"))
    assert prepare_dataset(DataConfig(str(path)), 257, 0).digest == first.digest


# What is lost or was changed


def test_what_is_left_out_is_counted_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "some text"}\n{"text": ""}\n' * 50 + "no json\n" * 1200 + '{"text": "the last"}\n' * 200)
    data = prepare_dataset(DataConfig(str(path), bad="skip"), 257, 0)
    why = f"the first: {path}:101 is not JSON (Expecting value"
    assert data.describe()["left out"].startswith(
        f"50 documents without text, 1,200 documents that cannot be read; {why}"
    )
    path.write_text('{"text": "some text"}\n' * 50)
    assert "left out" not in prepare_dataset(DataConfig(str(path)), 257, 0).describe()


def write_kinds(folder):
    """Of each kind of data a configuration, a file of it, and what is changed in that file."""
    for name in ("source.txt", "target.txt", "plain.txt"):
        (folder / name).write_text("one line\n" * 40)
    (folder / "labelled.csv").write_text("text,kind\n" + "".join(f"text {i},{i % 2}\n" for i in range(90)))
    (folder / "shards").mkdir()
    for name in ("a.bin", "b.bin"):
        np.tile(np.array([256, *b"one line"], "<u2"), 40).tofile(folder / "shards" / name)
    pairs = DataConfig(source_path=str(folder / "source.txt"), target_path=str(folder / "target.txt"))
    return {
        "text": (DataConfig(str(folder / "plain.txt")), folder / "plain.txt", (b"line", b"lime")),
        "pairs": (pairs, folder / "target.txt", (b"line", b"lime")),
        "labels": (
            DataConfig(str(folder / "labelled.csv"), label_column="kind"),
            folder / "labelled.csv",
            (b"7,1", b"7,0"),
        ),
        "shards": (DataConfig(str(folder / "shards")), folder / "shards" / "b.bin", (b"n\0", b"m\0")),
    }


@pytest.mark.parametrize("kind", ["text", "pairs", "labels", "shards"])
def test_a_file_that_changed_or_is_gone_is_found(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("data.cache._SETTLED_SECONDS", -1.0)
    monkeypatch.setattr("data.files._REMEMBERED_BYTES", 0)
    config, file, change = write_kinds(tmp_path)[kind]
    classes = ("0", "1") if kind == "labels" else ()

    def digest():
        return prepare_dataset(config, 257, 0, classes=classes).digest

    first, times = digest(), file.stat()
    assert digest() == first
    time.sleep(0.02)
    file.write_bytes(file.read_bytes().replace(*change, 1))  # of the same size, and with its old time
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest() != first
    file.unlink()
    if kind == "shards":  # the others of a folder are other data
        assert digest() != first
    else:
        with pytest.raises(ValueError, match=f"'{file}' does not exist; give a file, a folder or a glob"):
            digest()


# More than one source, pairs, and tokens of others


def write_records(path, **columns):
    records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_a_mixture_gives_each_source_its_share(tmp_path):
    a = write_records(tmp_path / "a.jsonl", text=["a" * 99] * 200)
    b = write_records(tmp_path / "b.jsonl", text=["b" * 99] * 50)
    config = DataConfig(mixture=(f"first=1:{a}", f"second=3:{b}"), max_length=100)
    data = prepare_dataset(config, 257, 0)
    loader = data.loader(seed=0)
    assert loader.names == ("first", "second")
    tokens = loader.rows_for(0, range(400))["tokens"]
    assert [int((tokens[:, 1] == ord(letter)).sum()) for letter in "ab"] == loader.drawn(400) == [100, 300]
    assert data.valid.num_documents == 25  # a tenth of each
    in_epochs = dataclasses.replace(config, mixture=(f"first=1epochs:{a}", f"second=2epochs:{b}"))
    assert prepare_dataset(in_epochs, 257, 0).loader(seed=0).drawn(180 + 90) == [180, 90]


def test_pairs_are_learned_after_what_is_given(tmp_path):
    path = write_records(tmp_path / "qa.jsonl", q=[f"{i} + 1?" for i in range(40)], a=list(range(1, 41)))
    config = DataConfig(path, prompt="{q} ", response="{a}", max_length=32)
    data = prepare_dataset(config, 257, 0)
    loader = data.loader(seed=0)
    row = {name: values[0] for name, values in loader.rows_for(0, range(1)).items()}
    for segment in range(1, row["segments"].max() + 1):
        at = row["segments"] == segment
        question, answer = data.tokenizer.decode(row["tokens"][at]).split("? ")
        assert data.tokenizer.decode(row["targets"][at & row["scored"]]) == answer == str(int(question[:-4]) + 1)
    (rows,) = loader.sources
    learned = sum(len(str(answer)) + 1 for answer in range(1, data.corpora[0].num_documents + 1))  # and end tokens
    assert rows.take(np.arange(len(rows)))["scored"].sum() == learned


def test_parallel_files_are_pairs(tmp_path):
    for name, lines in (("de", ["eins", "zwei", "drei"]), ("en", ["one", "two", "three"])):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    de, en = str(tmp_path / "de"), str(tmp_path / "en")
    config = DataConfig(source_path=de, target_path=en, valid_source_path=de, valid_target_path=en, max_length=16)
    data = prepare_dataset(config, 257, 0)
    corpus = data.corpora[0]
    assert [data.tokenizer.decode(corpus.document(i)) for i in range(3)] == ["eins\none", "zwei\ntwo", "drei\nthree"]
    assert corpus.document_given[:].tolist() == [6, 6, 6]  # the start token, the line and its line feed
    assert corpus.num_bytes == len("onetwothree")


def test_ready_shards_are_read_in_place(tmp_path, english):
    tokenizer = ByteTokenizer()
    documents = english.split("\n")[:60]
    stream = [token for text in documents for token in (*text.encode(), tokenizer.end_id)]
    np.array(stream, np.uint16).tofile(tmp_path / "train.bin")
    config = DataConfig(str(tmp_path / "train.bin"), max_length=16)
    data = prepare_dataset(config, 257, 0)
    texts = [
        data.tokenizer.decode(corpus.document(i))
        for corpus in (data.corpora[0], data.valid)
        for i in range(corpus.num_documents)
    ]
    assert texts == documents
    assert prepare_held_out(config, tokenizer).digest == data.valid.digest
    assert data.loader(seed=0).rows_for(0, range(4))["tokens"].shape == (4, 16)


def test_code_is_run_only_where_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "my_texts.py").write_text(
        "class Texts:\n    def __len__(self): return 30\n    def __getitem__(self, i): return f'text number {i}'\n"
    )
    monkeypatch.chdir(tmp_path)
    config = DataConfig("my_texts:Texts")
    data = prepare_dataset(config, 257, 0)
    assert data.tokenizer.decode(data.corpora[0].document(3)) == "text number 3"
    with pytest.raises(ValueError, match="code that only a saved configuration names is never run"):
        prepare_held_out(config, data.tokenizer)


def test_batches_of_real_text(shared_data):
    config = DataConfig(str(shared_data / "lm" / "tinyshakespeare.txt"), tokenizer="characters", max_length=64)
    data = prepare_dataset(config, 128, 0)
    assert data.tokenizer.vocab_size == 66
    loader = data.loader(seed=0)
    (rows,) = loader.sources
    text = (shared_data / "lm" / "tinyshakespeare.txt").read_text()
    batch = loader.rows_for(10 * len(rows) - 6, range(12))  # straddles epochs
    for tokens, targets, scored in zip(batch["tokens"], batch["targets"], batch["scored"], strict=True):
        assert data.tokenizer.decode(targets[scored]) in text
        assert np.array_equal(tokens[1:][scored[1:]], targets[:-1][scored[1:]])


def test_this_room_brings_no_jax_along():
    code = "import data.dataset, data.loader, data.tokenizers.export, sys, json; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert not {"jax", "torch", "transformers", "tensorflow", "grain"} & set(loaded)
    assert load_tokenizer.__module__ == "data.tokenizers.load"
