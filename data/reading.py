"""What is read: parts of files, how documents are taken from them, and the blocks of text that come out."""

import hashlib
import json
import math
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from data.text import cut

BLOCK = 1 << 22  # characters
_HELD_OUT = 26  # of 256


class Block(NamedTuple):
    """Some text of a document.

    Attributes:
        text: at most `BLOCK` characters, cut where tokens don't cross (data/text.py).
        last: the document ends with it.
        read: stored bytes that have been read so far, for progress.
        given: a prompt, which is read and not learned. The given blocks of a document come before its learned ones,
            and learning begins where the last of them ends; an empty prompt gives no block.
    """

    text: str
    last: bool
    read: int
    given: bool = False


@dataclass(frozen=True)
class Part:
    """A file or a range of it, in the unit of its format (data/formats.py): bytes of its content, or records.

    Attributes:
        path: of the file.
        start: the first unit.
        stop: the unit after the last one; None for the file's end.
        paired: of the file with the targets: line i of `path` is given, and line i of `paired` learned.
        continues: it goes on with the document of the piece before, for `Source.divide` has cut a long text.
        held_out: of its records, only those are read that are held out (`Document.is_held_out`), or only the others;
            None for all of them.
    """

    path: str
    start: int = 0
    stop: int | None = None
    paired: str | None = None
    continues: bool = False
    held_out: bool | None = None


class Document(NamedTuple):
    """A record as a document: the text that is given, the text that is learned, and its class where that is read."""

    given: str
    learned: str
    label: str

    @property
    def is_held_out(self) -> bool:
        """Whether it is of the tenth that is held out by its text alone, so that equal texts are on one side."""
        return hashlib.sha256(self.learned.encode()).digest()[0] < _HELD_OUT


@dataclass(frozen=True)
class Reading:
    r"""How documents are taken from files.

    Attributes:
        text_column: the column of a record that holds the text.
        prompt: a template of columns in braces, such as "{instruction}\n{input}\n", for text that is given.
        response: the template of the text that is learned; with it, records are filled into the templates.
        suffixes: files whose names end so are one document of text each; of a folder, then, only they are read.
        bad: documents that can't be read are refused ("stop"), or left out ("skip") and reported.
        label_column: the column of a record that holds its class, for classification.
    """

    text_column: str = "text"
    prompt: str = ""
    response: str = ""
    suffixes: tuple[str, ...] = ()
    bad: Literal["stop", "skip"] = "stop"
    label_column: str = ""

    def validate(self) -> None:
        """Refuses what can't be.

        Raises:
            ValueError: with the field and its value.
        """
        if not self.text_column:
            raise ValueError("the text column has no name; pass --data.text-column NAME")
        if self.prompt and not self.response:
            raise ValueError(
                f"the prompt {self.prompt!r} stands without a response to learn; pass --data.response TEMPLATE"
            )
        if self.response and not any(column for _, column in _parsed(self.response)):
            raise ValueError(f"the response {self.response!r} names no column in braces, such as {{output}}")
        _parsed(self.prompt)
        if self.label_column and self.response:
            raise ValueError(
                f"the label column {self.label_column!r} is for text with a class, and the response {self.response!r} "
                f"makes pairs; give one of them"
            )
        if self.label_column == self.text_column:
            raise ValueError(
                f"the column {self.label_column!r} can't be both the text and its label; pass --data.text-column NAME "
                f"or --data.label-column NAME"
            )
        for suffix in self.suffixes:
            if not suffix.startswith(".") or len(suffix) < 2:
                raise ValueError(f"the suffix {suffix!r} must be a dot and letters, such as .py")
        if self.bad not in ("stop", "skip"):
            raise ValueError(f"bad={self.bad!r} must be stop or skip")

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that a record must have."""
        if not self.response:
            return (self.text_column, self.label_column) if self.label_column else (self.text_column,)
        fields = [*_parsed(self.prompt), *_parsed(self.response)]
        return tuple(dict.fromkeys(column for _, column in fields if column is not None))

    def document(self, record: Any) -> Document:
        """What is read of a record.

        Raises:
            ValueError: what is wrong with the record, as the rest of a sentence that begins with its place.
        """
        if not isinstance(record, dict):
            raise ValueError(f"is not an object of columns but {_kind(record)}; give {{{self.columns[0]!r}: ...}}")
        if missing := [column for column in self.columns if column not in record]:
            raise ValueError(self.no_column(missing[0], list(record)))
        if not self.response:
            text = record[self.text_column]
            if not isinstance(text, str):
                raise ValueError(f"holds {_kind(text)} in the column {self.text_column!r}, not text")
            return Document("", _proper(text, self.text_column), self._label(record))
        return Document(self._filled(self._prompt_fields, record), self._filled(self._response_fields, record), "")

    def no_column(self, column: str, present: list[str]) -> str:
        """The rest of a sentence: a column is missing, and which ones are there."""
        found = ", ".join(map(repr, present[:10])) + (f" and {len(present) - 10} more" if len(present) > 10 else "")
        remedy = f"pass --data.{'label' if column == self.label_column else 'text'}-column NAME"
        if self.response:
            remedy = "name others in --data.prompt and --data.response"
        return f"has no column {column!r}; the columns there are {found or 'none'}; {remedy}"

    def _label(self, record: dict[str, Any]) -> str:
        """The class of a record; a whole number is the same however it is stored."""
        if not self.label_column:
            return ""
        value = record[self.label_column]
        if isinstance(value, float) and math.isfinite(value):  # what a column of numbers with gaps is stored as
            value = int(value) if value.is_integer() else value
        elif isinstance(value, float):
            value = None
        if label := _written(value, self.label_column).strip():
            return label
        raise ValueError(
            f"has no label in the column {self.label_column!r}; give it one, or leave it out with --data.bad skip"
        )

    @cached_property
    def _prompt_fields(self) -> list[tuple[str, str | None]]:
        return _parsed(self.prompt)

    @cached_property
    def _response_fields(self) -> list[tuple[str, str | None]]:
        return _parsed(self.response)

    def _filled(self, fields: list[tuple[str, str | None]], record: dict[str, Any]) -> str:
        return "".join(
            literal if column is None else literal + _written(record[column], column) for literal, column in fields
        )


PLAIN = Reading()
"""Records by their column `text`, and all that can't be read is refused."""


