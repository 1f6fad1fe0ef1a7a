"""How a family's weights lie in Hugging Face files: one table, read in both directions.

A table is a tuple of `Tensor`. What the declarations already say is not said again: a weight with a `layers` axis is
one tensor a layer, and the padding rows of a `vocab` axis are cut on the way out and zero on the way in.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.parameters import Declaration


@dataclass(frozen=True)
class Tensor:
    """One tensor of theirs ({layer} in its name: one a layer) and the weights of ours that it is made of.

    Each weight is seen as a matrix, [its first `inputs` axes, its other axes], or without `inputs` as a vector; several
    are joined along the last axis; `transposed` where theirs is stored (out, in). `gate` picks one slice of a `gate`
    axis. `neighbours`: their rotary positions turn neighbouring dimensions of a head together, ours those half a head
    apart. `ones` is how many axes of size one theirs has before the others. `kernel`: theirs is a convolution's, which
    is transposed, and keeps the input axes apart. A row whose weights a model does not have does not apply to it.
    """

    name: str
    ours: tuple[str, ...]
    inputs: int = 0
    transposed: bool = False
    gate: int | None = None
    neighbours: bool = False
    ones: int = 0
    kernel: bool = False


def matrix(theirs: str, ours: str, inputs: int = 1, *, gate: int | None = None, neighbours: bool = False) -> Tensor:
    """The weight of a Linear, which is stored (out, in)."""
    return Tensor(f"{theirs}.weight", (ours,), inputs, transposed=True, gate=gate, neighbours=neighbours)


def linear(theirs: str, ours: str, inputs: int = 1) -> tuple[Tensor, Tensor]:
    """A Linear as a weight of ours and its bias, which is called after it."""
    return matrix(theirs, ours, inputs), Tensor(f"{theirs}.bias", (f"{ours}_bias",))


def dense(theirs: str, ours: str) -> tuple[Tensor, Tensor]:
    """A Linear as a Dense of ours."""
    return matrix(theirs, f"{ours}.weight"), Tensor(f"{theirs}.bias", (f"{ours}.bias",))


def norm(theirs: str, ours: str) -> tuple[Tensor, Tensor]:
    """A LayerNorm."""
    return Tensor(f"{theirs}.weight", (f"{ours}.scale",)), Tensor(f"{theirs}.bias", (f"{ours}.bias",))


def projections(theirs: Iterable[str], ours: str) -> tuple[Tensor, ...]:
    """The four Linears of an attention: of queries, keys and values, and out of it."""
    query, key, value, out = theirs
    return (
        *linear(query, f"{ours}.query"),
        *linear(key, f"{ours}.key"),
        *linear(value, f"{ours}.value"),
        *linear(out, f"{ours}.out", inputs=2),
    )


@dataclass(frozen=True)
class _Part:
    """The part of one weight of ours that one tensor of theirs holds."""

    weight: str
    index: tuple[Any, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Entry:
    """One tensor of one model: a row of the table, at one layer."""

    name: str
    row: Tensor
    parts: tuple[_Part, ...]

    @property
    def matrices(self) -> list[tuple[int, ...]]:
        """The shape of each part as a matrix or a vector."""
        i = self.row.inputs
        return [(math.prod(p.shape[:i]), math.prod(p.shape[i:])) if i else (math.prod(p.shape),) for p in self.parts]

    @property
    def flat(self) -> tuple[int, ...]:
        """The shape of their tensor as a matrix or a vector."""
        matrices = self.matrices
        joined = (*matrices[0][:-1], sum(matrix[-1] for matrix in matrices))
        return joined[::-1] if self.row.transposed else joined

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of their tensor."""
        if self.row.kernel:
            return (self.flat[0], *self.parts[0].shape[: self.row.inputs])
        return (1,) * self.row.ones + self.flat


@dataclass(frozen=True)
class Layout:
    """A family's table for one model, whose weights are `declared` and whose vocabulary has `vocab_size` tokens."""

    table: tuple[Tensor, ...]
    declared: Mapping[str, Declaration]
    vocab_size: int

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The name and shape of every tensor of theirs."""
        return ((entry.name, entry.shape) for entry in self._entries())

    def to_hugging_face(self, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Their tensors one by one, in the order of `shapes`, so that no second copy of the model is ever held."""
        for entry in self._entries():
            parts = [np.asarray(params[part.weight][part.index]) for part in entry.parts]
            if entry.row.neighbours:
                parts = [_swapped_halves(part, 2) for part in parts]
            joined = np.concatenate([a.reshape(m) for a, m in zip(parts, entry.matrices, strict=True)], axis=-1)
            yield entry.name, np.ascontiguousarray(joined.T if entry.row.transposed else joined).reshape(entry.shape)

    def from_hugging_face(self, read: Callable[[str], np.ndarray], dtype: Any) -> dict[str, np.ndarray]:
        """Our parameters in `dtype`; `read(name)` gives each of their tensors once, in the shape that `shapes` says."""
        params = {weight: np.zeros(declaration.shape, dtype) for weight, declaration in self.declared.items()}
        for entry in self._entries():
            joined = read(entry.name)
            assert joined.shape == entry.shape, (entry.name, joined.shape, entry.shape)
            joined = joined.reshape(entry.flat)
            ends = np.cumsum([matrix[-1] for matrix in entry.matrices])[:-1]
            pieces = np.split(joined.T if entry.row.transposed else joined, ends, axis=-1)
            for part, piece in zip(entry.parts, pieces, strict=True):
                piece = piece.reshape(part.shape)
                params[part.weight][part.index] = _swapped_halves(piece, -1) if entry.row.neighbours else piece
        return params

    def _entries(self) -> Iterator[_Entry]:
        rows = [row for row in self.table if all(weight in self.declared for weight in row.ours)]
        assert {weight for row in rows for weight in row.ours} == set(self.declared), "the table names every weight"
        for row in rows:
            layers = self.declared[row.ours[0]].shape[0] if "{layer}" in row.name else 1
            for layer in range(layers):
                parts = tuple(self._part(weight, row, layer) for weight in row.ours)
                yield _Entry(row.name.format(layer=layer), row, parts)

    def _part(self, weight: str, row: Tensor, layer: int) -> _Part:
        declaration = self.declared[weight]
        picks: dict[str | None, Any] = {"layers": layer, "gate": row.gate, "vocab": slice(self.vocab_size)}
        index = tuple(picks.get(axis, slice(None)) for axis in declaration.axes)
        kept = [(i, size) for i, size in zip(index, declaration.shape, strict=True) if isinstance(i, slice)]
        return _Part(weight, index, tuple(len(range(size)[i]) for i, size in kept))


def _swapped_halves(x: np.ndarray, halves: int) -> np.ndarray:
    """The last axis as `halves` rows (2: a half each; -1: pairs of neighbours), read column by column."""
    rows = x.reshape(*x.shape[:-1], *((2, -1) if halves == 2 else (-1, 2)))
    return np.swapaxes(rows, -1, -2).reshape(x.shape)
