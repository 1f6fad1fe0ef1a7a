"""The formats of files, each with its reader: text of one document a file, and records of one document each.

| file | documents | unit of a range |
|---|---|---|
| .txt, .md, and those that `Reading.suffixes` names | the file | bytes of content |
| .jsonl | a JSON object a line | bytes of content |
| .json | the objects of one array | records |
| .csv | a record; the first line names the columns; quoted as in RFC 4180 | records |
| .tsv | a line; the first one names the columns; a quote is a character like any other, as IANA defines it | records |
| .parquet | a row | rows |
| two files of lines, a pair | a line of each: the columns `source` and `target` | lines |

All but .parquet may be compressed (.gz, .zst). Reading is streaming: what is held is a few million characters, one
record, or a share of a row group. What is wrong is said in one sentence with its place: lines, records and rows are
counted from 1, bytes and row groups from 0.
"""

import codecs
import csv
import json
import re
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice, zip_longest
from pathlib import PurePosixPath
from typing import IO, Any

from data.cache import file_fact
from data.files import CHUNK_BYTES, chunks, content_bytes, content_name, is_compressed, opened, stored_bytes
from data.reading import Block, Document, Part, Reading, blocks_of

READABLE = ".txt, .md, .jsonl, .json, .csv and .tsv, each also with .gz or .zst, and .parquet"

Refuse = Callable[[str], None]
"""Told the sentence of a document that can't be read: raises it, or notes it, and the document is left out."""

_NEAR = 4096  # bytes after a text's tenth-from-last place in which a line feed is looked for
_ROWS = 256  # of a .parquet that become Python objects together
_LONGEST_FIELD = 1 << 26  # characters of a .csv: what follows a quote that is never closed is not held for ever
_TORN = 16  # characters: an error nearer to the end of what was read may be a word that is torn there


class Format(ABC):
    """How files of a kind are read, and where they may be cut. `has_columns`: whether the columns' names matter."""

    has_columns = True
    _divisible = False  # whether a place in the middle is found without reading all that lies before it

    @abstractmethod
    def blocks(self, part: Part, reading: Reading, refuse: Refuse) -> Iterator[Block]:
        """The documents of a part; `read` counts from the beginning of the file as it is stored."""

    @abstractmethod
    def labels(self, part: Part, reading: Reading, refuse: Refuse) -> Iterator[tuple[str, str]]:
        """The label of each document that has text, and its place, as a sentence about it begins.

        Raises:
            ValueError: the documents have none.
        """

    @abstractmethod
    def length(self, part: Part) -> int:
        """The units of the part's whole file; remembered where they have to be counted."""

    def stored(self, part: Part) -> int:
        """The stored bytes of the part's whole file."""
        return stored_bytes(part.path)

    def last_tenth(self, part: Part) -> int | None:
        """The place where about a last tenth of the whole file begins; None where it is too small for one.

        Of a compressed file it is remembered, since all of it is read for that.
        """
        if not is_compressed(part.path):
            return self._last_tenth(part)
        return file_fact(part.path, f"tenth-{type(self).__name__}", lambda: self._last_tenth(part))

    @abstractmethod
    def _last_tenth(self, part: Part) -> int | None:
        """The same, found anew."""

    def is_divisible(self, part: Part) -> bool:
        """Whether the part's pieces can be read apart, without each reading all that lies before it."""
        return self._divisible and not is_compressed(part.path)

    def places(self, part: Part, targets: list[int]) -> list[int]:
        """Places inside a divisible part where it may be cut, ascending: the first at or after each of the targets."""
        places: list[int] = []
        stop = self.length(part) if part.stop is None else part.stop
        for target in targets:
            if target > max([part.start, *places[-1:]]):
                place = self._place_from(part, target)
                if place is None or place >= stop:
                    break
                places.append(place)
        return places

    def _place_from(self, part: Part, target: int) -> int | None:
        """The first place at or after the target where a divisible part may be cut; None where there is none."""
        return None


