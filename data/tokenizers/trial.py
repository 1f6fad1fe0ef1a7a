"""SentencePiece models from elsewhere, loaded first in a process of their own: a damaged one may crash the library."""

import hashlib
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from data.cache import cache_folder, cache_path

_FOLDER = "tokenizers"
_SECONDS = 60.0
_WORKER = Path(__file__).with_name("trial_worker.py")


def try_model(model: bytes) -> None:
    """Has a child process of limited memory and time load a model and use it, unless one has done so before.

    Raises:
        ValueError: the library refuses it, or dies of it.
    """
    if (cache_path(_FOLDER) / _name(model)).exists():
        return
    try:
        # Without the working directory, in which a folder might bear the name of a library.
        worker = subprocess.run(
            [sys.executable, "-P", str(_WORKER)], input=model, capture_output=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(_sentence(f"SentencePiece has not loaded it after {_SECONDS:g} seconds")) from None
    if worker.returncode:
        signal = f"SentencePiece dies of it, by signal {-worker.returncode}"
        raise ValueError(_sentence(signal if worker.returncode < 0 else "SentencePiece cannot use it"))
    note_model(model)


def note_model(model: bytes) -> None:
    """Remembers that SentencePiece can use a model, where the cache can be written to."""
    with suppress(ValueError, OSError):
        (cache_folder(_FOLDER) / _name(model)).touch()


def _name(model: bytes) -> str:
    return f"{hashlib.sha256(model).hexdigest()}-{version('sentencepiece')}"


def _sentence(why: str) -> str:
    return f"this is not a SentencePiece model, or a damaged one ({why}); give the file as it was made"
