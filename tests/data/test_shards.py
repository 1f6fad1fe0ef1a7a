"""A corpus on disk opens fast, reads across shards as one stream, and is refused when it is not whole."""

import json
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import plan, shards
from data.cache import cache_folder
from data.prepare import prepare_corpus
from data.shards import Corpus, PreparedCorpus, Shard
from data.sources import open_source
from data.tokenizers.plain import ByteTokenizer

pytestmark = pytest.mark.core


def source_of(folder, documents):
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return open_source(str(path))


def corpus_of(folder, tokens, sizes, begin=0, end=None, dtype="<u2"):
    """The tokens in shards of these sizes, some bytes of something else before each."""
    files, start = [], 0
    for number, size in enumerate(sizes):
        path = folder / f"{number}.bin"
        path.write_bytes(b"?" * number + np.array(tokens[start : start + size], dtype).tobytes())
        files.append(Shard(path, dtype, size, skipped=number))
        start += size
    return Corpus("", files, np.array([0]), np.array([1]), begin, end)


@settings(max_examples=60)
@given(st.data())
def test_shards_are_one_stream(tmp_path_factory, data):
    sizes = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=6))
    begin = data.draw(st.integers(0, sum(sizes) - 1))
    end = data.draw(st.integers(begin + 1, sum(sizes)))
    tokens = list(range(1, sum(sizes) + 1))
    corpus = corpus_of(tmp_path_factory.mktemp("shards"), tokens, sizes, begin, end)
    stream = tokens[begin:end]
    assert corpus.num_tokens == len(stream)
    for start in range(len(stream) + 1):
        for stop in range(start, len(stream) + 1):
            assert corpus.slice(start, stop).tolist() == stream[start:stop]
    length = data.draw(st.integers(1, 9))
    starts = np.array(data.draw(st.lists(st.integers(0, len(stream) - 1), max_size=8)), np.int64)
    windows = corpus.windows(starts, length)
    assert (windows.shape, windows.dtype) == ((len(starts), length), np.uint16)
    padded = stream + [0] * length
    assert windows.tolist() == [padded[start : start + length] for start in starts]


def test_shards_of_two_widths(tmp_path):
    (tmp_path / "a").write_bytes(np.array([1, 2], "<u2").tobytes())
    (tmp_path / "b").write_bytes(np.array([70_000, 4], "<u4").tobytes())
    files = [Shard(tmp_path / "a", "<u2", 2), Shard(tmp_path / "b", "<u4", 2)]
    corpus = Corpus("", files, np.array([0]), np.array([1]))
    assert corpus.slice(0, 4).tolist() == [1, 2, 70_000, 4]
    assert corpus.windows(np.array([0, 1, 2]), 2).tolist() == [[1, 2], [2, 70_000], [70_000, 4]]


def test_more_shards_than_a_process_may_open(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = shards._MAPPED_SHARDS + 100
    corpus = corpus_of(tmp_path, range(2 * count), [2] * count)
    resource.setrlimit(resource.RLIMIT_NOFILE, (shards._MAPPED_SHARDS + 64, hard))
    try:
        order = np.random.default_rng(0).permutation(2 * count)
        assert corpus.windows(order, 2)[:, 0].tolist() == order.tolist()
        assert corpus.slice(0, 2 * count).tolist() == list(range(2 * count))
    finally:
        shards._mapped.cache_clear()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_opening_a_corpus_of_many_shards_maps_none(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_SMALLEST_PIECE", 1 << 8)
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))
    source = source_of(tmp_path, ["some text"] * 3000)
    prepared = prepare_corpus(source, ByteTokenizer(), workers=1)
    assert len(prepared._shards) > 150
    monkeypatch.setattr(shards, "_mapped", lambda shard: pytest.fail("mapped"))
    again = PreparedCorpus(tmp_path / "cache" / "corpora" / prepared.digest)
    assert again.num_tokens == prepared.num_tokens == 30_000


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
        PreparedCorpus(tmp_path)


def test_ids_that_the_tokenizer_has_not_are_found_where_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path / "cache"))
    corpus = prepare_corpus(source_of(tmp_path, ["some text"] * 9), ByteTokenizer())
    (folder,) = cache_folder("corpora").iterdir()
    with (folder / "tokens-00000.bin").open("r+b") as file:  # as a damaged disk does, of the same size
        file.seek(2 * 44)
        file.write(b"\xff\xff")
    sentence = (
        f"^{folder} is damaged: it holds the id 65535, and its tokenizer has the ids 0 to 256; delete that folder"
    )
    assert corpus.slice(0, 44).max() == corpus.windows(np.array([0, 50]), 9).max() == 256
    with pytest.raises(ValueError, match=sentence):
        corpus.slice(40, 50)
    with pytest.raises(ValueError, match=sentence):
        corpus.windows(np.array([0, 40]), 9)
    with pytest.raises(ValueError, match=sentence):
        corpus.document(4)
