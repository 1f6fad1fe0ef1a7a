"""`jumok data prepare`, `jumok tokenizer train` and `jumok tokenizer show`: text, before a model sees it."""

from dataclasses import dataclass
from typing import Any, Literal

import tyro
from etils import epath

from data.cache import cache_path
from data.dataset import Dataset
from data.engines import prepare_with_ray
from data.mixture import HELD_OUT
from data.reading import Reading
from data.shards import Corpus
from data.sources import EMBEDDED, open_source
from data.tokenizers.load import load_tokenizer
from data.tokenizers.plain import ByteTokenizer
from data.tokenizers.roles import ROLES
from data.tokenizers.sentence_piece import train_sentencepiece
from train.config import RunConfig, validate
from train.console import Console, printable
from train.load import open_dataset, tokenizer_of, with_classes


@dataclass(frozen=True)
class Prepare(RunConfig):
    """The run whose text is tokenized."""

    engine: Literal["processes", "ray"] = "processes"  # what runs it: processes of this machine, or a Ray cluster


def prepare(config: Prepare, console: Console) -> dict[str, Any]:
    """The `data prepare` command: makes the tokenizer and tokenizes, once for all runs that read the same text."""
    validate(config)
    config = with_classes(config)
    make = prepare_with_ray if config.engine == "ray" else None
    with console.progress("tokenizing") as progress:
        dataset = open_dataset(config, tokenizer_of(config), progress, make)
    if not isinstance(dataset, Dataset):
        raise ValueError("images are read as they are, and there is nothing to prepare; train the recipe")
    texts = {portion.name: corpus for portion, corpus in zip(dataset.portions, dataset.corpora, strict=True)}
    texts[HELD_OUT] = dataset.valid
    counts = {name: _counts(corpus) for name, corpus in texts.items()}
    headers = ("text", *(name.replace("_", " ") for name in counts[HELD_OUT]))
    console.table("", headers, [(name, *map(_cell, count.values())) for name, count in counts.items()])
    for sentence in (sentence for corpus in texts.values() for sentence in corpus.refusals):
        console.say(f"left out: {printable(sentence)}")
    tokenizer = dataset.tokenizer
    console.say(
        f"the {tokenizer.kind} tokenizer has {tokenizer.vocab_size:,} ids; {tokenizer.loss or 'it is lossless'}"
    )
    folder = cache_path("corpora")
    if all(corpus.text_is_counted for corpus in texts.values()):
        console.say(f"the tokens are in {folder}")
    first = dataset.corpora[0]
    return {
        # Ready shards are read where they lie.
        "path": str(folder / first.digest) if first.text_is_counted else dataset.portions[0].path,
        "tokens": sum(corpus.num_tokens for corpus in dataset.corpora),
        "documents": sum(corpus.num_documents for corpus in dataset.corpora),
        "digest": dataset.digest,
        "validation_tokens": dataset.valid.num_tokens,
        "validation_documents": dataset.valid.num_documents,
        "tokenizer": tokenizer.kind,
        "loss": tokenizer.loss,
        "texts": [{"name": name, **count} for name, count in counts.items()],
    }


def _cell(value: float | None) -> str | int:
    """A count as a table shows it; nothing where it is not known."""
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else value


def _counts(corpus: Corpus) -> dict[str, int | float | None]:
    size = corpus.num_bytes if corpus.text_is_counted else None
    return {
        "documents": corpus.num_documents,
        "bytes": size,
        "tokens": corpus.num_tokens,
        "bytes_a_token": None if size is None else size / max(1, corpus.num_scored),
        "longest": corpus.longest,
        "empty": corpus.empty,
        "refused": corpus.refused,
    }


@dataclass(frozen=True)
class TrainTokenizer:
    """Makes a lossless SentencePiece tokenizer from text, for `--data.tokenizer FOLDER`.

    Attributes:
        folder: where its files are written; new or empty.
        path: where the text is, as --data.path of `jumok train`.
        text_column: the column of the text in records.
        suffixes: the files of a folder that are read, each as one document of text: .py .c
        vocab_size: how many ids it has, exactly.
        model_type: byte-pair encoding or a unigram model.
        seed: of the sample of the text that it is trained on.
    """

    folder: tyro.conf.Positional[str]
    path: str = EMBEDDED
    text_column: str = "text"
    suffixes: tuple[str, ...] = ()
    vocab_size: int = 4096
    model_type: Literal["bpe", "unigram"] = "bpe"
    seed: int = 0


def train_tokenizer(arguments: TrainTokenizer, console: Console) -> dict[str, Any]:
    """The `tokenizer train` command."""
    folder = epath.Path(arguments.folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder; name another one")
    reading = Reading(text_column=arguments.text_column, suffixes=arguments.suffixes)
    with console.progress("copying the text") as progress:
        source = open_source(arguments.path, reading, allow_code=True, progress=progress)
    with console.progress("training the tokenizer"):
        tokenizer = train_sentencepiece(source.texts(), arguments.vocab_size, arguments.model_type, seed=arguments.seed)
    tokenizer.save(folder)
    console.say(f"a tokenizer of {tokenizer.vocab_size:,} ids is in {folder}; train with --data.tokenizer {folder}")
    return {"path": str(folder), "vocab_size": tokenizer.vocab_size, "digest": tokenizer.digest}


@dataclass(frozen=True)
class ShowTokenizer:
    """Shows how a text is cut into tokens.

    Attributes:
        tokenizer: a run, the folder or file of a tokenizer, or "bytes".
        text: what to cut.
    """

    tokenizer: tyro.conf.Positional[str]
    text: tyro.conf.Positional[str]


def show_tokenizer(arguments: ShowTokenizer, console: Console) -> dict[str, Any]:
    """The `tokenizer show` command."""
    is_bytes = arguments.tokenizer == ByteTokenizer.kind
    tokenizer = ByteTokenizer() if is_bytes else load_tokenizer(arguments.tokenizer)
    tokens = tokenizer.encode(arguments.text).tolist()
    pieces = [_shown(tokenizer.token_bytes(token)) for token in tokens]
    console.table("", ("id", "token"), list(zip(tokens, pieces, strict=True)))
    console.say(f"{len(arguments.text.encode()):,} bytes, {len(tokens):,} tokens ({tokenizer.kind})")
    specials = [f"{role} {token}" for role, token in tokenizer.specials.items() if role in ROLES]
    console.say(", ".join(specials) or "no special tokens")
    console.say(tokenizer.loss or "any text comes back from its tokens as it was")
    return {
        "tokens": tokens,
        "pieces": pieces,
        "bytes": len(arguments.text.encode()),
        "special": tokenizer.specials,
        "loss": tokenizer.loss,
    }


def _shown(piece: bytes) -> str:
    """A token as people read it: quoted text, or the bytes of a part of a character."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in piece)
