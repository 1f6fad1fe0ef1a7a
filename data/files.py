"""Files wherever they lie: found below a path, opened, decompressed, and hashed.

`.gz` and `.zst` are read as streams. Damage in the middle of one is said with its place in the content.
"""

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import IO, Any

from etils import epath

from data.cache import file_fact

CHUNK_BYTES = 1 << 20
_COMPRESSED = (".gz", ".zst")
_STEP = 1 << 11  # stored bytes, of which each of these formats makes 64 MiB at the very most
_HARMLESS_BYTES = 1 << 24  # of content, from which on its size is compared with that of the stored bytes
_MOST_TIMES = 256  # text shrinks to a fifth, logs to a hundredth; what shrinks more is made to fill a memory or a disk
_REMEMBERED_BYTES = 1 << 17  # smaller files are hashed anew as fast as a remembered digest is looked up


def is_compressed(path: str) -> bool:
    """Whether the stored bytes differ from the content, so that its middle is reached only from the beginning."""
    return path.lower().endswith(_COMPRESSED)


def is_bomb(content: int, stored: int) -> bool:
    """Whether so many bytes of content are too many for so many stored ones to be anything but a trap."""
    return content > _HARMLESS_BYTES and content > _MOST_TIMES * stored


def content_name(path: str) -> str:
    """The name of the content: the file's own in lower case, without its folder and the suffix of a compression."""
    name = path.rpartition("/")[2].lower()
    return name.rpartition(".")[0] if is_compressed(name) else name


def stored_bytes(path: str) -> int:
    """The size of a file as it is stored."""
    try:
        return epath.Path(path).stat().length
    except OSError as error:
        raise _unreadable(path, error) from error


def content_bytes(path: str) -> int:
    """The size of a file's content; of a compressed one, it is found by reading and remembered."""
    if not is_compressed(path):
        return stored_bytes(path)

    def measure() -> int:
        with opened(path) as (content, _):
            return sum(len(chunk) for chunk in chunks(content))

    return file_fact(path, "content", measure)


def file_digest(path: str) -> str:
    """The hexadecimal SHA-256 of a file as it is stored; of larger ones it is remembered."""

    def compute() -> str:
        digest = hashlib.sha256()
        with _stored(path) as file:
            for chunk in chunks(file):
                digest.update(chunk)
        return digest.hexdigest()

    return compute() if stored_bytes(path) < _REMEMBERED_BYTES else file_fact(path, "sha256", compute)


def chunks(content: IO[bytes]) -> Iterator[bytes]:
    """What is left of a stream, in pieces of bounded size."""
    return iter(lambda: content.read(CHUNK_BYTES), b"")


@contextmanager
def opened(path: str, start: int = 0) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The content of a file from byte `start` on, decompressed; and the file as stored, whose `tell` is the progress.

    Raises:
        ValueError: the file can't be read, or is damaged: then with the place in the content, when it is reached.
    """
    with _stored(path) as stored:
        if not is_compressed(path):
            stored.seek(start)
            yield stored, stored
            return
        content = io.BufferedReader(_Content(path, _inflated(path, stored)), CHUNK_BYTES)
        while start > 0 and (passed := content.read(min(start, CHUNK_BYTES))):
            start -= len(passed)
        yield content, stored


def found(path: str) -> list[str]:
    """All files at `path`, sorted: itself, those below a folder, or those that a glob matches. Hidden ones are not.

    Raises:
        ValueError: the path is missing or matches nothing.
    """
    root = epath.Path(path).expanduser()
    if _has_wildcards(path) and not root.exists():
        if files := sorted(_matches(root)):
            return files
        raise ValueError(f"no file matches {path!r}; give a file, a folder or a glob")
    if not root.exists():
        raise ValueError(f"the data path {path!r} does not exist; give a file, a folder or a glob")
    return sorted(_below(root, set())) if root.is_dir() else [os.fspath(root)]


def _below(folder: epath.Path, visited: set[str]) -> Iterator[str]:
    """The files below a folder. Links to folders are followed, and each folder is entered once, so loops end."""
    if (place := os.path.realpath(folder)) in visited:
        return
    visited.add(place)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _below(path, visited)
        else:
            yield os.fspath(path)


def _has_wildcards(text: str) -> bool:
    return any(character in text for character in "*?[")


def _matches(pattern: epath.Path) -> Iterator[str]:
    """The files that a glob matches; unlike Python's own, it ends where links between folders form loops."""
    root, steps = pattern, []
    while _has_wildcards(os.fspath(root)):
        root, steps = root.parent, [root.name, *steps]
    if root.is_dir():
        yield from _expanded(root, steps)


