"""The content of a tokenizer.json: what Hugging Face's tokenizers library reads, put together from its parts.

The older files of GPT-2 (Radford et al. 2019: byte-level byte-pair encoding, vocab.json and merges.txt) and of BERT
(Devlin et al. 2018: WordPiece, vocab.txt) say the same with less, and are read by making a tokenizer.json of them.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from data.tokenizers.roles import find_specials, json_object, token_text

TOKENIZER_JSON = "tokenizer.json"

# The tokenizers of transformers whose files, without a tokenizer.json, are read as GPT-2's and as BERT's.
_LIKE_GPT2 = ("GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer")
_LIKE_BERT = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "ConvBertTokenizer")


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it prints, else one from 256 on."""
    printing = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


def document(
    model: dict[str, Any],
    added: Iterable[dict[str, Any]],
    *,
    normalizer: dict[str, Any] | None = None,
    pre_tokenizer: dict[str, Any] | None = None,
    decoder: dict[str, Any],
) -> dict[str, Any]:
    """A whole tokenizer.json; nothing is put around a text."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def added_token(number: int, content: str, special: bool = True) -> dict[str, Any]:
    """A token that is looked for in a text as a whole, or a special one."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"id": number, "content": content} | flags


def bpe(vocabulary: Mapping[str, int], merges: Iterable[list[str]] = ()) -> dict[str, Any]:
    """A byte-pair encoding: tokens by id, and which pairs merge, the first ones first."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocabulary),
        "merges": list(merges),
    }


def encoded(value: dict[str, Any]) -> bytes:
    """A JSON file's content."""
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"


def tokenizer_json(files: Mapping[str, bytes]) -> bytes:
    """The tokenizer.json of a Hugging Face folder: its own, or one that says what its other files say.

    Raises:
        ValueError: files of no known kind, or damaged ones.
    """
    if TOKENIZER_JSON in files:
        return files[TOKENIZER_JSON]
    config = json_object(files, "tokenizer_config.json")
    name = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if {"vocab.json", "merges.txt"} <= files.keys() and name in ("", *_LIKE_GPT2):
        return encoded(_of_gpt2(files, config))
    if "vocab.txt" in files and name in ("", *_LIKE_BERT):
        return encoded(_of_bert(files, config))
    named = f" for a {name}" if name else ""
    raise ValueError(
        f"these files are of no known kind{named}; give a folder with a tokenizer.json, with vocab.json and merges.txt "
        f"of GPT-2's kind, with vocab.txt of BERT's, or with a tokenizer.model of SentencePiece"
    )


def _of_gpt2(files: Mapping[str, bytes], config: dict[str, Any]) -> dict[str, Any]:
    vocabulary = json_object(files, "vocab.json")
    if not all(isinstance(token, str) and type(number) is int for token, number in vocabulary.items()):
        raise ValueError("vocab.json is damaged: it gives tokens their ids; copy it anew")
    if not vocabulary.keys() >= set(byte_letters()):
        raise ValueError("vocab.json has not all 256 bytes as GPT-2's has; save the tokenizer with its tokenizer.json")
    lines = [line for line in _lines(files, "merges.txt") if line and not line.startswith("#version")]
    merges = [line.split(" ") for line in lines]
    if wrong := [line for line, merge in zip(lines, merges, strict=True) if len(merge) != 2]:
        raise ValueError(f"merges.txt is damaged: the line {wrong[0]!r} is not a pair of tokens; copy it anew")
    if any(merge[1].endswith("</w>") for merge in merges):
        raise ValueError("merges.txt marks the ends of words, unlike GPT-2's; save the tokenizer with a tokenizer.json")
    by_letter = {"type": "ByteLevel", "add_prefix_space": config.get("add_prefix_space", False), "trim_offsets": True}
    by_letter["use_regex"] = True
    added = _added_tokens(files, config, vocabulary)
    return document(bpe(vocabulary, merges), added, pre_tokenizer=by_letter, decoder=by_letter)


def _of_bert(files: Mapping[str, bytes], config: dict[str, Any]) -> dict[str, Any]:
    vocabulary = {token: number for number, token in enumerate(_lines(files, "vocab.txt"))}
    unknown = token_text(config.get("unk_token", "[UNK]"))
    if unknown not in vocabulary:
        raise ValueError(
            f"vocab.txt has no token {unknown!r} as BERT's has; save the tokenizer with its tokenizer.json"
        )
    model = {
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocabulary,
    }
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        "strip_accents": config.get("strip_accents"),
        "lowercase": config.get("do_lower_case", True),
    }
    return document(
        model,
        _added_tokens(files, config, vocabulary),
        normalizer=normalizer,
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def _added_tokens(
    files: Mapping[str, bytes], config: dict[str, Any], vocabulary: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The special tokens of the vocabulary, and tokens that the folder's files add to it."""
    tokens = {content: i for content, i in json_object(files, "added_tokens.json").items() if type(i) is int}
    described = config.get("added_tokens_decoder")
    special = set()
    for number, token in described.items() if isinstance(described, dict) else ():
        if number.isdecimal() and (content := token_text(token)):
            tokens[content] = int(number)
            if isinstance(token, dict) and token.get("special"):
                special.add(content)
    ids = {**vocabulary, **tokens}
    new = sorted(set(ids.values()) - set(vocabulary.values()))
    if new != list(range(len(vocabulary), len(vocabulary) + len(new))):
        raise ValueError(
            f"the ids of the added tokens, from {new[0]} on, do not follow on the {len(vocabulary)} of the vocabulary; "
            f"save the tokenizer with its tokenizer.json"
        )
    names = {number: content for content, number in ids.items()}
    special |= {names[number] for number in find_specials(files, ids).values()}
    return [added_token(ids[content], content, content in special) for content in {*tokens, *special}]


def _lines(files: Mapping[str, bytes], name: str) -> list[str]:
    """The lines of a file, of which each ends with a line feed, whatever else in it could pass for a line's end."""
    try:
        text = files[name].decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is damaged: it is not UTF-8 at byte {error.start}; copy it anew") from error
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")
