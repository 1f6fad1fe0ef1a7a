"""Finds a device whose copy of the state is not what the others hold: of thousands of chips, some compute wrongly."""

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from model.sharding import on_each_device
from train.digest import array_digest
from train.mesh import replicated
from train.state import TrainState, flatten, shardings_of


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
        self._every, self._mesh = every, mesh
        self._devices = mesh.devices.reshape(-1).tolist()
        self._waiting: tuple[int, jax.Array] | None = None
        if not every:
            return
        self._parts = {name: _parts(mesh, leaf) for name, leaf in flatten(abstract).items()}
        specs = jax.tree.map(lambda sharding: sharding.spec, shardings_of(abstract))

        def digests(state: TrainState) -> jax.Array:
            return jnp.stack([jnp.stack(array_digest(leaf)) for leaf in jax.tree.leaves(state)])[None]

        with jax.set_mesh(mesh):
            of_devices = on_each_device(digests, (specs,), PartitionSpec(mesh.axis_names))
        self._digests = jax.jit(of_devices, out_shardings=replicated(mesh))

    def after(self, step: int, state: TrainState) -> None:
        """Begins a comparison where one is due, and ends the one before it; raises ReplicasDiffer."""
        if self._every and step % self._every == 0:
            self._begin(step, state)

    def now(self, step: int, state: TrainState) -> None:
        """Compares at once; raises ReplicasDiffer."""
        if self._every and (self._waiting is None or self._waiting[0] != step):
            self._begin(step, state)
        self.settle()

    def _begin(self, step: int, state: TrainState) -> None:
        self.settle()
        with jax.set_mesh(self._mesh):
            self._waiting = (step, self._digests(state))

    def settle(self) -> None:
        """Ends the comparison that was begun, if one was; raises ReplicasDiffer."""
        if self._waiting is None:
            return
        (step, digests), self._waiting = self._waiting, None
        found_DN2 = np.asarray(jax.device_get(digests))
        for i, (name, parts_D) in enumerate(self._parts.items()):
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
