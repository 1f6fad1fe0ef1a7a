"""Ready shards of others are the corpus that the same documents would make, read where they lie."""

import re
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import foreign_files, foreign_shards
from data.foreign_files import is_foreign
from data.foreign_shards import open_foreign
from data.packing import ConcatenatedRows
from data.prepare import prepare_corpus
from data.sources import open_source
from data.tokenizers.plain import ByteTokenizer

pytestmark = pytest.mark.core
END = 256


class TwoMarks(ByteTokenizer):
    """Bytes, and 257 in place of 256 at the beginning of a document."""

    kind = "two marks"

    def __init__(self):
        super().__init__()
        self.vocab_size, self.start_id = 258, 257


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("JUMOK_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_plain(path, tokens):
    path.write_bytes(np.array(tokens, "<u2").tobytes())


def write_llm_c(path, tokens, magic=20240520, version=1, dtype="<u2", count=None):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + np.array(tokens, dtype).tobytes())


def write_megatron(stem, documents, code=8, **changes):
    """As Megatron's IndexedDatasetBuilder does: documents of sequences of tokens."""
    dtype = {4: "<i4", 5: "<i8", 8: "<u2"}[code]
    sequences = [sequence for document in documents for sequence in document]
    sizes = np.array([len(sequence) for sequence in sequences], "<i4")
    pointers = np.concatenate([[0], np.cumsum(sizes[:-1], dtype="<i8")]) * np.dtype(dtype).itemsize
    bounds = np.cumsum([0, *map(len, documents)])
    parts = {"magic": b"MMIDIDX\0\0", "version": struct.pack("<Q", 1), "code": struct.pack("<B", code)}
    parts |= {"counts": struct.pack("<QQ", len(sizes), len(bounds)), "sizes": sizes.tobytes()}
    parts |= {"pointers": pointers.astype("<i8").tobytes(), "bounds": bounds.astype("<i8").tobytes()}
    stem.with_suffix(".idx").write_bytes(b"".join((parts | changes).values()))
    tokens = [token for sequence in sequences for token in sequence]
    stem.with_suffix(".bin").write_bytes(np.array(tokens, dtype).tobytes())


def prepared(folder, texts):
    """The corpus that this program makes of the same documents."""
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:04d}.txt").write_text(text)
    return prepare_corpus(open_source(str(folder)), ByteTokenizer(), workers=1)


def same(corpus, reference):
    assert corpus.document_starts.tolist() == reference.document_starts.tolist()
    assert corpus.document_given.tolist() == reference.document_given.tolist()
    assert corpus.slice(0, corpus.num_tokens).tolist() == reference.slice(0, reference.num_tokens).tolist()
    assert corpus.document_bytes[:].tolist() == reference.document_bytes[:].tolist()
    assert corpus.document_words[:].tolist() == reference.document_words[:].tolist()
    for name in ("num_tokens", "num_documents", "num_scored", "num_bytes", "num_words", "longest", "learned_only"):
        assert getattr(corpus, name) == getattr(reference, name), name
    for packing in ("isolated", "contiguous"):
        rows, expected = (ConcatenatedRows(c, 7, packing, END) for c in (corpus, reference))
        every = np.arange(len(expected))
        for name, values in expected.take(every).items():
            assert np.array_equal(rows.take(every)[name], values), name


TEXTS = ["first of all", "a second\ndocument", "3", "안녕하세요", "and the last one"]


def llm_c_tokens(texts):
    return [token for text in texts for token in (END, *text.encode())]


def test_llm_c_is_what_we_store(tmp_path):
    write_llm_c(tmp_path / "train.bin", llm_c_tokens(TEXTS))
    same(open_foreign(str(tmp_path / "train.bin"), ByteTokenizer()), prepared(tmp_path / "texts", TEXTS))


