"""One training step, compiled once: micro-batches, gradients, update, and metrics that stay on the devices.

And, beside it, how a batch of held-out rows is scored.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from model.parameters import Params, merge
from model.sharding import constrain
from train.mesh import replicated
from train.objectives.objective import DeviceBatch, Objective
from train.state import Blueprint, TrainState, partition

Metrics = dict[str, jax.Array]


def make_step(
    plan: Blueprint,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    trainable: tuple[str, ...],
    micro_batches: int,
    dtype: Any,
    seed: int,
) -> Callable[[TrainState, DeviceBatch], tuple[TrainState, Metrics]]:
    """The function (state, batch) -> (state, metrics).

    Weights are float32 and computed with in `dtype`; gradients are summed in float32.
    """

    def step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        learned, frozen = partition(state.params, trainable)
        gradients, terms, weights = accumulate(learned, frozen, batch, key)
        loss = sum(c * terms[name] for name, c in objective.coefficients.items())

        gradient_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, learned)
        # Not optax.apply_if_finite: after its limit it applies the bad update.
        learned, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(learned, updates), opt_state),
            (learned, state.opt_state),
        )
        nonfinite_steps = state.nonfinite_steps + ~finite
        nonfinite_in_row = jnp.where(finite, 0, state.nonfinite_in_row + 1)
        rows = next(iter(batch.values())).shape[0]
        metrics = {
            "loss": loss,
            **(terms if len(terms) > 1 else {}),
            "grad_norm": gradient_norm,
            "learning_rate": jnp.asarray(schedule(state.step - state.nonfinite_steps), jnp.float32),
            "targets": next(iter(weights.values())),
            "nonfinite_steps": nonfinite_steps,
            "nonfinite_in_row": nonfinite_in_row,
        }
        new_state = TrainState(
            state.step + 1,
            state.examples_seen + jnp.uint32(rows),
            {**learned, **frozen},
            opt_state,
            nonfinite_steps,
            nonfinite_in_row,
        )
        return new_state, metrics

    def accumulate(learned: Params, frozen: Params, batch: DeviceBatch, key: jax.Array):
        """The gradients of the mean loss over the whole batch, its terms, and the terms' weights."""
        learned, frozen = ({n: p.astype(dtype) for n, p in params.items()} for params in (learned, frozen))
        weights = objective.weights(batch)
        scales = {name: 1 / jnp.maximum(weight, 1).astype(jnp.float32) for name, weight in weights.items()}

        def mean_loss(learned: Params, part: DeviceBatch, part_key: jax.Array):
            sums = objective.loss(merge(plan.skeleton, {**learned, **frozen}), part, part_key)
            terms = {name: sums[name] * scales[name] for name in sums}
            return sum(c * terms[name] for name, c in objective.coefficients.items()), terms

        def gradient(part: DeviceBatch, part_key: jax.Array) -> tuple[Params, Metrics]:
            gradients, terms = jax.grad(mean_loss, has_aux=True)(learned, part, part_key)
            return {n: constrain(g.astype(jnp.float32), *plan.declared[n].axes) for n, g in gradients.items()}, terms

        if micro_batches == 1:
            return *gradient(batch, key), weights

        # Every micro-batch takes each M-th row, so that no row changes its device.
        parts = {name: jnp.moveaxis(x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0) for name, x in batch.items()}
        shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts), key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(total, scanned):
            part, i = scanned
            return jax.tree.map(jnp.add, total, gradient(part, jax.random.fold_in(key, i))), None

        (gradients, terms), _ = jax.lax.scan(add, zeros, (parts, jnp.arange(micro_batches)))
        return gradients, terms, weights

    return step


def make_evaluation(
    plan: Blueprint, objective: Objective, mesh: Mesh, precision: str
) -> Callable[[Params, DeviceBatch], dict[str, jax.Array]]:
    """The compiled function (params, batch) -> what the objective reports of each row, the same on every device.

    `precision` is the compute dtype; in float32, matrix products are not rounded below it on any device.
    """
    dtype = jnp.dtype(precision)

    def evaluate(params: Params, batch: DeviceBatch) -> dict[str, jax.Array]:
        with jax.default_matmul_precision("highest" if dtype == jnp.float32 else None):
            return objective.evaluate(plan.model(params, dtype), batch)

    return jax.jit(evaluate, out_shardings=replicated(mesh))
