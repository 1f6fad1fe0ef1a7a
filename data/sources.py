"""Documents from files: .txt and .md (one a file), .jsonl (one a line), each also .gz; and Python's own text.

Reading is streaming, in blocks of a few million characters, so that no file has to fit into memory. Whatever is
wrong with a file is said in one sentence with its place.
"""

import codecs
import glob
import gzip
import hashlib
import io
import json
import os
import sys
import sysconfig
import tokenize
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from etils import epath

from data.cache import cache_folder, digest_of, file_fact, written_atomically
from data.text import cut_at

EMBEDDED = "embedded"
TEXT_SUFFIXES = (".txt", ".md")
RECORD_SUFFIXES = (".jsonl",)
_READABLE = ".txt, .md and .jsonl, each also with .gz"
_CHUNK_BYTES = 1 << 20
_BLOCK = 1 << 22  # characters
_NEAR = 4096  # bytes after a text's tenth-from-last place in which a line feed is looked for


class Block(NamedTuple):
    """Some text of a document, whether the document ends with it, and how far the file was read (stored bytes)."""

    text: str
    last: bool
    read: int


@dataclass(frozen=True)
class Part:
    """A file or a range of it: bytes of a text file's content, records of a .jsonl; `stop` None for its end."""

    path: str
    start: int = 0
    stop: int | None = None

    @property
    def holds_records(self) -> bool:
        """Whether each line is a document, rather than the file."""
        return _suffix(self.path) in RECORD_SUFFIXES


@dataclass(frozen=True)
class Source:
    """Documents in a fixed order. `text_column` is the key of the text in records."""

    parts: tuple[Part, ...]
    text_column: str = "text"

    @property
    def digest(self) -> str:
        """Of the files' contents and the ranges, wherever the files lie and whatever they are called."""
        parts = [
            (file_fact(p.path, "sha256", lambda p=p: _file_digest(p.path)), p.path.endswith(".gz"), p.start, p.stop)
            + ((self.text_column,) if p.holds_records else ())
            for p in self.parts
        ]
        return digest_of(parts)

    @property
    def stored_bytes(self) -> int:
        """The sizes of all files, as `Block.read` counts; a file with several ranges counts once."""
        return sum(epath.Path(path).stat().length for path in {part.path for part in self.parts})

    def blocks(self) -> Iterator[Block]:
        """The documents in blocks, cut where their tokens don't cross (data/text.py)."""
        done = 0
        for part in self.parts:
            blocks = _record_blocks(part, self.text_column) if part.holds_records else _text_blocks(part)
            read = 0
            for text, last, read in blocks:
                yield Block(text, last, done + read)
            done += read

    def texts(self) -> Iterator[str]:
        """The blocks' text alone."""
        return (block.text for block in self.blocks())

    def __str__(self) -> str:
        names = [part.path for part in self.parts]
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more files"


def open_source(path: str, text_column: str = "text") -> Source:
    """All documents at `path`: a file, a folder (recursively), a glob, or "embedded".

    Raises:
        ValueError: nothing there that can be read.
    """
    return Source(tuple(map(Part, find_files(path))), text_column)


def split_source(source: Source) -> tuple[Source, Source]:
    """Holds out about a tenth for validation, always the same: some of several files, or the end of a single one.

    Raises:
        ValueError: too little to hold anything out.
    """
    only, *others = source.parts
    if others:
        train, valid = _split_files(source.parts)
    else:
        place = _last_tenth_of_records(only.path) if only.holds_records else _last_tenth_of_text(only.path)
        if place is None:
            raise ValueError(
                f"{only.path} is too small to hold out a tenth of it for validation; give more text, "
                f"or pass --data.valid-path FILE"
            )
        train, valid = (Part(only.path, 0, place),), (Part(only.path, place),)
    return Source(train, source.text_column), Source(valid, source.text_column)


