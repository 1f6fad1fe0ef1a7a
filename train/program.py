"""A run's program: all that follows from its configuration and a mesh, before any data is read or any array made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from model.parameters import Params
from train.config import RunConfig
from train.mesh import batch_sharding, check_batch, replicated
from train.objectives.objective import Objective
from train.objectives.table import make_objective
from train.optimizer import make_optimizer, make_schedule
from train.state import Blueprint, TrainState, abstract_state, blueprint, initial_state, shardings_of, trainable_names
from train.step import make_step


@dataclass(frozen=True)
class Program:
    """The parts of a run. `abstract` is its whole state as shapes and shardings."""

    config: RunConfig
    mesh: Mesh
    plan: Blueprint
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    trainable: tuple[str, ...]
    abstract: TrainState

    @classmethod
    def of(cls, config: RunConfig, mesh: Mesh) -> "Program":
        """The program of a resolved and validated configuration.

        Raises ValueError for what the mesh does not divide.
        """
        objective = make_objective(config.objective)
        check_batch(mesh, config.batch_size, config.micro_batches, config.data.max_length, objective.length_multiple)
        plan = blueprint(config.model)
        trainable = trainable_names(plan.declared, config.freeze)
        schedule = make_schedule(config.optimizer, config.steps)
        optimizer = make_optimizer(config.optimizer, schedule, {name: plan.declared[name] for name in trainable})
        abstract = abstract_state(plan, optimizer, trainable, mesh)
        return cls(config, mesh, plan, objective, optimizer, schedule, trainable, abstract)

    def first_state(self, params: Params | None = None) -> TrainState:
        """The state before step 1, with these weights or fresh ones, made where it lies."""
        start = partial(initial_state, optimizer=self.optimizer, trainable=self.trainable)
        shardings = shardings_of(self.abstract)
        with jax.set_mesh(self.mesh):
            if params is not None:
                placed = {name: jax.device_put(value, shardings.params[name]) for name, value in params.items()}
                return jax.jit(start, out_shardings=shardings)(placed)
            return jax.jit(lambda: start(self.plan.init(self.config.seed)), out_shardings=shardings)()

    def compile_step(self, row: Mapping[str, np.ndarray]) -> Any:
        """The step (state, batch) -> (state, metrics) for batches of rows like `row`, compiled, its state donated."""
        step = make_step(
            self.plan,
            self.objective,
            self.optimizer,
            self.schedule,
            trainable=self.trainable,
            micro_batches=self.config.micro_batches,
            dtype=self.config.precision,
            seed=self.config.seed,
        )
        shapes = {name: (self.config.batch_size, *array.shape) for name, array in row.items()}
        batch = {
            name: jax.ShapeDtypeStruct(shape, row[name].dtype, sharding=batch_sharding(self.mesh, shape))
            for name, shape in shapes.items()
        }
        shardings = (shardings_of(self.abstract), replicated(self.mesh))
        with jax.set_mesh(self.mesh):
            return jax.jit(step, donate_argnums=0, out_shardings=shardings).lower(self.abstract, batch).compile()

    def state_bytes(self) -> int:
        """Bytes of parameters and optimizer state on one device."""
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(self.abstract)
        )
