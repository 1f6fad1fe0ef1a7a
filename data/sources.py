"""Sources: documents in a fixed order, from files, folders, globs, pairs of files, and copies of what is no file.

A source is plain values. It is read in blocks, identified by a digest, split into training and validation text, and
divided into pieces that any number of processes read apart.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import takewhile, zip_longest
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from data.cache import digest_of
from data.copies import copy_code, copy_hub
from data.embedded import embedded_corpus
from data.files import content_name, file_digest, found
from data.formats import READABLE, Format, Refuse, find_format, is_named, lines
from data.progress import Progress
from data.reading import PLAIN, Block, Part, Reading

EMBEDDED = "embedded"
HUB = "hub:"
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_LEAST_HELD, _MOST_HELD = 0.05, 0.2  # of the stored bytes: what whole files that are held out may come to


@dataclass(frozen=True)
class Source:
    """Documents in a fixed order: those of each part in turn.

    Raises:
        ValueError: a reading that can't be.
    """

    parts: tuple[Part, ...]
    reading: Reading = PLAIN

    def __post_init__(self):
        self.reading.validate()

    @cached_property
    def digest(self) -> str:
        """Of the files' order, contents, ranges, and names below their common folder; and of how they are read."""
        columns = any(self.format(part).has_columns for part in self.parts)
        fields = (self.reading.prompt, self.reading.response) if self.reading.response else self.reading.columns
        return digest_of(
            self.reading.bad,
            fields if columns else (),
            [
                (
                    name,
                    [file_digest(path) for path in (part.path, part.paired) if path is not None],
                    (part.start, part.stop, part.continues, *(() if part.held_out is None else (part.held_out,))),
                    self.format(part).has_columns,
                )
                for name, part in zip(_names(self.parts), self.parts, strict=True)
            ],
        )

    @cached_property
    def stored_bytes(self) -> int:
        """The sizes of the files as they are stored, as `Block.read` counts; of a range, its share of them."""
        return sum(stop - start for start, stop in map(self._stored_range, self.parts))

    def blocks(self, refuse: Refuse | None = None) -> Iterator[Block]:
        """The documents in blocks.

        Args:
            refuse: where `reading.bad` is "skip", called with a sentence about each document that is left out.

        Raises:
            ValueError: what is wrong with a file, with its place.
        """
        refuse = self._refuse(refuse)
        done = 0
        for part, following in zip_longest(self.parts, self.parts[1:]):
            start, stop = self._stored_range(part)
            goes_on = following is not None and following.continues
            for text, last, read, given in self.format(part).blocks(part, self.reading, refuse):
                yield Block(text, last and not goes_on, done + min(max(read, start), stop) - start, given)
            done += stop - start

    def texts(self) -> Iterator[str]:
        """The blocks' text alone."""
        return (block.text for block in self.blocks())

    def labels(self) -> Iterator[tuple[str, str]]:
        """The label of each document that has text, in their order, and its place, as a sentence about it begins.

        Raises:
            ValueError: the documents have no labels; or what is wrong with a file, with its place.
        """
        if not self.reading.label_column:
            raise ValueError(f"the column of {self}'s labels has no name; pass --data.label-column NAME")
        refuse = self._refuse(None)
        return (pair for part in self.parts for pair in self.format(part).labels(part, self.reading, refuse))

    def divide(self, size: int, cuts: bool) -> list["Source"]:
        """Pieces of about `size` stored bytes, at least one: their blocks, in turn, are those of the whole.

        Small files stand together in a piece. A large one is divided: .jsonl at lines, .parquet at row groups, and
        text, where `cuts` (`Tokenizer.cuts`) allows it, after a run of line feeds; then the next piece's first part
        `continues` the document, although the piece before ended with a block that is its `last`. Compressed files,
        .json, .csv, .tsv and pairs of files stay whole, since each piece would have to read all that lies before it;
        and so does text that is checked before any of it is given out. The pieces depend on the files and on the
        arguments alone.
        """
        pieces: list[list[Part]] = []
        group: list[Part] = []
        held = 0
        for part in self.parts:
            start, stop = self._stored_range(part)
            if ranges := self._ranges(part, -(-(stop - start) // size), cuts):
                pieces += [group, *([part] for part in ranges)]
                group, held = [], 0
                continue
            group.append(part)
            held += stop - start
            if held >= size:
                pieces.append(group)
                group, held = [], 0
        return [Source(tuple(piece), self.reading) for piece in (*pieces, group) if piece]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, which `from_json` reads."""
        reading = asdict(self.reading) | {"suffixes": list(self.reading.suffixes)}
        return {"parts": [asdict(part) for part in self.parts], "reading": reading}

    @classmethod
    def from_json(cls, value: Any) -> "Source":
        """The source that `to_json` described.

        Raises:
            ValueError: anything else.
        """
        match value:
            case {"parts": [_, *_] as parts, "reading": reading} if len(value) == 2:
                return cls(tuple(map(_part_from, parts)), _reading_from(reading))
        raise _no_source(value)

    @property
    def is_held_out(self) -> bool:
        """Whether it is what `split_source` holds out of files, rather than whole files."""
        return self.parts[0].start > 0 or bool(self.parts[0].held_out)

    @property
    def valid_options(self) -> str:
        """What names validation text of this kind, so that none has to be held out."""
        if self.parts[0].paired is not None:
            return "--data.valid-source-path FILE and --data.valid-target-path FILE"
        return "--data.valid-path FILE"

    def __str__(self) -> str:
        names = [part.path for part in self.parts]
        files = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more files"
        return f"the held-out part of {files}" if self.is_held_out else files

    def format(self, part: Part) -> Format:
        """How a part's file is read."""
        format = find_format(part, self.reading)
        if format is None:
            raise ValueError(f"{part.path} has a suffix that is not read; {_readable(self.reading)}")
        return format

    def _refuse(self, told: Refuse | None) -> Refuse:
        """What becomes of a document that can't be read: `told` is told where it is left out."""

        def refuse(sentence: str) -> None:
            if self.reading.bad == "stop":
                raise ValueError(sentence)
            if told:
                told(sentence)

        return refuse

    def _stored_range(self, part: Part) -> tuple[int, int]:
        """The share of its file that a part takes, in stored bytes: all of it, or by the units of its range."""
        format = self.format(part)
        size = format.stored(part)
        if part.start == 0 and part.stop is None:
            return 0, size
        length = max(format.length(part), 1)
        return size * part.start // length, size if part.stop is None else size * part.stop // length

    def _ranges(self, part: Part, count: int, cuts: bool) -> list[Part]:
        """A part in at most `count` pieces; none where it stays whole."""
        format = self.format(part)
        is_document = not format.has_columns
        if count < 2 or not format.is_divisible(part) or (is_document and not (cuts and self.reading.bad == "stop")):
            return []
        start, stop = part.start, format.length(part) if part.stop is None else part.stop
        places = format.places(part, [start + (stop - start) * number // count for number in range(1, count)])
        if not places:
            return []
        first, *others = zip([start, *places], [*places, part.stop], strict=True)
        return [
            replace(part, stop=first[1]),
            *(replace(part, start=low, stop=high, continues=is_document) for low, high in others),
        ]


def open_source(
    path: str, reading: Reading = PLAIN, allow_code: bool = False, progress: Progress | None = None
) -> Source:
    """All documents at `path`.

    Args:
        path: a file, a folder (recursively), a glob; "embedded", text that Python carries; hub:OWNER/NAME of Hugging
            Face; or module:function, a random-access source of one's own (data/copies.py).
        reading: how documents are taken from the files.
        allow_code: whether module:function may be imported and called: only where a person has just named it.
        progress: called with the records done and the records in all while a copy is made of what is no file.

    Raises:
        ValueError: nothing there that can be read.
    """
    if path == EMBEDDED:
        files = [str(embedded_corpus())]
    elif path.startswith(HUB):
        files = copy_hub(path.removeprefix(HUB), progress)
    elif names_code(path):
        if not allow_code:
            raise ValueError(
                f"the data path {path} names code, and code that only a saved configuration names is never run; "
                f"name it once more with --data.path {path}"
            )
        files = copy_code(path, progress)
    else:
        files = find_files(path, reading)
    return Source(tuple(map(Part, files)), reading)


def names_code(path: str) -> bool:
    """Whether a data path is module:function, which is imported and called."""
    return bool(_CODE.fullmatch(path)) and not path.startswith(HUB) and not os.path.exists(path)


def open_pairs(source_path: str, target_path: str, reading: Reading = PLAIN) -> Source:
    """Pairs of lines: what is given from the file at `source_path`, and what is learned from that at `target_path`.

    Globs and folders give several files each, which belong together in their sorted order. The lines are the columns
    `source` and `target` of the reading's templates, by default "{source}" with a line feed and "{target}".

    Raises:
        ValueError: nothing there, or files or lines without a partner.
    """
    sources, targets = found(source_path), found(target_path)
    if len(sources) != len(targets):
        raise ValueError(
            f"{source_path} holds {len(sources)} files and {target_path} {len(targets)}; every file needs its partner"
        )
    for source, target in zip(sources, targets, strict=True):
        if (given := lines(source)) != (learned := lines(target)):
            raise ValueError(
                f"{source} has {given} lines and {target} has {learned}; line by line they must belong together"
            )
    if not reading.response:
        reading = replace(reading, prompt="{source}\n", response="{target}")
    parts = (Part(source, paired=target) for source, target in zip(sources, targets, strict=True))
    return Source(tuple(parts), reading)


def split_source(source: Source) -> tuple[Source, Source]:
    """Holds out about a tenth for validation, always the same: some of several files, or the end of a single one.

    Where whole files would be far from a tenth, as of a few large ones, it is the end of each file. Of labelled text it
    is those documents that a digest of their text chooses, since files are often sorted by class, and equal texts, of
    which such data hold many, must not be both learned and held out.

    Raises:
        ValueError: too little to hold anything out.
    """
    only, *others = source.parts
    if source.reading.label_column:
        train, valid = (tuple(replace(part, held_out=held) for part in source.parts) for held in (False, True))
        if any(next(replace(source, parts=parts).labels(), None) is None for parts in (train, valid)):
            raise ValueError(
                f"{source} holds too few documents to hold out a tenth of them for validation; give more, "
                f"or pass {source.valid_options}"
            )
    elif others:
        train, valid = _split_files(source)
    else:
        place = source.format(only).last_tenth(only)
        if place is None:
            raise ValueError(
                f"{only.path} is too small to hold out a tenth of it for validation; give more text, "
                f"or pass {source.valid_options}"
            )
        train, valid = (replace(only, stop=place),), (replace(only, start=place),)
    return replace(source, parts=train), replace(source, parts=valid)


def find_files(path: str, reading: Reading = PLAIN) -> list[str]:
    """The files at `path` that are read, sorted; in a folder, hidden ones and those of other kinds are passed over.

    Raises:
        ValueError: the path is missing, matches nothing, or has a kind of file that can't be read.
    """
    present = found(path)
    if epath.Path(path).expanduser().is_dir():
        files = [file for file in present if _is_read(file, reading)]
        if not files:
            kinds = sorted({PurePosixPath(content_name(file)).suffix or "no suffix" for file in present})
            holds = f"only files with {', '.join(kinds[:6])}" if kinds else "no files"
            raise ValueError(f"the folder {path!r} holds {holds}; {_readable(reading)}")
        return files
    if other := next((file for file in present if not find_format(Part(file), reading)), None):
        raise ValueError(f"{other} has a suffix that is not read; {_readable(reading)}")
    return present


def _is_read(file: str, reading: Reading) -> bool:
    """Whether a file of a folder is read: where suffixes are named, only those."""
    return is_named(file, reading) if reading.suffixes else find_format(Part(file), reading) is not None


def _readable(reading: Reading) -> str:
    if reading.suffixes:
        return f"the ones to read are {', '.join(reading.suffixes)}, as --data.suffixes names them"
    return f"the readable ones are {READABLE}; --data.suffixes names others to be read as text, such as .py"


def _names(parts: tuple[Part, ...]) -> list[str]:
    """The files' names below the deepest folder that holds them all: the same wherever that lies."""
    paths = [part.path.split("/") for part in parts]
    folders = [path[:-1] for path in paths]
    depth = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(min(folders), max(folders), strict=False)))
    return ["/".join(path[depth:]) for path in paths]


def _split_files(source: Source) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    parts = source.parts
    sizes = [source.format(part).stored(part) for part in parts]
    names = _names(parts)
    # By a digest of the name within the folder: a new file leaves the others where they were, mostly.
    room = sum(sizes) / 10
    held: set[int] = set()
    for i in sorted(range(len(parts)), key=lambda i: digest_of(names[i])):
        if 0 < sizes[i] <= room:
            held.add(i)
            room -= sizes[i]
    if not held:
        held = {min(range(len(parts)), key=lambda i: (sizes[i], names[i]))}
    if not _LEAST_HELD * sum(sizes) <= sum(sizes[i] for i in held) <= _MOST_HELD * sum(sizes):
        places = [source.format(part).last_tenth(part) for part in parts]
        if any(place is not None for place in places):
            train = tuple(replace(part, stop=place) for part, place in zip(parts, places, strict=True))
            ends = zip(parts, places, strict=True)
            return train, tuple(replace(part, start=place) for part, place in ends if place is not None)
    train = tuple(part for i, part in enumerate(parts) if i not in held)
    return train, tuple(part for i, part in enumerate(parts) if i in held)


def _part_from(value: Any) -> Part:
    match value:
        case {
            "path": str(path),
            "start": int(start),
            "stop": int() | None as stop,
            "paired": str() | None as paired,
            "continues": bool(continues),
            "held_out": bool() | None as held_out,
        } if len(value) == 6 and 0 <= start <= (start if stop is None else stop):
            return Part(path, start, stop, paired, continues, held_out)
    raise _no_source(value)


def _reading_from(value: Any) -> Reading:
    match value:
        case {
            "text_column": str(text_column),
            "prompt": str(prompt),
            "response": str(response),
            "suffixes": [*suffixes],
            "bad": "stop" | "skip" as bad,
            "label_column": str(label_column),
        } if len(value) == 6 and all(isinstance(suffix, str) for suffix in suffixes):
            return Reading(text_column, prompt, response, tuple(suffixes), bad, label_column)
    raise _no_source(value)


def _no_source(value: Any) -> ValueError:
    return ValueError(f"{str(value)[:100]} does not describe a source of text; make the file that holds it anew")
