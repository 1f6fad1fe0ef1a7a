"""A run's folder: where things lie in it, who may write it, and how a user's spelling of a run is read.

A path is local or an object store's (gs://bucket/run, through etils.epath). Object stores write a file whole or not at
all but can neither append nor lock, so that what is atomic or exclusive is done in two ways here, and nowhere else.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import jax
from etils import epath

from data.strict_json import json_object

HEARTBEAT_SECONDS = 10.0  # how often the holder of a heartbeat lock shows that it lives
STALE_SECONDS = 45.0  # a heartbeat that stands still for this long is a dead holder's
_GLANCE_SECONDS = 0.1  # whoever only looks whether a lock is held, holds it for less
_SETTLE_SECONDS = 2.0  # two that take a heartbeat lock in the same moment see who wrote last


class StorageError(OSError):
    """What belongs to a run cannot be written; the message is a finished sentence."""


class RunDirectory:
    """The paths of one run directory. Nothing is created before `create()`.

    Attributes:
        path: the folder, with the files and folders of the same names inside it.
    """

    def __init__(self, path: epath.PathLike):
        self.path = epath.Path(path).expanduser()
        self.config = self.path / "config.json"
        self.tokenizer = self.path / "tokenizer"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.starts = self.path / "starts.jsonl"  # a row each time that it was started: where, and what it needs there
        self.samples = self.path / "samples.jsonl"  # a row for each text that it wrote on its way
        self.figures = self.path / "held_out.jsonl"  # a row: what all the held-out data said when it ended
        self.page = self.path / "report.html"

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.config.is_file()

    def create(self) -> None:
        """Makes the folder where it is missing; raises ValueError where it cannot be made."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{self.path} cannot be a run directory: a file stands in its place") from error
        except OSError as error:
            raise ValueError(f"{self.path} cannot be made: {error.strerror}; give another --run-dir") from error

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes config.json, whole or not at all."""
        write_atomically(self.config, json_text(config, indent=2) + "\n")

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration; raises ValueError where there is none or it cannot be read."""
        try:
            content = self.config.read_bytes()
        except FileNotFoundError as error:
            raise ValueError(f"{self.path} is not a run directory: it has no config.json") from error
        except OSError as error:
            raise ValueError(f"{self.config} cannot be read: {first_line(error)}") from error
        return json_object(content, str(self.config))

    def read_figures(self, step: int) -> dict[str, Any]:
        """What all the held-out data said of a run that ended after this step; nothing where it did not."""
        row = next(iter(read_rows(self.figures)), {})
        return row if row.pop("step", None) == step else {}

    def write_traceback(self, text: str, kind: str = "traceback") -> epath.Path:
        """Keeps the traceback of a failure in a file of its own, whose name begins with `kind`; returns its path."""
        self.create()
        moment = time.strftime("%Y%m%d-%H%M%S")
        path = self.path / f"{kind}-{moment}-{socket.gethostname()}-{os.getpid()}.txt"
        write_atomically(path, text)
        return path

    def is_written(self) -> bool:
        """Whether a process holds the folder as its writer, as far as can be seen from here."""
        lock, beats = self.path / "lock", self.path / "heartbeat.json"
        if beats.exists():
            return time.time() - beats.stat().mtime < STALE_SECONDS
        if not is_local(self.path) or not lock.exists():
            return False
        with open(lock, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                return isinstance(error, BlockingIOError)
        return False

    def holders(self) -> list[tuple[str | None, int | None]]:
        """Who wrote each kind of lock last, as far as can be seen from here: a host and the number of its process."""
        said = [_read_holder(self.path / name) for name in ("lock", "heartbeat.json")]
        return [(each.get("host"), each.get("pid")) for each in said]

    @contextlib.contextmanager
    def lock(self) -> Iterator[Callable[[], None]]:
        """Holds the folder, creating it, as its only writer; of a run's many processes the first holds it for all.

        The kernel releases the lock when its holder dies. A file system without such locks gets a heartbeat file
        instead, which goes stale.

        Yields:
            A cheap `check()`, which raises RuntimeError if the lock was lost: a holder that slept past its heartbeat
            has been taken for dead.

        Raises:
            ValueError: another process holds it, or nothing can be written there.
        """
        if jax.process_index() != 0:
            yield lambda: None
            return
        self.create()
        with contextlib.ExitStack() as stack:
            locked = is_local(self.path) and stack.enter_context(_flock(self.path))
            yield (lambda: None) if locked else stack.enter_context(_heartbeat(self.path))


def resolve(spec: str) -> tuple[RunDirectory, int | str | None]:
    """Reads a user's RUN: the run directory, and which checkpoint is meant.

    Args:
        spec: "RUN" (the newest that verifies: None), "RUN/checkpoints/STEP" (that step) or "RUN@best" ("best").

    Raises:
        ValueError: there is no run directory of that name.
    """
    path = epath.Path(spec.removesuffix("@best"))
    which: int | str | None = "best" if spec.endswith("@best") else None
    if path.parent.name == "checkpoints" and is_step(path.name):
        if which is not None:
            raise ValueError(f"{spec} names two checkpoints; give either RUN@best or RUN/checkpoints/STEP")
        path, which = path.parent.parent, int(path.name)
    run = RunDirectory(path)
    if not run.path.is_dir():
        raise ValueError(f"there is no run directory {run}")
    if not run.exists():
        raise ValueError(f"{run} is not a run directory: it has no config.json")
    return run, which


def is_step(name: str) -> bool:
    """Whether a folder's name is a checkpoint's: a plain decimal without leading zeros."""
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def is_local(path: epath.Path) -> bool:
    """Whether a path lies in a file system of this machine, where files can be appended to, synced and locked."""
    return "://" not in str(path)


def local_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of this name on this machine; raises ValueError where it is an object store's."""
    if not is_local(epath.Path(path)):
        raise ValueError(f"{path} is in an object store; name a local folder, and copy it from there or to there")
    return Path(path).expanduser()


def write_atomically(path: epath.Path, text: str) -> None:
    """Writes a text file such that, whatever happens, either the old or the new content is found."""
    if not is_local(path):
        path.write_text(text)  # object stores show a file only when all of it is there
        return
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(temporary.parent)


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[None]:
    """Raises StorageError, which names what is written, where writing it meets an OSError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or first_line(error)}") from error


def sync_folder(folder: epath.PathLike) -> None:
    """Makes the names in a local folder durable: a synced file that no folder lists is lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_text(value: Any, **options: Any) -> str:
    """Strict JSON of plain values, NumPy and JAX scalars; numbers that are not finite, which JSON lacks, are null."""
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, **options)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):  # a NumPy or JAX scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def first_line(error: BaseException) -> str:
    """The beginning of an error's message, for a sentence: other libraries write pages."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def read_rows(path: epath.Path) -> list[dict[str, Any]]:
    """The objects that a file holds, one a line; a line that holds none is passed over."""
    return [row for line in path.read_bytes().splitlines() if (row := read_row(line))] if path.exists() else []


def read_row(line: bytes) -> dict[str, Any]:
    """The object that a line holds; empty where it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value from a file is a number that can be drawn."""
    return type(value) in (int, float) and -1e300 < value < 1e300  # which neither a bool nor infinity is


def count_of(row: Mapping[str, Any], name: str) -> int:
    """A count that a row holds; 0 where it holds none."""
    value = row.get(name)
    return value if type(value) is int and 0 < value < 2**63 else 0


def number_of(row: Mapping[str, Any], name: str) -> float:
    """A number that a row holds; 0 where it holds none."""
    value = row.get(name)
    return value if is_number(value) else 0.0


def write_rows(path: epath.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a file of few objects, one a line, whole or not at all."""
    write_atomically(path, "".join(f"{json_text(row)}\n" for row in rows))


