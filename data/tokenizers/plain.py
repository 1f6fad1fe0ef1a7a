"""Tokenizers that need no training: bytes and characters. Both are lossless: `decode(encode(text)) == text`.

Behind the ids of text, one id starts and ends documents; then come those of other special tokens, one for each role
that is asked for, such as "mask".
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data.tokenizers.base import Tokenizer


class ByteTokenizer(Tokenizer):
    """Ids 0..255 are the bytes of UTF-8; 256 starts and ends a document, and `roles` of others follow."""

    kind = "bytes"
    _exact = True

    def __init__(self, roles: Sequence[str] = ()):
        super().__init__(257 + len(roles), _specials(256, roles))
        self.roles = tuple(roles)

    def _identity(self) -> Any:
        return self.roles or None

    def _encode(self, texts: Sequence[str], threads: int | None) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def _token_bytes(self, token: int) -> bytes:
        return b"" if token >= self.end_id else bytes((token,))

    def _description(self) -> dict[str, Any]:
        return {"roles": self.roles} if self.roles else {}


class CharacterTokenizer(Tokenizer):
    """Ids are the places of `characters`, ascending; the next one starts and ends a document, and `roles` follow.

    Text with another character is refused, so nothing is lost.
    """

    kind = "characters"
    _exact = True

    def __init__(self, characters: str, roles: Sequence[str] = ()):
        if not isinstance(characters, str) or list(characters) != sorted(set(characters)):
            raise ValueError("a character tokenizer needs its characters as a string, ascending and each once")
        super().__init__(len(characters) + 1 + len(roles), _specials(len(characters), roles))
        self.characters, self.roles = characters, tuple(roles)
        code_points = np.frombuffer(characters.encode("utf-32-le"), "<u4")
        self._ids = np.full(0x110000, -1, np.int32)  # by code point
        self._ids[code_points] = np.arange(len(code_points))

    @classmethod
    def of(cls, texts: Iterable[str], roles: Sequence[str] = ()) -> "CharacterTokenizer":
        """The tokenizer of all characters in `texts`."""
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return cls("".join(sorted(characters)), roles)

    def _identity(self) -> Any:
        return (self.characters, self.roles) if self.roles else self.characters

    def _encode(self, texts: Sequence[str], threads: int | None) -> list[np.ndarray]:
        return [self._encode_one(text) for text in texts]

    def _encode_one(self, text: str) -> np.ndarray:
        tokens = self._ids[np.frombuffer(text.encode("utf-32-le"), "<u4")]
        if tokens.min(initial=0) < 0:
            unknown = text[int(np.argmin(tokens))]
            raise ValueError(
                f"the character {unknown!r} (U+{ord(unknown):04X}) is not among the {len(self.characters)} characters "
                f"that this tokenizer was made from; use text without it, or --data.tokenizer bytes"
            )
        return tokens

    def _token_bytes(self, token: int) -> bytes:
        return b"" if token >= self.end_id else self.characters[token].encode()

    def _description(self) -> dict[str, Any]:
        return {"characters": self.characters} | ({"roles": self.roles} if self.roles else {})


def _specials(first: int, roles: Sequence[str]) -> dict[str, int]:
    return {"start": first, "end": first} | {role: first + 1 + number for number, role in enumerate(roles)}