class _Text(Format):
    """One document a file."""

    has_columns = False
    _divisible = True

    def blocks(self, part: Part, reading: Reading, refuse: Refuse) -> Iterator[Block]:
        if reading.bad == "skip":  # all of it has to be seen before any of it is given out
            try:
                deque(self._decoded(part), maxlen=0)
            except _NotText as error:
                refuse(str(error))
                return
        yield from blocks_of(self._decoded(part))

    def labels(self, part: Part, reading: Reading, refuse: Refuse) -> Iterator[tuple[str, str]]:
        raise ValueError(
            f"{part.path} is one document of text, and has no labels; give .csv, .tsv, .jsonl, .json or .parquet"
        )

    def length(self, part: Part) -> int:
        return content_bytes(part.path)

    def _last_tenth(self, part: Part) -> int | None:
        """After a line feed where one is near, or else before a character."""
        size = self.length(part)
        if size < 2:
            return None
        target = max(1, size * 9 // 10)
        with opened(part.path, target) as (content, _):
            after = content.read(_NEAR)
        line_feed = after.find(b"\n", 0, size - target - 1)  # not the very last one
        if line_feed >= 0:
            return target + line_feed + 1
        first = next((i for i, byte in enumerate(after) if byte & 0xC0 != 0x80), None)
        return target + first if first is not None else None

    def _place_from(self, part: Part, target: int) -> int | None:
        """After a run of line feeds, which no token crosses where `Tokenizer.cuts`."""
        with opened(part.path, target - 1) as (content, _):
            place, held = target - 1, b""
            for chunk in chunks(content):
                held += chunk
                if match := re.search(rb"\n[^\n]", held):
                    return place + match.start() + 1
                place += len(held) - 1
                held = held[-1:]
        return None

    def _decoded(self, part: Part) -> Iterator[tuple[str, int]]:
        """The text in pieces, each with the stored bytes read; the mark of UTF-8 at a file's beginning is not text."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        place, stop = part.start, sys.maxsize if part.stop is None else part.stop
        with opened(part.path, part.start) as (content, stored):
            while chunk := content.read(min(CHUNK_BYTES, stop - place)):
                if place == 0 and chunk.startswith(codecs.BOM_UTF8):
                    chunk, place = chunk[3:], 3
                if (null := chunk.find(b"\0")) >= 0:
                    raise _NotText(
                        f"{part.path} is not text: it holds a zero byte at offset {place + null}; give UTF-8 text"
                    )
                half = len(decoder.getstate()[0])
                try:
                    piece = decoder.decode(chunk)
                except UnicodeDecodeError as error:
                    raise _not_utf8(part.path, f"at offset {place - half + error.start}") from error
                place += len(chunk)
                yield piece, stored.tell()
        if half := len(decoder.getstate()[0]):
            raise _not_utf8(part.path, f"at offset {place - half}, where it ends in half a character")


class _NotText(ValueError):
    """A whole file of text can't be read as what it should be."""


def _not_utf8(path: str, where: str) -> _NotText:
    return _NotText(f"{path} is not UTF-8 text: {where}; convert it, for example with iconv -t UTF-8")


class _Records(Format):
    """Records of which each is a document, or a prompt and its response."""

    def blocks(self, part: Part, reading: Reading, refuse: Refuse) -> Iterator[Block]:
        for _, document, read in self._documents(part, reading, refuse):
            if document.given:
                yield from blocks_of([(document.given, read)], given=True)
            yield from blocks_of([(document.learned, read)])

    def labels(self, part: Part, reading: Reading, refuse: Refuse) -> Iterator[tuple[str, str]]:
        for number, document, _ in self._documents(part, reading, refuse):
            if document.learned:
                yield document.label, self._place(part, number)

    def length(self, part: Part) -> int:
        return file_fact(part.path, "records", lambda: sum(1 for _ in self._records(Part(part.path), None)))

    def _last_tenth(self, part: Part) -> int | None:
        records = self.length(part)
        return records - max(1, records // 10) if records > 1 else None

    def _documents(self, part: Part, reading: Reading, refuse: Refuse) -> Iterator[tuple[int, Document, int]]:
        """The documents of a part, each with its number, for `_place`, and the stored bytes read."""
        for number, record, read in self._records(part, reading):
            try:
                document = reading.document(self._columns(record))
            except ValueError as error:
                if not part.held_out:  # the part that holds the others says so
                    refuse(f"{self._place(part, number)} {error}")
                continue
            if part.held_out is None or part.held_out == document.is_held_out:
                yield number, document, read

    @abstractmethod
    def _records(self, part: Part, reading: Reading | None) -> Iterator[tuple[int, Any, int]]:
        """Each record of the part with its number, for `_place`, and the stored bytes read.

        Raises:
            ValueError: the file is damaged, or has not the columns that are read; None for `reading` needs none.
        """

    def _columns(self, record: Any) -> Any:
        """What a record holds. Raises ValueError with the rest of a sentence that begins with its place."""
        return record

    def _place(self, part: Part, number: int) -> str:
        """Where a record stands, as a sentence about it begins."""
        return f"{part.path}, record {number},"


class _JsonLines(_Records):
    """A JSON object a line; blank lines are passed over. Its numbers count from the part's beginning."""

    _divisible = True

    def length(self, part: Part) -> int:
        return content_bytes(part.path)

    def _last_tenth(self, part: Part) -> int | None:
        """After the line that the target lies in; or before the last record, where none follows."""
        target = max(1, self.length(part) * 9 // 10)
        with opened(part.path, target - 1) as (content, _):
            place = target - 1 + len(content.readline())
            follows = any(line.strip() for line in content)
        with opened(part.path) as (content, _):
            starts = _starts_of_lines(content)
            first = next(starts, None)
            if follows and first is not None and first < place:
                return place
            last = deque(starts, maxlen=1)
        return last[0] if last else None

    def _records(self, part: Part, reading: Reading | None) -> Iterator[tuple[int, bytes, int]]:
        place, stop = part.start, sys.maxsize if part.stop is None else part.stop
        with opened(part.path, part.start) as (content, stored):
            for number, line in enumerate(content, start=1):
                if place >= stop:
                    return
                begins, place = place == 0, place + len(line)
                if line.strip():
                    yield number, line.removeprefix(codecs.BOM_UTF8) if begins else line, stored.tell()

    def _columns(self, record: bytes) -> Any:
        try:
            return json.loads(record.decode("utf-8", "surrogateescape"))  # Reading.document finds what was no UTF-8
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not JSON ({_why(error)}); a .jsonl file holds one JSON object a line") from error

    def _place(self, part: Part, number: int) -> str:
        return f"{part.path}:{_line_feeds(part.path, part.start) + number}"

    def _place_from(self, part: Part, target: int) -> int | None:
        with opened(part.path, target - 1) as (content, _):
            return target - 1 + len(content.readline())


def _starts_of_lines(content: IO[bytes]) -> Iterator[int]:
    """Where each line begins that is not blank."""
    place = 0
    for line in content:
        if line.strip():
            yield place
        place += len(line)


@lru_cache(maxsize=16)
def _line_feeds(path: str, stop: int) -> int:
    """How many there are before the byte `stop`; only asked for when a line has to be named."""
    count = 0
    with opened(path) as (content, _):
        while chunk := content.read(min(CHUNK_BYTES, stop)):
            count += chunk.count(b"\n")
            stop -= len(chunk)
    return count


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


class _JsonArray(_Records):
    """One array of objects, read element by element."""

    def _records(self, part: Part, reading: Reading | None) -> Iterator[tuple[int, Any, int]]:
        with opened(part.path) as (content, stored):
            elements = enumerate(_elements(part.path, content), start=1)
            for number, element in islice(elements, part.start, part.stop):
                yield number, element, stored.tell()


def _elements(path: str, content: IO[bytes]) -> Iterator[Any]:
    window = _Window(content)
    if window.next_character() != "[":
        raise ValueError(
            f"{path} holds no JSON array of objects, as a .json file must; call it .jsonl if each line is an object"
        )
    window.place += 1
    number, character = 0, window.next_character()
    while character != "]":
        try:
            value = window.value()
        except _NotJson as error:
            raise ValueError(f"{path}, record {number + 1}, is not JSON ({error}); make the file anew") from error
        yield value
        number, character = number + 1, window.next_character()
        if character not in (",", "]"):
            found = f"{character!r}" if character else "the file's end"
            raise ValueError(f"{path}: after record {number} stands {found} instead of a comma or ]")
        if character == ",":
            window.place += 1
            window.next_character()
    window.place += 1
    if window.next_character():
        raise ValueError(f"{path} goes on after its JSON array; a .json file holds one array of objects")


class _NotJson(ValueError):
    """What is wrong with a JSON text."""


class _Window:
    """The part of a JSON text that is held, and the place in it from which it is read on."""

    def __init__(self, content: IO[bytes]):
        self.place = 0
        self._content, self._text, self._ended = content, "", False
        # Reading.document finds what was no UTF-8.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._values = json.JSONDecoder()

    def next_character(self) -> str:
        """The one after any white space, which is passed over; nothing at the end."""
        while True:
            while (character := self._text[self.place : self.place + 1]) and character in " \t\r\n":
                self.place += 1
            if character or self._ended:
                return character
            self._fill()

    def value(self) -> Any:
        """The value that begins here, which is passed over."""
        while True:
            try:
                value, stop = self._values.raw_decode(self._text, self.place)
            except json.JSONDecodeError as error:
                torn = error.pos > len(self._text) - _TORN or error.msg.startswith("Unterminated string")
                if self._ended or not torn:
                    raise _NotJson(error.msg) from error
            except (ValueError, RecursionError) as error:
                raise _NotJson(_why(error)) from error
            else:
                if stop < len(self._text) or self._ended:  # else a number may go on
                    self.place = stop
                    return value
            self._fill()

    def _fill(self) -> None:
        """Drops what is passed and reads on, as much as is held: long values are not scanned again and again."""
        self._text, self.place = self._text[self.place :], 0
        chunk = self._content.read(max(CHUNK_BYTES, len(self._text)))
        self._ended = not chunk
        self._text += self._decoder.decode(chunk, self._ended)


class _Separated(_Records):
    """Rows of which the first names the columns; its numbers are those of the lines where records begin."""

    def __init__(self, delimiter: str, quoting: Any):
        self._dialect = {"delimiter": delimiter, "quoting": quoting, "strict": True}

    def _records(self, part: Part, reading: Reading | None) -> Iterator[tuple[int, dict[str, str], int]]:
        with opened(part.path) as (content, stored):
            rows = self._rows(part.path, content)
            _, header = next(rows, (0, []))
            if not header:
                raise ValueError(f"{part.path} is empty; its first line must name the columns")
            columns = _present(part.path, header, reading)
            for number, row in islice(rows, part.start, part.stop):
                yield number, {column: row[place] for column, place in columns.items()}, stored.tell()

    def _place(self, part: Part, number: int) -> str:
        return f"{part.path}:{number}"

    def _rows(self, path: str, content: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))  # 131,072 is no document
        reader = csv.reader((_line(path, number, line) for number, line in enumerate(content, 1)), **self._dialect)
        begins, width = 1, 0
        try:
            for row in reader:
                width = width or len(row)
                if row and len(row) != width:
                    raise ValueError(
                        f"{path}:{begins} has {len(row)} fields, and the first line names {width} columns; "
                        f"make the file anew, with quotes around fields that hold separators (.csv only)"
                    )
                if row:
                    yield begins, row
                begins = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path}:{begins} begins a damaged record: {_why_not_csv(error)}") from error


def _why_not_csv(error: csv.Error) -> str:
    message = str(error)
    if message.startswith("unexpected end"):
        return "a quote opens a field and is never closed"
    if message.startswith("field larger"):
        return f"a field has over {csv.field_size_limit():,} characters, as where a quote is never closed"
    if message.startswith("new-line"):
        return "a carriage return stands outside of quotes; lines must end with a line feed"
    return "after the quote that closes a field stands neither a separator nor a line feed; double quotes inside of it"


def _line(path: str, number: int, line: bytes) -> str:
    """A line of a file of lines, which may hold no zero byte; Reading.document finds what else is no UTF-8."""
    if b"\0" in line:
        raise ValueError(f"{path}:{number} holds a zero byte; give UTF-8 text")
    return (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode("utf-8", "surrogateescape")


def _present(path: str, present: list[str], reading: Reading | None) -> dict[str, int]:
    """The place of each column that is read among those that a file has."""
    columns = reading.columns if reading else ()
    for column in columns:
        if reading and column not in present:
            raise ValueError(f"{path} {reading.no_column(column, present)}")
        if present.count(column) > 1:
            raise ValueError(f"{path} names the column {column!r} twice; rename one")
    return {column: present.index(column) for column in columns}


class _Parquet(_Records):
    """Rows, of which only the columns that are read are fetched, row group by row group."""

    _divisible = True

    def length(self, part: Part) -> int:
        def count() -> int:
            with _parquet(part.path) as (file, _):
                return file.metadata.num_rows

        return file_fact(part.path, "rows", count)

    def _records(self, part: Part, reading: Reading | None) -> Iterator[tuple[int, dict[str, Any], int]]:
        stop = sys.maxsize if part.stop is None else part.stop
        row, size = 0, stored_bytes(part.path)
        with _parquet(part.path) as (file, guarded):
            columns = list(_present(part.path, file.schema_arrow.names, reading))
            for group, rows in enumerate(_group_sizes(file)):
                if row + rows <= part.start or row >= stop:
                    row += rows
                    continue
                batches = file.iter_batches(_ROWS, row_groups=[group], columns=columns, use_threads=False)
                while True:
                    with guarded(f"row group {group} cannot be read after row {row}"):
                        batch = next(batches, None)
                        if batch is None:
                            break
                        values = [_values(batch.column(column)) for column in columns]
                    for record in zip(*values, strict=True):
                        row += 1
                        if part.start < row <= stop:
                            read = size * row // file.metadata.num_rows
                            yield row, dict(zip(columns, record, strict=True)), read

    def _place(self, part: Part, number: int) -> str:
        return f"{part.path}, row {number},"

    def _place_from(self, part: Part, target: int) -> int | None:
        with _parquet(part.path) as (file, _):
            row = 0
            for rows in _group_sizes(file):
                if row >= target:
                    return row
                row += rows
        return None


def _group_sizes(file: Any) -> list[int]:
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


@contextmanager
def _parquet(path: str) -> Iterator[tuple[Any, Callable[[str], Any]]]:
    """A pyarrow.parquet.ParquetFile, and the context in which it is read, which says what is damaged."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError('.parquet files need pyarrow; run pip install "jumok[parquet]"') from error

    @contextmanager
    def guarded(what: str) -> Iterator[None]:
        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{path} is damaged: {what} ({reason}); make it anew") from error

    with opened(path) as (stored, _):
        with guarded("it is not a whole .parquet file"):
            file = pyarrow.parquet.ParquetFile(
                stored,
                pre_buffer=False,  # it would hold a row group, which may be all of the file
                buffer_size=CHUNK_BYTES,
                page_checksum_verification=True,
            )
        yield file, guarded


def _values(column: Any) -> list[Any]:
    """The values of a pyarrow array; in texts that are not UTF-8 the wrong bytes are surrogates."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast("large_binary").to_pylist()
        return [value if value is None else value.decode("utf-8", "surrogateescape") for value in values]


class _LinePairs(_Records):
    """Two files whose lines belong together."""

    def length(self, part: Part) -> int:
        return lines(part.path)

    def stored(self, part: Part) -> int:
        return stored_bytes(part.path) + stored_bytes(_paired(part))

    def _records(self, part: Part, reading: Reading | None) -> Iterator[tuple[int, dict[str, str], int]]:
        paired = _paired(part)
        with opened(part.path) as (sources, stored), opened(paired) as (targets, also_stored):
            pairs = enumerate(zip_longest(sources, targets), start=1)
            for number, (source, target) in islice(pairs, part.start, part.stop):
                if source is None or target is None:
                    raise ValueError(f"{part.path} and {paired} have not the same number of lines; make them anew")
                record = {
                    "source": _line(part.path, number, source).rstrip("\r\n"),
                    "target": _line(paired, number, target).rstrip("\r\n"),
                }
                yield number, record, stored.tell() + also_stored.tell()

    def _place(self, part: Part, number: int) -> str:
        return f"{part.path}:{number}, with {part.paired},"


def _paired(part: Part) -> str:
    assert part.paired is not None
    return part.paired


def lines(path: str) -> int:
    """The lines of a file, counted once; the last one may lack its line feed."""

    def count() -> int:
        line_feeds, chunk = 0, b"\n"
        with opened(path) as (content, _):
            for chunk in chunks(content):
                line_feeds += chunk.count(b"\n")
        return line_feeds + (not chunk.endswith(b"\n"))

    return file_fact(path, "lines", count)


_TEXT, _LINE_PAIRS, _PARQUET = _Text(), _LinePairs(), _Parquet()
_FORMATS: dict[str, Format] = {
    ".txt": _TEXT,
    ".md": _TEXT,
    ".jsonl": _JsonLines(),
    ".json": _JsonArray(),
    ".csv": _Separated(",", csv.QUOTE_MINIMAL),
    ".tsv": _Separated("\t", csv.QUOTE_NONE),
    ".parquet": _PARQUET,
}


def find_format(part: Part, reading: Reading) -> Format | None:
    """How the part's file is read; None where it isn't, by its suffix."""
    if part.paired is not None:
        return _LINE_PAIRS
    if is_named(part.path, reading):
        return _TEXT
    format = _FORMATS.get(PurePosixPath(content_name(part.path)).suffix)
    return None if format is _PARQUET and is_compressed(part.path) else format


def is_named(path: str, reading: Reading) -> bool:
    """Whether a file is text because `Reading.suffixes` names its suffix."""
    return content_name(path).endswith(tuple(suffix.lower() for suffix in reading.suffixes))
