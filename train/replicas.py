"""Finds a device whose copy of the state is not what the others hold: of thousands of chips, some compute wrongly."""

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from train.digest import array_digest
from train.mesh import replicated
from train.state import TrainState, shardings_of


class ReplicasDiffer(RuntimeError):
    """Devices that should hold the same values do not."""


class ReplicaCheck:
    """Compares the copies that devices hold of the state, each so many steps and before each checkpoint.

    Digests are computed by each device of what it holds, while the host goes on, and are read when the next are due.
    What only one device holds has no copy to compare with.

    Args:
        mesh: whose devices hold the state.
        abstract: the state's shapes and shardings.
        every: steps from one comparison to the next; 0 compares nothing.
    """

    def __init__(self, mesh: Mesh, abstract: TrainState, every: int):
        self._every = every
        self._devices = mesh.devices.reshape(-1).tolist()
        self._waiting: tuple[int, jax.Array] | None = None
        if not every:
            return
        leaves = jax.tree_util.tree_flatten_with_path(abstract)[0]
        self._names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
        self._parts = [_parts(mesh, leaf) for _, leaf in leaves]
        specs = jax.tree.map(lambda sharding: sharding.spec, shardings_of(abstract))

        def digests(state: TrainState) -> jax.Array:
            return jnp.stack([jnp.stack(array_digest(leaf)) for leaf in jax.tree.leaves(state)])[None]

        of_devices = jax.shard_map(
            digests, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec(mesh.axis_names), check_vma=False
        )
        self._digests = jax.jit(of_devices, out_shardings=replicated(mesh))

    def after(self, step: int, state: TrainState) -> None:
        """Begins a comparison where one is due, and ends the one before it; raises ReplicasDiffer."""
        if self._every and step % self._every == 0:
            self.settle()
            self._waiting = (step, self._digests(state))

    def now(self, step: int, state: TrainState) -> None:
        """Compares at once; raises ReplicasDiffer."""
        if self._every and (self._waiting is None or self._waiting[0] != step):
            self.settle()
            self._waiting = (step, self._digests(state))
        self.settle()

    def settle(self) -> None:
        """Ends the comparison that was begun, if one was; raises ReplicasDiffer."""
        if self._waiting is None:
            return
        (step, digests), self._waiting = self._waiting, None
        found_DN2 = np.asarray(jax.device_get(digests))
        for i, (name, parts_D) in enumerate(zip(self._names, self._parts, strict=True)):
            for part in np.unique(parts_D):
                holders = np.flatnonzero(parts_D == part)
                values, value_of, counts = np.unique(
                    found_DN2[holders, i], axis=0, return_inverse=True, return_counts=True
                )
                if len(values) > 1:
                    is_right = counts[value_of.reshape(-1)] > len(holders) / 2
                    self._raise(step, name, holders[~is_right], len(holders))

    def _raise(self, step: int, name: str, places: np.ndarray, copies: int) -> NoReturn:
        devices = [self._devices[place] for place in places.tolist()]
        listed = ", ".join(f"{device.id} (of process {device.process_index})" for device in devices)
        raise ReplicasDiffer(
            f"step {step}: of the {copies} copies of {name}, those of the devices {listed} differ from most, so that "
            "memory or arithmetic fails there; the same command, without them, goes on from the last checkpoint, "
            "before which all copies were equal"
        )


def _parts(mesh: Mesh, leaf: Any) -> np.ndarray:
    """Which part of an array each device of the mesh holds, as numbers [devices]; copies have the same."""
    indices = leaf.sharding.devices_indices_map(leaf.shape)
    shown = [str(indices[device]) for device in mesh.devices.flat]
    return np.unique(shown, return_inverse=True)[1]