def blocks_of(pieces: Iterable[tuple[str, int]], given: bool = False) -> Iterator[Block]:
    """One text, which comes in pieces with the stored bytes read, in blocks; where it is learned, a document ends."""
    text, read = "", 0
    for piece, read in pieces:
        parts = cut(text + piece, BLOCK)
        text = next(parts, "")
        for part in parts:
            yield Block(text, False, read, given)
            text = part
    yield Block(text, not given, read, given)


def _parsed(template: str) -> list[tuple[str, str | None]]:
    """Pairs of literal text and the column after it; only names stand in braces: no attribute, index or format."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"the template {template!r} is not well-formed ({error}); write a brace itself twice: {{{{ or }}}}"
        ) from error
    for _, column, specification, conversion in fields:
        if column is not None and (not column or specification or conversion or set(column) & set(".[]{}")):
            raise ValueError(f"the template {template!r} must hold only names of columns in braces, such as {{input}}")
    return [(literal, column) for literal, column, _, _ in fields]


def _written(value: Any, column: str) -> str:
    """A column's value as text: null is empty, and numbers are written out, since labels often are numbers."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _proper(value, column)
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise ValueError(f"holds {_kind(value)} in the column {column!r}, not text or a number")


def _proper(text: str, column: str) -> str:
    """The text, if it can be written as UTF-8: bytes that were no UTF-8 have become surrogates in it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"is not UTF-8 text in the column {column!r}: character {error.start} of it is a wrong byte or half of a "
            f"surrogate pair; convert it, for example with iconv -t UTF-8"
        ) from error
    return text


def _kind(value: Any) -> str:
    """What a value is, in JSON's words where it has one."""
    words = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text"}
    words |= {list: "a list", dict: "an object"}
    return words.get(type(value), type(value).__name__)
