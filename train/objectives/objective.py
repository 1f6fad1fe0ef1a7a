"""What every objective gives: rows to learn from, the weight of each of its terms, and their sums.

The step alone divides. It differentiates the sum over terms of coefficient x sum / weight, where each weight was
counted over the whole global batch, so that terms with different weights, padding, accumulation over micro-batches and
every mesh agree exactly.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from data.dataset import Prepare, RowKind
from data.loader import Batch
from data.tokenizers.base import Tokenizer

DeviceBatch = Mapping[str, jax.Array]  # a batch (data/loader.py) on its devices


class Objective(Protocol):
    """A training objective of one or more terms."""

    coefficients: dict[str, float]
    length_multiple: int  # of which the length of a row has to be a multiple, on every device
    roles: tuple[str, ...]  # of the special tokens that it needs, besides start and end
    rows: RowKind  # what it learns from
    definition: str  # of the figures that held-out data are reported by

    def preparation(self, tokenizer: Tokenizer) -> Prepare | None:
        """What masks or corrupts packed rows [rows, ...], at random by each row's key alone, a function of (seed, k).

        Raises ValueError where the tokenizer lacks a special token that this needs.
        """
        ...

    def weights(self, batch: DeviceBatch) -> dict[str, jax.Array]:
        """What each term's sum is divided by: an integer count over the batch."""
        ...

    def loss(self, model: Any, batch: DeviceBatch, key: jax.Array | None) -> dict[str, jax.Array]:
        """Each term's sum over the batch, float32; `key` turns dropout on."""
        ...

    def evaluate(self, model: Any, batch: DeviceBatch) -> dict[str, jax.Array]:
        """What is reported of each row, [B, ...]: sums and the counts that divide them; divided on the host."""
        ...


@runtime_checkable
class WindowObjective(Objective, Protocol):
    """One that scores every token of held-out text once, in windows: its figure is perplexity (train/perplexity.py)."""

    shifted: bool  # whether the target of a place is the token after it, rather than its own

    def views(self, batch: Batch, tokenizer: Tokenizer) -> Iterator[Batch]:
        """The batches by which a batch of windows of held-out text is scored, each target in one of them."""
        ...


@runtime_checkable
class RowObjective(Objective, Protocol):
    """One that scores held-out rows as it learns from rows, by fixed keys (train/rows_meter.py)."""

    def figures(self, sums: Mapping[str, np.ndarray]) -> dict[str, float | int]:
        """What is reported, by name, from the sums over all rows; by the first, where less is better, runs compare."""
        ...
