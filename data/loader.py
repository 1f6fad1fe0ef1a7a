"""Batches as a function of one number, the examples seen so far.

Row number k of a run is k = examples_seen + place. It comes from the source whose turn it is (data/mixture.py; with
one source, always that), as the m-th row drawn from it; its epoch there is m // R, for R rows; and the row is a
permutation of (seed, source, epoch) at m mod R. So each row of a source comes exactly once in each of its epochs,
batches straddle epochs, and nothing depends on the number of hosts, the mesh, micro-batches, restarts, or on the batch
size so far.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from data.mixture import Mixture
from data.order import mix, permute

Batch = dict[str, np.ndarray]
Position = TypeVar("Position")
Made = TypeVar("Made")

# What a number is drawn for, so that orders and corruption of equal (seed, number) are independent. The order of a
# second source and its followers is drawn for 2, 3, ...
_ORDER, _CORRUPTION = 0, 1
_AHEAD = 4096  # rows that are located at once: as fast as a few, and a batch of few is no slower than one of many


class Rows(Protocol):
    """What a loader reads. A source of one's own is a class that inherits from this one and has the two functions."""

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def take(self, indices: np.ndarray) -> Batch:
        """The rows of these numbers (int64 [n]), as arrays [n, ...]."""
        ...

    @property
    def fill(self) -> float:
        """The share of places that hold tokens."""
        return 1.0

    @property
    def left_out(self) -> str:
        """In words, what of the source is in no row; "" where all of it is."""
        return ""


class Located(NamedTuple):
    """Where some rows of a run come from: the number of a source, an epoch of it, a row of it; each int64 [n]."""

    sources: np.ndarray
    epochs: np.ndarray
    rows: np.ndarray


class Loader:
    """The batches of a run.

    Args:
        sources: what is read; all give arrays of the same names and shapes.
        seed: of the order, and of what `prepare` draws.
        prepare: changes a batch's rows, for example by masking, given a uint64 [n] of keys, one a row, that are
            functions of (seed, k): whatever it draws must come from them.
        weights: of the sources, in any unit; by default their numbers of rows, so that all have equal epochs.
        names: of the sources, for people; by default they are numbered from 1.

    Raises:
        ValueError: a weight that is not above zero, or too small.
    """

    def __init__(
        self,
        sources: Sequence[Rows],
        seed: int,
        prepare: Callable[[Batch, np.ndarray], Batch] | None = None,
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
    ):
        self.sources, self.seed, self._prepare = tuple(sources), seed, prepare
        self.names = tuple(names or (str(number + 1) for number in range(len(sources))))
        self._mixture = Mixture(weights or [len(rows) for rows in sources], self.names)
        self._ahead = 0, self._locate(np.arange(_AHEAD))

    def drawn(self, examples_seen: int) -> list[int]:
        """How many of the run's first `examples_seen` rows come from each source."""
        return self._mixture.drawn(examples_seen)

    def locate(self, numbers: np.ndarray) -> Located:
        """Where the rows with these numbers k of the run (int64 [n]) come from."""
        numbers = np.asarray(numbers, np.int64)
        if not numbers.size or numbers.max() - numbers.min() >= _AHEAD:
            return self._locate(numbers)
        begin, ahead = self._ahead
        if not begin <= numbers.min() <= numbers.max() < begin + _AHEAD:
            begin = int(numbers.min())
            ahead = self._locate(np.arange(begin, begin + _AHEAD))
            self._ahead = begin, ahead  # at once, since threads may ask at the same time
        return Located(*(values[numbers - begin] for values in ahead))

    def rows_for(self, examples_seen: int, places: np.ndarray | slice | range) -> Batch:
        """The rows at some places of the batch that begins after `examples_seen` rows, in the order of the places."""
        if isinstance(places, slice):
            places = range(places.start or 0, places.stop, places.step or 1)
        numbers = examples_seen + np.asarray(places, np.int64)
        batch = self._take(self.locate(numbers))
        return self._prepare(batch, mix(self.seed, _CORRUPTION, numbers)) if self._prepare else batch

    def _locate(self, numbers: np.ndarray) -> Located:
        sources, drawn = self._mixture.locate(numbers)
        epochs, rows = np.empty_like(drawn), np.empty_like(drawn)
        for source in np.unique(sources):
            at, size = sources == source, len(self.sources[source])
            epochs[at], within = np.divmod(drawn[at], size)
            purpose = _ORDER if source == 0 else _CORRUPTION + source
            rows[at] = permute(within, size, mix(self.seed, purpose, epochs[at]))
        return Located(sources, epochs, rows)

    def _take(self, located: Located) -> Batch:
        present = np.unique(located.sources)
        if len(present) <= 1:  # none where a host has no place
            return self.sources[present[0] if len(present) else 0].take(located.rows)
        batch: Batch = {}
        for source in present:
            at = located.sources == source
            for name, values in self.sources[source].take(located.rows[at]).items():
                if name not in batch:
                    batch[name] = np.empty((len(at), *values.shape[1:]), values.dtype)
                batch[name][at] = values
        return batch


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
