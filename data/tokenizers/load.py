"""Tokenizers from folders and files: the one place that knows every kind."""

import json
from collections.abc import Mapping

from etils import epath

from data.tokenizers.base import FORMAT, TOKENIZER_FILE, Tokenizer
from data.tokenizers.carried import CarriedTokenizer
from data.tokenizers.hugging_face import LibraryTokenizer
from data.tokenizers.plain import ByteTokenizer, CharacterTokenizer
from data.tokenizers.sentence_piece import SentencePieceTokenizer
from data.tokenizers.trial import try_model

# GPT-2's own names for what Hugging Face's folders call otherwise.
_RENAMED = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}

# The files of a Hugging Face folder that belong to its tokenizer.
FOREIGN_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    *_RENAMED,
)
_MODEL_FILES = ("tokenizer.model", "spiece.model")


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
    """Reads a tokenizer from a folder that `save` wrote, a Hugging Face folder, a run, or a file of one of them.

    A Hugging Face folder is run by the tokenizers library, or by SentencePiece where it has nothing but a model of it,
    or one that takes texts as they are and has all the tokens. What can't be run is carried along.

    Raises:
        ValueError: nothing there that is a tokenizer, or a damaged one.
    """
    path = epath.Path(path).expanduser()
    if not path.exists():
        raise ValueError(
            f"the tokenizer {path} does not exist; give bytes, characters, sentencepiece, a folder or a file"
        )
    names = (TOKENIZER_FILE, *FOREIGN_FILES)
    if not path.is_dir():
        other = "tokenizer.json" if path.suffix == ".json" else "tokenizer.model"
        return _loaded_from({path.name if path.name in names else other: path.read_bytes()}, path)
    files = {name: (path / name).read_bytes() for name in names if (path / name).is_file()}
    if not files and (path / "tokenizer").is_dir():
        return load_tokenizer(path / "tokenizer")
    if not files:
        raise ValueError(f"{path} holds no tokenizer: none of {', '.join(names)} is there")
    return _loaded_from(files, path)


def _loaded_from(files: dict[str, bytes], path: epath.Path) -> Tokenizer:
    for name in _RENAMED.keys() & files.keys():
        files.setdefault(_RENAMED[name], files.pop(name))
    described = files.pop(TOKENIZER_FILE, None)
    if described is None:
        try:
            return _foreign(files)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    file = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        description = json.loads(described)
        version, kind, digest = description["format"], description["kind"], description["digest"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged: it does not describe a tokenizer; copy it anew from where it was made"
        ) from error
    if version != FORMAT:
        raise ValueError(f"{file} has format {version!r}, and this program reads format {FORMAT}; use a newer program")
    try:
        if kind == ByteTokenizer.kind:
            tokenizer = ByteTokenizer(description.get("roles", ()))
        elif kind == CharacterTokenizer.kind:
            tokenizer = CharacterTokenizer(description["characters"], description.get("roles", ()))
        elif kind == SentencePieceTokenizer.kind:
            tokenizer = _sentence_piece(files["tokenizer.model"], files)
        elif kind in (LibraryTokenizer.kind, CarriedTokenizer.kind):
            tokenizer = _run_or_carried(files)
        else:
            raise ValueError(
                f"unknown kind {kind!r}; the kinds are bytes, characters, sentencepiece, tokenizers and carried"
            )
    except KeyError as error:
        raise ValueError(f"{file} is incomplete: {error.args[0]} is missing; copy the folder anew") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    # A library that was missing then or is missing now makes no damage.
    if tokenizer.kind == kind and tokenizer.digest != digest:
        raise ValueError(f"the tokenizer in {path} is damaged: it is not the one that {TOKENIZER_FILE} describes")
    return tokenizer


def _foreign(files: Mapping[str, bytes]) -> Tokenizer:
    model_name = next((name for name in _MODEL_FILES if name in files), None)
    if model_name is None:
        return _run_or_carried(files)
    try:
        model = _sentence_piece(files[model_name], files)
    except ValueError:
        if "tokenizer.json" in files:  # the model file is of another kind, as in folders of tiktoken's
            return _run_or_carried(files)
        raise
    if "tokenizer.json" not in files:
        return model
    tokenizer = _run_or_carried(files)
    same = model.verbatim and tokenizer.vocab_size == model.vocab_size
    return model if same or isinstance(tokenizer, CarriedTokenizer) else tokenizer


def _sentence_piece(model: bytes, files: Mapping[str, bytes]) -> SentencePieceTokenizer:
    try_model(model)
    return SentencePieceTokenizer(model, files)


def _run_or_carried(files: Mapping[str, bytes]) -> LibraryTokenizer | CarriedTokenizer:
    try:
        return LibraryTokenizer(files)
    except ValueError as error:
        return CarriedTokenizer(files, str(error))
