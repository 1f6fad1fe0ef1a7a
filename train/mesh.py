"""The device mesh, what lies where on it, and the one place where numpy batches become global arrays."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from model.parameters import Declaration
from model.sharding import MESH_AXES, axis_size, mesh_axes, partition_spec

_OPERATIONAL = {"operational": True}


@dataclass(frozen=True)
class MeshConfig:
    """The mesh's shape, which is the parallelism strategy: at most one axis may be -1, for the devices that remain."""

    data: int = field(default=-1, metadata=_OPERATIONAL)
    fsdp: int = field(default=1, metadata=_OPERATIONAL)
    context: int = field(default=1, metadata=_OPERATIONAL)
    tensor: int = field(default=1, metadata=_OPERATIONAL)

    def shape(self, num_devices: int) -> dict[str, int]:
        """Axis sizes on `num_devices` devices; raises ValueError where they do not fit."""
        sizes = {name: getattr(self, name) for name in MESH_AXES}
        shown = " x ".join(f"{name}={size}" for name, size in sizes.items())
        if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
            raise ValueError(
                f"mesh {shown}: every axis must be at least 1, and at most one may be -1 (the remaining devices)"
            )
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if num_devices % fixed or (fixed != num_devices and -1 not in sizes.values()):
            raise ValueError(
                f"mesh {shown} takes {'a multiple of ' if -1 in sizes.values() else ''}{fixed} devices, "
                f"and {num_devices} are here; change --mesh.*, or simulate them with JAX_NUM_CPU_DEVICES={fixed}"
            )
        return {name: num_devices // fixed if size == -1 else size for name, size in sizes.items()}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the given devices, or all devices of all hosts."""
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def parameter_shardings(declared: Mapping[str, Declaration], mesh: Mesh | AbstractMesh) -> dict[str, NamedSharding]:
    """Where each parameter lies; raises ValueError, naming the parameter's axis, where one does not divide."""
    return {name: NamedSharding(mesh, partition_spec(d.axes, d.shape, mesh)) for name, d in declared.items()}


def check_batch(
    mesh: Mesh | AbstractMesh, batch_size: int, micro_batches: int, length: int, length_multiple: int = 1
) -> None:
    """Raise ValueError, in one sentence, where a batch does not divide on the mesh."""
    replicas, context = axis_size(mesh, "act_batch"), axis_size(mesh, "act_length")
    if micro_batches < 1 or batch_size < 1:
        raise ValueError(f"batch_size={batch_size} and micro_batches={micro_batches} must be at least 1")
    unit = replicas * micro_batches
    if batch_size % unit:
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of data*fsdp*micro_batches={unit} (mesh "
            f"{', '.join(f'{name}={size}' for name, size in mesh.shape.items())}; micro_batches={micro_batches}); "
            f"try {-(-batch_size // unit) * unit}"
        )
    if length % (context * length_multiple):
        parts = f"context={context}" + (f" x the objective's {length_multiple}" if length_multiple > 1 else "")
        raise ValueError(
            f"data.max_length={length} must be a multiple of the mesh's {parts}; "
            f"try {-(-length // (context * length_multiple)) * context * length_multiple}"
        )


def batch_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Where an array lies: [batch, length], rows over data and fsdp, and length over context; others by rows alone."""
    axes = ("act_batch", "act_length") if len(shape) == 2 else ("act_batch", *(None,) * (len(shape) - 1))
    return NamedSharding(mesh, partition_spec(axes, shape, mesh))


def place_rows(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """An array of this host, [rows, ...], on the mesh's devices."""
    return jax.device_put(array, batch_sharding(mesh, array.shape))


class Dimension(NamedTuple):
    """One axis of an array: its logical name, its size, the mesh axes that split it, and those that it is copied over.

    It is copied where RULES would split it and must not, as key/value heads that are fewer than the devices.
    """

    logical: str | None
    size: int
    split: tuple[str, ...]
    copied: tuple[str, ...]


def dimensions(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh) -> list[Dimension]:
    """How an array of `shape`, whose dimensions carry the logical `axes`, lies on the mesh."""
    found = []
    for logical, size, entry in zip(axes, shape, partition_spec(axes, shape, mesh), strict=True):
        meant = mesh_axes(mesh, logical) if logical and axis_size(mesh, logical) > 1 else ()
        found.append(Dimension(logical, size, *(((), meant) if entry is None else (meant, ()))))
    return found


def describe_mesh(mesh: Mesh, declared: Mapping[str, Declaration]) -> str:
    """The mesh in words: each axis, its size, what is split over it, and which key/value heads it replicates."""
    lying = {
        axis: {axis_of for axis_of in ("batch", "length") if axis in mesh_axes(mesh, f"act_{axis_of}")}
        for axis in mesh.shape
    }
    copied: set[str] = set()
    for dimension in (dimension for d in declared.values() for dimension in dimensions(d.axes, d.shape, mesh)):
        copied |= {f"{dimension.logical} copied over {axis}" for axis in dimension.copied}
        for axis in dimension.split:
            lying[axis].add(str(dimension.logical))
    words = [f"{axis} {size} ({', '.join(sorted(lying[axis]))})" for axis, size in mesh.shape.items() if size > 1]
    return "; ".join([f"mesh {' x '.join(words)}", *sorted(copied)]) if words else "no mesh"


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place_batch(
    mesh: Mesh, batch_size: int, rows_for: Callable[[np.ndarray], Mapping[str, np.ndarray]]
) -> dict[str, jax.Array]:
    """The global batch on the mesh's devices.

    `rows_for(places)` reads only the places of the batch that this process's devices hold.
    """
    held = batch_sharding(mesh, (batch_size,)).addressable_devices_indices_map((batch_size,))
    places = np.unique(np.concatenate([np.arange(batch_size)[index] for index in held.values() if index is not None]))
    rows = rows_for(places)

    def place(local: np.ndarray) -> jax.Array:
        shape = (batch_size, *local.shape[1:])

        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return local[np.searchsorted(places, start) : np.searchsorted(places, stop), *index[1:]]

        return jax.make_array_from_callback(shape, batch_sharding(mesh, shape), shard)

    return {name: place(array) for name, array in rows.items()}
