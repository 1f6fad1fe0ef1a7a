"""Held-out rows, each scored once: what the objectives that do not score windows of text are measured by.

Rows are corrupted by fixed keys, a function of their number alone, so that two models see the same ones. What the
objective reports of each row is summed on the host in float64, so that figures depend neither on the batch size nor on
the mesh.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data.loader import Batch, Rows
from data.order import mix
from model.parameters import Params
from model.sharding import axis_size
from train.mesh import place_batch
from train.objectives.objective import RowObjective
from train.state import Blueprint
from train.step import make_evaluation

_HELD_OUT = 2**31 - 1  # in place of a run's seed, so that no run trains on the corruption that it is measured by


class RowsMeter:
    """Scores rows with a model; compiled once for rows of the same shapes.

    `precision` is the compute dtype; in float32, matrix products are not rounded below it on any device.
    """

    def __init__(
        self, plan: Blueprint, objective: RowObjective, mesh: Mesh, *, batch_size: int, precision: str = "float32"
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        replicas = axis_size(mesh, "act_batch")
        self.objective, self.mesh, self._rows = objective, mesh, math.ceil(batch_size / replicas) * replicas
        self._evaluate = make_evaluation(plan, objective, mesh, precision)

    def score(
        self,
        params: Params,
        rows: Rows,
        prepare: Callable[[Batch, np.ndarray], Batch] | None = None,
        *,
        limit: int = 0,
        progress: Callable[[int, int], None] | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """The objective's figures of all rows, or of the first `limit`; `progress` gets the rows done and in all.

        `prepare` is the objective's preparation. `between` is called between batches: what it raises breaks it off.
        """
        total = min(limit, len(rows)) if limit else len(rows)
        if total == 0:
            raise ValueError("the evaluation data have no rows to score; give data that are not empty")

        def rows_at(numbers: np.ndarray) -> Batch:
            batch = rows.take(numbers)
            return prepare(batch, mix(_HELD_OUT, numbers)) if prepare else batch

        sums: dict[str, np.ndarray] = {}
        waiting: tuple[int, Any] | None = None
        with jax.set_mesh(self.mesh):
            for begin in range(0, total, self._rows):
                between()
                count = min(self._rows, total - begin)
                # The last batch is filled up with the last row, which is cut off again.
                placed = place_batch(
                    self.mesh, self._rows, lambda places, begin=begin: rows_at(np.minimum(begin + places, total - 1))
                )
                result = self._evaluate(params, placed)
                _add(sums, waiting)  # the devices work on one batch while the host reads another
                waiting = count, result
                if progress:
                    progress(begin, total)
            _add(sums, waiting)
        if progress:
            progress(total, total)
        return self.objective.figures(sums)


def _add(sums: dict[str, np.ndarray], scored: tuple[int, Any] | None) -> None:
    if scored is None:
        return
    count, result = scored
    for name, values in jax.device_get(result).items():
        sums[name] = sums.get(name, np.zeros(())) + values[:count].astype(np.float64).sum(0)
