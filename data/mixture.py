"""Sources in given shares, interleaved by a fixed table, so that any row of the run is found without those before it.

The table has 65,536 slots and repeats through the run. A source has as many slots as its share of the weights comes
to, rounded by largest remainders, and they are spread evenly: its t-th of n stands at (t + 1/2) / n of the table. So
of the first k rows of the run, whatever k, each source gives its share to within a few rows; and what a source gives
is numbered 0, 1, 2, ... without a gap, so that its own epochs are exact: each of its rows once in every one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SLOTS = 1 << 16
HELD_OUT = "held out"  # what reports call the validation text beside the sources
_EXAMPLE = "NAME=WEIGHT:PATH, such as web=3:web.jsonl, or NAME=2.5epochs:PATH"


@dataclass(frozen=True)
class Portion:
    """One source of a mixture.

    Attributes:
        name: what it is called in reports.
        path: where its text is.
        amount: its weight or, where `epochs`, how often its rows come for the others' epochs.
        epochs: which of these the amount is.
    """

    name: str
    path: str
    amount: float
    epochs: bool = False

    def weight(self, rows: int) -> float:
        """Its weight in the mixture, for a source of that many rows."""
        return self.amount * rows if self.epochs else self.amount


def parse_mixture(specs: Sequence[str]) -> tuple[Portion, ...]:
    """The portions that NAME=WEIGHT:PATH or NAME=2.5epochs:PATH describe.

    Raises:
        ValueError: parts that are missing, an amount that is no number above zero, two sources of one name or one of
            a name that reports use, or weights beside epochs.
    """
    portions = tuple(map(_parse, specs))
    named: dict[str, Portion] = {}
    for portion in portions:
        if portion.name in named:
            raise ValueError(
                f"two sources of the mixture are named {portion.name!r}, {named[portion.name].path} and "
                f"{portion.path}; give each a name of its own"
            )
        named[portion.name] = portion
    if len({portion.epochs for portion in portions}) > 1:
        by_weight, by_epochs = (next(p.name for p in portions if p.epochs is kind) for kind in (False, True))
        raise ValueError(
            f"the mixture gives {by_weight!r} a weight and {by_epochs!r} a number of epochs; "
            f"give all sources weights, or all of them epochs"
        )
    return portions


def _parse(spec: str) -> Portion:
    name, equals, rest = spec.partition("=")
    amount, colon, path = rest.partition(":")
    if not equals or not colon:
        raise ValueError(f"{spec!r} is not a source of a mixture; write {_EXAMPLE}")
    if not name or not path:
        raise ValueError(f"{spec!r} has an empty {'path' if name else 'name'}; write {_EXAMPLE}")
    if name == HELD_OUT:
        raise ValueError(f"no source can be named {name!r}, as reports call the validation text; name it otherwise")
    number = amount.removesuffix("epochs").removesuffix("epoch")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{amount!r} in {spec!r} is not a number; write {_EXAMPLE}")
    if value <= 0:
        has = f"a weight of {number}" if number == amount else f"{number} epochs"
        raise ValueError(
            f"the source {name!r} has {has}, which must be above zero; leave the source out, or give it more"
        )
    return Portion(name, path, value, number != amount)


class Mixture:
    """Which source each row of a run comes from.

    Args:
        weights: of the sources, in any unit.
        names: what an error calls them.

    Raises:
        ValueError: a weight that is not above zero, or too small for one slot of the table.
    """

    def __init__(self, weights: Sequence[float], names: Sequence[str]):
        self._shares = _shares(np.array(weights, np.float64), names)
        sources = np.repeat(np.arange(len(weights)), self._shares)
        turns = np.concatenate([np.arange(share) for share in self._shares])  # of each source, its 0th, 1st, ...
        order = np.argsort((turns + 0.5) / self._shares[sources], kind="stable")
        self._sources, self._turns = sources[order], turns[order]

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each row number k of the run, its source, and how many rows that source gave before (int64 [n])."""
        rounds, slots = np.divmod(numbers, SLOTS)
        sources = self._sources[slots]
        return sources, rounds * self._shares[sources] + self._turns[slots]

    def drawn(self, examples_seen: int) -> list[int]:
        """How many of the first `examples_seen` rows come from each source."""
        rounds, slots = divmod(examples_seen, SLOTS)
        return (rounds * self._shares + np.bincount(self._sources[:slots], minlength=len(self._shares))).tolist()


def _shares(weights: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The slots of each source, int64, which add up to all of them."""
    for name, weight in zip(names, weights, strict=True):
        if not 0 < weight < math.inf:
            raise ValueError(f"the source {name!r} has a weight of {weight:g}, which must be a number above zero")
    quotas = weights / weights.sum() * SLOTS
    for name, weight, quota in zip(names, weights, quotas, strict=True):
        if quota < 1:
            least = math.ceil((weights.sum() - weight) / (SLOTS - 1) / weight * 100) / 100
            raise ValueError(
                f"the source {name!r} has {quota / SLOTS:.1g} of the mixture, less than one row in {SLOTS:,}; "
                f"the least that works beside the others is {least:,.2f} times that"
            )
    shares = np.floor(quotas).astype(np.int64)
    most_left = np.argsort(shares - quotas, kind="stable")
    shares[most_left[: SLOTS - shares.sum()]] += 1
    return shares
