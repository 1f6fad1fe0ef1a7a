"""From a configuration to tokenized training and validation text, and to the batches that a run reads of it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Literal

import numpy as np

from data.cache import cache_folder, cache_path, digest_of, written_atomically
from data.fitting import FittedRows, TooLong
from data.foreign_files import is_foreign
from data.foreign_shards import open_foreign
from data.labelled import LabelledRows, find_classes, read_labels
from data.loader import Batch, Loader, Rows
from data.mixture import Portion, parse_mixture
from data.packing import ConcatenatedRows, Packing
from data.pairs import PairRows
from data.prepare import prepare_corpus
from data.progress import Progress
from data.reading import Reading
from data.sentence_pairs import SentencePairRows
from data.shards import Corpus
from data.sources import EMBEDDED, Source, open_pairs, open_source, split_source
from data.tokenizers.base import Tokenizer
from data.tokenizers.load import load_tokenizer
from data.tokenizers.plain import ByteTokenizer, CharacterTokenizer
from data.tokenizers.sentence_piece import train_sentencepiece

# What an example is: a row of text; a source and its target; a text, or an image, and its class; or two stretches of
# text of which the second may follow the first.
RowKind = Literal["text", "pairs", "labelled", "sentence_pairs", "images", "captions"]
Prepare = Callable[[Batch, np.ndarray], Batch]


@dataclass(frozen=True)
class DataConfig:
    """The text that is learned from and the shape of its rows.

    Attributes:
        path: a file, folder or glob: .txt, .md (a document a file), .jsonl, .json, .csv, .tsv, .parquet (a document a
            record), each but the last also .gz or .zst; ready shards, .bin of nanoGPT, llm.c or Megatron; hub:NAME, a
            Hugging Face dataset; module:name, your own source; or "embedded", text that Python carries.
        valid_path: the same as `path` for validation; without it a tenth is held out.
        mixture: several sources in place of `path`, each NAME=WEIGHT:PATH, or NAME=2epochs:PATH.
        source_path: of parallel files, the lines that are given; with `target_path`, in place of `path`.
        target_path: of parallel files, the lines that are learned.
        valid_source_path: parallel files for validation.
        valid_target_path: parallel files for validation.
        text_column: the column of the text in records.
        label_column: the column of the class of each text, for classification.
        prompt: with `response`, a record is a pair: what is given, a template that names columns, "{question} ".
        response: what is learned of a pair, "{answer}".
        suffixes: the files of a folder that are read, each as one document of text: .py .c
        bad: documents that cannot be read: "stop" at the first, or "skip" and count them.
        tokenizer: "bytes", "characters", "sentencepiece" (trained on the text, model.vocab_size pieces), or the folder
            or file of a tokenizer.
        max_length: tokens a row; of an encoder-decoder's, those of the source.
        target_length: tokens of the target in an encoder-decoder's row; by default `max_length`.
        packing: "isolated": documents in a row can't see each other; "contiguous": they can.
        whole: rows hold whole documents, packed first-fit, rather than a cut stream of them; pairs always are.
        too_long: whole documents longer than a row: "refuse", "drop" or "cut" them, or "split" what is no pair.
        workers: processes that tokenize; by default one a core.
        allow_changed: resume although the data are not what the run began with.
    """

    path: str = EMBEDDED
    valid_path: str | None = None
    mixture: tuple[str, ...] = ()
    source_path: str | None = None
    target_path: str | None = None
    valid_source_path: str | None = None
    valid_target_path: str | None = None
    text_column: str = "text"
    label_column: str = ""
    prompt: str = ""
    response: str = ""
    suffixes: tuple[str, ...] = ()
    bad: Literal["stop", "skip"] = "stop"
    tokenizer: str = "bytes"
    max_length: int = 1024
    target_length: int | None = None
    packing: Packing = "isolated"
    whole: bool = False
    too_long: TooLong = "refuse"
    workers: int | None = field(default=None, metadata={"operational": True})
    allow_changed: bool = field(default=False, metadata={"operational": True})

    @property
    def reading(self) -> Reading:
        """How documents are taken from files."""
        return Reading(
            self.text_column, self.prompt, self.response, self.suffixes, self.bad, label_column=self.label_column
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens a row, and those of its target where that has a length of its own."""
        return (self.max_length,) if self.target_length is None else (self.max_length, self.target_length)

    @property
    def pairs(self) -> bool:
        """Whether a document is a text that is given and one that is learned."""
        return bool(self.response or self.source_path)

    def validate(self) -> None:
        """Refuses what can't be.

        Raises:
            ValueError: with the field and its value.
        """
        for name, length in zip(("max_length", "target_length"), self.lengths, strict=False):
            if length < 1:
                option = name.replace("_", "-")
                raise ValueError(f"data.{name}={length} must be at least 1; pass --data.{option} 1024")
        for name, choices in (
            ("packing", ("isolated", "contiguous")),
            ("too_long", ("refuse", "drop", "cut", "split")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"data.{name}={getattr(self, name)!r} must be {', '.join(choices[:-1])} or {choices[-1]}"
                )
        elsewhere = bool(self.mixture or self.source_path)
        if not self.tokenizer:
            raise ValueError("data.tokenizer is empty; pass --data.tokenizer with a value")
        if not self.path and not elsewhere:
            of_lines = "--data.source-path FILE and --data.target-path FILE, or " if self.response == "{target}" else ""
            raise ValueError(f"data.path is empty; pass {of_lines}--data.path with a value")
        if elsewhere and self.path not in ("", EMBEDDED):
            other = "mixture" if self.mixture else "source_path"
            raise ValueError(f"data.path={self.path!r} and data.{other} are two texts to learn from; give one of them")
        for given, learned in (("source_path", "target_path"), ("valid_source_path", "valid_target_path")):
            if bool(getattr(self, given)) != bool(getattr(self, learned)):
                raise ValueError(f"data.{given} and data.{learned} go together: give both, or neither")
        if self.valid_source_path and self.valid_path:
            raise ValueError("data.valid_path and data.valid_source_path are two validation texts; give one of them")
        if self.source_path and self.mixture:
            raise ValueError("data.mixture and data.source_path can't be given together; give one of them")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"data.workers={self.workers} must be at least 1")
        if self.pairs and self.too_long == "split":
            raise ValueError('data.too_long="split" is for text, and these are pairs; pass refuse, drop or cut')
        self.reading.validate()
        self.portions()

    def names(self) -> str:
        """What is learned from, for sentences."""
        return ", ".join(repr(portion.path) for portion in self.portions())

    def portions(self) -> tuple[Portion, ...]:
        """The sources that are learned from, one of them unless they are mixed."""
        if self.mixture:
            return parse_mixture(self.mixture)
        path = self.source_path or self.path
        return (Portion(path, path, 1.0),)


