"""A run's program: all that follows from its configuration and a mesh, before any data is read or any array made."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from data.loader import Batch
from model.distillation import FROZEN, DistillationConfig, student_from_teacher
from model.parameters import Params
from train.config import RunConfig
from train.load import Source
from train.mesh import batch_sharding, check_batch, replicated
from train.objectives.causal_lm import CausalLM
from train.objectives.objective import Objective
from train.objectives.table import make_objective
from train.optimizer import make_optimizer, make_schedule
from train.signals import held
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
        for length in config.data.lengths or (0,):
            for rows in config.batches.sizes:
                check_batch(mesh, rows, config.batches.parts(rows), length, objective.length_multiple)
        plan = blueprint(config.model)
        frozen = FROZEN if isinstance(config.model, DistillationConfig) else ()
        trainable = trainable_names(plan.declared, (*config.freeze, *frozen))
        schedule = make_schedule(config.optimizer, config.steps)
        optimizer = make_optimizer(config.optimizer, schedule, {name: plan.declared[name] for name in trainable})
        abstract = abstract_state(plan, optimizer, trainable, mesh)
        return cls(config, mesh, plan, objective, optimizer, schedule, trainable, abstract)

    def first_state(self, params: Params | None = None) -> TrainState:
        """The state before step 1, with these weights, and fresh ones for what is not among them, where it lies."""
        shardings = shardings_of(self.abstract)

        def start(given: Params) -> TrainState:
            params = {**self.plan.init(self.config.seed), **given}
            model, objective = self.config.model, self.config.objective
            if isinstance(model, DistillationConfig) and getattr(objective, "start_from_teacher", False):
                params = student_from_teacher(model, params)
            return initial_state(params, self.optimizer, self.trainable)

        with jax.set_mesh(self.mesh):
            placed = {name: jax.device_put(value, shardings.params[name]) for name, value in (params or {}).items()}
            return jax.jit(start, out_shardings=shardings)(placed)

    def inputs(self, rows: Batch) -> Batch:
        """What of rows the step reads.

        Contiguous rows are one segment, and what is read causally does not see the padding, which comes last: without
        segments, fused attention needs no mask but its own.
        """
        if isinstance(self.objective, CausalLM) and getattr(self.config.data, "packing", "") == "contiguous":
            return {name: array for name, array in rows.items() if name != "segments"}
        return rows

    def compile_step(self, row: Mapping[str, np.ndarray], rows: int | None = None) -> Any:
        """The step (state, batch) -> (state, metrics), compiled, its state donated.

        A batch has `rows` rows (by default those of a whole batch) like `row`. Nothing is computed, and the mesh may be
        of devices that are not here.
        """
        rows = rows or self.config.batch_size
        step = make_step(
            self.plan,
            self.objective,
            self.optimizer,
            self.schedule,
            trainable=self.trainable,
            micro_batches=self.config.batches.parts(rows),
            dtype=self.config.precision,
            seed=self.config.seed,
        )
        shapes = {name: (rows, *array.shape) for name, array in row.items()}
        batch = {
            name: jax.ShapeDtypeStruct(shape, row[name].dtype, sharding=batch_sharding(self.mesh, shape))
            for name, shape in shapes.items()
        }
        shardings = (shardings_of(self.abstract), replicated(self.mesh))
        parts = (option.partition("=") for option in self.config.compiler_options)
        options: dict[str, str | bool] = {name: value for name, _, value in parts}
        with jax.set_mesh(self.mesh):
            lowered = jax.jit(step, donate_argnums=0, out_shardings=shardings).lower(self.abstract, batch)
            with held():
                return lowered.compile(compiler_options=options)

    def weights_of(self, source: Source, report: Callable[[str], None]) -> Params:
        """Of another model's weights those that this one has; `report` is told of what begins afresh or is left.

        A distillation's are its teacher's, and a head that tells other classes apart is left. Raises ValueError
        where a weight has another shape.
        """
        declared = self.plan.declared
        prefix = "teacher." if isinstance(self.config.model, DistillationConfig) else ""
        given = {prefix + name: value for name, value in source.params.items()}
        # Classes without names, as imported models may have them, are told apart by their number alone.
        fields = ("head", "classes" if getattr(source.model, "classes", ()) else "num_classes")
        other_classes = any(getattr(source.model, f, None) != getattr(self.config.model, f, None) for f in fields)
        kept = {
            name: value
            for name, value in given.items()
            if name in declared and not (other_classes and "classes" in declared[name].axes)
        }
        for name, value in kept.items():
            if value.shape != declared[name].shape:
                raise ValueError(
                    f"{name} has the shape {list(value.shape)} in the model that the run starts from, and "
                    f"{list(declared[name].shape)} in the recipe's; take a recipe of the same model"
                )
        fresh, left = declared.keys() - kept.keys(), given.keys() - declared.keys()
        for names, fate in ((fresh, "begin afresh"), (left, "are left")):
            if names:
                listed = ", ".join(sorted(names)[:4]) + (" and more" if len(names) > 4 else "")
                report(f"of the weights, {listed} {fate}")
        return kept

    def state_bytes(self) -> dict[str, int]:
        """Bytes on one device: of the "parameters", and of what the "optimizer" keeps."""
        parts = {"parameters": self.abstract.params, "optimizer": self.abstract.opt_state}
        return {
            part: sum(
                math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
            )
            for part, tree in parts.items()
        }


def tokens_per_row(model: Any, row: Mapping[str, np.ndarray]) -> int:
    """How many tokens the layers see of a row: of its source and its target, and an image's patches and class token."""
    text = sum(row[name].shape[0] for name in ("tokens", "source_tokens") if name in row)
    return text + (1 + getattr(model, "vision", model).num_patches if "images" in row else 0)
