"""How a weight is born, named and found.

`param` is the only way a weight is made. Outside the model, parameters are one flat dict {dotted name: array}, so that
partitions, checkpoints, export, optimizers and counts all speak of a weight by one name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

Kind = Literal["matrix", "bias", "scale", "embedding"]
Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Declaration:
    """What is declared of one weight: its shape, the logical name of each axis (see RULES), and its kind."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    kind: Kind


@dataclass(frozen=True)
class Skeleton:
    """A model without its weights: hashable, so that it can be closed over by a compiled function."""

    names: tuple[str, ...]
    structure: Any


def param(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], init: Callable, kind: Kind
) -> nnx.Param:
    """A float32 weight, initialised by `init(key, shape, dtype)`, declared with its logical `axes` and its `kind`."""
    assert len(shape) == len(axes), (shape, axes)
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes, kind=kind)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The initialiser of biases."""
    return jnp.zeros(shape, dtype)


def ones(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The initialiser of norm scales."""
    return jnp.ones(shape, dtype)


def normal(std: float, rows: int | None = None) -> Callable:
    """An initialiser N(0, std^2); from row `rows` on, the padding of a vocabulary, zeros."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        x = std * jax.random.normal(key, shape, dtype)
        if rows is None or rows == shape[0]:
            return x
        keep = (jnp.arange(shape[0]) < rows).reshape(-1, *[1] * (len(shape) - 1))
        return jnp.where(keep, x, 0)

    return init


def stack(make: Callable[[nnx.Rngs], Any], rngs: nnx.Rngs, num: int) -> Any:
    """`num` modules made by `make` as one, each weight with a leading `layers` axis."""
    stacked = jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), num))
    for variable in _variables(stacked).values():
        variable.set_metadata(axes=("layers", *variable.axes))
    return stacked


def _variables(model: Any) -> dict[str, nnx.Param]:
    paths = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
    return {".".join(_key_name(key) for key in path): variable for path, variable in paths}


def _key_name(key: Any) -> str:
    return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))


def split(model: Any) -> tuple[Skeleton, Params]:
    """A model as its skeleton and its weights by name; `merge` puts them together again."""
    leaves, structure = jax.tree.flatten(model)
    names = tuple(_variables(model))
    assert len(names) == len(leaves), "a model's only arrays are its parameters"
    return Skeleton(names, structure), dict(zip(names, leaves, strict=True))


def merge(skeleton: Skeleton, params: Params) -> Any:
    """The model with these weights."""
    return jax.tree.unflatten(skeleton.structure, [params[name] for name in skeleton.names])


def declarations(model: Any) -> dict[str, Declaration]:
    """What is declared of each weight of a model, which may be abstract (`jax.eval_shape` of its constructor)."""
    return {name: Declaration(tuple(v.get_raw_value().shape), v.axes, v.kind) for name, v in _variables(model).items()}
