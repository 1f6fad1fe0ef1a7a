"""What is kept between runs: folders of a cache, written atomically, and facts about files that cost a reading."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from etils import epath

_SETTLED_SECONDS = 2.0  # a file younger than this may change again within one tick of its clock
_ABANDONED_SECONDS = 86_400.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def cache_path(name: str) -> Path:
    """The folder `name` under $JUMOK_CACHE, or under ~/.cache/jumok, whether it is there or not: for reading."""
    root = os.environ.get("JUMOK_CACHE") or Path.home() / ".cache" / "jumok"
    return Path(root).expanduser().absolute() / name


def cache_folder(name: str) -> Path:
    """The same for writing: created where it is missing.

    Raises:
        ValueError: it can't be created or written to.
    """
    folder = cache_path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("no permission to write")
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"the cache folder {folder} cannot be used ({reason}); set JUMOK_CACHE to one that can"
        ) from error
    return folder


def digest_of(*values: Any) -> str:
    """The hexadecimal SHA-256 of plain values, by their canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@contextmanager
def written_atomically(target: Path, within: Path | None = None) -> Iterator[Path]:
    """Gives a temporary path, for a file or a folder, which becomes `target` when the block succeeds.

    A reader sees all of it or nothing, and it survives a power cut. Where another process wrote the same folder
    meanwhile, the first one stays: both hold the same. The temporary path lies beside `target`, or in the folder
    `within` of the same file system.

    Raises:
        ValueError: the disk or a quota is full.
    """
    temporary = (within or target.parent) / f"{target.name}.tmp-{secrets.token_hex(4)}"
    _remove_abandoned(temporary.parent, target.name)
    try:
        yield temporary
        for path in [*temporary.iterdir(), temporary] if temporary.is_dir() else [temporary]:
            sync(path)
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():
                raise
        sync(target.parent)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise ValueError(
            f"the cache {cache_path('.')} takes no more ({error.strerror}); make room there, or set JUMOK_CACHE to a "
            f"folder elsewhere"
        ) from error
    finally:
        _remove(temporary)


def file_fact(path: str, name: str, compute: Callable[[], Any]) -> Any:
    """`compute()`, remembered under `name` for as long as the file at `path` keeps its size and times of change.

    Of the two times, programs that copy set the one of the content as they like, and none sets the other. Hashing
    gigabytes anew at every start would cost minutes. What is known of files that are not local is remembered by this
    process alone: stores tell less of a change, and some of them no time.
    """
    if "://" in path:
        return _remote_fact(path, name, compute)
    try:
        status = os.stat(path)
    except OSError:  # gone, which `compute` will say
        return compute()
    identity = [os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    memo = f"{digest_of(*identity)}-{name}.json"
    folder = f"files/{memo[:2]}"  # a write lists its folder, which of many files would take long
    try:
        return json.loads((cache_path(folder) / memo).read_text())["value"]
    except (OSError, ValueError, KeyError, TypeError):
        value = compute()
    if time.time() - status.st_mtime > _SETTLED_SECONDS:
        # The cache may be read-only, or its disk full.
        with suppress(ValueError, OSError), written_atomically(cache_folder(folder) / memo) as temporary:
            temporary.write_text(json.dumps({"file": identity, "value": value}))
    return value


_remote_facts: dict[tuple[str, str, int, int], Any] = {}


def _remote_fact(path: str, name: str, compute: Callable[[], Any]) -> Any:
    try:
        status = epath.Path(path).stat()
    except OSError:  # gone, which `compute` will say
        return compute()
    key = path, name, status.length, status.mtime
    if key not in _remote_facts:
        _remote_facts[key] = compute()
    return _remote_facts[key]


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of files, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: Path, name: str) -> None:
    """Removes what killed processes left of earlier attempts at `name`."""
    for path in folder.glob(f"{name}.tmp-*"):
        try:
            abandoned = time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
        except FileNotFoundError:  # its writer has just finished
            continue
        if abandoned:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
