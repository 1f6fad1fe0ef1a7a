"""`jumok data prepare`, `jumok tokenizer train` and `jumok tokenizer show`: text, before a model sees it."""

from dataclasses import dataclass
from typing import Any, Literal

import tyro
from etils import epath

from data.cache import cache_folder
from data.dataset import prepare_dataset
from data.sources import EMBEDDED, open_source
from data.tokenizer import ByteTokenizer, load_tokenizer, train_sentencepiece
from train.config import RunConfig
from train.console import Console


def prepare(config: RunConfig, console: Console) -> dict[str, Any]:
    """The `data prepare` command: makes the tokenizer and tokenizes, once for all runs that read the same text."""
    with console.progress("tokenizing") as progress:
        dataset = prepare_dataset(config.data, config.model.vocab_size, config.seed, None, progress)
    train, valid = dataset.train, dataset.valid
    path = str(cache_folder("corpora") / train.digest)
    rows = [
        (name, corpus.num_documents, corpus.num_bytes, corpus.num_tokens)
        for name, corpus in (("training", train), ("validation", valid))
    ]
    console.table(config.data.path, ("text", "documents", "bytes", "tokens"), rows)
    console.say(f"the training text's tokens are in {path}")
    return {
        "path": path,
        "tokens": train.num_tokens,
        "documents": train.num_documents,
        "digest": dataset.digest,
        "validation_tokens": valid.num_tokens,
        "validation_documents": valid.num_documents,
        "tokenizer": dataset.tokenizer.kind,
    }


@dataclass(frozen=True)
class TrainTokenizer:
    """Makes a lossless SentencePiece tokenizer from text, for `--data.tokenizer FOLDER`.

    Attributes:
        folder: where its files are written; new or empty.
        path: a file, folder or glob of text, or "embedded", the text that Python carries.
        text_column: the key of the text in .jsonl files.
        vocab_size: how many ids it has, exactly.
        model_type: byte-pair encoding or a unigram model.
        seed: of the sample of the text that it is trained on.
    """

    folder: tyro.conf.Positional[str]
    path: str = EMBEDDED
    text_column: str = "text"
    vocab_size: int = 4096
    model_type: Literal["bpe", "unigram"] = "bpe"
    seed: int = 0


def train_tokenizer(arguments: TrainTokenizer, console: Console) -> dict[str, Any]:
    """The `tokenizer train` command."""
    folder = epath.Path(arguments.folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder; name another one")
    source = open_source(arguments.path, arguments.text_column)
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
    path = epath.Path(arguments.tokenizer).expanduser()
    if arguments.tokenizer == ByteTokenizer.kind:
        tokenizer = ByteTokenizer()
    else:
        of_run = path / "tokenizer"
        tokenizer = load_tokenizer(of_run if of_run.is_dir() else path)
    tokens = tokenizer.encode(arguments.text).tolist()
    pieces = [_shown(tokenizer.token_bytes(token)) for token in tokens]
    console.table("", ("id", "token"), list(zip(tokens, pieces, strict=True)))
    console.say(f"{len(arguments.text.encode()):,} bytes, {len(tokens):,} tokens ({tokenizer.kind})")
    return {"tokens": tokens, "pieces": pieces, "bytes": len(arguments.text.encode())}


def _shown(piece: bytes) -> str:
    """A token as people read it: quoted text, or the bytes of a part of a character."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in piece)
