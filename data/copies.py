"""Copies of what is no file: Hugging Face data sets, and random-access sources of one's own.

They are copied once into the cache, as .jsonl files of bounded size with the columns that hold text or numbers, and
are read from there like any other text. Each file is written atomically, and beside it the place to read on from: a
copy that was interrupted goes on after its last whole file.
"""

import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.cache import cache_folder, cache_path, digest_of, written_atomically
from data.files import file_digest, found
from data.own_code import call_own, failure
from data.progress import Progress

_FORMAT = "jumok copy 1"
_FILE_BYTES = 1 << 28
_HUB = re.compile(r"(?P<name>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<revision>[^:@]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")


class _Records(Protocol):
    """Records that can be read on from a place: what an IterableDataset of the datasets library is."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def copy_hub(name: str, progress: Progress | None = None) -> list[str]:
    """The files of the copy of a Hugging Face data set's split `train`, which is made where it isn't whole.

    Args:
        name: OWNER/NAME[:CONFIG][@REVISION], or the folder of a data set on this machine.
        progress: told how far the copy is, where the number of records is known.

    Raises:
        ValueError: no such data set, or it can't be reached and there is no copy of it.
    """
    what, parts = f"hub:{name}", _HUB.fullmatch(name)
    if Path(name).expanduser().is_dir():
        place, config, revision = name, None, None
    elif parts:
        place, config, revision = parts["name"], parts["config"], parts["revision"]
    else:
        raise ValueError(f"{what} names no data set; write hub:OWNER/NAME, hub:OWNER/NAME:CONFIG or hub:FOLDER")
    folder = Path(place).expanduser()
    if folder.is_dir():
        place = str(folder.absolute())
        identity = [(os.path.relpath(file, place), file_digest(file)) for file in found(place)]
    else:
        revision = _commit(place, revision, what)
        identity = [place, revision]

    def records() -> tuple[_Records, int]:
        datasets = _library()
        with _said(what):
            dataset = datasets.load_dataset(place, config, split="train", revision=revision, streaming=True)
            if dataset.features:  # others, such as images, would be fetched and decoded for nothing
                plain = (datasets.Value, datasets.ClassLabel)
                columns = [column for column, feature in dataset.features.items() if isinstance(feature, plain)]
                dataset = dataset.select_columns(columns)
            split = (dataset.info.splits or {}).get("train")
        return dataset, split.num_examples if split else 0

    return _copied(f"hub/{digest_of(_FORMAT, identity, config)}", what, records, progress)


def copy_code(path: str, progress: Progress | None = None) -> list[str]:
    """The files of the copy of what `path`, module:function or module:Class, gives when it is called without arguments.

    That is anything with `__len__` and `__getitem__`, as a Grain RandomAccessDataSource has them, whose items are
    texts (the column `text`) or dicts of columns, the same at every reading. It is known by its `digest`, a text, if it
    has one, and otherwise by all its items, which are read for it at every start.

    Raises:
        ValueError: nothing there of that kind.
    """
    source = call_own(path, "source")
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise ValueError(
            f"{path} gives {type(source).__name__}, which has no __len__ and __getitem__; return a random-access source"
        )
    items = _Items(source)
    identity = getattr(source, "digest", None)
    if not isinstance(identity, str):
        hashed = hashlib.sha256()
        for number, item in enumerate(_guarded(items, path)):
            hashed.update(_line(item, path, number))
        identity = hashed.hexdigest()
    name = f"code/{digest_of(_FORMAT, path, identity, len(source))}"
    return _copied(name, path, lambda: (_Items(source), len(source)), progress)


def _copied(name: str, what: str, records: Callable[[], tuple[_Records, int]], progress: Progress | None) -> list[str]:
    """The files of the copy in the cache's folder `name`; what is missing is fetched: `records`, with their number."""
    folder = cache_path(name)
    whole = folder / "copy.json"
    if not whole.exists():  # what is there is only read, and the cache may be read-only
        files = _copy(cache_folder(name), what, *records(), progress)
        with written_atomically(whole) as temporary:
            temporary.write_text(json.dumps({"source": what, "files": files}))
    return [str(folder / _name(number)) for number in range(json.loads(whole.read_text())["files"])]