def test_nanogpt_lacks_the_first_start_token(tmp_path):
    """Its documents are closed and ours opened by the same token, so that one is missing before and one left over."""
    write_plain(tmp_path / "train.bin", [*llm_c_tokens(TEXTS)[1:], END])
    corpus, reference = open_foreign(str(tmp_path / "train.bin"), ByteTokenizer()), prepared(tmp_path / "t", TEXTS)
    assert corpus.slice(0, corpus.num_tokens).tolist() == reference.slice(1, reference.num_tokens).tolist()
    assert corpus.document_starts.tolist() == [0, *(reference.document_starts[1:] - 1).tolist()]
    assert corpus.document_given.tolist() == [1] * len(TEXTS)
    assert corpus.num_scored == reference.num_scored - 1
    assert corpus.document_bytes[:].tolist() == [len(TEXTS[0]) - 1, *reference.document_bytes[1:].tolist()]
    rows = ConcatenatedRows(corpus, 64, "isolated", END).take(np.array([0]))
    scored = rows["targets"][rows["scored"]].tolist()
    text = [token for text in TEXTS for token in (*text.encode(), END)]
    assert scored == text[1:65]


@pytest.mark.parametrize("code", [4, 8])
@pytest.mark.parametrize("closed", [True, False])
def test_megatron_documents_are_the_index_s(tmp_path, code, closed):
    """With --append-eod each document ends with the mark that opens the next one; without, nothing stands between."""
    documents = [[list(text.encode()[:4]), list(text.encode()[4:])] for text in TEXTS]
    if closed:
        for document in documents:
            document[-1].append(END)
    write_megatron(tmp_path / "text_document", documents, code)
    corpus = open_foreign(str(tmp_path / "text_document"), ByteTokenizer())
    sizes = [len(text.encode()) for text in TEXTS]
    if closed:
        reference = prepared(tmp_path / "t", TEXTS)
        assert corpus.slice(0, corpus.num_tokens).tolist() == reference.slice(1, reference.num_tokens).tolist()
        assert corpus.document_starts.tolist() == [0, *(reference.document_starts[1:] - 1).tolist()]
        assert corpus.num_scored == sum(sizes) - 1
    else:
        assert corpus.document_starts.tolist() == np.cumsum([0, *sizes[:-1]]).tolist()
        assert corpus.num_scored == sum(sizes) - len(TEXTS)
    assert corpus.document_given.tolist() == [1] * len(TEXTS)


def test_start_and_end_tokens_both_are_given(tmp_path):
    texts = [list(text.encode()) for text in TEXTS]
    write_plain(tmp_path / "a.bin", [token for text in texts for token in (257, *text, END)])
    write_megatron(tmp_path / "b", [[[257, *text, END]] for text in texts])
    for name in ("a.bin", "b.bin"):
        corpus = open_foreign(str(tmp_path / name), TwoMarks())
        assert corpus.document(0).tolist() == [257, *texts[0]]
        assert [corpus.document(i).tolist() for i in range(1, 5)] == [[END, 257, *text] for text in texts[1:]]
        assert corpus.document_given.tolist() == [1, 2, 2, 2, 2]
        assert corpus.num_bytes == corpus.num_scored == sum(map(len, texts))


def test_end_tokens_alone_are_read_as_start_tokens(tmp_path):
    texts = [list(text.encode()) for text in TEXTS]
    write_plain(tmp_path / "a.bin", [token for text in texts for token in (*text, END)])
    corpus = open_foreign(str(tmp_path / "a.bin"), TwoMarks())
    assert [corpus.document(i).tolist() for i in range(1, 5)] == [[257, *text] for text in texts[1:]]
    assert END not in corpus.slice(0, corpus.num_tokens)
    assert END not in corpus.windows(np.arange(corpus.num_tokens), 9)
    assert corpus.slice(0, 9).dtype == np.uint16


def definition(tokens, places, marks):
    """The rule, a token at a time: the documents and what is given of each, where they may begin at some places."""
    starts, given = [], []
    for place, token in enumerate(tokens):
        before = place
        while before and tokens[before - 1] in marks:
            before -= 1
        if token not in marks and places & set(range(before, place + 1)):
            starts.append(before)
            given.append(max(place - before, 1))
    stop = len(tokens)
    while stop and tokens[stop - 1] in marks:
        stop -= 1
    return [tokens[start:end] for start, end in pairwise([*starts, stop])], given


