"""What a stranger or a bad disk does to a file: bytes are changed anywhere, or JSON and headers where it is meant.

Each function is of (random numbers, content, all originals of the same kind) and gives other content.
"""

import copy
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_NUMBERS = (
    *(b"0", b"-1", b"1", b"2", b"0.5", b"255", b"257", b"65536", b"2147483647", b"2147483648", b"4294967295"),
    *(b"9223372036854775807", b"18446744073709551615", b"1" + b"0" * 30, b"9" * 5000, b"1e308", b"1e999", b"-0.0"),
    *(b"NaN", b"Infinity", b"-Infinity", b"null", b"true", b'"1"', b"[]", b"{}", b'""'),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**32 - 1, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, float("nan")),
    *(
        "",
        "x",
        "\ud800",
        "../../etc/passwd",
        "a\nb",
        "\0",
        "os:getcwd",
        "\ud800.safetensors",
        "x" * 3000,
        [],
        {},
        [None],
        {"type": "x"},
    ),
    *([[[[[[]]]]]], {"": {}}, [1, 2, 3], ["a", "b"]),
)
_BINARY = tuple(
    (value & (1 << 8 * size) - 1).to_bytes(size, "little" if small else "big")
    for size in (2, 4, 8)
    for value in (0, 1, -1, -2, 1 << (8 * size - 1), (1 << (8 * size - 1)) - 1, 1 << (4 * size))
    for small in (True, False)
)


def mutated(random: Random, content: bytes, others: Sequence[bytes], name: str) -> bytes:
    """The content after one change or a few, as suits a file of this name."""
    if name.endswith((".gz", ".gzip")) and random.random() < 0.6:
        return gzip.compress(mutated(random, gzip.decompress(content), (), name[:-3]), 1)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        content = random.choice(_suited(name, content))(random, content, others)
    return content


def _suited(name: str, content: bytes) -> tuple[Mutation, ...]:
    if name.endswith(".safetensors"):
        return (*_ANYWHERE, _header, _header, _header)
    if content[:1] in (b"{", b"["):
        return (*_ANYWHERE, _number, _number, _json, _json, _json, _deep, _doubled)
    return (*_ANYWHERE, _number) if content[:64].isascii() else _ANYWHERE


def _flip(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8, 64)) if changed else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _truncate(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _insert(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    place = random.randrange(len(content) + 1)
    return content[:place] + random.randbytes(random.choice((1, 2, 4, 8, 100))) + content[place:]


def _cut(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = _stretch(random, content)
    return content[:begin] + content[end:]


def _zero(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = _stretch(random, content)
    return content[:begin] + bytes(end - begin) + content[end:]


def _repeat(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = _stretch(random, content)
    return content[:end] + content[begin:end] * random.choice((1, 1, 2, 30)) + content[end:]


def _splice(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    other = random.choice([content, *others])
    begin, end = _stretch(random, content)
    first, last = _stretch(random, other)
    return content[:begin] + other[first:last] + content[end:]


def _binary(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A whole number of a header becomes a special one."""
    value = random.choice(_BINARY)
    within = min(len(content), random.choice((64, 512, len(content) + 1)))
    place = random.randrange(within + 1) // random.choice((1, 4)) * random.choice((1, 4))
    return content[:place] + value + content[place + len(value) :]


def _number(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    places = [match.span() for match in _NUMBER.finditer(content)]
    if not places:
        return content
    begin, end = random.choice(places)
    return content[:begin] + random.choice(_NUMBERS) + content[end:]


def _json(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A value of a JSON file is replaced, left out, renamed or exchanged; a digest of all the rest is made to fit."""
    try:
        value = json.loads(content)
        _edit(random, value)
        if isinstance(value, dict) and "sha256" in value and random.random() < 0.8:  # of a checkpoint's manifest
            value.pop("sha256")
            value["sha256"] = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        return json.dumps(value).encode()
    except (ValueError, RecursionError):  # it has been damaged already
        return content


def _header(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """The header of a safetensors file is edited, and its length fits again."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = random.choice((_json, _json, _number, _doubled, _deep))(random, content[8:end], ())
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _deep(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A value is buried under thousands of brackets."""
    places = [match.span() for match in _NUMBER.finditer(content)] or [(0, len(content))]
    begin, end = random.choice(places)
    depth = random.choice((50, 900, 20_000))
    return content[:begin] + b"[" * depth + content[begin:end] + b"]" * depth + content[end:]


def _doubled(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A key is there twice."""
    pairs = [match.span() for match in re.finditer(rb'"[^"]*": ?(?:-?[\w.]+|"[^"]*")', content)]
    if not pairs:
        return content
    begin, end = random.choice(pairs)
    return content[:end] + b", " + content[begin:end] + content[end:]


_ANYWHERE: tuple[Mutation, ...] = (_flip, _flip, _truncate, _insert, _cut, _zero, _repeat, _splice, _binary)


def _stretch(random: Random, content: bytes) -> tuple[int, int]:
    begin = random.randrange(len(content) + 1)
    return begin, min(len(content), begin + random.choice((1, 4, 16, 64, 512, len(content))))


def _edit(random: Random, value: Any) -> None:
    """Changes one thing somewhere inside a JSON value."""
    places = [place for place in _places(value) if place[0]]
    if not places:
        return
    holder, key = random.choice(places)
    what = random.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[
            random.choice(("x", "auto_map", "type", "trust_remote_code", f"{key}_", "\ud800", "a\nb", "x" * 300))
        ] = holder.pop(key)
    elif what == 2:
        other, name = random.choice(places)
        holder[key] = copy.deepcopy(other[name])
    elif what == 3 and isinstance(holder, list):
        holder.extend(holder * random.choice((1, 10)))
    else:
        holder[key] = random.choice(_VALUES)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) inside a JSON value."""
    found = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, dict | list):
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            found += [(holder, key) for key in keys]
            waiting += [holder[key] for key in keys]
    return found
