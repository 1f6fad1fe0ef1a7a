"""Text that Python itself carries, so that there is something to learn from on any machine."""

import json
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from data.cache import cache_folder, cache_path, digest_of, written_atomically


def embedded_corpus() -> Path:
    """One .jsonl of the language reference and the standard library's sources.

    It is copied into the cache once, and the copy is what counts from then on, whatever becomes of that Python. The
    documents stand in the order of a digest of their names, so that any tail is a fair sample of whole files.

    Raises:
        ValueError: this Python comes without its sources.
    """
    copy = cache_path("embedded") / "python.jsonl"
    if not copy.exists():  # what is there is only read, and the cache may be read-only
        documents = sorted(_python_documents(), key=lambda document: digest_of(document[0]))
        if sum(len(text) for _, text in documents) < 1_000_000:
            raise ValueError(
                f"this Python ({sys.executable}) does not carry the sources that the embedded corpus is made of; "
                f"pass --data.path FILE"
            )
        with (
            written_atomically(cache_folder("embedded") / copy.name) as temporary,
            temporary.open("w", encoding="utf-8", newline="\n") as file,
        ):
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