def find_files(path: str) -> list[str]:
    """The readable files at `path`, sorted; hidden ones are passed over.

    Raises:
        ValueError: the path is missing, matches nothing, or has a kind of file that can't be read.
    """
    if path == EMBEDDED:
        return [str(embedded_corpus())]
    if any(character in path for character in "*?[") and not epath.Path(path).exists():
        files = sorted(_matches(path))
        if not files:
            raise ValueError(f"no file matches {path!r}; give a file, a folder or a glob of {_READABLE}")
    else:
        root = epath.Path(path).expanduser()
        if not root.exists():
            raise ValueError(f"the data path {path!r} does not exist; give a file, a folder or a glob of {_READABLE}")
        files = [os.fspath(root)]
        if root.is_dir():
            present = sorted(_walk(root))
            files = [file for file in present if _suffix(file) in TEXT_SUFFIXES + RECORD_SUFFIXES]
            if not files:
                kinds = sorted({Path(file).suffix or "no suffix" for file in present})
                found = f"only files with {', '.join(kinds[:6])}" if kinds else "no files"
                raise ValueError(f"the folder {path!r} holds {found}; the readable ones are {_READABLE}")
    for file in files:
        if _suffix(file) not in TEXT_SUFFIXES + RECORD_SUFFIXES:
            raise ValueError(f"{file} has a suffix that is not read; the readable ones are {_READABLE}")
    return files


def embedded_corpus() -> Path:
    """Text that Python itself carries, as one .jsonl: the language reference and the standard library's sources.

    It is copied into the cache once, and the copy is what counts from then on, whatever becomes of that Python. The
    documents stand in the order of a digest of their names, so that any tail is a fair sample of whole files.
    """
    copy = cache_folder("embedded") / "python.jsonl"
    if not copy.exists():
        documents = sorted(_python_documents(), key=lambda document: digest_of(document[0]))
        if sum(len(text) for _, text in documents) < 1_000_000:
            raise ValueError(
                f"this Python ({sys.executable}) does not carry the sources that the embedded corpus is made of; "
                f"pass --data.path FILE"
            )
        with written_atomically(copy) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            for name, text in documents:
                file.write(json.dumps({"name": name, "text": text}, ensure_ascii=False) + "\n")
    return copy


# What in the standard library is tests, tables, programs for children or somebody else's.
_NOT_TEXT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "encodings"}
_NOT_TEXT |= {"distutils", "ensurepip", "turtledemo", "pydoc_data", "__pycache__", "__phello__"}
_NOT_TEXT |= {"entities.py", "locale.py"}


def _python_documents() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data import topics
    except ImportError:  # some distributions leave it out
        pass
    else:
        for name, text in topics.topics.items():
            yield f"reference/{name}", text
    library = Path(sysconfig.get_path("stdlib"))
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in _NOT_TEXT and not name.startswith("config-")]
        for name in files:
            if not name.endswith(".py") or name in _NOT_TEXT or name.startswith("_sysconfigdata"):
                continue  # the last is of one machine
            path = Path(folder) / name
            try:
                with tokenize.open(path) as file:  # knows a source's declared encoding
                    yield f"library/{path.relative_to(library).as_posix()}", file.read()
            except (OSError, SyntaxError, UnicodeDecodeError):
                continue


def _suffix(path: str) -> str:
    return Path(path.removesuffix(".gz")).suffix.lower()


def _walk(folder: epath.Path) -> Iterator[str]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield os.fspath(path)


def _matches(pattern: str) -> Iterable[str]:
    if "://" not in pattern:
        return (file for file in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(file))
    fixed, _, rest = pattern.partition("*")
    root = fixed.rpartition("/")[0]
    return (os.fspath(path) for path in epath.Path(root).glob(fixed[len(root) + 1 :] + "*" + rest) if not path.is_dir())


def _split_files(parts: tuple[Part, ...]) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    sizes = {part: epath.Path(part.path).stat().length for part in parts}
    root = os.path.commonpath([os.path.dirname(part.path) for part in parts])
    names = {part: part.path[len(root) :].lstrip("/") for part in parts}
    # By a digest of the name within the folder: a new file leaves the others where they were, mostly.
    room = sum(sizes.values()) / 10
    held: set[Part] = set()
    for part in sorted(parts, key=lambda part: digest_of(names[part])):
        if sizes[part] <= room and sizes[part] > 0:
            held.add(part)
            room -= sizes[part]
    if not held:
        held = {min(parts, key=lambda part: (sizes[part], names[part]))}
    return tuple(p for p in parts if p not in held), tuple(p for p in parts if p in held)


