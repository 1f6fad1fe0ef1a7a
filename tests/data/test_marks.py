"""Prompts that name masks: the mask's token in the place of its name, and text as text where there is no such token."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.tokenizers.hugging_face import LibraryTokenizer
from data.tokenizers.marks import decode_marked, encode_marked, mentions_mask
from data.tokenizers.plain import ByteTokenizer
from data.tokenizers.sentence_piece import train_sentencepiece

pytestmark = pytest.mark.core

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "tokenizers.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def trained():
    return train_sentencepiece(["the capital of France is Paris\n" * 40], 300, roles=["mask"])


@pytest.mark.parametrize("name", ["[MASK]", "<mask>"])
def test_a_mask_stands_for_a_word_and_the_space_before_it(trained, name):
    mask = trained.special("mask")
    expected = [*trained.encode("the capital of"), mask, *trained.encode(" is"), mask, *trained.encode("s")]
    tokens = encode_marked(trained, f"the capital of {name} is{name}s")
    assert tokens.dtype == np.int32
    assert tokens.tolist() == expected
    assert encode_marked(trained, name).tolist() == [mask]
    assert encode_marked(trained, f"a  {name}").tolist() == [*trained.encode("a "), mask], "one space"


def test_text_without_marks_is_encoded_as_ever(trained):
    for text in ("", "the capital of", "[mask] <unk> </s>"):
        assert encode_marked(trained, text).tolist() == trained.encode(text).tolist()


def test_a_name_without_its_token_is_text():
    tokenizer = ByteTokenizer()
    assert encode_marked(tokenizer, "a [MASK]").tolist() == list(b"a [MASK]")


def test_bert_reads_its_own_mask():
    pytest.importorskip("tokenizers")
    files = {name: content.encode() for name, content in GOLDEN["kinds"]["bert uncased"]["files"].items()}
    tokenizer = LibraryTokenizer(files)
    mask = tokenizer.special("mask")
    assert encode_marked(tokenizer, "The [MASK].").tolist() == [
        *tokenizer.encode("The"),
        mask,
        *tokenizer.encode("."),
    ]
    assert mask not in tokenizer.encode("The [MASK].")


def test_what_mentions_a_mask():
    assert mentions_mask("a [MASK]")
    assert mentions_mask("<mask>")
    assert not mentions_mask("mask [mask]")


def test_sentinels_come_and_go_by_name():
    tokenizer = train_sentencepiece(["the capital of France\n" * 40], 300, roles=["sentinel_0", "sentinel_1"])
    first, second = tokenizer.special("sentinel_0"), tokenizer.special("sentinel_1")
    tokens = encode_marked(tokenizer, "the <extra_id_0> of<extra_id_1>").tolist()
    assert tokens == [*tokenizer.encode("the"), first, *tokenizer.encode(" of"), second]
    assert decode_marked(tokenizer, tokens) == "the<extra_id_0> of<extra_id_1>"
    assert decode_marked(tokenizer, tokens[1:-1]) == "<extra_id_0> of"
    assert decode_marked(tokenizer, []) == ""