@dataclass(frozen=True)
class Dataset:
    """Text as tokens: of each portion of the training text, and of the validation text."""

    config: DataConfig
    tokenizer: Tokenizer
    portions: tuple[Portion, ...]
    corpora: tuple[Corpus, ...]
    valid: Corpus

    @property
    def digest(self) -> str:
        """The hexadecimal SHA-256 of texts, their split and the tokenizer: by it changed data are found on resume."""
        return digest_of(*(corpus.digest for corpus in self.corpora), self.valid.digest)

    def loader(self, seed: int, kind: RowKind = "text", prepare: Prepare | None = None) -> Loader:
        """The batches of the training text, as a function of the examples seen (data/loader.py)."""
        sources = [make_rows(corpus, self.config, self.tokenizer, kind) for corpus in self.corpora]
        weights = [portion.weight(len(rows)) for portion, rows in zip(self.portions, sources, strict=True)]
        return Loader(sources, seed, prepare, weights, [portion.name for portion in self.portions])

    def held_out_rows(self, kind: RowKind) -> Rows:
        """The validation text in rows."""
        return make_rows(self.valid, self.config, self.tokenizer, kind)

    def describe(self) -> dict[str, str]:
        """What a run learns from and what it is measured by, in words."""
        tokens = sum(corpus.num_tokens for corpus in self.corpora)
        left_out = _left_out([*self.corpora, self.valid])
        return {
            "text": f"{_bytes(self.corpora)}{tokens:,} tokens ({self.tokenizer.kind})",
            "held-out text": f"{_bytes([self.valid])}{self.valid.num_tokens:,} tokens",
            **({"left out": left_out} if left_out else {}),
        }


def make_rows(corpus: Corpus, config: DataConfig, tokenizer: Tokenizer, kind: RowKind) -> Rows:
    """A corpus in rows of `config.max_length`: cut from the stream of documents, or of whole documents."""
    length, end_id, too_long = config.max_length, tokenizer.end_id, config.too_long
    match kind:
        case "pairs":
            return PairRows(corpus, length, config.target_length or length, tokenizer, too_long)
        case "sentence_pairs":
            return SentencePairRows(corpus, length)
        case "labelled":
            if corpus.labels is None:
                raise ValueError(
                    "ready shards hold tokens without classes; give records of text and class, such as .csv or .jsonl"
                )
            return LabelledRows(corpus, corpus.labels, length, end_id, too_long)
        case _ if config.pairs or config.whole:
            return FittedRows(corpus, length, config.packing, end_id, too_long)
        case _:
            return ConcatenatedRows(corpus, length, config.packing, end_id)


