"""The files by which Hugging Face's tokenizers load ours, with the same ids and the same text.

Nothing is added around a text: `AutoTokenizer.from_pretrained(folder)(text).input_ids` is our `encode(text)`. One
difference is theirs: a special token's name inside a text, "</s>", is read as the token, and by us as letters (with a
unigram model, a byte's name "<0x41>" too).
"""

import json
from typing import Any

from data.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    CarriedTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`.

    Raises:
        ValueError: a tokenizer that it can't be written for: one that is only carried, or a SentencePiece model that
            changes texts.
    """
    match tokenizer:
        case ByteTokenizer():
            # Byte-level BPE without merges; each byte has the letter that GPT-2 writes for it.
            vocabulary = {letter: byte for byte, letter in enumerate(_byte_letters())} | {END_OF_TEXT: tokenizer.end_id}
            by_letter = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
            return _document(_bpe(vocabulary), [tokenizer.end_id], [END_OF_TEXT], by_letter, by_letter)
        case CharacterTokenizer():
            vocabulary = {character: i for i, character in enumerate(tokenizer.characters)}
            vocabulary[END_OF_TEXT] = tokenizer.end_id
            return _document(_bpe(vocabulary), [tokenizer.end_id], [END_OF_TEXT], None, {"type": "Fuse"})
        case SentencePieceTokenizer(lossless=True):
            return _from_sentencepiece(tokenizer)
        case _:
            raise ValueError(
                f"no tokenizer.json can be written for this {tokenizer.kind} tokenizer: only for those made by jumok; "
                f"its own files are kept as they are"
            )


def to_tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer_config.json`, which names the start and end tokens."""
    start, end = END_OF_TEXT, END_OF_TEXT
    if isinstance(tokenizer, SentencePieceTokenizer):
        start, end = tokenizer.pieces[tokenizer.start_id], tokenizer.pieces[tokenizer.end_id]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
    }


def to_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """All that belongs into a Hugging Face folder, by file name; a foreign tokenizer's own files unchanged."""
    files = dict(tokenizer.files)
    if isinstance(tokenizer, CarriedTokenizer) or "tokenizer.json" in files:
        return files
    if not isinstance(tokenizer, SentencePieceTokenizer) or tokenizer.lossless:
        files["tokenizer.json"] = _encoded(to_tokenizer_json(tokenizer))
    files.setdefault("tokenizer_config.json", _encoded(to_tokenizer_config(tokenizer)))
    return files


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    # Spaces stay spaces instead of becoming SentencePiece's mark, so that the mark in a text means itself in both.
    pieces = [piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ") for piece in tokenizer.pieces]
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    processor = tokenizer.processor
    specials = [i for i in range(len(pieces)) if processor.is_control(i) or processor.is_unknown(i)]
    scores = [processor.get_score(i) for i in range(len(pieces))]
    normal = {pieces[i]: i for i in range(len(pieces)) if tokenizer.is_normal(i)}
    # BPE scores are the negated order of the merges, whole numbers; those of a unigram model are log probabilities.
    if all(score == int(score) for score in scores):
        # A piece is made by merging any two pieces that spell it; earlier pieces first, as SentencePiece ranks them.
        merges = sorted(
            (-scores[i], normal[piece[:cut]], normal[piece[cut:]])
            for piece, i in normal.items()
            for cut in range(1, len(piece))
            if piece[:cut] in normal and piece[cut:] in normal
        )
        model = _bpe({piece: i for i, piece in enumerate(pieces)}, [[pieces[a], pieces[b]] for _, a, b in merges])
        model |= {"unk_token": pieces[processor.unk_id()], "fuse_unk": True, "byte_fallback": True}
    else:
        vocabulary = [[piece, score] for piece, score in zip(pieces, scores, strict=True)]
        model = {"type": "Unigram", "unk_id": processor.unk_id(), "vocab": vocabulary, "byte_fallback": True}
    return _document(model, specials, [pieces[i] for i in specials], None, decoder)


def _document(
    model: dict, special_ids: list[int], specials: list[str], pre_tokenizer: dict | None, decoder: dict
) -> dict:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name} | flags for i, name in zip(special_ids, specials, strict=True)],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _bpe(vocabulary: dict[str, int], merges: list[list[str]] | None = None) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges or [],
    }


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it prints, else one from 256 on."""
    printing = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


def _encoded(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"