def _last_tenth_of_text(path: str) -> int | None:
    """The place, in bytes of content, where a text's last tenth begins: after a line feed where one is near."""
    with _readable(path) as (content, _):
        size = content.seek(0, io.SEEK_END) if not path.endswith(".gz") else _length(content)
    if size < 2:
        return None
    target = max(1, size * 9 // 10)
    with _readable(path) as (content, _):
        content.seek(target)
        after = content.read(_NEAR)
    line_feed = after.find(b"\n", 0, size - target - 1)  # not the very last one
    if line_feed >= 0:
        return target + line_feed + 1
    # Otherwise at a character's first byte.
    first = next((i for i, byte in enumerate(after) if byte & 0xC0 != 0x80), None)
    return target + first if first is not None else None


def _length(content: IO[bytes]) -> int:
    return sum(len(chunk) for chunk in iter(lambda: content.read(_CHUNK_BYTES), b""))


def _last_tenth_of_records(path: str) -> int | None:
    """The number of the record with which the last tenth begins; at least one is held out."""

    def count() -> int:
        with _readable(path) as (content, _):
            return sum(1 for line in content if line.strip())

    records = file_fact(path, "records", count)
    return records - max(1, records // 10) if records > 1 else None


def _file_digest(path: str) -> str:
    digest = hashlib.sha256()
    with _opened(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    try:
        file = epath.Path(path).open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    with file:
        yield file


@contextmanager
def _readable(path: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The content of a file, decompressed, and the file as stored, whose `tell` is the progress."""
    with _opened(path) as stored:
        if not path.endswith(".gz"):
            yield stored, stored
            return
        try:
            with gzip.GzipFile(fileobj=stored) as content:
                yield io.BufferedReader(content, _CHUNK_BYTES), stored
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file ({error}); make it anew") from error


def _text_blocks(part: Part) -> Iterator[Block]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _readable(part.path) as (content, stored):
        if part.start:
            content.seek(part.start)
        place, stop = part.start, sys.maxsize if part.stop is None else part.stop
        text = ""
        while chunk := content.read(min(_CHUNK_BYTES, stop - place)):
            if place == 0 and chunk.startswith(codecs.BOM_UTF8):  # a mark of the encoding, not text
                chunk, place = chunk[3:], 3
            if (null := chunk.find(b"\0")) >= 0:
                raise ValueError(
                    f"{part.path} is not text: it holds a zero byte at offset {place + null}; give UTF-8 text"
                )
            half = len(decoder.getstate()[0])
            try:
                text += decoder.decode(chunk, final=False)
            except UnicodeDecodeError as error:
                raise _not_utf8(part.path, f"at offset {place - half + error.start}") from error
            place += len(chunk)
            while len(text) > _BLOCK:
                stop_at = cut_at(text, _BLOCK)
                yield Block(text[:stop_at], False, stored.tell())
                text = text[stop_at:]
        if decoder.getstate()[0]:
            raise _not_utf8(
                part.path, f"at offset {place - len(decoder.getstate()[0])}, where it ends in half a character"
            )
        yield Block(text, True, stored.tell())


def _record_blocks(part: Part, text_column: str) -> Iterator[Block]:
    stop = sys.maxsize if part.stop is None else part.stop
    record = -1
    with _readable(part.path) as (content, stored):
        for number, line in enumerate(content, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            record += 1
            if record >= stop:
                return
            if record < part.start:
                continue
            text = _record_text(line, f"{part.path}:{number}", text_column)
            while len(text) > _BLOCK:
                stop_at = cut_at(text, _BLOCK)
                yield Block(text[:stop_at], False, stored.tell())
                text = text[stop_at:]
            yield Block(text, True, stored.tell())


def _record_text(line: bytes, place: str, text_column: str) -> str:
    try:
        record: Any = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _not_utf8(place, f"at byte {error.start} of the line") from error
    except (ValueError, RecursionError) as error:
        reason = (
            f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "it nests too deeply"
        )
        raise ValueError(f"{place} is not JSON ({reason}); a .jsonl file holds one JSON object a line") from error
    if not isinstance(record, dict):
        raise ValueError(
            f"{place} is not a JSON object but {type(record).__name__}; give lines like {{{text_column!r}: ...}}"
        )
    if text_column not in record:
        found = ", ".join(map(repr, list(record)[:10])) or "none"
        raise ValueError(
            f"{place} has no column {text_column!r}; the columns there are {found}; pass --data.text-column NAME"
        )
    text = record[text_column]
    if not isinstance(text, str):
        raise ValueError(f"{place}: the column {text_column!r} holds {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} holds half of a surrogate pair at character {error.start}, which is no text"
        ) from error
    return text


def _not_utf8(path: str, where: str) -> ValueError:
    return ValueError(f"{path} is not UTF-8 text: {where}; convert it, for example with iconv -t UTF-8")
