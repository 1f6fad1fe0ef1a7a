"""How many rows each step learns from: always the same, or more and more of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

_OPERATIONAL = {"operational": True}


@dataclass(frozen=True)
class RampConfig:
    """A batch that grows: of `batch_size` rows at first, and doubled at equal intervals of the first `steps` steps.

    At 0 steps it is whole from the first step on. (GPT-3's grew over the first 2 % of the run.)
    """

    batch_size: int = field(default=0, metadata=_OPERATIONAL)
    steps: int = field(default=0, metadata=_OPERATIONAL)


class Turn(NamedTuple):
    """What a step learns from: `rows` rows from the data position on."""

    step: int  # the first is 1
    position: int
    rows: int


@dataclass(frozen=True)
class BatchSizes:
    """The rows of each step, a function of its number.

    Args:
        whole: rows of a batch that has grown.
        micro_batches: parts in which that is computed.
        ramp: how it grows.
    """

    whole: int
    micro_batches: int
    ramp: RampConfig

    def validate(self) -> None:
        """Raises ValueError where the batch does not come to its size by doubling, or begins a ramp of no steps."""
        if self.ramp.batch_size and not self.ramp.steps:
            raise ValueError(f"ramp.batch_size={self.ramp.batch_size} begins a ramp of no steps; pass --ramp.steps too")
        if self.ramp.steps and self.whole not in (self.ramp.batch_size << i for i in range(32)):
            raise ValueError(
                f"ramp.batch_size={self.ramp.batch_size} does not become batch_size={self.whole} by doubling; take "
                f"{self.whole // 8 or 1} and a batch_size of {8 * (self.whole // 8 or 1)}, for example"
            )

    @property
    def sizes(self) -> list[int]:
        """All sizes, ascending."""
        if not self.ramp.steps:
            return [self.whole]
        return [self.ramp.batch_size << i for i in range(self._doublings() + 1)]

    def of(self, step: int) -> int:
        """The rows of a step."""
        done = min(self._doublings(), (step - 1) * self._doublings() // max(1, self.ramp.steps))
        return self.whole >> (self._doublings() - done)

    def between(self, first: int, last: int) -> list[int]:
        """The sizes that a batch has from one step to another, ascending, but for the whole one."""
        return [size for size in self.sizes if self.of(first) <= size <= self.of(last) and size < self.whole]

    def parts(self, rows: int) -> int:
        """Into how many micro-batches a batch of these rows is divided: none is larger than those of a whole one."""
        least = -(-rows * self.micro_batches // self.whole)
        return next(parts for parts in range(least, rows + 1) if rows % parts == 0)

    def examples(self, steps: int) -> int:
        """How many rows the first so many steps take."""
        growing = min(steps, self.ramp.steps)
        return sum(map(self.of, range(1, growing + 1))) + (steps - growing) * self.whole

    def turns(self, done: int, last: int, position: int) -> Iterator[Turn]:
        """The steps from `done` + 1 to `last`, the first of which begins at a data position."""
        for step in range(done + 1, last + 1):
            rows = self.of(step)
            yield Turn(step, position, rows)
            position += rows

    def _doublings(self) -> int:
        return (self.whole // self.ramp.batch_size).bit_length() - 1 if self.ramp.steps else 0
