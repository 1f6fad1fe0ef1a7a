"""A device whose copy of a weight differs in one bit is found and named."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from train.checkpoint import Checkpoints
from train.config import RunConfig
from train.console import Console
from train.mesh import MeshConfig, make_mesh
from train.program import Program
from train.replicas import ReplicaCheck, ReplicasDiffer
from train.state import TrainState
from train.train import main

MESHES = [MeshConfig(data=8), MeshConfig(data=4, tensor=2), MeshConfig(data=3, fsdp=1)]


def flipped(array: jax.Array, device: int) -> jax.Array:
    """The array, in whose copy or part on one device a single bit is another."""

    def held(shard: Any) -> jax.Array:
        values = np.array(shard.data)
        if shard.device.id == device:
            values.reshape(-1).view(np.uint8)[5] ^= 0x10
        return jax.device_put(values, shard.device)

    return jax.make_array_from_single_device_arrays(
        array.shape, array.sharding, list(map(held, array.addressable_shards))
    )


def with_flipped(state: TrainState, name: str, device: int) -> TrainState:
    return dataclasses.replace(state, params=state.params | {name: flipped(state.params[name], device)})


@pytest.mark.core
@pytest.mark.parametrize("mesh_config", MESHES)
def test_one_bit_of_one_copy_is_found_and_its_device_named(small: RunConfig, mesh_config: MeshConfig):
    mesh = make_mesh(mesh_config, jax.devices()[: 3 if mesh_config.data == 3 else 8])
    program = Program.of(dataclasses.replace(small, batch_size=48), mesh)
    state = program.first_state()
    check = ReplicaCheck(mesh, program.abstract, 1)
    check.now(1, state)
    for name in ("embedding.table", "stack.layers.mlp.up", "norm.scale"):
        copies = len(set(mesh.devices.flat)) // mesh.shape["tensor"] if name != "norm.scale" else mesh.size
        sentence = f"step 2: of the {copies} copies of params.{name}, those of the devices 2 "
        with pytest.raises(ReplicasDiffer, match=sentence):
            check.now(2, with_flipped(state, name, 2))


def test_what_one_device_alone_holds_has_no_copy(small: RunConfig):
    mesh = make_mesh(MeshConfig(fsdp=8))
    program = Program.of(small, mesh)
    state = program.first_state()
    split = next(name for name, array in state.params.items() if not array.is_fully_replicated)
    ReplicaCheck(mesh, program.abstract, 1).now(1, with_flipped(state, split, 2))


def test_a_run_ends_at_the_flip_and_saves_nothing_of_it(small: RunConfig, tmp_path: Path, after_each_step: Any):
    def fail(state: TrainState, metrics: Any) -> tuple[TrainState, Any]:
        return (with_flipped(state, "embedding.table", 5) if int(state.step) == 5 else state), metrics

    after_each_step(fail)
    checkpoint = dataclasses.replace(small.checkpoint, every=3)
    config = dataclasses.replace(small, run_dir=str(tmp_path), replicas_every=2, checkpoint=checkpoint)
    with pytest.raises(ReplicasDiffer, match=r"step 6: of the 8 copies of params.embedding.table, those .* 5 \(of"):
        main(config, Console())
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [3]
    after_each_step(lambda state, metrics: (state, metrics))
    assert main(config, Console())["step"] == 10
