"""Texts in which special tokens stand by name: masks that are to be filled, written [MASK] or <mask>, and sentinels.

Sentinels, <extra_id_0> and on, stand for spans of text that are left out (Raffel et al. 2020).
"""

import re
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from data.tokenizers.base import Tokenizer
from data.tokenizers.roles import ROLES, usual_name

_MASKS = ROLES["mask"][1]


def mentions_mask(text: str) -> bool:
    """Whether a mask is named in a text."""
    return any(name in text for name in _MASKS)


def encode_marked(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text, int32 [length], without start or end; the name of a mask or a sentinel becomes that token.

    A space before a name goes with it, since it belongs to the word that is left out. Where the tokenizer has no such
    token, its name is text like other text.
    """
    marks = {name: token for token, name in _sentinels(tokenizer).items()}
    if "mask" in tokenizer.specials:
        marks |= dict.fromkeys(_MASKS, tokenizer.special("mask"))
    if not marks:
        return tokenizer.encode(text)
    parts = re.split(f" ?({'|'.join(map(re.escape, marks))})", text)  # texts, and the names between them
    texts, names = tokenizer.encode_batch(parts[::2], 1), [[marks[name]] for name in parts[1::2]]
    return np.concatenate([part for pair in zip_longest(texts, names, fillvalue=[]) for part in pair]).astype(np.int32)


def decode_marked(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of some ids, with the sentinels among them by name."""
    names, text, begin = _sentinels(tokenizer), "", 0
    for place, token in enumerate(tokens):
        if token in names:
            text += tokenizer.decode(tokens[begin:place]) + names[token]
            begin = place + 1
    return text + tokenizer.decode(tokens[begin:])


def _sentinels(tokenizer: Tokenizer) -> dict[int, str]:
    """The names of the tokenizer's sentinels, by their ids."""
    return {token: usual_name(role) for role, token in tokenizer.specials.items() if role not in ROLES}
