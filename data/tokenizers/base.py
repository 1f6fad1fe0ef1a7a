"""What every tokenizer does: text to integers and back.

No text encodes to a special token: whoever needs the start or end of a document adds `start_id` or `end_id`.
"""

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from etils import epath
from numpy.typing import ArrayLike

from data.cache import digest_of

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "jumok_tokenizer.json"
FORMAT = 1
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()

_UNKNOWN = "characters outside its vocabulary"

# What a round trip may lose, and two texts that become the same tokens where it does.
_PROBES = (
    ("letter case", "A", "a"),
    ("accents", "\N{LATIN SMALL LETTER E WITH ACUTE}", "e"),
    ("how accents are composed", "\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"),
    ("typographic forms of letters", "\N{LATIN SMALL LIGATURE FI}", "fi"),
    ("spaces at the start", " a", "a"),
    ("spaces at the end", "a ", "a"),
    ("runs of spaces", "a  b", "a b"),
    ("tabs", "a\tb", "a b"),
    ("line feeds", "a\nb", "a b"),
    ("carriage returns", "a\r\nb", "a\nb"),
    ("control characters", "a\0b", "ab"),
    ("spaces around punctuation", "a , b", "a, b"),
    ("the mark \N{LOWER ONE EIGHTH BLOCK}", "a\N{LOWER ONE EIGHTH BLOCK}b", "a b"),
    (_UNKNOWN, "\N{CUNEIFORM SIGN A}", "\N{EGYPTIAN HIEROGLYPH A001}"),
)


class Tokenizer(ABC):
    """What every kind has: ids 0..vocab_size-1, of which `start_id` opens a document and `end_id` closes it.

    `specials` are the ids of the special tokens by role: start, end, pad, mask, separator, class, unknown, sentinel_0
    and so on; a kind has some of them. `files` are kept with it unchanged: those of a foreign folder, and
    SentencePiece's model. `cuts` says that a long text may be encoded in the parts that data/text.py cuts.
    """

    kind: str
    cuts = True
    _exact = False  # every round trip, by construction
    _adds_space = False  # before every text, taken away again in decoding

    def __init__(self, vocab_size: int, specials: Mapping[str, int], files: Mapping[str, bytes] | None = None):
        self.vocab_size = vocab_size
        self.specials = dict(specials)
        self.start_id, self.end_id = specials.get("start", -1), specials.get("end", -1)
        self.files = dict(files or {})

    @cached_property
    def digest(self) -> str:
        """The hexadecimal SHA-256 of what the tokenizer does: equal digests encode alike."""
        return digest_of(self.kind, self._identity())

    @cached_property
    def loss(self) -> str:
        """What a round trip, `decode(encode(text))`, loses of some texts, in a sentence; "" where it loses nothing."""
        if self._exact:
            return ""
        unknown = self.specials.get("unknown")
        lost = []
        for what, *texts in _PROBES:
            one, other = (tokens.tolist() for tokens in self.encode_batch(texts, 1))
            if one == other and (unknown not in one or what == _UNKNOWN):
                lost.append(what)
        if lost:
            return f"a round trip loses {', '.join(lost[:-1])}{' and ' if lost[:-1] else ''}{lost[-1]}"
        changed = any(self.decode(self.encode(text)) != text for _, *texts in _PROBES for text in texts)
        return "a round trip changes some texts" if changed else ""

    @property
    def lossless(self) -> bool:
        """Whether `decode(encode(text)) == text` for any text."""
        return not self.loss

    def special(self, role: str) -> int:
        """The id of the special token for a role, such as "mask".

        Raises:
            ValueError: the tokenizer has none.
        """
        if role not in self.specials:
            roles = ", ".join(dict.fromkeys(known.partition("_")[0] for known in self.specials)) or "none"
            raise ValueError(
                f"this {self.kind} tokenizer has no {role} token; its special tokens are: {roles}; take one that has, "
                "or let --data.tokenizer sentencepiece make it"
            )
        return self.specials[role]

    def encode(self, text: str) -> np.ndarray:
        """The text's ids, int32 [length], without start or end."""
        return self._encode([text], 1)[0]

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
        """`encode` of each text, on up to `threads` cores where that pays; by default on all."""
        return self._encode(texts, threads)

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of an id: none for special tokens, a replacement character's beyond the vocabulary."""
        return self._token_bytes(token) if 0 <= token < self.vocab_size else REPLACEMENT

    def decode(self, tokens: ArrayLike) -> str:
        """The text of some ids; bytes that are not UTF-8 become replacement characters."""
        text = b"".join(map(self.token_bytes, integers(tokens))).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._adds_space else text

    def stream(self) -> "TextStream":
        """A decoder that is fed ids as they come, for text that goes on from other text."""
        return TextStream(self)

    def save(self, folder: epath.PathLike) -> None:
        """Writes the tokenizer's files into `folder`, from which `load_tokenizer` reads them."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        description = {
            "format": FORMAT,
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
    def _encode(self, texts: Sequence[str], threads: int | None) -> list[np.ndarray]:
        """The ids of each text, int32, by up to `threads` threads (None: as many as there are cores)."""

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
        return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, integers(tokens))))

    def finish(self) -> str:
        """What is left: a replacement character for half a character."""
        return self._decoder.decode(b"", final=True)


def integers(tokens: ArrayLike) -> list[int]:
    """Ids of any shape, as a flat list."""
    return np.asarray(tokens, np.int64).reshape(-1).tolist()
