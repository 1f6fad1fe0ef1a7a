"""What a run is measured by: its held-out data, scored as its objective says."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jax.sharding import Mesh

from data.dataset import Dataset
from data.images import ImageDataset
from model.parameters import Params
from train.config import RunConfig
from train.load import preparation_of
from train.memory import explained_beside_steps
from train.objectives.objective import WindowObjective
from train.objectives.table import make_objective
from train.perplexity import PerplexityMeter
from train.rows_meter import RowsMeter
from train.state import Blueprint

Between = Callable[[], None]


class HeldOut:
    """A run's held-out data and the meter for them; compiled once for all times that they are scored.

    Args:
        config: the run.
        plan: its model.
        mesh: where the model lies.
        dataset: what it learns from and is measured by.
        batch_size: rows at a time; the figures do not depend on it.
    """

    def __init__(
        self, config: RunConfig, plan: Blueprint, mesh: Mesh, dataset: Dataset | ImageDataset, batch_size: int
    ):
        objective = make_objective(config.objective)
        self._dataset = dataset
        if isinstance(objective, WindowObjective):
            assert isinstance(dataset, Dataset)
            model: Any = config.model
            window = min(*config.data.lengths, model.max_length)
            meter = PerplexityMeter(plan, objective, mesh, window=window, stride=window, batch_size=batch_size)

            def score(params: Params, limit: int, between: Between) -> dict[str, Any]:
                return meter.score(params, dataset.valid, dataset.tokenizer, limit=limit, between=between).figures()
        else:
            rows, prepare = dataset.held_out_rows(objective.rows), preparation_of(objective, dataset)
            rows_meter = RowsMeter(plan, objective, mesh, batch_size=batch_size)
            tokens_a_row = sum(config.data.lengths) or 1

            def score(params: Params, limit: int, between: Between) -> dict[str, Any]:
                return rows_meter.score(params, rows, prepare, limit=-(-limit // tokens_a_row), between=between)

        self._score = score
        self._explained = partial(
            explained_beside_steps,
            f"scoring held-out data, {batch_size} rows at a time",
            f"a larger --micro-batches than {config.micro_batches} makes them fewer, and --mesh.fsdp and --mesh.tensor "
            "split the model over more devices",
        )

    def score(self, params: Params, limit: int = 0, between: Between = lambda: None) -> dict[str, Any]:
        """The figures of the held-out data, or of about their first `limit` tokens (images, where there are no tokens).

        `between` is called between batches: what it raises breaks the scoring off.
        """
        with self._explained():
            return self._score(params, limit, between)


def summary(figures: Mapping[str, float]) -> str:
    """Figures in a line."""
    if "bits_per_byte" in figures:
        names = ("nats_per_token", "perplexity", "bits_per_byte", "tokens")
        nats, perplexity, bits, tokens = (figures[name] for name in names)
        return f"{nats:.4f} nats a token, perplexity {perplexity:.2f}, {bits:.3f} bits a byte over {tokens:,} tokens"
    numbers = ((name.replace("_", " "), value) for name, value in figures.items() if isinstance(value, int | float))
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:,.4f}" for name, value in numbers
    )
