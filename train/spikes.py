"""Spikes of the loss: found by the steps before them, and left behind by going back and past the data."""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

import jax

from train.ramp import Turn

_REMEMBERED = 100  # steps before one, by which it is judged
_LEAST = 20  # of them, before which nothing is judged
_STEADY = 1e-3  # of the median; losses that hardly change deviate by no less
_AT_ONCE = 16  # losses that are read together, so that the devices seldom wait for the host


@dataclass(frozen=True)
class SpikeConfig:
    """What a spike of the loss is, and how a run goes on after one.

    A loss is a spike that is over the median of the 100 steps before it by `deviations` times their median absolute
    deviation (0: none is; 20 leaves what is usual alone). The run then goes back to its newest checkpoint, and on with
    the data behind the spike, of which it leaves out another `skip` batches; at most `limit` times a start.
    """

    deviations: float = field(default=0.0, metadata={"operational": True})
    skip: int = field(default=0, metadata={"operational": True})
    limit: int = field(default=5, metadata={"operational": True})


class Spike(RuntimeError):
    """The loss of a step is out of all proportion. `position` is that of the data from which to go on."""

    def __init__(self, step: int, loss: float, median: float, position: int):
        super().__init__(f"step {step}: the loss is {loss:.4g}, and its median was {median:.4g}")
        self.position = position


class Diverged(RuntimeError):
    """What is learned comes to nothing: too many spikes, or steps in a row whose gradients were not finite."""


class SpikeWatch:
    """Judges each step's loss by those before it: a function of these alone, so that a run repeats exactly.

    Args:
        config: what a spike is.
        losses: those before the first step, as `record` gave them.
        rewound: how often this start of the run has gone back before.
    """

    def __init__(self, config: SpikeConfig, losses: Sequence[float] = (), rewound: int = 0):
        self._config, self._rewound = config, rewound
        self._losses = deque(losses, maxlen=_REMEMBERED)
        self._waiting: list[tuple[Turn, jax.Array]] = []

    def after(self, turn: Turn, loss: jax.Array) -> None:
        """Takes a step's loss, still on the devices; raises, as `settle` does, for one before."""
        if self._config.deviations:
            if len(self._waiting) >= _AT_ONCE:
                self.settle()
            self._waiting.append((turn, loss))

    def settle(self) -> None:
        """Judges all that were taken; raises Spike at the first that is one, and Diverged where it is one too many."""
        waiting, self._waiting = self._waiting, []
        losses = jax.device_get([loss for _, loss in waiting])
        for (turn, _), loss in zip(waiting, losses, strict=True):
            self._judge(turn, float(loss))

    def record(self) -> list[float]:
        """What is to be remembered with a checkpoint."""
        return list(self._losses)

    def _judge(self, turn: Turn, loss: float) -> None:
        if not isfinite(loss):  # such a step has changed nothing
            return
        if len(self._losses) >= _LEAST:
            median = statistics.median(self._losses)
            deviation = statistics.median(abs(other - median) for other in self._losses)
            deviation = max(deviation, _STEADY * abs(median))
            if loss - median > self._config.deviations * deviation:
                spike = Spike(turn.step, loss, median, turn.position + (1 + self._config.skip) * turn.rows)
                if self._rewound < self._config.limit:
                    raise spike
                raise Diverged(
                    f"{spike}, and this start of the run has gone back {self._rewound} times before; begin anew with a "
                    "lower --optimizer.learning-rate, or go on with a higher --spikes.limit"
                )
        self._losses.append(loss)
