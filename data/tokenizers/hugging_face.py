"""Tokenizers of Hugging Face folders, run by the tokenizers library: any tokenizer.json, GPT-2's and BERT's files.

The ids are those of transformers' `tokenizer(text, add_special_tokens=False, split_special_tokens=True)`: nothing is
put around a text, cut off or filled up, whatever tokenizer.json asks for, and the name of a special token in a text is
read as letters. (Where a vocabulary makes the library find such a name all the same, as unigram models do, it is
spelled out here and not there.)
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data.tokenizers.base import REPLACEMENT, Tokenizer, integers
from data.tokenizers.roles import find_specials
from data.tokenizers.tokenizer_json import TOKENIZER_JSON, byte_letters, tokenizer_json

_ANCHOR = "a"  # a token before another one, whose text then is what it has inside a text
_BYTES = {letter: byte for byte, letter in enumerate(byte_letters())}
_BYTE_NAME = re.compile("<0x([0-9A-Fa-f]{2})>")
_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")

_MOST_GROWTH = 64  # times that normalizing or decoding may lengthen a text: no tokenizer of use comes near

# The patterns of Llama 3 and of Qwen 2, in which, as in GPT-2's, a space that follows on a word begins a token.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = (_LLAMA3, _LLAMA3.replace("{1,3}", ""))


class LibraryTokenizer(Tokenizer):
    """Any tokenizer that Hugging Face's tokenizers library runs.

    With `threads=1` texts are encoded one by one in one thread; otherwise on the library's own threads, one a core, or
    as many as the environment variable RAYON_NUM_THREADS said before its first use.

    Args:
        files: those of the folder: a tokenizer.json, or GPT-2's vocab.json and merges.txt, or BERT's vocab.txt, and
            what names special tokens (tokenizer_config.json, special_tokens_map.json).

    Raises:
        ValueError: the library is missing, or the files are damaged, of no known kind, or without a token that could
            start and end documents.
    """

    kind = "tokenizers"
    _PART = 1 << 18  # characters: short parts encode faster, in less memory, and on all cores
    _TOGETHER = 1 << 22  # characters, of which the library takes about 60 bytes each until they are ids

    def __init__(self, files: Mapping[str, bytes]):
        try:
            import tokenizers
        except ImportError as error:
            raise ValueError(
                'this tokenizer needs the tokenizers library; install it with pip install "jumok[tokenizers]"'
            ) from error
        self.tokenizer_json = tokenizer_json(files)
        sources = TOKENIZER_JSON if TOKENIZER_JSON in files else ", ".join(sorted(files))
        cannot_read = f"the tokenizers library cannot read {sources}"
        with _errors_said(cannot_read):
            content = json.loads(self.tokenizer_json)
            growth = max(_growth(content.get(step)) for step in ("normalizer", "decoder"))
        if growth > _MOST_GROWTH:
            raise ValueError(
                f"by the replacements in {sources} a text can become over {_MOST_GROWTH} times as long, as of a trap; "
                f"take a tokenizer from where it can be trusted"
            )
        with _errors_said(cannot_read):
            library = tokenizers.Tokenizer.from_str(self.tokenizer_json.decode())
            library.no_truncation()
            library.no_padding()
            library.encode_special_tokens = True
            if isinstance(library.model, tokenizers.models.BPE):
                library.model.dropout = None  # noise for training, which would make a corpus another one every time
            vocabulary = library.get_vocab()
            places = _places_between_words(content)
        specials = find_specials(files, vocabulary)
        if "start" not in specials:
            raise ValueError(
                "no token of this tokenizer starts or ends a document; name one as eos_token in tokenizer_config.json"
            )
        super().__init__(max(vocabulary.values()) + 1, specials, files)
        self._library = library
        with _errors_said(cannot_read):
            library.add_special_tokens([library.id_to_token(token) for token in specials.values()])
            added = library.get_added_tokens_decoder()
            self._silent = {token for token, entry in added.items() if entry.special}
            found = [token for token in self._silent - {specials.get("unknown")} if self._finds(added[token].content)]
        self._found = np.array(found, np.int32)
        self._byte_level = self._joined(["\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"]) == " "
        self._byte_fallback = self._joined(["<0x41>"]) == "A"
        self._ends_words = isinstance(library.decoder, tokenizers.decoders.BPEDecoder)
        self._pieces: dict[int, bytes] = {}
        cuts, divides = places
        if not all(entry.special for entry in added.values()):  # others may hold spaces, or take those beside them
            cuts = divides = False
        self.cuts, self._divides = cuts, divides

    def name(self, token: int) -> str:
        """An id's token as the files write it; "" where the vocabulary has a hole."""
        return self._library.id_to_token(token) or ""

    def decode(self, tokens: ArrayLike) -> str:
        """The text of some ids as the library decodes them, special tokens left out.

        The first token may have another text than inside a text: without the space before it, for one. Where byte
        tokens are not UTF-8 together, the stray ones become replacement characters; the library replaces the whole run.
        """
        spoken = [token for token in integers(tokens) if token not in self._silent]
        if not spoken:
            return ""
        first = self._bytes_of(self.name(spoken[0]), []) if 0 <= spoken[0] < self.vocab_size else REPLACEMENT
        text = b"".join([first, *map(self.token_bytes, spoken[1:])]).decode("utf-8", "replace")
        return text.removesuffix(" ") if self._ends_words else text

    def _identity(self) -> Any:
        return hashlib.sha256(self.tokenizer_json).hexdigest(), self.specials

    def _encode(self, texts: Sequence[str], threads: int | None) -> list[np.ndarray]:
        tokens: list[list[np.ndarray]] = [[] for _ in texts]
        parts = ((number, part) for number, text in enumerate(texts) for part in self._parts(text))
        with _errors_said("the tokenizers library cannot encode a text by this tokenizer.json"):
            for group in _groups(parts, 0 if threads == 1 else self._TOGETHER):
                encodings = self._library.encode_batch_fast([part for _, part in group], add_special_tokens=False)
                for (number, _), encoding in zip(group, encodings, strict=True):
                    tokens[number].append(self._spelled(np.array(encoding.ids, np.int32)))
        return list(map(np.concatenate, tokens))

    def _parts(self, text: str) -> Iterator[str]:
        """The parts of a text that are encoded apart: it is divided before single spaces between words."""
        start = 0
        while self._divides and (place := _BETWEEN_WORDS.search(text, start + self._PART)):
            yield text[start : place.start()]
            start = place.start()
        yield text[start:]

    def _spelled(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens, with the letters of a special token's name in place of the token."""
        if not self._found.size or not (places := np.flatnonzero(np.isin(tokens, self._found))).size:
            return tokens
        parts = np.split(tokens, places)
        spelled = [np.concatenate([self._letters(self.name(int(part[0]))), part[1:]]) for part in parts[1:]]
        return np.concatenate([parts[0], *spelled])

    def _letters(self, name: str) -> np.ndarray:
        model = self._library.model
        return np.array([token.id for part in (name[0], name[1:]) for token in model.tokenize(part)], np.int32)

    def _finds(self, name: str) -> bool:
        """Whether the model makes the token of this name from a text that holds the name."""
        model = self._library.model
        return model.token_to_id(name) is not None and [token.value for token in model.tokenize(name)] == [name]

    def _token_bytes(self, token: int) -> bytes:
        if token not in self._pieces:
            name = "" if token in self._silent else self.name(token)
            self._pieces[token] = self._bytes_of(name, [_ANCHOR]) if name else b""
        return self._pieces[token]

    def _bytes_of(self, name: str, before: list[str]) -> bytes:
        """The bytes of a token behind others."""
        if self._byte_level:
            known = [_BYTES.get(letter) for letter in name]
            return name.encode() if None in known else bytes(byte for byte in known if byte is not None)
        if self._byte_fallback and (byte := _BYTE_NAME.fullmatch(name)) and int(byte[1], 16) >= 0x80:
            return bytes.fromhex(byte[1])
        if self._ends_words:
            return self._joined([name, _ANCHOR])[: -len(_ANCHOR)].encode()
        return self._joined([*before, name])[len("".join(before)) :].encode()

    def _joined(self, names: list[str]) -> str:
        decoder = self._library.decoder
        with _errors_said("the tokenizers library cannot decode by this tokenizer.json"):
            return " ".join(names) if decoder is None else decoder.decode(names)


def _groups(parts: Iterable[tuple[int, str]], size: int) -> Iterator[list[tuple[int, str]]]:
    """The parts of numbered texts in their order, as many together as come to `size` characters."""
    group: list[tuple[int, str]] = []
    held = 0
    for number, part in parts:
        group.append((number, part))
        held += len(part)
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group


def _growth(step: Any) -> float:
    """How many times as long a text can become at most by the replacements within a normalizer or decoder.

    Where memory ends, the library ends the process.
    """
    growth, waiting = 1.0, [step]
    while waiting:
        match waiting.pop():
            case {"pattern": {"String": str(old)}, "content": str(new)} if old:
                growth *= max(1.0, len(new) / len(old))
            case {"pattern": _, "content": str(new)}:  # which may stand between any two characters
                growth *= 1 + len(new)
            case dict() as inner:
                waiting.extend(inner.values())
            case list() as inner:
                waiting.extend(inner)
    return growth


def _places_between_words(content: dict[str, Any]) -> tuple[bool, bool]:
    """Of a tokenizer.json, whether tokens cross none of the cuts of data/text.py, and no single space between words.

    BERT takes words apart and drops what is between them. GPT-2's pattern, and those after it, take a space together
    with the word behind it, but of several line feeds before a word they take the last one by itself.
    """
    normalizer = (content.get("normalizer") or {}).get("type")
    composes = normalizer in (None, "NFC")  # and so makes no space of anything else, nor drops what is beside one
    match content.get("pre_tokenizer"):
        case {"type": "BertPreTokenizer" | "Whitespace" | "WhitespaceSplit"}:
            apart = composes or normalizer == "BertNormalizer"
            return apart, apart
        case {"type": "ByteLevel", **others}:
            return False, composes and others.get("use_regex", True)
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "use_regex": False},
            ],
        }:
            return False, composes and pattern in _PATTERNS
    return False, False


@contextmanager
def _errors_said(sentence: str) -> Iterator[None]:
    """Turns whatever the library raises into a ValueError that begins with `sentence`."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{sentence} ({error}); copy it anew from where it was made") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # the library's own, when its Rust code gives up
            raise
        raise ValueError(f"{sentence} (it made the library panic: {error}); copy it anew") from error
