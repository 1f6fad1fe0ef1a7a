"""A folder in Hugging Face's layout, read strictly: plain files of it, JSON and safetensors only; nothing in it is run.

Every error is a ValueError of one sentence that names the file, and leaves naming the folder to the caller.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from data.strict_json import json_object

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES: dict[str, Any] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
_LONGEST_NAME = 255  # bytes, as most file systems have it
_LONGEST_HEADER = 1 << 22  # bytes, about 40,000 tensors
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies, and what its file's header says of it."""

    file: str
    dtype: str
    shape: tuple[int, ...]


class HuggingFaceFolder:
    """The files of one folder."""

    def __init__(self, path: Path):
        if not path.is_dir():
            raise ValueError("is not a folder" if path.exists() else "does not exist")
        self._path = path
        self._open: dict[str, Any] = {}

    def has(self, name: str) -> bool:
        """Whether the folder holds a file of this name."""
        return self._inside(name).is_file()

    def content(self, name: str) -> bytes:
        """The bytes of one file."""
        path = self._inside(name)
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        return path.read_bytes()

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file: UTF-8, no key twice, no NaN or Infinity."""
        return json_object(self.content(name), name)

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor of model.safetensors, or of the files that its index names, by name."""
        if self.has(WEIGHTS_FILE):
            return dict(self._tensors_of(WEIGHTS_FILE))
        if not self.has(INDEX_FILE):
            pickles = sorted(file.name for file in self._path.iterdir() if file.suffix in _PICKLES)
            if pickles:
                raise ValueError(
                    f"the weights are in {pickles[0]}, a pickle, which can run code when it is opened, and never is; "
                    "save the model as safetensors, as transformers' save_pretrained does"
                )
            raise ValueError(f"neither {WEIGHTS_FILE} nor {INDEX_FILE} is there")
        named = self.json(INDEX_FILE).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
            raise ValueError(f"{INDEX_FILE}: weight_map must be an object that gives each tensor's file")
        files = sorted(set(named.values()))
        for file in files:
            if not file.endswith(".safetensors"):
                raise ValueError(f"{INDEX_FILE}: {file} is not a safetensors file")
        found = {name: tensor for file in files for name, tensor in self._tensors_of(file)}
        for name in sorted(named.keys() | found.keys()):
            if name not in found or named.get(name) != found[name].file:
                where = f"is not in {named[name]}" if name in named else f"of {found[name].file} is not named"
                raise ValueError(f"{INDEX_FILE}: the tensor {name} {where}; copy the whole folder anew")
        return found

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its own dtype."""
        file = self.tensors[name].file
        if file not in self._open:
            self._open[file] = safe_open(self._inside(file), framework="numpy")
        try:
            return self._open[file].get_tensor(name)
        except SafetensorError as error:
            raise _damaged(file, error) from error

    def _tensors_of(self, file: str) -> Iterator[tuple[str, StoredTensor]]:
        path = self._inside(file)
        if not path.is_file():
            raise ValueError(f"{file} is missing")
        try:
            with path.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                if size > _LONGEST_HEADER:  # objects of Python's and of the library take many times the bytes
                    raise ValueError(f"it speaks of a header of {size:,} bytes, and {_LONGEST_HEADER:,} are allowed")
                with safe_open(path, framework="numpy"):  # it checks sizes and offsets
                    header = json_object(stream.read(size), "its header")
        except (SafetensorError, ValueError) as error:
            raise _damaged(file, error) from error
        header.pop("__metadata__", None)
        for name, entry in header.items():
            yield name, StoredTensor(file, entry["dtype"], tuple(entry["shape"]))

    def _inside(self, name: str) -> Path:
        if name in ("", ".", "..") or "\0" in name or name != Path(name.replace("\\", "/")).name:
            raise ValueError(f"the file name {name[:80]!r} would lead out of the folder; all files must lie in it")
        if not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
            raise ValueError(
                f"{name[:80]!r} is no name of a file; a name is printable, and of up to {_LONGEST_NAME} bytes"
            )
        path = self._path / name
        if not path.resolve().is_relative_to(self._path.resolve()):
            raise ValueError(
                f"{name} is a link out of the folder; copy the folder with its links followed, as cp -rL does"
            )
        return path


def _damaged(file: str, error: Exception) -> ValueError:
    return ValueError(f"{file} is damaged or is not a safetensors file ({error}); copy it anew")
