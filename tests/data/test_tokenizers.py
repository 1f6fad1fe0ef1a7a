"""Every tokenizer: text comes back as it was, nothing in a text is a mark, and damage is said in a sentence."""

import io
import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizers.base import TOKENIZER_FILE
from data.tokenizers.carried import CarriedTokenizer
from data.tokenizers.load import load_tokenizer
from data.tokenizers.plain import ByteTokenizer, CharacterTokenizer
from data.tokenizers.sentence_piece import SentencePieceTokenizer, _sample, train_sentencepiece
from data.tokenizers.sentence_piece_model import has_user_defined_pieces, model_type, with_scores

pytestmark = pytest.mark.core
KINDS = ["bytes", "characters", "sentencepiece"]


@pytest.fixture(scope="module")
def trained(english):
    return train_sentencepiece([english], 400)


@pytest.fixture(scope="module")
def tokenizers(trained, english, tricky):
    return {
        "bytes": ByteTokenizer(),
        "characters": CharacterTokenizer.of([english, *tricky, "<s></s><|endoftext|>"]),
        "sentencepiece": trained,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_tricky_text_comes_back(tokenizers, kind, tricky, english):
    tokenizer = tokenizers[kind]
    for text, tokens in zip(tricky, tokenizer.encode_batch(tricky), strict=True):
        assert tokens.dtype == np.int32
        assert tokens.tolist() == tokenizer.encode(text).tolist()
        assert tokenizer.decode(tokens) == text
    assert tokenizer.decode(tokenizer.encode(english)) == english


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_comes_back(trained, text):
    for tokenizer in (trained, ByteTokenizer()):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_a_mark(tokenizers, kind):
    tokenizer = tokenizers[kind]
    tokens = tokenizer.encode("<s></s><|endoftext|>")
    assert tokenizer.start_id not in tokens
    assert tokenizer.end_id not in tokens
    assert tokenizer.decode([tokenizer.start_id, *tokens, tokenizer.end_id]) == "<s></s><|endoftext|>"


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_whole_characters(tokenizers, kind, tricky):
    tokenizer = tokenizers[kind]
    for text in tricky:
        stream, given = tokenizer.stream(), ""
        for token in tokenizer.encode(text):
            given += stream.feed(token)
            assert text.startswith(given)
        assert given + stream.finish() == text
    half = tokenizers["bytes"].stream()
    assert half.feed([0xED, 0x95]) == ""
    assert half.finish() == "\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_beyond_the_vocabulary_decode_to_replacements(tokenizers, kind):
    tokenizer = tokenizers[kind]
    assert tokenizer.decode([*tokenizer.encode("ab"), tokenizer.vocab_size, -1]) == "ab\ufffd\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(tokenizers, kind, tmp_path):
    tokenizer = tokenizers[kind]
    tokenizer.save(tmp_path / "tokenizer")
    for path in (tmp_path / "tokenizer", tmp_path):  # the folder itself, or the run that holds it
        loaded = load_tokenizer(path)
        assert type(loaded) is type(tokenizer)
        assert loaded.digest == tokenizer.digest
        assert (loaded.vocab_size, loaded.start_id, loaded.end_id) == (
            tokenizer.vocab_size,
            tokenizer.start_id,
            tokenizer.end_id,
        )


def test_digests_differ(tokenizers, trained, english):
    other = CharacterTokenizer.of(["ab"])
    bigger = train_sentencepiece([english], 401)
    digests = [tokenizer.digest for tokenizer in (*tokenizers.values(), other, bigger)]
    assert len(set(digests)) == len(digests)
    assert train_sentencepiece([english], 400).digest == trained.digest


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(tokenizers, kind):
    assert tokenizers[kind].lossless
    assert tokenizers[kind].loss == ""


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_nothing(tokenizers, kind, english, tricky):
    texts = [*tricky, english * 3]
    one, two = (tokenizers[kind].encode_batch(texts, threads) for threads in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_special_tokens_by_role(tokenizers):
    assert tokenizers["bytes"].specials == {"start": 256, "end": 256}
    assert tokenizers["sentencepiece"].specials == {"start": 1, "end": 2, "unknown": 0}
    assert tokenizers["sentencepiece"].special("end") == 2
    with pytest.raises(ValueError, match=r"this bytes tokenizer has no mask token; its special tokens are: start, end"):
        tokenizers["bytes"].special("mask")


def test_characters_refuse_an_unknown_one():
    tokenizer = CharacterTokenizer.of(["hello"])
    assert tokenizer.vocab_size == 5
    with pytest.raises(ValueError, match=r"the character 'ö' \(U\+00F6\) is not among the 4 characters"):
        tokenizer.encode("helö")


# SentencePiece


def test_a_trained_vocabulary_has_the_size_asked_for_and_our_ids(trained):
    assert trained.vocab_size == 400
    assert (trained.start_id, trained.end_id) == (1, 2)
    assert trained.pieces[:3] == ["<unk>", "<s>", "</s>"]
    assert trained.byte_ids == {byte: 3 + byte for byte in range(256)}
    assert trained.lossless
    assert trained.cuts


def test_pieces_hold_line_ends_but_never_the_next_line(trained):
    assert any(piece.endswith(".\n") for piece in trained.pieces)
    assert not any("\n" in piece.rstrip("\n") for piece in trained.pieces)


def test_encoding_in_parts_is_encoding_the_whole(trained, english, monkeypatch):
    whole = trained.processor.encode(english)
    for size in (20, 50, 1000):
        monkeypatch.setattr(SentencePieceTokenizer, "_PART", size)
        assert trained.encode(english).tolist() == whole


def test_a_vocabulary_larger_than_the_text_allows(english):
    with pytest.raises(
        ValueError, match=r"vocab_size=9000 is larger than the text allows .* finds (\d+) pieces"
    ) as error:
        train_sentencepiece([english], 9000)
    largest = int(str(error.value).split("--model.vocab-size ")[1].split()[0])
    assert train_sentencepiece([english], largest).vocab_size == largest


def test_a_vocabulary_smaller_than_the_characters_need(english):
    with pytest.raises(ValueError, match=r"vocab_size=262 is smaller than the (\d+) marks, bytes and characters"):
        train_sentencepiece([english], 262)
    with pytest.raises(ValueError, match=r"vocab_size=100 is too small for SentencePiece"):
        train_sentencepiece([english], 100)


@pytest.mark.parametrize("texts", [[], [""], ["\n"]])
def test_no_text_to_train_on(texts):
    with pytest.raises(ValueError, match=r"vocab_size=400|could not make 400 pieces"):
        train_sentencepiece(texts, 400)


def test_text_that_cannot_be_read_is_not_called_short():
    def texts() -> Iterator[str]:
        yield "the first document"
        raise ValueError("a.csv has no column 'text'")

    with pytest.raises(ValueError, match=r"a\.csv has no column 'text'"):
        train_sentencepiece(texts(), 400)


def test_long_lines_and_reserved_characters_are_learned_from(english):
    line = english.replace("\n", " ") * 4  # one line, several times what SentencePiece drops silently
    assert len(line) > 40_000
    tokenizer = train_sentencepiece([line + "\u2585" + line + "\0" + line], 400)
    assert "\u2581remembers" in tokenizer.pieces


def test_the_sample_is_bounded_and_seeded(english):
    texts = [english.replace("e", vowel) for vowel in "eaiouy"]
    trained = [
        train_sentencepiece(iter(texts), 380, seed=seed, sample_characters=30_000).digest for seed in (0, 0, 1, 2, 3)
    ]
    assert trained[0] == trained[1]
    assert len(set(trained)) > 1


def test_the_sample_is_the_blocks_that_draw_the_largest_numbers():
    sizes = [random.Random(1).choice([5, 80, 400]) for _ in range(200)]
    texts = [chr(0x4E00 + i) * size for i, size in enumerate(sizes)]
    for seed in range(5):
        generator = random.Random(seed)
        draws = {text: generator.random() for text in texts}
        expected, held = [], 0
        for text in sorted(texts, key=lambda text: -draws[text]):
            held += len(text)
            if held > 3000:
                break
            expected.append(text)
        assert _sample(iter(texts), 3000, seed) == sorted(expected, key=texts.index)


def test_unigram_scores_add_up_exactly(english):
    tokenizer = train_sentencepiece([english], 320, "unigram")
    scores = [tokenizer.processor.get_score(token) for token in range(320)]
    assert len(set(scores)) > 10
    assert all((score * 64).is_integer() for score in scores)
    assert set("<>/0123456789ABCDEFxsunk") <= set(tokenizer.pieces)


def test_unigram_is_lossless_too(english, tricky):
    tokenizer = train_sentencepiece([english], 320, "unigram")
    assert tokenizer.vocab_size == 320
    for text in tricky:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.fixture(scope="module")
def foreign_model(english) -> bytes:
    """A model with SentencePiece's own defaults, as published ones have: a space before, normalized text, no bytes."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(english.split("\n")),
        model_writer=writer,
        vocab_size=100,
        model_type="bpe",
        minloglevel=2,
    )
    return writer.getvalue()


def test_what_the_file_of_a_model_tells(trained, foreign_model, english):
    unigram = train_sentencepiece([english], 320, "unigram")
    assert [model_type(t.files["tokenizer.model"]) for t in (trained, unigram)] == ["bpe", "unigram"]
    assert (trained.model_type, unigram.model_type) == ("bpe", "unigram")
    changed = sentencepiece.SentencePieceProcessor(model_proto=with_scores(foreign_model, lambda score: score - 2))
    model = sentencepiece.SentencePieceProcessor(model_proto=foreign_model)
    assert all(changed.id_to_piece(i) == model.id_to_piece(i) for i in range(100))
    assert all(changed.get_score(i) == model.get_score(i) - 2 for i in range(100))

    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(english.split("\n")),
        model_writer=writer,
        vocab_size=40,
        user_defined_symbols=["moon"],
        minloglevel=2,
    )
    assert has_user_defined_pieces(writer.getvalue())
    assert not has_user_defined_pieces(foreign_model)


def test_a_foreign_model_does_what_its_own_library_does(foreign_model, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(foreign_model)
    (tmp_path / "tokenizer_config.json").write_text('{"theirs": true}')
    (tmp_path / "unrelated.bin").write_bytes(b"not ours")
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert not tokenizer.cuts
    text = "the cat sees  the moon"
    assert tokenizer.encode(text).tolist() == tokenizer.processor.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == "the cat sees the moon"
    assert not tokenizer.lossless
    assert "typographic forms of letters, spaces at the start, spaces at the end, runs of spaces" in tokenizer.loss
    assert tokenizer.loss.endswith(" and characters outside its vocabulary")
    tokenizer.save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == sorted(
        ["tokenizer.model", "tokenizer_config.json", TOKENIZER_FILE]
    )
    assert (tmp_path / "saved" / "tokenizer_config.json").read_text() == '{"theirs": true}'
    assert load_tokenizer(tmp_path / "saved").digest == tokenizer.digest
    assert load_tokenizer(tmp_path / "tokenizer.model").digest == tokenizer.digest


def test_a_model_without_marks_is_refused(english, tmp_path):
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(english.split("\n")),
        model_writer=writer,
        vocab_size=40,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match=r"neither a token that starts nor one that ends a document"):
        SentencePieceTokenizer(writer.getvalue())


# Foreign and damaged files


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ByteTokenizer().save(tmp_path / "mine")
    assert load_tokenizer("~/mine").digest == ByteTokenizer().digest


def test_a_tokenizer_that_cannot_be_run_is_carried(tmp_path):
    vocabulary = {"a": 0, "b": 1, "ab": 2}
    added = [{"id": 3, "content": "<|begin|>"}, {"id": 4, "content": "<|end|>"}]
    content = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": added}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<|begin|>"}, "eos_token": "<|end|>"}')
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, CarriedTokenizer)
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id) == (5, 3, 4)
    for use in (
        lambda: tokenizer.encode("ab"),
        lambda: tokenizer.decode([]),
        tokenizer.stream,
        lambda: tokenizer.token_bytes(1),
    ):
        with pytest.raises(
            ValueError,
            match=r"this tokenizer \(tokenizer.json, tokenizer_config.json\) cannot be run \(.*\); only commands that",
        ):
            use()
    tokenizer.save(tmp_path / "saved")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert load_tokenizer(tmp_path / "saved").digest == tokenizer.digest


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"model": 3}', b'{"model": {"vocab": [[1], 2]}, "added_tokens": [1, {}]}', b"[" * 99999],
)
def test_a_foreign_file_that_says_nothing_is_still_carried(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.start_id, tokenizer.end_id) == (-1, -1)


def test_a_model_file_of_another_kind_beside_tokenizer_json(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # tiktoken's format
    with pytest.raises(ValueError, match=r"not a SentencePiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert load_tokenizer(tmp_path).kind == "carried"


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist; give bytes, characters, sentencepiece, a folder or a file"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_damaged_models_are_sentences(trained, tmp_path):
    trained.save(tmp_path)
    model = (tmp_path / "tokenizer.model").read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for trial in range(30):
        damaged = bytearray(model)
        if trial % 2:
            del damaged[generator.integers(len(damaged)) :]
        else:
            damaged[generator.integers(len(damaged))] ^= 1 << generator.integers(8)
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with ExitStack() as expectation:
            expectation.enter_context(pytest.raises(ValueError, match="damaged"))
            # Damage to what plays no part in encoding, such as the record of the training, is let through.
            assert load_tokenizer(tmp_path).digest == trained.digest
            expectation.pop_all()
            continue
        refused += 1
    assert refused > 20


def _described(**changes):
    return json.dumps({"format": 1, "kind": "bytes", "digest": ByteTokenizer().digest} | changes)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "does not describe a tokenizer"),
        ("[]", "does not describe a tokenizer"),
        ("{}", "does not describe a tokenizer"),
        (_described(format=2), "has format 2, and this program reads format 1; use a newer program"),
        (_described(kind="magic"), "unknown kind 'magic'"),
        (_described(digest="0"), "it is not the one that jumok_tokenizer.json describes"),
        (_described(kind="characters"), "is incomplete: characters is missing"),
        (_described(kind="characters", characters="ba"), "ascending and each once"),
        (_described(kind="characters", characters=["a", "b"]), "as a string"),
        (_described(kind="characters", characters="\ud800"), "damaged"),
        (_described(kind="sentencepiece"), "is incomplete: tokenizer.model is missing"),
    ],
)
def test_damaged_descriptions_are_sentences(tmp_path, content, sentence):
    (tmp_path / TOKENIZER_FILE).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("make", [ByteTokenizer, partial(CharacterTokenizer, "abc")], ids=["bytes", "characters"])
def test_special_tokens_that_are_asked_for_follow_those_of_text(make, tmp_path):
    plain, more = make(), make(roles=("mask", "sentinel_0"))
    assert more.vocab_size == plain.vocab_size + 2
    assert (more.special("mask"), more.special("sentinel_0")) == (plain.vocab_size, plain.vocab_size + 1)
    tokens = more.encode("abc")
    np.testing.assert_array_equal(tokens, plain.encode("abc"))
    assert more.decode([*tokens, more.special("mask"), *tokens]) == "abcabc"
    more.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.digest, again.specials) == (more.digest, more.specials)
    assert again.digest != plain.digest
    with pytest.raises(ValueError, match=r"has no separator token; .* are: start, end, mask, sentinel;"):
        more.special("separator")
