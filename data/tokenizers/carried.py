"""Foreign tokenizers that are only carried along: kept, saved and exported unchanged."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data.tokenizers.base import TextStream, Tokenizer
from data.tokenizers.roles import find_specials, json_object, token_text
from data.tokenizers.tokenizer_json import TOKENIZER_JSON, tokenizer_json


class CarriedTokenizer(Tokenizer):
    """A foreign tokenizer that can't be run: its files are kept, saved and exported unchanged.

    `vocab_size` is 0, `start_id` and `end_id` are -1 where its files don't say.

    Args:
        files: those of its folder.
        reason: why it can't be run and what would help, for the sentence that whoever needs text gets.
    """

    kind = "carried"

    def __init__(self, files: Mapping[str, bytes], reason: str):
        known = _undamaged(files)
        vocabulary = _vocabulary(known)
        super().__init__(max(vocabulary.values(), default=-1) + 1, find_specials(known, vocabulary), files)
        self._reason = reason

    def decode(self, tokens: ArrayLike) -> str:
        """Refuses: the tokenizer can't be run."""
        raise self._cannot_run()

    def stream(self) -> TextStream:
        """Refuses: the tokenizer can't be run."""
        raise self._cannot_run()

    def _identity(self) -> Any:
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}

    def _encode(self, texts: Sequence[str], threads: int | None) -> list[np.ndarray]:
        raise self._cannot_run()

    def _token_bytes(self, token: int) -> bytes:
        raise self._cannot_run()

    def _cannot_run(self) -> ValueError:
        return ValueError(
            f"this tokenizer ({', '.join(self.files)}) cannot be run ({self._reason}); only commands that need no text "
            f"work with it"
        )


def _undamaged(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files without those that should hold a JSON object and don't."""
    kept = dict(files)
    for name in files:
        if name.endswith(".json"):
            try:
                json_object(files, name)
            except ValueError:
                del kept[name]
    return kept


def _vocabulary(files: Mapping[str, bytes]) -> dict[str, int]:
    """The tokens and ids that a foreign folder's files give; empty where they don't say."""
    try:
        foreign = json_object({TOKENIZER_JSON: tokenizer_json(files)}, TOKENIZER_JSON)
    except ValueError:
        foreign = {"model": {"vocab": json_object(files, "vocab.json")}}
    model = foreign.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else {}
    if isinstance(vocabulary, list):  # unigram: pairs of piece and score
        firsts = [entry[0] if isinstance(entry, list) and entry else None for entry in vocabulary]
        vocabulary = {first: i for i, first in enumerate(firsts) if isinstance(first, str)}
    found: dict[Any, Any] = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    added = foreign.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict):
            found[token_text(token)] = token.get("id")
    found |= json_object(files, "added_tokens.json")
    return {token: number for token, number in found.items() if isinstance(token, str) and type(number) is int}
