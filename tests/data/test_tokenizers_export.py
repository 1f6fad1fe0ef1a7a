"""tokenizer.json: transformers gives the same ids and the same text as we do."""

import io
import json
import random

import pytest
import sentencepiece

from data.tokenizers.carried import CarriedTokenizer
from data.tokenizers.export import to_files, to_tokenizer_config, to_tokenizer_json
from data.tokenizers.plain import ByteTokenizer, CharacterTokenizer
from data.tokenizers.sentence_piece import SentencePieceTokenizer, train_sentencepiece
from data.tokenizers.sentence_piece_model import with_scores

ROLES = ("mask", "separator", "sentinel_0")


def _tokenizer(kind, texts):
    match kind:
        case "bytes":
            return ByteTokenizer()
        case "bytes with a mask":
            return ByteTokenizer(ROLES)
        case "characters":
            return CharacterTokenizer.of(texts)
        case "characters with a mask":
            return CharacterTokenizer.of(texts, ROLES)
        case _:
            return train_sentencepiece(texts, 400 if kind == "bpe" else 320, kind)


def _check(tokenizer, texts, folder):
    transformers = pytest.importorskip("transformers")
    for name, content in to_files(tokenizer).items():
        (folder / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.start_id, tokenizer.end_id)
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.mask_token_id == tokenizer.specials.get("mask")
    for text in texts:
        tokens = tokenizer.encode(text).tolist()
        assert theirs(text).input_ids == tokens, text
        assert theirs.decode(tokens) == tokenizer.decode(tokens) == text
        marked = [tokenizer.start_id, *tokens, tokenizer.end_id]
        assert theirs.decode(marked, skip_special_tokens=True) == tokenizer.decode(marked)


@pytest.mark.parametrize(
    "kind", ["bytes", "bytes with a mask", "characters", "characters with a mask", "bpe", "unigram"]
)
def test_transformers_agree(kind, english, tricky, tmp_path):
    texts = [*tricky, english, *english.splitlines()[:50]]
    _check(_tokenizer(kind, [english] if kind in ("bpe", "unigram") else texts), texts, tmp_path)


@pytest.mark.parametrize(
    ("model_type", "vocab_size"), [("bpe", 1000), ("bpe", 4000), ("unigram", 1000), ("unigram", 4000)]
)
def test_transformers_agree_on_public_text(model_type, vocab_size, tmp_path, shared_data, tricky):
    shakespeare = (shared_data / "lm" / "tinyshakespeare.txt").read_text("utf-8")
    korean = (shared_data / "mt" / "ko-en-news" / "dev.ko").read_text("utf-8")
    lines = shakespeare.splitlines()[:500] + korean.splitlines()[:500]
    english_only = vocab_size == 1000  # Korean then is bytes
    tokenizer = train_sentencepiece([shakespeare] if english_only else [shakespeare, korean], vocab_size, model_type)
    _check(tokenizer, [*tricky, *lines, shakespeare[:100_000], korean[:20_000]], tmp_path)


@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram"])
def test_names_of_marks_are_letters_where_transformers_is_asked_to_split_them(kind, english, tricky, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = _tokenizer(kind, [english])
    for name, content in to_files(tokenizer).items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    generator = random.Random(0)
    pieces = [*tricky, "<s>", "</s>", "<unk>", "<0x41>", "<0xED>", "<0x", "\u2581", "<|endoftext|>", "the", " ", "  "]
    for _ in range(300):
        text = "".join(generator.choice(pieces) for _ in range(8))
        tokens = tokenizer.encode(text).tolist()
        assert theirs(text, split_special_tokens=True).input_ids == tokens, text
        assert not {tokenizer.start_id, tokenizer.end_id} & set(tokens)


@pytest.mark.parametrize("tie", [0.0, 1.0])
def test_unigram_models_cut_alike_where_two_ways_are_worth_the_same(tie, english):
    tokenizers = pytest.importorskip("tokenizers")
    model = train_sentencepiece([english], 320, "unigram").files["tokenizer.model"]
    tokenizer = SentencePieceTokenizer(with_scores(model, lambda score: -4.0 + tie * round(score)))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(to_tokenizer_json(tokenizer)))
    generator = random.Random(0)
    for _ in range(100):
        text = "".join(generator.choice(english) for _ in range(500))
        assert theirs.encode(text).ids == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_transformers_reads_the_file_of_a_foreign_model(model_type, english, tmp_path):
    transformers = pytest.importorskip("transformers")
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(english.split("\n")),
        model_writer=writer,
        vocab_size=40,
        model_type=model_type,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(writer.getvalue())
    for name, content in to_files(tokenizer).items():
        (tmp_path / name).write_bytes(content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.model", "tokenizer_config.json"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == tokenizer.end_id
    for text in (" ".join(line.split()) for line in english.splitlines()[:100]):
        assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode(text).tolist()


@pytest.mark.core
def test_the_shape_of_the_files(english):
    tokenizer = train_sentencepiece([english], 400)
    content = to_tokenizer_json(tokenizer)
    vocabulary = content["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(400))
    assert " the" in vocabulary
    assert all(first + second in vocabulary for first, second in content["model"]["merges"])
    assert to_tokenizer_config(tokenizer)["bos_token"] == "<s>"
    files = to_files(tokenizer)
    assert sorted(files) == ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    assert json.loads(files["tokenizer.json"]) == content


@pytest.mark.core
def test_foreign_files_stay_as_they_are(english):
    carried = CarriedTokenizer({"tokenizer.json": b"{ }", "merges.txt": b"x"}, "a reason")
    assert to_files(carried) == carried.files
    with pytest.raises(ValueError, match=r"no tokenizer.json can be written for this carried tokenizer"):
        to_tokenizer_json(carried)
    model = train_sentencepiece([english], 400).files["tokenizer.model"]
    imported = SentencePieceTokenizer(model, {"tokenizer.json": b"theirs", "tokenizer_config.json": b"{ }"})
    assert to_files(imported)["tokenizer.json"] == b"theirs"
    assert to_files(imported)["tokenizer_config.json"] == b"{ }"