@settings(max_examples=200)
@example([[END], [END]], 1, False, 1)
@given(
    documents=st.lists(st.lists(st.sampled_from([1, 2, END, 257]), max_size=6), min_size=1, max_size=8).filter(any),
    chunk=st.integers(1, 9),
    indexed=st.booleans(),
    parts=st.integers(1, 3),
)
def test_documents_are_found_by_the_rule(tmp_path_factory, documents, chunk, indexed, parts):
    folder = tmp_path_factory.mktemp("foreign")
    groups = [group for group in (documents[i::parts] for i in range(parts)) if any(group)]
    for number, group in enumerate(groups):
        if indexed:
            write_megatron(folder / str(number), [[tokens] for tokens in group])
        else:
            write_plain(folder / f"{number}.bin", [token for tokens in group for token in tokens])
    documents = [tokens for group in groups for tokens in group]
    tokens = [token for document in documents for token in document]
    if indexed:
        places = {sum(map(len, documents[:number])) for number in range(len(documents))}
    else:
        places = {0, *(place + 1 for place, token in enumerate(tokens) if token in (END, 257))}
    expected, given_tokens = definition(tokens, places, {END, 257})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign_shards, "_CHUNK", chunk)
        patch.setattr(foreign_files, "_CHUNK", chunk)
        if not expected:
            with pytest.raises(ValueError, match="holds no text"):
                open_foreign(str(folder), TwoMarks())
            return
        corpus = open_foreign(str(folder), TwoMarks())
    if 257 not in tokens:
        expected = [[257 if token == END else token for token in document] for document in expected]
    assert [corpus.document(i).tolist() for i in range(corpus.num_documents)] == expected
    assert corpus.document_given.tolist() == given_tokens


def test_the_last_tenth_is_held_out_at_a_document(tmp_path):
    texts = [f"document {number}" for number in range(100)]
    write_llm_c(tmp_path / "a.bin", llm_c_tokens(texts))
    whole = open_foreign(str(tmp_path / "a.bin"), ByteTokenizer())
    train, valid = whole.split()
    assert train.num_documents + valid.num_documents == 100
    same(valid, prepared(tmp_path / "valid", texts[train.num_documents :]))
    same(train, prepared(tmp_path / "train", texts[: train.num_documents]))
    assert 0.08 < valid.num_tokens / whole.num_tokens <= 0.1
    assert len({train.digest, valid.digest, whole.digest}) == 3


def test_one_long_document_is_split_within(tmp_path):
    write_plain(tmp_path / "a.bin", list(range(100)))
    train, valid = open_foreign(str(tmp_path / "a.bin"), ByteTokenizer()).split()
    assert train.slice(0, train.num_tokens).tolist() == list(range(90))
    assert valid.slice(0, valid.num_tokens).tolist() == list(range(90, 100))
    assert (valid.document_starts.tolist(), valid.document_given.tolist()) == ([0], [1])
    assert valid.windows(np.array([5]), 9).tolist() == [[95, 96, 97, 98, 99, 0, 0, 0, 0]]
    write_plain(tmp_path / "b.bin", [1])
    with pytest.raises(ValueError, match=r"b.bin is too small to hold out a tenth"):
        open_foreign(str(tmp_path / "b.bin"), ByteTokenizer()).split()


def test_documents_are_searched_once(tmp_path, monkeypatch):
    write_llm_c(tmp_path / "a.bin", llm_c_tokens(TEXTS))
    seen = []
    first = open_foreign(str(tmp_path / "a.bin"), ByteTokenizer(), lambda *progress: seen.append(progress))
    assert seen[-1] == (first.num_tokens, first.num_tokens)
    monkeypatch.setattr(foreign_shards, "_search", lambda *_: pytest.fail("searched again"))
    assert open_foreign(str(tmp_path / "a.bin"), ByteTokenizer()).digest == first.digest


