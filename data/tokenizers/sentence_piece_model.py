"""The file of a SentencePiece model: what of its protocol buffer the library doesn't tell, and what is changed in it.

The format is sentencepiece_model.proto of https://github.com/google/sentencepiece.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Literal, get_args

ModelType = Literal["unigram", "bpe", "word", "char"]

# Field numbers, as a field's key has them: number * 8 + wire type.
_PIECES, _TRAINER = 1 << 3 | 2, 2 << 3 | 2  # of the model
_SCORE, _TYPE = 2 << 3 | 5, 3 << 3 | 0  # of a piece
_MODEL_TYPE = 3 << 3 | 0  # of the trainer's settings
_USER_DEFINED = 4


def model_type(model: bytes) -> ModelType:
    """How the model cuts text into pieces."""
    number = 1
    for key, start, stop in _fields(model, 0, len(model)):
        if key == _TRAINER:
            number = next((value for key, value, _ in _fields(model, start, stop) if key == _MODEL_TYPE), number)
    return get_args(ModelType)[number - 1]


def has_user_defined_pieces(model: bytes) -> bool:
    """Whether there are pieces that are cut out of a text before all others."""
    return any(
        key == _TYPE and value == _USER_DEFINED
        for piece, start, stop in _fields(model, 0, len(model))
        if piece == _PIECES
        for key, value, _ in _fields(model, start, stop)
    )


def with_scores(model: bytes, change: Callable[[float], float]) -> bytes:
    """The model with the score of each piece changed."""
    changed = bytearray(model)
    for piece, start, stop in _fields(model, 0, len(model)):
        if piece == _PIECES:
            for key, place, _ in _fields(model, start, stop):
                if key == _SCORE:
                    (score,) = struct.unpack_from("<f", model, place)
                    struct.pack_into("<f", changed, place, change(score))
    return bytes(changed)


def _fields(message: bytes, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message: key, and where the content starts and stops; for a whole number, its value twice."""
    while place < end:
        key, place = _varint(message, place)
        match key & 7:
            case 0:
                value, place = _varint(message, place)
                yield key, value, value
                continue
            case 1:
                size = 8
            case 5:
                size = 4
            case _:
                size, place = _varint(message, place)
        yield key, place, place + size
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the place behind it."""
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place