def _copy(folder: Path, what: str, records: _Records, total: int, progress: Progress | None) -> int:
    """Writes what is missing of the copy; how many files it has."""
    files = done = 0
    while (folder / _state_name(files)).exists():
        files += 1
    if files:
        state = json.loads((folder / _state_name(files - 1)).read_text())
        done = state["records"]
        records.load_state_dict(state["next"])
    remaining = _guarded(records, what)
    for first in remaining:
        with written_atomically(folder / _name(files)) as temporary, temporary.open("wb") as file:
            written = 0
            for record in chain([first], remaining):
                written += file.write(_line(record, what, done))
                done += 1
                if progress and total and done % 1024 == 0:
                    progress(done, total)
                if written >= _FILE_BYTES:
                    break
        with written_atomically(folder / _state_name(files)) as temporary:
            temporary.write_text(json.dumps({"records": done, "next": records.state_dict()}))
        files += 1
    return files


def _name(number: int) -> str:
    return f"{number:05d}.jsonl"


def _state_name(number: int) -> str:
    return f"{number:05d}.state.json"


def _line(record: Any, what: str, number: int) -> bytes:
    """A record as a line of JSON, of the columns that hold text or numbers. Half a surrogate pair is told when read."""
    if isinstance(record, str):
        record = {"text": record}
    if not isinstance(record, Mapping):
        raise ValueError(f"item {number} of {what} is neither a text nor a dict of columns but {type(record).__name__}")
    values = {column: value.item() if isinstance(value, np.generic) else value for column, value in record.items()}
    kept = {
        column: value
        for column, value in values.items()
        if isinstance(column, str) and (value is None or isinstance(value, str | bool | int | float))
    }
    if not kept:
        found_columns = ", ".join(f"{column!r} ({type(value).__name__})" for column, value in values.items())
        raise ValueError(f"item {number} of {what} has no column of text or numbers; found {found_columns or 'none'}")
    return json.dumps(kept, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _guarded(records: _Records, what: str) -> Iterator[Any]:
    with _said(what):
        yield from records


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Says in a sentence what somebody else's code failed at: libraries and users raise errors of all kinds."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} cannot be read ({failure(error)}); mend it, or run again to go on") from error


def _library() -> Any:
    try:
        datasets = importlib.import_module("datasets")  # checked without this extra, too
    except ImportError as error:
        raise ValueError('hub: needs the datasets library; run pip install "jumok[hub]"') from error
    datasets.disable_progress_bars()
    return datasets


def _commit(name: str, revision: str | None, what: str) -> str:
    """The commit that a revision stands for now; or, where the hub can't be asked, stood for when it was last asked."""
    if revision and _COMMIT.fullmatch(revision):
        return revision
    memo = cache_path("hub") / f"{digest_of(name, revision)}.commit"
    try:
        import huggingface_hub

        commit = str(huggingface_hub.HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:  # no library, no network, no such name: dozens of kinds
        if memo.exists():
            return memo.read_text()
        _library()
        raise ValueError(f"{what} cannot be found ({failure(error)}); check the name and the network") from error
    if not memo.exists() or memo.read_text() != commit:
        with written_atomically(cache_folder("hub") / memo.name) as temporary:
            temporary.write_text(commit)
    return commit


class _Items:
    """The items of a random-access source, read on from any place."""

    def __init__(self, source: Any):
        self._source, self._next = source, 0

    def __iter__(self) -> Iterator[Any]:
        while self._next < len(self._source):
            item = self._source[self._next]
            self._next += 1
            yield item

    def state_dict(self) -> dict[str, Any]:
        return {"item": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._next = state_dict["item"]
