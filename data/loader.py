"""Batches as a function of one number, the examples seen so far.

Row number k of a run is k = examples_seen + place; its epoch is k // R, for R rows; and the row is a permutation of
(seed, epoch) at k mod R. So each row comes exactly once an epoch, batches straddle epochs, and nothing depends on the
number of hosts, the mesh, micro-batches, restarts, or on the batch size so far.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np

from data.order import mix, permute

Batch = dict[str, np.ndarray]
Position = TypeVar("Position")
Made = TypeVar("Made")

# What a number is drawn for, so that order and corruption of equal (seed, number) are independent.
_ORDER, _CORRUPTION = 0, 1


class Rows(Protocol):
    """What a loader reads: a number of rows, and any of them as arrays [n, ...]."""

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def take(self, indices: np.ndarray) -> Batch:
        """The rows of these numbers."""
        ...


class Loader:
    """The batches of a run.

    Args:
        rows: what is read.
        seed: of the order, and of what `prepare` draws.
        prepare: changes a batch's rows, for example by masking, given a uint64 [n] of keys, one a row, that are
            functions of (seed, k): whatever it draws must come from them.
    """

    def __init__(self, rows: Rows, seed: int, prepare: Callable[[Batch, np.ndarray], Batch] | None = None):
        self.rows, self.seed, self._prepare = rows, seed, prepare
        self.rows_per_epoch = len(rows)

    def order(self, numbers: np.ndarray) -> np.ndarray:
        """The row that comes as number k of the run, for each k (int64 [n])."""
        epochs, within = np.divmod(np.asarray(numbers, np.int64), self.rows_per_epoch)
        return permute(within, self.rows_per_epoch, mix(self.seed, _ORDER, epochs))

    def rows_for(self, examples_seen: int, places: np.ndarray | slice | range) -> Batch:
        """The rows at some places of the batch that begins after `examples_seen` rows, in the order of the places."""
        if isinstance(places, slice):
            places = range(places.start or 0, places.stop, places.step or 1)
        numbers = examples_seen + np.asarray(places, np.int64)
        batch = self.rows.take(self.order(numbers))
        return self._prepare(batch, mix(self.seed, _CORRUPTION, numbers)) if self._prepare else batch


def prefetch(make: Callable[[Position], Made], positions: Iterable[Position], depth: int = 2) -> Generator[Made]:
    """`make` of each position, in order, up to `depth` of them made ahead in a background thread.

    What `make` raises is raised here, in its turn. When the consumer stops, the thread ends.
    """
    upcoming = iter(positions)
    executor = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting: deque[Future[Made]] = deque(executor.submit(make, position) for position in islice(upcoming, depth))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(executor.submit(make, position) for position in islice(upcoming, 1))
            yield made
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