def _identity() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _refusal(folder: epath.Path, holder: dict[str, Any]) -> ValueError:
    who = f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "another process"
    return ValueError(f"{folder} is being written by {who}; wait until it ends, stop it, or choose another --run-dir")


@contextlib.contextmanager
def _refusing(folder: epath.Path) -> Iterator[None]:
    """Raises ValueError where a lock cannot be written: then nothing else could be."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror}; give another --run-dir") from error


def _read_holder(path: epath.PathLike) -> dict[str, Any]:
    """What the holder of a lock wrote about itself: nothing yet, in its first moment."""
    try:
        return read_row(epath.Path(path).read_bytes())
    except OSError:
        return {}


@contextlib.contextmanager
def _flock(folder: epath.Path) -> Iterator[bool]:
    """Holds the kernel's lock on RUN/lock; yields False where the file system has none.

    The file stays when the lock is released: to remove it would be a race with the next holder.
    """
    path = os.fspath(folder / "lock")
    with _refusing(folder):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if locked := _try_flock(descriptor, folder, path):
            with _refusing(folder):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json_text(_identity()).encode(), 0)
                os.fsync(descriptor)  # other hosts look at it
        yield locked
    finally:
        os.close(descriptor)


def _try_flock(descriptor: int, folder: epath.Path, path: str) -> bool:
    kind = fcntl.LOCK_EX | fcntl.LOCK_NB
    try:
        try:
            fcntl.flock(descriptor, kind)
        except BlockingIOError:
            time.sleep(_GLANCE_SECONDS)
            fcntl.flock(descriptor, kind)
    except BlockingIOError as error:
        raise _refusal(folder, _read_holder(path)) from error
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    return True


@contextlib.contextmanager
def _heartbeat(folder: epath.Path) -> Iterator[Callable[[], None]]:
    """A lock for file systems that have none: RUN/heartbeat.json changes while its holder lives.

    Clocks of two machines may differ, so that a holder counts as dead not by the time it wrote but after its file was
    watched standing still.
    """
    path = folder / "heartbeat.json"
    mine = uuid.uuid4().hex

    def beat(count: int) -> None:
        write_atomically(path, json_text({**_identity(), "lock": mine, "beat": count}))

    found = _read_holder(path)
    deadline = time.monotonic() + STALE_SECONDS
    while found and time.monotonic() < deadline:
        time.sleep(HEARTBEAT_SECONDS / 4)
        now = _read_holder(path)
        if now and now != found:
            raise _refusal(folder, now)
        if not now:
            break  # released while we watched
    with _refusing(folder):
        beat(0)
    time.sleep(_SETTLE_SECONDS)
    if (winner := _read_holder(path)).get("lock") != mine:
        raise _refusal(folder, winner)

    released, lost = threading.Event(), threading.Event()

    def keep_beating() -> None:
        count = 0
        while not released.wait(HEARTBEAT_SECONDS):
            count += 1
            try:
                if _read_holder(path).get("lock", mine) != mine:
                    lost.set()
                    return
                beat(count)
            except OSError:
                continue  # the store is away for a moment; the next beat tries again

    def check() -> None:
        if lost.is_set():
            raise RuntimeError(f"{folder} was taken over by another writer while this process stood still")

    thread = threading.Thread(target=keep_beating, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        released.set()
        thread.join()
        if _read_holder(path).get("lock") == mine:
            path.unlink(missing_ok=True)
