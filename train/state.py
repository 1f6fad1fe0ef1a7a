"""The state of training: arrays only, each laid on the mesh from its declaration, from the first step to the last."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from model.parameters import Declaration, Params, Skeleton, declarations, merge, split
from model.structures import STRUCTURES
from train.mesh import parameter_shardings


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "examples_seen", "params", "opt_state", "nonfinite_steps", "nonfinite_in_row"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """`step` counts batches learned from, `examples_seen` is the data position.

    Steps whose gradient was not finite changed nothing and are counted.
    """

    step: jax.Array
    examples_seen: jax.Array
    params: Params
    opt_state: Any
    nonfinite_steps: jax.Array
    nonfinite_in_row: jax.Array


@dataclass(frozen=True)
class Blueprint:
    """A model that has no weights yet: how to build it, its skeleton, and what is declared of each weight."""

    config: Any
    skeleton: Skeleton
    declared: Mapping[str, Declaration] = field(hash=False)  # the configuration tells blueprints apart

    def init(self, seed: int) -> Params:
        """Fresh weights, a function of the seed alone."""
        return split(STRUCTURES[type(self.config)](self.config, nnx.Rngs(params=jax.random.key(seed))))[1]

    def model(self, params: Mapping[str, Any], dtype: Any) -> Any:
        """The model with these weights, in the dtype that it computes in."""
        return merge(self.skeleton, {name: value.astype(dtype) for name, value in params.items()})


def blueprint(config: Any) -> Blueprint:
    """The model of `config`, without computing anything."""
    config.validate()
    model = jax.eval_shape(lambda: STRUCTURES[type(config)](config, nnx.Rngs(params=jax.random.key(0))))
    return Blueprint(config, split(model)[0], declarations(model))


def trainable_names(declared: Mapping[str, Declaration], frozen: tuple[str, ...]) -> tuple[str, ...]:
    """The partition that is learned: all parameters but those whose names match a pattern in `frozen`."""
    for pattern in frozen:
        if not any(fnmatchcase(name, pattern) for name in declared):
            raise ValueError(
                f"freeze={pattern!r} matches no parameter; names are like {next(iter(declared))!r}, * matches anything"
            )
    names = tuple(name for name in declared if not any(fnmatchcase(name, pattern) for pattern in frozen))
    if not names:
        raise ValueError(f"freeze={frozen} leaves nothing to train; freeze less")
    return names


def partition(params: Mapping[str, Any], names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters named, and the others."""
    chosen = set(names)
    return {n: p for n, p in params.items() if n in chosen}, {n: p for n, p in params.items() if n not in chosen}


def initial_state(params: Params, optimizer: optax.GradientTransformation, trainable: tuple[str, ...]) -> TrainState:
    """The state before the first step."""

    def zero(dtype: Any) -> jax.Array:
        return jnp.zeros((), dtype)

    opt_state = optimizer.init(partition(params, trainable)[0])
    return TrainState(zero(jnp.int32), zero(jnp.uint32), params, opt_state, zero(jnp.int32), zero(jnp.int32))


def abstract_state(
    plan: Blueprint, optimizer: optax.GradientTransformation, trainable: tuple[str, ...], mesh: Mesh
) -> TrainState:
    """The shapes, dtypes and shardings of the whole state, from the declarations.

    What an optimizer keeps lies as that lies of which it is kept: moments as their parameters, and factored moments as
    the axes that are left. JAX's types tell: traced with weights whose sharding is part of their type, every array of
    the state comes out with its own. Left to itself, jit would replicate them, since zeros depend on no data.
    """
    typed = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=(AxisType.Explicit,) * len(mesh.axis_names))
    shardings = parameter_shardings(plan.declared, typed)
    params = {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=shardings[name])
        for name, shape in jax.eval_shape(lambda: plan.init(0)).items()
    }
    with jax.sharding.use_abstract_mesh(typed):
        state = jax.eval_shape(lambda params: initial_state(params, optimizer, trainable), params)

    def placed(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec() if shape.sharding is None else shape.sharding.spec
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, state)


def shardings_of(abstract: Any) -> Any:
    """The shardings of an abstract tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def flatten(tree: Any) -> dict[str, Any]:
    """A pytree as a flat dict of dotted names: stored alike whatever its containers are, and without collisions."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    flat = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError("two arrays of the state have the same dotted name; rename one of their keys")
    return flat