def _left_out(corpora: Sequence[Corpus]) -> str:
    """Which documents are in no corpus, and why; "" where all are in one."""
    refused, empty = (sum(getattr(corpus, name) for corpus in corpora) for name in ("refused", "empty"))
    parts = [f"{empty:,} documents without text"] if empty else []
    if refused:
        first = next(sentence for corpus in corpora for sentence in corpus.refusals)
        parts.append(f"{refused:,} documents that cannot be read; the first: {first}")
    return ", ".join(parts)


def _bytes(corpora: Sequence[Corpus]) -> str:
    """How many bytes of text there are; nothing where all of it would have to be decoded to know."""
    counted = all(corpus.text_is_counted for corpus in corpora)
    return f"{sum(corpus.num_bytes for corpus in corpora):,} bytes, " if counted else ""


def classes_of(config: DataConfig) -> tuple[str, ...]:
    """The classes of the texts that are learned from, held-out ones included, in the order of their numbers."""
    opened = (open_source(portion.path, config.reading, allow_code=True) for portion in config.portions())
    return find_classes(*opened)


def prepare_dataset(
    config: DataConfig,
    vocab_size: int,
    seed: int,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
    make: Callable[[Source, Tokenizer, Progress | None], Corpus] | None = None,
    roles: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
) -> Dataset:
    """Finds and splits the text, makes a tokenizer where none is given, and tokenizes, all of it once into the cache.

    Args:
        config: which text.
        vocab_size: the model's: SentencePiece trains exactly as many pieces, others must not have more ids.
        seed: of the sample that SentencePiece trains on.
        tokenizer: the run's, on resume and in evaluation.
        progress: called with the stored bytes done and in all, for training and validation text together.
        make: what tokenizes a source; by default `prepare_corpus`.
        roles: of the special tokens that a tokenizer made here has besides start and end, such as "mask".
        classes: those that the model has, where texts are labelled.

    Raises:
        ValueError: bad data, a bad tokenizer, or one that doesn't fit the model's vocabulary.
    """
    config.validate()
    portions = config.portions()
    if any(is_foreign(path) for path in (*(portion.path for portion in portions), config.valid_path or "")):
        return _open_ready(config, portions, vocab_size, tokenizer, progress)
    train, valid = open_sources(config, allow_code=True, progress=progress)
    if tokenizer is None:
        tokenizer = _make_tokenizer(config, train, valid, vocab_size, seed, roles)
    check_vocabulary(tokenizer, vocab_size)
    make = make or partial(prepare_corpus, workers=config.workers)
    sources = (*train, valid)
    ends = list(accumulate(source.stored_bytes for source in sources))
    corpora = []
    for source, end in zip(sources, ends, strict=True):
        before = end - source.stored_bytes

        def reached(done: int, _: int, before: int = before) -> None:
            if progress:
                progress(before + done, ends[-1])

        corpora.append(_labelled(make(source, tokenizer, reached), source, classes))
    return Dataset(config, tokenizer, portions, tuple(corpora[:-1]), corpora[-1])


def prepare_text(
    config: DataConfig, tokenizer: Tokenizer, progress: Progress | None = None, classes: tuple[str, ...] = ()
) -> Corpus:
    """All of the training text of a configuration, tokenized: nothing is held out of what is only scored."""
    config.validate()
    (portion,) = config.portions()
    if is_foreign(portion.path):
        return open_foreign(portion.path, tokenizer, progress)
    if config.source_path and config.target_path:
        source = open_pairs(config.source_path, config.target_path, config.reading)
    else:
        source = open_source(portion.path, config.reading, allow_code=True, progress=progress)
    return _labelled(prepare_corpus(source, tokenizer, progress, config.workers), source, classes)


def prepare_held_out(
    config: DataConfig, tokenizer: Tokenizer, progress: Progress | None = None, classes: tuple[str, ...] = ()
) -> Corpus:
    """The validation text of a saved configuration, tokenized; code that it names is not run.

    Raises:
        ValueError: as `prepare_dataset`.
    """
    paths = [portion.path for portion in config.portions()]
    if is_foreign(config.valid_path or paths[0]):
        held_out = open_foreign(config.valid_path or paths[0], tokenizer, progress)
        return held_out if config.valid_path else held_out.split()[1]
    source = _open_validation(config, False, progress) or open_sources(config)[1]
    return _labelled(prepare_corpus(source, tokenizer, progress, config.workers), source, classes)


def _labelled(corpus: Corpus, source: Source, classes: tuple[str, ...]) -> Corpus:
    """The corpus made of a source, with the classes of its documents where they have any."""
    if source.reading.label_column:
        corpus.labels = read_labels(source, classes)
    return corpus


