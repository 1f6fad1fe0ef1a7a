"""The files by which Hugging Face's tokenizers load ours, with the same ids and the same text.

Nothing is added around a text: `AutoTokenizer.from_pretrained(folder)(text).input_ids` is our `encode(text)` for bytes,
characters and the SentencePiece models that are trained here, of both types. One difference is theirs: a special
token's name inside a text, "</s>", is read as the token unless they are called with `split_special_tokens=True`, and
by us always as letters.

Unigram models need care: where two ways to cut a text are worth nearly the same, rounding decides, and SentencePiece
rounds to float32, theirs to float64. Those trained here have scores whose sums are exact in both. For one from
elsewhere that takes texts as they are, about one token in a million differs.
"""

from typing import Any

from data.tokenizers.base import END_OF_TEXT, Tokenizer
from data.tokenizers.carried import CarriedTokenizer
from data.tokenizers.hugging_face import LibraryTokenizer
from data.tokenizers.plain import ByteTokenizer, CharacterTokenizer
from data.tokenizers.roles import ROLES, usual_name
from data.tokenizers.sentence_piece import SentencePieceTokenizer
from data.tokenizers.tokenizer_json import TOKENIZER_JSON, added_token, bpe, byte_letters, document, encoded


def to_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """All that belongs into a Hugging Face folder, by file name; a foreign tokenizer's own files unchanged."""
    files = dict(tokenizer.files)
    match tokenizer:
        case CarriedTokenizer():
            return files
        case LibraryTokenizer():
            files.setdefault(TOKENIZER_JSON, tokenizer.tokenizer_json)
        case SentencePieceTokenizer(exportable=False):
            pass  # a model that changes texts: transformers reads its file
        case _ if TOKENIZER_JSON not in files:
            files[TOKENIZER_JSON] = encoded(to_tokenizer_json(tokenizer))
    files.setdefault("tokenizer_config.json", encoded(to_tokenizer_config(tokenizer)))
    return files


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`.

    Raises:
        ValueError: a tokenizer that it can't be written for: a foreign one, which has its own files, or a SentencePiece
            model that changes texts.
    """
    match tokenizer:
        case ByteTokenizer():
            # Byte-level BPE without merges; each byte has the letter that GPT-2 writes for it.
            vocabulary = {letter: byte for byte, letter in enumerate(byte_letters())}
            by_letter = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
            return document(
                bpe(vocabulary | _marks(tokenizer)), _added(tokenizer), pre_tokenizer=by_letter, decoder=by_letter
            )
        case CharacterTokenizer():
            vocabulary = {character: i for i, character in enumerate(tokenizer.characters)}
            return document(bpe(vocabulary | _marks(tokenizer)), _added(tokenizer), decoder={"type": "Fuse"})
        case SentencePieceTokenizer(exportable=True):
            return _from_sentencepiece(tokenizer)
        case _:
            raise ValueError(
                f"no tokenizer.json can be written for this {tokenizer.kind} tokenizer: only for those made by jumok; "
                f"its own files are kept as they are"
            )


def to_tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer_config.json`, which names the special tokens."""
    named = dict(tokenizer.specials)
    for role, stand_in in (("start", "class"), ("end", "separator")):
        if named[role] == named.get(stand_in):  # what only does its work here
            del named[role]
    name = "PreTrainedTokenizerFast"
    if isinstance(tokenizer, SentencePieceTokenizer) and not tokenizer.verbatim:
        # Without a tokenizer.json, these two are what read the file and put a space before a text.
        name = "T5Tokenizer" if tokenizer.model_type == "unigram" else "LlamaTokenizer"
    return {
        "tokenizer_class": name,
        **{ROLES[role][0]: _name(tokenizer, token) for role, token in named.items() if role in ROLES},
        "clean_up_tokenization_spaces": False,
    }


def _name(tokenizer: Tokenizer, token: int) -> str:
    match tokenizer:
        case SentencePieceTokenizer():
            return tokenizer.pieces[token]
        case LibraryTokenizer():
            return tokenizer.name(token)
        case ByteTokenizer() | CharacterTokenizer():
            return next(name for name, number in _marks(tokenizer).items() if number == token)
        case _:
            raise AssertionError(tokenizer.kind)


def _marks(tokenizer: ByteTokenizer | CharacterTokenizer) -> dict[str, int]:
    """The special tokens of a tokenizer that needed no training, by the names that they get."""
    return {END_OF_TEXT: tokenizer.end_id} | {usual_name(role): tokenizer.specials[role] for role in tokenizer.roles}


def _added(tokenizer: ByteTokenizer | CharacterTokenizer) -> list[dict[str, Any]]:
    return [added_token(number, name) for name, number in _marks(tokenizer).items()]


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    # Spaces stay spaces instead of becoming SentencePiece's mark, so that the mark in a text means itself in both.
    pieces = [piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ") for piece in tokenizer.pieces]
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    processor = tokenizer.processor
    specials = [i for i in range(len(pieces)) if processor.is_control(i) or processor.is_unknown(i)]
    scores = {i: processor.get_score(i) for i in range(len(pieces)) if tokenizer.is_normal(i)}
    normal = {pieces[i]: i for i in scores}
    if tokenizer.model_type == "bpe":
        # A piece is made by merging any two pieces that spell it; earlier pieces first, as SentencePiece ranks them.
        merges = sorted(
            (-scores[i], normal[piece[:cut]], normal[piece[cut:]])
            for piece, i in normal.items()
            for cut in range(1, len(piece))
            if piece[:cut] in normal and piece[cut:] in normal
        )
        model = bpe({piece: i for i, piece in enumerate(pieces)}, [[pieces[a], pieces[b]] for _, a, b in merges])
        model |= {"unk_token": pieces[processor.unk_id()], "fuse_unk": True, "byte_fallback": True}
    else:
        # The library looks for every piece in a text. So low a score keeps it from finding "</s>" or "<0x41>" there:
        # the letters of such a name are always worth more together.
        others = [piece for i, piece in enumerate(pieces) if i not in scores]
        lowest = min(scores.values(), default=0.0) * max(map(len, others)) - 1
        vocabulary = [[piece, scores.get(i, lowest)] for i, piece in enumerate(pieces)]
        model = {"type": "Unigram", "unk_id": processor.unk_id(), "vocab": vocabulary, "byte_fallback": True}
    return document(model, [added_token(i, pieces[i]) for i in specials], decoder=decoder)