def test_digests_follow_content_names_order_and_tokenizer(tmp_path):
    write_plain(tmp_path / "a.bin", [1, 2])
    write_plain(tmp_path / "b.bin", [3])
    one = open_foreign(str(tmp_path), ByteTokenizer()).digest
    assert open_foreign(str(tmp_path), TwoMarks()).digest != one
    (tmp_path / "a.bin").rename(tmp_path / "c.bin")
    other = open_foreign(str(tmp_path), ByteTokenizer())
    assert other.slice(0, 3).tolist() == [3, 1, 2]
    assert other.digest != one
    write_plain(tmp_path / "c.bin", [1, 4])
    assert open_foreign(str(tmp_path), ByteTokenizer()).digest not in (one, other.digest)


def test_four_bytes_a_token(tmp_path):
    write_llm_c(tmp_path / "a.bin", [END, 1, 2], 20240801, 7, "<u4")
    assert open_foreign(str(tmp_path / "a.bin"), ByteTokenizer()).slice(0, 3).dtype == np.uint32


def test_what_is_foreign(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("")
    (tmp_path / "shards").mkdir()
    write_megatron(tmp_path / "shards" / "a", [[[1]]])
    assert not is_foreign(str(tmp_path / "text"))
    assert not is_foreign("embedded")
    for path in ("shards", "shards/a", "shards/a.bin", "shards/a.idx", "shards/*.bin"):
        assert is_foreign(str(tmp_path / path)), path
    # Among text, a stray file is passed over.
    (tmp_path / "text" / "stray.bin").write_bytes(b"")
    assert not is_foreign(str(tmp_path / "text"))
    assert not is_foreign(str(tmp_path))
    (tmp_path / "empty").mkdir()
    assert not is_foreign(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("names", "train", "held_out"),
    [
        (("train", "val"), "train", "val"),  # nanoGPT's
        (("TinyStories_train", "TinyStories_val"), "TinyStories_train", "TinyStories_val"),  # llm.c's
        (  # modded-nanogpt's
            ("fineweb_train_000001", "fineweb_train_000002", "fineweb_val_000000"),
            "fineweb_train*",
            "fineweb_val*",
        ),
    ],
)
def test_training_and_validation_text_are_not_read_together(tmp_path, names, train, held_out):
    for name in names:
        write_plain(tmp_path / f"{name}.bin", [1, 2])
    train, held_out = f"{tmp_path}/{train}.bin", f"{tmp_path}/{held_out}.bin"
    sentence = (
        f"{tmp_path} holds training and validation text, {train} and {held_out}; name the one with "
        f'--data.path "{train}" and the other with --data.valid-path "{held_out}"'
    )
    with pytest.raises(ValueError, match=rf"^{re.escape(sentence)}$"):
        open_foreign(str(tmp_path), ByteTokenizer())
    assert open_foreign(train, ByteTokenizer()).num_tokens == 2 * (len(names) - 1)
    assert open_foreign(held_out, ByteTokenizer()).num_tokens == 2


def test_other_names_do_not_say_that_text_is_for_validation(tmp_path):
    for name in ("web_train_1", "code_val_1", "train", "valentine"):
        write_plain(tmp_path / f"{name}.bin", [1, 2])
    assert open_foreign(str(tmp_path), ByteTokenizer()).num_tokens == 8


def test_the_longest_document_is_found_in_parts(tmp_path, monkeypatch):
    write_llm_c(tmp_path / "a.bin", llm_c_tokens(["ab", "abcdefgh", "a", "abc"]))
    for chunk in (1, 2, 3, 4, 5):
        monkeypatch.setattr(foreign_shards, "_CHUNK", chunk)
        assert open_foreign(str(tmp_path / "a.bin"), ByteTokenizer()).longest == 9


def test_files_elsewhere_are_refused():
    with pytest.raises(ValueError, match=r"gs://bucket/a.bin is not local, .*; copy them to this machine"):
        open_foreign("gs://bucket/a.bin", ByteTokenizer())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda f: (f / "a.bin").write_bytes(b"123"), r"a.bin has 3 bytes, an odd number, which are no uint16 tokens"),
        (lambda f: (f / "a.bin").write_bytes(b""), r"a.bin holds no tokens; leave it out"),
        (lambda f: (f / "a.txt").write_bytes(b""), r"holds no ready shards; give .bin files"),
        (
            lambda f: write_plain(f / "a.bin", [1, 400]),
            r"a.bin holds the id 400, and the bytes tokenizer has the ids 0 to 256",
        ),
        (lambda f: write_plain(f / "a.bin", [END]), r"a.bin holds no text, only marks of documents"),
        (lambda f: write_llm_c(f / "a.bin", [1], version=2), r"a.bin is of version 2, and version 1 is read"),
        (lambda f: write_llm_c(f / "a.bin", [1, 2], count=3), r"a.bin has 1028 bytes, and its header speaks of 1030"),
        (lambda f: write_megatron(f / "a", [[[1]]], version=struct.pack("<Q", 2)), r"a.idx is of version 2"),
        (lambda f: write_megatron(f / "a", [[[1]]], magic=b"TNTIDX\0\0\0"), r"a.idx is no .idx of Megatron"),
        (lambda f: write_megatron(f / "a", [[[1]]], 5), r"a.idx speaks of tokens of type 5; types 4 \(int32\) and 8"),
        (lambda f: write_megatron(f / "a", [[[1, -1]]], 4), r"a.bin holds the id -1, and the bytes"),
        (lambda f: write_megatron(f / "a", [[[1]]], bounds=b""), r"a.idx has 46 bytes, and its header speaks of 62"),
        (lambda f: (f / "a.idx").write_bytes(b"MMI"), r"a.idx has no .*a.bin beside it"),
        (lambda f: ((f / "a.idx").write_bytes(b"MMI"), write_plain(f / "a.bin", [1])), r"a.idx has 3 bytes, less than"),
        (
            lambda f: (write_megatron(f / "a", [[[1]]]), write_plain(f / "b.bin", [1])),
            r"b.bin has no .*b.idx beside it",
        ),
        (
            lambda f: (write_megatron(f / "a", [[[1, 2]]]), write_plain(f / "a.bin", [1])),
            r"a.bin has 2 bytes, and .*a.idx speaks of 4; copy both anew",
        ),
        (
            lambda f: write_megatron(f / "a", [[[1]], [[2]]], pointers=np.array([0, 4], "<i8").tobytes()),
            r"a.idx speaks of sequences that do not lie one behind the other",
        ),
        (
            lambda f: write_megatron(f / "a", [[[1]], [[2]]], bounds=np.array([0, 3, 2], "<i8").tobytes()),
            r"a.idx speaks of documents that do not lie one behind the other",
        ),
        (
            lambda f: write_megatron(f / "a", [[[1]], [[2]]], bounds=np.array([0, 1, 1], "<i8").tobytes()),
            r"a.idx speaks of sequences outside its documents",
        ),
        (
            lambda f: write_megatron(f / "a", [], counts=struct.pack("<QQ", 0, 1), pointers=b""),
            r"a.idx speaks of no documents",
        ),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path, make, sentence):
    make(tmp_path)
    with pytest.raises(ValueError, match=sentence) as error:
        open_foreign(str(tmp_path), ByteTokenizer())
    assert "\n" not in str(error.value)


def test_what_changes_after_it_was_searched_is_found_where_it_is_read(tmp_path):
    write_plain(tmp_path / "a.bin", [END, *b"some text"])
    corpus = open_foreign(str(tmp_path), ByteTokenizer())
    with (tmp_path / "a.bin").open("r+b") as file:
        file.write(np.array([400], "<u2").tobytes())
    with pytest.raises(ValueError, match=f"^{tmp_path} is damaged: it holds the id 400, and .*; make its files anew"):
        corpus.document(0)