def open_sources(
    config: DataConfig, allow_code: bool = False, progress: Progress | None = None
) -> tuple[tuple[Source, ...], Source]:
    """The training text, a source a portion, and the validation text of a configuration.

    `allow_code` lets a path name the user's own code, module:name: only for what was asked for in this command.
    `progress` is told of what has to be copied first.
    """
    reading = config.reading
    if config.source_path and config.target_path:
        opened = [open_pairs(config.source_path, config.target_path, reading)]
    else:
        opened = [open_source(portion.path, reading, allow_code, progress) for portion in config.portions()]
    if validation := _open_validation(config, allow_code, progress):
        return tuple(opened), validation
    train, valid = zip(*map(split_source, opened), strict=True)
    return train, Source(tuple(part for source in valid for part in source.parts), opened[0].reading)


def _open_validation(config: DataConfig, allow_code: bool, progress: Progress | None) -> Source | None:
    """The validation text that is named; None where some of the training text is held out."""
    if config.valid_source_path and config.valid_target_path:
        return open_pairs(config.valid_source_path, config.valid_target_path, config.reading)
    return open_source(config.valid_path, config.reading, allow_code, progress) if config.valid_path else None


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuses a tokenizer with more ids than the model has rows.

    Raises:
        ValueError: with the size that fits.
    """
    if tokenizer.vocab_size <= vocab_size:
        return
    remedy = f"more than vocab_size={vocab_size}; pass --model.vocab-size {tokenizer.vocab_size}"
    if isinstance(tokenizer, ByteTokenizer | CharacterTokenizer):
        others = len(tokenizer.roles)
        marks = "one document mark" + (f" and {others} more special tokens" if others else "")
        if isinstance(tokenizer, CharacterTokenizer):
            raise ValueError(f"the text has {len(tokenizer.characters)} different characters and {marks}, {remedy}")
        raise ValueError(f"the bytes tokenizer has 256 bytes and {marks}, {remedy}")
    raise ValueError(f"the {tokenizer.kind} tokenizer has {tokenizer.vocab_size} ids, {remedy}")


def _open_ready(
    config: DataConfig,
    portions: tuple[Portion, ...],
    vocab_size: int,
    tokenizer: Tokenizer | None,
    progress: Progress | None,
) -> Dataset:
    """Ready shards of others: tokens already, whose tokenizer has to be named."""
    paths = [portion.path for portion in portions] + ([config.valid_path] if config.valid_path else [])
    if text := [path for path in paths if not is_foreign(path)]:
        raise ValueError(f"{text[0]} is text and {next(p for p in paths if is_foreign(p))} is tokens; give one kind")
    if tokenizer is None:
        if config.tokenizer in ("characters", "sentencepiece"):
            raise ValueError(
                f"{paths[0]} holds tokens, and a {config.tokenizer} tokenizer cannot be made from them; name the one "
                "that made them with --data.tokenizer FOLDER"
            )
        tokenizer = ByteTokenizer() if config.tokenizer == "bytes" else load_tokenizer(config.tokenizer)
    check_vocabulary(tokenizer, vocab_size)
    opened = [open_foreign(path, tokenizer, progress) for path in paths]
    if config.valid_path:
        return Dataset(config, tokenizer, portions, tuple(opened[:-1]), opened[-1])
    if len(opened) > 1:
        raise ValueError("a mixture of ready shards needs --data.valid-path, a .bin of its own")
    train, valid = opened[0].split()
    return Dataset(config, tokenizer, portions, (train,), valid)


def _make_tokenizer(
    config: DataConfig, train: tuple[Source, ...], valid: Source, vocab_size: int, seed: int, roles: tuple[str, ...]
) -> Tokenizer:
    def texts(sources: Iterable[Source]) -> Iterable[str]:
        return (text for source in sources for text in source.texts())

    match config.tokenizer:
        case "bytes":
            return ByteTokenizer(roles)
        case "characters":
            # Of all the text, so that a rare letter in the held-out part can be scored.
            return CharacterTokenizer.of(texts((*train, valid)), roles)
        case "sentencepiece":
            digests = [source.digest for source in train]
            folder = cache_path("tokenizers") / digest_of("sentencepiece bpe 2", digests, vocab_size, seed, roles)
            if not folder.exists():  # what is there is only read, and the cache may be read-only
                trained = train_sentencepiece(texts(train), vocab_size, seed=seed, roles=roles)
                with written_atomically(cache_folder("tokenizers") / folder.name) as temporary:
                    trained.save(temporary)
            return load_tokenizer(folder)
        case path:
            return load_tokenizer(path)
