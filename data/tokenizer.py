"""Text to integers and back: bytes, characters, SentencePiece, and foreign tokenizers that are only carried along.

No text encodes to a special token: whoever needs the start or end of a document adds `start_id` or `end_id`. Every
kind made here is lossless: `decode(encode(text)) == text` for any text. SentencePiece: Kudo and Richardson 2018,
https://arxiv.org/abs/1808.06226, byte-pair encoding with byte fallback.
"""

import codecs
import hashlib
import heapq
import io
import json
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import sentencepiece
from etils import epath
from numpy.typing import ArrayLike

from data.cache import digest_of
from data.text import cut

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "jumok_tokenizer.json"
_FORMAT = 1
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()

# What SentencePiece writes for a space. In a text it means itself, and is encoded by its bytes.
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_SPACE_BYTES = tuple(_SPACE.encode())

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
)


class Tokenizer(ABC):
    """What every kind has: ids 0..vocab_size-1, of which `start_id` opens a document and `end_id` closes it.

    `files` are kept with it unchanged: those of a foreign folder, and SentencePiece's model. `cuts` says that a long
    text may be encoded in the parts that data/text.py cuts.
    """

    kind: str
    cuts = True
    _adds_space = False  # before every text, taken away again in decoding

    def __init__(self, vocab_size: int, start_id: int, end_id: int, files: dict[str, bytes] | None = None):
        self.vocab_size, self.start_id, self.end_id = vocab_size, start_id, end_id
        self.files = files or {}

    @cached_property
    def digest(self) -> str:
        """The hexadecimal SHA-256 of what the tokenizer does: equal digests encode alike."""
        return digest_of(self.kind, self._identity())

    def encode(self, text: str) -> np.ndarray:
        """The text's ids, int32 [length], without start or end."""
        return self._encode([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all cores where that pays."""
        return self._encode(texts)

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of an id: none for start and end, a replacement character's beyond the vocabulary."""
        return self._token_bytes(token) if 0 <= token < self.vocab_size else _REPLACEMENT

    def decode(self, tokens: ArrayLike) -> str:
        """The text of some ids; bytes that are not UTF-8 become replacement characters."""
        text = b"".join(map(self.token_bytes, _integers(tokens))).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._adds_space else text

    def stream(self) -> "TextStream":
        """A decoder that is fed ids as they come, for text that goes on from other text."""
        return TextStream(self)

    def save(self, folder: epath.PathLike) -> None:
        """Writes the tokenizer's files into `folder`, from which `load_tokenizer` reads them."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        description = {
            "format": _FORMAT,
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "start_id": self.start_id,
            "end_id": self.end_id,
            "digest": self.digest,
            **self._description(),
        }
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        (folder / TOKENIZER_FILE).write_text(json.dumps(description, ensure_ascii=False, indent=1) + "\n", "utf-8")

    @abstractmethod
    def _identity(self) -> Any:
        """Plain values that say what the tokenizer does."""

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text."""

    @abstractmethod
    def _token_bytes(self, token: int) -> bytes:
        """The bytes of an id of the vocabulary."""

    def _description(self) -> dict[str, Any]:
        """What the description holds beyond the fields that every kind has."""
        return {}


class TextStream:
    """Decodes ids one or a few at a time into text that is complete: half a character waits for its other half."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, tokens: ArrayLike) -> str:
        """The text that these ids complete."""
        return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, _integers(tokens))))

    def finish(self) -> str:
        """What is left: a replacement character for half a character."""
        return self._decoder.decode(b"", final=True)


class ByteTokenizer(Tokenizer):
    """Ids 0..255 are the bytes of UTF-8; 256 starts and ends a document."""

    kind = "bytes"

    def __init__(self):
        super().__init__(vocab_size=257, start_id=256, end_id=256)

    def _identity(self) -> Any:
        return None

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def _token_bytes(self, token: int) -> bytes:
        return b"" if token == self.end_id else bytes((token,))


class CharacterTokenizer(Tokenizer):
    """Ids are the places of `characters`, ascending; the last id starts and ends a document."""

    kind = "characters"

    def __init__(self, characters: str):
        if not isinstance(characters, str) or list(characters) != sorted(set(characters)):
            raise ValueError("a character tokenizer needs its characters as a string, ascending and each once")
        super().__init__(len(characters) + 1, start_id=len(characters), end_id=len(characters))
        self.characters = characters
        self._code_points = np.frombuffer(characters.encode("utf-32-le"), "<u4")

    @classmethod
    def of(cls, texts: Iterable[str]) -> "CharacterTokenizer":
        """The tokenizer of all characters in `texts`."""
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return cls("".join(sorted(characters)))

    def _identity(self) -> Any:
        return self.characters

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode_one(text) for text in texts]

    def _encode_one(self, text: str) -> np.ndarray:
        code_points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        tokens = np.searchsorted(self._code_points, code_points)
        known = np.append(self._code_points, np.uint32(0xFFFFFFFF))[tokens] == code_points
        if not known.all():
            unknown = text[int(np.argmin(known))]
            raise ValueError(
                f"the character {unknown!r} (U+{ord(unknown):04X}) is not among the {len(self.characters)} characters "
                f"that this tokenizer was made from; use text without it, or --data.tokenizer bytes"
            )
        return tokens.astype(np.int32)

    def _token_bytes(self, token: int) -> bytes:
        return b"" if token == self.end_id else self.characters[token].encode()

    def _description(self) -> dict[str, Any]:
        return {"characters": self.characters}


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, made here by `train_sentencepiece` or taken from elsewhere.

    Args:
        model: the bytes of a `tokenizer.model`.
        files: other files of the folder that it came from.

    Raises:
        ValueError: not a SentencePiece model, or one without a token that could start and end documents.
    """

    kind = "sentencepiece"
    _PART = 4096  # characters: short parts encode faster, since merging costs n log n, and on all cores

    def __init__(self, model: bytes, files: dict[str, bytes] | None = None):
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.load_from_serialized_proto(model)
            size = processor.vocab_size()
            pieces = [processor.id_to_piece(token) for token in range(size)]
            byte_ids = {bytes.fromhex(pieces[token][3:-1]): token for token in range(size) if processor.is_byte(token)}
        except (RuntimeError, ValueError) as error:  # pieces that are not UTF-8 or not bytes are ValueErrors
            raise ValueError(
                "this is not a SentencePiece model, or a damaged one; give the file as it was made"
            ) from error
        start_id, end_id = processor.bos_id(), processor.eos_id()
        end_id = end_id if end_id >= 0 else start_id
        start_id = start_id if start_id >= 0 else end_id
        if not 0 <= start_id < size or not 0 <= end_id < size:
            raise ValueError(
                "this SentencePiece model has neither a token that starts nor one that ends a document; "
                "train it with bos_id and eos_id"
            )
        super().__init__(size, start_id, end_id, (files or {}) | {"tokenizer.model": model})
        self.pieces, self.processor = pieces, processor
        self._bytes = [self._bytes_of(token) for token in range(size)]
        for byte, token in byte_ids.items():
            self._bytes[token] = byte
        self.byte_ids = {byte[0]: token for byte, token in byte_ids.items() if len(byte) == 1}
        normal = (pieces[token] for token in range(size) if self.is_normal(token))
        # Lossless: spaces, line feeds and every form of a letter come through, and what is unknown by its bytes.
        probe = " a  \n\n\N{LATIN SMALL LIGATURE FI} e\N{COMBINING ACUTE ACCENT} "
        self.lossless = len(self.byte_ids) == 256 and processor.normalize(probe) == probe.replace(" ", _SPACE)
        self._adds_space = processor.normalize("a") != "a"
        self.cuts = self.lossless and not any(re.search(f"[^{_SPACE}]{_SPACE}|\n[^\n]", piece) for piece in normal)

    def _identity(self) -> Any:
        # Of the pieces and not of the file, which also records how many threads trained it.
        score = self.processor.get_score
        pieces = [(piece, score(token), self.is_normal(token)) for token, piece in enumerate(self.pieces)]
        return self.lossless, pieces, self.start_id, self.end_id

    def is_normal(self, token: int) -> bool:
        """Whether an id stands for text of its own, rather than a byte or a mark."""
        process = self.processor
        return not (
            process.is_control(token) or process.is_unknown(token) or process.is_byte(token) or process.is_unused(token)
        )

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        # All parts of all texts go through one call, which spreads them over the cores.
        parts: list[str | None] = []
        counts = []
        for text in texts:
            before = len(parts)
            parts.extend(self._parts(text))
            counts.append(len(parts) - before)
        encoded = iter(self.processor.encode_as_numpy([part for part in parts if part is not None]))
        space = np.array([self.byte_ids[byte] for byte in _SPACE_BYTES] if self.lossless else [], np.int32)
        tokens = iter([space if part is None else np.asarray(next(encoded), np.int32) for part in parts])
        none = np.zeros(0, np.int32)
        return [np.concatenate([none, *(next(tokens) for _ in range(count))]) for count in counts]

    def _parts(self, text: str) -> Iterator[str | None]:
        """The parts of a text that are encoded apart; None is the character that SentencePiece takes for a space."""
        if not self.lossless:
            yield text
            return
        for number, section in enumerate(text.split(_SPACE)):
            if number:
                yield None
            yield from cut(section, self._PART) if self.cuts else (section,)

    def _token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def _bytes_of(self, token: int) -> bytes:
        piece, process = self.pieces[token], self.processor
        if process.is_unknown(token):
            return _REPLACEMENT
        return piece.replace(_SPACE, " ").encode() if self.is_normal(token) else b""

    def _description(self) -> dict[str, Any]:
        return {"start": self.pieces[self.start_id], "end": self.pieces[self.end_id]}


class CarriedTokenizer(Tokenizer):
    """A foreign tokenizer that can't be run yet: its files are kept, saved and exported unchanged.

    `vocab_size` is 0, `start_id` and `end_id` are -1 where its files don't say.
    """

    kind = "carried"

    def __init__(self, files: dict[str, bytes]):
        vocabulary, config = _foreign_vocabulary(files), _json_object(files, "tokenizer_config.json")
        config = _json_object(files, "special_tokens_map.json") | config
        ids = []
        for role in ("bos_token", "eos_token"):
            token = config.get(role)
            token = token.get("content") if isinstance(token, dict) else token
            ids.append(vocabulary.get(token, -1) if isinstance(token, str) else -1)
        super().__init__(max(vocabulary.values(), default=-1) + 1, *ids, files=files)

    def decode(self, tokens: ArrayLike) -> str:
        """Refuses: the tokenizer can't be run."""
        raise self._cannot_run()

    def stream(self) -> TextStream:
        """Refuses: the tokenizer can't be run."""
        raise self._cannot_run()

    def _identity(self) -> Any:
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        raise self._cannot_run()

    def _token_bytes(self, token: int) -> bytes:
        raise self._cannot_run()

    def _cannot_run(self) -> ValueError:
        return ValueError(
            f"this run carries a tokenizer ({', '.join(self.files)}) that cannot be run yet; commands that need no "
            f"text work, and the others need a tokenizer.model of SentencePiece"
        )


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
    """Reads a tokenizer from a folder that `save` wrote, a Hugging Face folder, a run, or a SentencePiece file.

    Raises:
        ValueError: nothing there that is a tokenizer, or a damaged one.
    """
    path = epath.Path(path)
    if not path.exists():
        raise ValueError(
            f"the tokenizer {path} does not exist; give bytes, characters, sentencepiece, a folder or a file"
        )
    if not path.is_dir():
        return _loaded_from({path.name if path.suffix == ".json" else "tokenizer.model": path.read_bytes()}, path)
    names = (TOKENIZER_FILE, *FOREIGN_FILES)
    files = {name: (path / name).read_bytes() for name in names if (path / name).exists()}
    if not files and (path / "tokenizer").is_dir():
        return load_tokenizer(path / "tokenizer")
    if not files:
        raise ValueError(f"{path} holds no tokenizer: none of {', '.join(names)} is there")
    return _loaded_from(files, path)


def _loaded_from(files: dict[str, bytes], path: epath.Path) -> Tokenizer:
    described = files.pop(TOKENIZER_FILE, None)
    if described is None:
        model_name = next((name for name in ("tokenizer.model", "spiece.model") if name in files), None)
        if model_name is None:
            return CarriedTokenizer(files)
        try:
            return SentencePieceTokenizer(files[model_name], files)
        except ValueError as error:
            if "tokenizer.json" in files:  # the model file is of another kind, as in folders of tiktoken's
                return CarriedTokenizer(files)
            raise ValueError(f"{path}: {error}") from error

    file = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        description = json.loads(described)
        version, kind, digest = description["format"], description["kind"], description["digest"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged: it does not describe a tokenizer; copy it anew from where it was made"
        ) from error
    if version != _FORMAT:
        raise ValueError(f"{file} has format {version!r}, and this program reads format {_FORMAT}; use a newer program")
    try:
        if kind == "bytes":
            tokenizer = ByteTokenizer()
        elif kind == "characters":
            tokenizer = CharacterTokenizer(description["characters"])
        elif kind == "sentencepiece":
            tokenizer = SentencePieceTokenizer(files["tokenizer.model"], files)
        elif kind == "carried":
            tokenizer = CarriedTokenizer(files)
        else:
            raise ValueError(f"unknown kind {kind!r}; the kinds are bytes, characters, sentencepiece and carried")
    except KeyError as error:
        raise ValueError(f"{file} is incomplete: {error.args[0]} is missing; copy the folder anew") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if tokenizer.digest != digest:
        raise ValueError(f"the tokenizer in {path} is damaged: it is not the one that {TOKENIZER_FILE} describes")
    return tokenizer


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    model_type: Literal["bpe", "unigram"] = "bpe",
    *,
    seed: int = 0,
    sample_characters: int = 32_000_000,
) -> SentencePieceTokenizer:
    """A lossless SentencePiece tokenizer of exactly `vocab_size` ids, trained on a seeded sample of the texts.

    Ids 0, 1, 2 are <unk>, <s>, </s> and 3..258 the bytes. The result depends on texts, sizes and seed alone.

    Raises:
        ValueError: a vocabulary larger than the text allows, or too small for its characters; or no text at all.
    """
    if vocab_size < 260:
        raise ValueError(
            f"vocab_size={vocab_size} is too small for SentencePiece, which needs 3 marks, 256 bytes and the text's "
            f"characters; pass --model.vocab-size 512 or more, or --data.tokenizer bytes"
        )
    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(_sample(texts, sample_characters, seed)),
            model_writer=writer,
            vocab_size=vocab_size,
            model_type=model_type,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            max_sentence_length=1 << 24,  # bytes: _sentences bounds them, nothing is dropped
            num_threads=4,  # the pieces of unigram models depend on it, so it's the same everywhere
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(_reason(str(error), vocab_size)) from error
    return SentencePieceTokenizer(writer.getvalue())


def _reason(message: str, vocab_size: int) -> str:
    if most := re.search(r"value <= (\d+)", message):
        return (
            f"vocab_size={vocab_size} is larger than the text allows for SentencePiece, which finds {most[1]} pieces "
            f"in it; pass --model.vocab-size {most[1]} or less, or give more text"
        )
    if needed := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"vocab_size={vocab_size} is smaller than the {needed[1]} marks, bytes and characters that SentencePiece "
            f"needs for the text; pass --model.vocab-size {needed[1]} or more"
        )
    return (
        f"SentencePiece could not make {vocab_size} pieces from the text, which is too short or empty; give more text"
    )


