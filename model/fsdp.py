"""Fully sharded data parallelism in a stack: each device runs the layers on its rows, with weights that come and go.

A layer's weights are gathered when it begins and are gone when it ends, and its gradients leave as the sum that each
device keeps a part of. XLA by itself gathers alike, but for TPUs it sums gradients on every device and then cuts the
parts out, which is twice the communication.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from model.sharding import axis_size, device_platform, mesh_axes, on_each_device, partition_spec

GATHERED = "gathered"  # the name under which rematerialisation knows gathered weights


def splits_weights() -> bool:
    """Whether the ambient mesh splits weights along an axis that also splits the batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(
        mesh.shape[name] > 1 and name in mesh_axes(mesh, "act_batch", own=own)
        for own in (False, True)
        for name in (() if mesh.empty else mesh_axes(mesh, "embed", own=own))
    )


def on_own_rows(function: Callable, rows: Any, weights: Any, axes: tuple[str, ...] = ("act_batch",)) -> Any:
    """`function(rows, weights)`, computed on each device by itself for the rows of the batch that lie there.

    Args:
        function: calls `gathered` on the weights before it uses them. All it returns leads with the axes.
        rows: a tree of arrays whose first dimensions are the axes, or 1 where they are the same for all rows; those of
            the first array are not.
        weights: a module, of which each device hands in the part that it holds.
        axes: the logical axes of which a device has its own part; with act_length, it has its own places of rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shape = jax.tree.leaves(rows)[0].shape[: len(axes)]
    # One text to be translated is on every device.
    divides = not mesh.empty and all(n % axis_size(mesh, axis) == 0 for axis, n in zip(axes, shape, strict=True))
    lies = partition_spec(axes, shape, mesh) if divides else ()
    if not any(lies):
        return function(rows, weights)
    own = {name for entry in lies for name in _names(entry)}

    def row_spec(leaf: jax.Array) -> PartitionSpec:
        return PartitionSpec(*(e if n == m else None for e, n, m in zip(lies, leaf.shape, shape, strict=False)))

    def weight_spec(weight: nnx.Variable) -> PartitionSpec:
        entries = partition_spec(weight.axes[-weight.ndim :], weight.shape, mesh)
        return PartitionSpec(*(entry if own.issuperset(_names(entry)) else None for entry in entries))

    in_specs = (jax.tree.map(row_spec, rows), jax.tree.map(weight_spec, weights, is_leaf=_is_weight))
    return on_each_device(function, in_specs, lies, own)(rows, weights)


def gathered(weights: Any) -> Any:
    """The module, of which a device has its own part, with its weights whole, in `on_own_rows`; else as it is."""
    mesh = jax.sharding.get_abstract_mesh()

    def gather(weight: nnx.Variable) -> nnx.Variable:
        for dimension, logical in enumerate(weight.axes[-weight.ndim :]):
            for name in reversed(mesh_axes(mesh, logical, own=True)) if logical else ():
                weight = jax.tree.map(
                    lambda w, n=name, d=dimension: checkpoint_name(_gather(w, n, d), GATHERED), weight
                )
        return weight

    return weights if mesh.empty or not mesh.manual_axes else jax.tree.map(gather, weights, is_leaf=_is_weight)


def gradients_first(x: jax.Array, weights: Any) -> tuple[jax.Array, Any]:
    """The same `x`, and the same module, which is used on it: its gradients come before those of what made x.

    Where weights are split, XLA would put off the products that are only for their gradients, and hold what these are
    made of, to the end of the layer or of the step. Weights of stacks, which have their own turn, are left out.
    """
    if not splits_weights():
        return x, weights
    leaves, structure = jax.tree.flatten(weights, is_leaf=_is_weight)
    chosen = {n: leaf for n, leaf in enumerate(leaves) if "layers" not in leaf.axes[-leaf.ndim :]}
    x, chosen = _together(x, chosen)
    return x, jax.tree.unflatten(structure, [chosen.get(n, leaf) for n, leaf in enumerate(leaves)])


@jax.custom_vjp
def _together(x: jax.Array, weights: Any) -> tuple[jax.Array, Any]:
    return x, weights


_together.defvjp(lambda x, weights: ((x, weights), None), lambda _, gradients: lax.optimization_barrier(gradients))


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else entry or ()


def _is_weight(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(w: jax.Array, name: str, dimension: int) -> jax.Array:
    return lax.all_gather(w, name, axis=dimension, tiled=True)


def _gather_backward(name: str, dimension: int, residuals: None, g: jax.Array):
    for groups in _scatter_groups(jax.sharding.get_abstract_mesh().shape[name]):
        g = lax.psum_scatter(g, name, scatter_dimension=dimension, tiled=True, axis_index_groups=groups)
    return (g,)


_gather.defvjp(lambda w, name, dimension: (_gather(w, name, dimension), None), _gather_backward)


def _scatter_groups(size: int) -> list[list[list[int]] | None]:
    """Among which of `size` devices each of the steps is that scatter a sum, the parts of the first being cut again.

    TPUs scatter in two steps, along the lines of a torus and then across: the compiler makes one over all of them a sum
    on every device.
    """
    line = next((n for n in range(int(size**0.5), 1, -1) if size % n == 0), 1)
    if device_platform() != "tpu" or line == 1:
        return [None]
    across = [list(range(first, size, line)) for first in range(line)]
    along = [list(range(first, first + line)) for first in range(0, size, line)]
    return [across, along]