def _expanded(folder: epath.Path, steps: list[str]) -> Iterator[str]:
    step, *rest = steps
    if step == "**":
        depth = len(folder.parts)
        yield from (file for file in _below(folder, set()) if _fits(epath.Path(file).parts[depth:], steps))
        return
    for path in folder.iterdir():
        if fnmatchcase(path.name, step) and path.name.startswith(".") == step.startswith("."):
            if not path.is_dir():
                yield from [] if rest else [os.fspath(path)]
            elif rest:
                yield from _expanded(path, rest)


def _fits(names: Sequence[str], steps: Sequence[str]) -> bool:
    """Whether the names of a path match a glob's steps, of which ** stands for any number of them."""
    if not steps:
        return not names
    if steps[0] == "**":
        last = len(steps) == 1
        return (last and bool(names)) or any(_fits(names[i:], steps[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], steps[0]) and _fits(names[1:], steps[1:])


@contextmanager
def _stored(path: str) -> Iterator[IO[bytes]]:
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device would be read for ever
        raise ValueError(f"{path} cannot be read: it is no regular file; name files and folders of them")
    try:
        file = epath.Path(path).open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        yield file


def _unreadable(path: str, error: OSError) -> ValueError:
    return ValueError(f"{path} cannot be read: {error.strerror or error}")


class _Damaged(Exception):
    """What is wrong with a compressed stream."""


def _inflated(path: str, stored: IO[bytes]) -> Iterator[bytes]:
    """The content in pieces; several compressed streams in a row are one content.

    The step is short, so that damage is placed closely and no file can blow up into more than memory holds. Neither
    library's own file object would do: one of them takes a torn file for a whole one.
    """
    new_stream, failure = _decompression(path)
    stream, padding, size = None, b"", 0
    try:
        while compressed := stored.read(_STEP):
            while stream or (compressed := compressed.lstrip(padding)):
                stream = stream or new_stream()
                content = stream.decompress(compressed)
                size += len(content)
                if is_bomb(size, stored.tell()):
                    raise _Damaged(
                        f"{stored.tell():,} stored bytes become {size:,}, as of a trap; unpack it if it is none"
                    )
                yield content
                if not stream.eof:
                    break
                compressed, stream, padding = stream.unused_data, None, b"\0"  # as gzip allows it after a stream
    except failure as error:
        raise _Damaged(error) from error
    if stream:
        raise _Damaged("it ends too early")


def _decompression(path: str) -> tuple[Callable[[], Any], type[Exception]]:
    """What makes a decompressor of one stream, and what that raises about damage."""
    if path.lower().endswith(".gz"):
        return lambda: zlib.decompressobj(wbits=31), zlib.error  # with gzip's head and check sum
    try:
        import zstandard
    except ImportError as error:
        raise ValueError('.zst files need zstandard; run pip install "jumok[zstd]"') from error
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj, zstandard.ZstdError


class _Content(io.RawIOBase):
    """Decompressed pieces as a file."""

    def __init__(self, path: str, pieces: Iterator[bytes]):
        self._path, self._pieces = path, pieces
        self._rest, self._place = memoryview(b""), 0

    def readable(self) -> bool:
        """It can only be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Some bytes, none at the end."""
        while not self._rest:
            try:
                piece = next(self._pieces, None)
            except _Damaged as error:
                raise ValueError(
                    f"{self._path} is damaged after byte {self._place} of its content ({error}); make it anew"
                ) from error
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        self._place += size
        return size
