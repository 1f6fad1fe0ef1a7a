"""From a configuration to tokenized training and validation text."""

from dataclasses import dataclass, field

from data.cache import cache_folder, digest_of, written_atomically
from data.packing import Packing
from data.shards import Corpus, Progress, prepare_corpus
from data.sources import EMBEDDED, Source, open_source, split_source
from data.tokenizer import ByteTokenizer, CharacterTokenizer, Tokenizer, load_tokenizer, train_sentencepiece


@dataclass(frozen=True)
class DataConfig:
    """The text that is learned from and the shape of its rows.

    Attributes:
        path: a file, folder or glob of .txt, .md, .jsonl, each also .gz; or "embedded", text that Python carries.
        valid_path: the same for validation; without it a tenth of `path` is held out.
        text_column: the key of the text in .jsonl files.
        tokenizer: "bytes", "characters", "sentencepiece" (trained on the text, model.vocab_size pieces), or the folder
            or file of a tokenizer.
        max_length: tokens a row.
        packing: "isolated": documents in a row can't see each other; "contiguous": they can.
        allow_changed: resume although the data are not what the run began with.
    """

    path: str = EMBEDDED
    valid_path: str | None = None
    text_column: str = "text"
    tokenizer: str = "bytes"
    max_length: int = 1024
    packing: Packing = "isolated"
    allow_changed: bool = field(default=False, metadata={"operational": True})

    def validate(self) -> None:
        """Refuses what can't be.

        Raises:
            ValueError: with the field and its value.
        """
        if self.max_length < 1:
            raise ValueError(f"data.max_length={self.max_length} must be at least 1; pass --data.max-length 1024")
        if self.packing not in ("isolated", "contiguous"):
            raise ValueError(f"data.packing={self.packing!r} must be isolated or contiguous")
        for name in ("path", "text_column", "tokenizer"):
            if not getattr(self, name):
                raise ValueError(f"data.{name} is empty; pass --data.{name.replace('_', '-')} with a value")


@dataclass(frozen=True)
class Dataset:
    """Text as tokens. `digest` changes with the text, its split and the tokenizer."""

    tokenizer: Tokenizer
    train: Corpus
    valid: Corpus

    @property
    def digest(self) -> str:
        """The hexadecimal SHA-256 that a run records, to find changed data on resume."""
        return digest_of(self.train.digest, self.valid.digest)


def prepare_dataset(
    config: DataConfig,
    vocab_size: int,
    seed: int,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Finds and splits the text, makes a tokenizer where none is given, and tokenizes, all of it once into the cache.

    Args:
        config: which text.
        vocab_size: the model's: SentencePiece trains exactly as many pieces, others must not have more ids.
        seed: of the sample that SentencePiece trains on.
        tokenizer: the run's, on resume and in evaluation.
        progress: called with the stored bytes done and in all, for training and validation text together.

    Raises:
        ValueError: bad data, a bad tokenizer, or one that doesn't fit the model's vocabulary.
    """
    config.validate()
    train, valid = open_sources(config)
    if tokenizer is None:
        tokenizer = _make_tokenizer(config, train, valid, vocab_size, seed)
    check_vocabulary(tokenizer, vocab_size)
    total = Source((*train.parts, *valid.parts)).stored_bytes
    before_valid = total - valid.stored_bytes  # 0 where both are ranges of one file
    return Dataset(
        tokenizer,
        prepare_corpus(train, tokenizer, progress and (lambda done, _: progress(done, total))),
        prepare_corpus(valid, tokenizer, progress and (lambda done, _: progress(before_valid + done, total))),
    )


def open_sources(config: DataConfig) -> tuple[Source, Source]:
    """The training and the validation text of a configuration."""
    source = open_source(config.path, config.text_column)
    if config.valid_path is None:
        return split_source(source)
    return source, open_source(config.valid_path, config.text_column)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuses a tokenizer with more ids than the model has rows.

    Raises:
        ValueError: with the size that fits.
    """
    if tokenizer.vocab_size <= vocab_size:
        return
    remedy = f"more than vocab_size={vocab_size}; pass --model.vocab-size {tokenizer.vocab_size}"
    if isinstance(tokenizer, CharacterTokenizer):
        raise ValueError(
            f"the text has {len(tokenizer.characters)} different characters and one document mark, {remedy}"
        )
    if isinstance(tokenizer, ByteTokenizer):
        raise ValueError(f"the bytes tokenizer has 256 bytes and one document mark, {remedy}")
    raise ValueError(f"the {tokenizer.kind} tokenizer has {tokenizer.vocab_size} ids, {remedy}")


def _make_tokenizer(config: DataConfig, train: Source, valid: Source, vocab_size: int, seed: int) -> Tokenizer:
    match config.tokenizer:
        case "bytes":
            return ByteTokenizer()
        case "characters":
            # Of all the text, so that a rare letter in the held-out part can be scored.
            return CharacterTokenizer.of(text for source in (train, valid) for text in source.texts())
        case "sentencepiece":
            folder = cache_folder("tokenizers") / digest_of("sentencepiece bpe 1", train.digest, vocab_size, seed)
            if not folder.exists():
                trained = train_sentencepiece(train.texts(), vocab_size, seed=seed)
                with written_atomically(folder) as temporary:
                    trained.save(temporary)
            return load_tokenizer(folder)
        case path:
            return load_tokenizer(path)