_BLOCK = 1 << 16  # characters: what the sample takes or leaves
_SENTENCE = 1 << 13


def _sample(texts: Iterable[str], size: int, seed: int) -> list[str]:
    """Blocks of the texts, in their order, of about `size` characters in all; all of them where they are fewer."""
    generator = random.Random(seed)
    kept: list[tuple[float, int, str]] = []  # a heap: those of the largest random numbers
    held = 0
    for number, block in enumerate(block for text in texts for block in cut(text, _BLOCK)):
        heapq.heappush(kept, (generator.random(), number, block))
        held += len(block)
        while held > size and len(kept) > 1:
            held -= len(heapq.heappop(kept)[2])
    return [block for _, _, block in sorted(kept, key=lambda entry: entry[1])]


def _sentences(blocks: Iterable[str]) -> Iterator[str]:
    """What SentencePiece learns from: lines with the line feeds after them, so that no piece crosses into a line."""
    for block in blocks:
        # Both characters have a meaning inside SentencePiece, which would skip or misread lines that hold them.
        for section in re.split(f"[{_SPACE}\N{LOWER FIVE EIGHTHS BLOCK}\0]", block):
            for line in re.findall("[^\n]*\n+|[^\n]+", section):
                for sentence in cut(line, _SENTENCE):
                    # Line feeds at the very end would be stripped; a space there shields them.
                    yield sentence + " "


def _integers(tokens: ArrayLike) -> list[int]:
    return np.asarray(tokens, np.int64).reshape(-1).tolist()


def _json_object(files: dict[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _foreign_vocabulary(files: dict[str, bytes]) -> dict[str, int]:
    """The tokens and ids that a foreign folder's JSON files give; empty where they can't be read."""
    foreign = _json_object(files, "tokenizer.json")
    model = foreign.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else _json_object(files, "vocab.json")
    if isinstance(vocabulary, list):  # unigram: pairs of piece and score
        vocabulary = {entry[0]: i for i, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    found = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    added = foreign.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict):
            found[str(token.get("content"))] = token.get("id")
    found |= _json_object(files, "added_tokens.json")
    return {token: number for token, number in found.items() if isinstance(token, str) and type(number) is int}
