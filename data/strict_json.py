"""JSON as files from elsewhere must hold it."""

import json
from typing import Any


def json_object(content: bytes, name: str) -> dict[str, Any]:
    """The object in a JSON file: UTF-8, no key twice, no NaN or Infinity, nested as deeply as Python can read.

    Raises:
        ValueError: anything else, in a sentence that begins with the file's `name`.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
        return value

    def constant(token: str) -> None:
        raise ValueError(f"{token} is not a JSON value")

    try:
        value = json.loads(content.decode(), object_pairs_hook=once, parse_constant=constant)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError and a JSONDecodeError are ValueErrors
        raise ValueError(f"{name} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} must hold an object")
    return value
