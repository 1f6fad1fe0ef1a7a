"""Logical axes and the one table that lays them on the device mesh.

The matmul and the constraint that every layer is written with.

The mesh shape is the strategy: an axis of size 1 does nothing, and data parallelism, FSDP, tensor and context
parallelism are shapes, never code paths. Parameters and activations have different names on purpose: FSDP is exactly
the fact that `embed` is split where `act_embed` is not.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

MESH_AXES = ("data", "fsdp", "context", "tensor")

RULES: dict[str, str | tuple[str, ...] | None] = {
    # parameters
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "gate": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "positions": None,
    "buckets": None,
    "norm": None,
    "types": None,
    "features": None,
    "classes": None,
    "cells": "tensor",
    "channels": None,
    "pixels": None,
    # activations
    "act_batch": ("data", "fsdp"),
    "act_length": "context",
    "act_memory": None,
    "act_embed": None,
    "act_heads": "tensor",
    "act_kv_heads": "tensor",
    "act_head_dim": None,
    "act_gate": None,
    "act_mlp": "tensor",
    "act_cells": "tensor",
    "act_vocab": "tensor",
}

# Where the tensor axis is a multiple of the number of key/value heads, they are replicated over it rather than refused.
_REPLICABLE = ("kv_heads", "act_kv_heads")


def mesh_axes(mesh: Mesh | AbstractMesh, logical: str, *, own: bool = False) -> tuple[str, ...]:
    """The axes of `mesh` over which RULES lays the logical axis `logical`.

    Inside of a `shard_map`, along whose axes arrays are the device's own parts, these do not count, or they alone.
    """
    names = RULES[logical]
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    names = (names,) if isinstance(names, str) else names or ()
    return tuple(name for name in names if (types[name] == AxisType.Manual) == own)


def axis_size(mesh: Mesh | AbstractMesh, logical: str) -> int:
    """Over how many devices the logical axis `logical` is spread on `mesh`."""
    return math.prod(mesh.shape[name] for name in mesh_axes(mesh, logical))


def partition_spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The PartitionSpec of an array of `shape` whose dimensions carry the logical `axes`.

    Raises ValueError where a dimension does not divide, or where two dimensions would lie on one mesh axis.
    """
    assert len(axes) == len(shape), (axes, shape)
    entries, used = [], set()
    for logical, dimension in zip(axes, shape, strict=True):
        size = 1 if logical is None else axis_size(mesh, logical)
        if logical == "act_length" and dimension == 1:
            size = 1  # one new token of each row, while decoding, lies whole
        if size == 1 or logical is None:
            entries.append(None)
            continue
        if dimension % size:
            if logical in _REPLICABLE and size % dimension == 0:
                entries.append(None)
                continue
            raise ValueError(
                f"{logical}={dimension} must be a multiple of {size}, the mesh's {RULES[logical]} ({_describe(mesh)}); "
                f"try {RULES[logical]} {_largest_divisor(dimension, size)} or {logical} {-(-dimension // size) * size}"
            )
        names = mesh_axes(mesh, logical)
        if twice := used.intersection(names):
            raise ValueError(
                f"the axes {tuple(axes)} of one array use the mesh axis {sorted(twice)} twice; change RULES"
            )
        used.update(names)
        entries.append(names[0] if len(names) == 1 else names)
    return PartitionSpec(*entries)


def _describe(mesh: Mesh | AbstractMesh) -> str:
    return "mesh " + ", ".join(f"{name}={size}" for name, size in mesh.shape.items())


def _largest_divisor(dimension: int, at_most: int) -> int:
    return next(size for size in range(min(dimension, at_most), 0, -1) if dimension % size == 0)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lay the activation `x` on the ambient mesh as its logical `axes` say.

    Without a mesh, or on one device, do nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))


def spread(logical: str) -> int:
    """Over how many devices of the ambient mesh `logical` is spread (1 without a mesh)."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else axis_size(mesh, logical)


def on_each_device(function: Callable, in_specs: Any, out_specs: Any, axes: Collection[str] | None = None) -> Callable:
    """`function` of each device's own parts of its arguments along the mesh `axes`, by default along all.

    It may stand in another one's function; XLA goes on to divide what lies along the axes that are in neither.
    """
    mesh = jax.sharding.get_abstract_mesh()
    names = set(mesh.axis_names if axes is None else axes) - set(mesh.manual_axes)
    # Kernels do not say along which axes their results differ, so that it cannot be checked.
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, axis_names=names, check_vma=False)


def device_platform() -> str:
    """The platform of the ambient mesh's devices ("cpu", "gpu", "tpu"), be they here or not; else of JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def einsum(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """`jnp.einsum` of an activation and a weight, accumulated in float32 and returned in x's dtype.

    What is summed over devices travels in x's dtype.

    Its gradients are single contractions in the order in which they are stored. JAX's own rule transposes the gradient
    of `w`, and XLA:CPU answers by copying the incoming gradient, with everything that produces it fused into the copy,
    once a layer.
    """
    return _einsum(equation, x, w)


def _contract(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    # Accelerators accumulate in float32 whatever they return, and a sum over devices is of what they return. XLA:CPU
    # emulates products that return bfloat16, at a fraction of the speed.
    out = jnp.float32 if device_platform() == "cpu" else a.dtype
    return jnp.einsum(equation, a, b, preferred_element_type=out).astype(a.dtype)


def _einsum_forward(equation: str, x: jax.Array, w: jax.Array):
    return _contract(equation, x, w), (x, w)


def _einsum_backward(equation: str, residuals, g: jax.Array):
    x, w = residuals
    inputs, out = equation.split("->")
    left, right = inputs.split(",")
    return _contract(f"{out},{right}->{left}", g, w), _contract(f"{left},{out}->{right}", x, g)


_einsum = jax.custom_vjp(_contract, nondiff_argnums=(0,))
_einsum.defvjp(_einsum_forward, _einsum_backward)
