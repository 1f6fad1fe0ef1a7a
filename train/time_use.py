"""Where the wall time of a run went, over all the times that it was started."""

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, get_args

Part = Literal[
    "startup",  # from the command's first moment: imports, data, the checkpoint that is gone on from
    "compile",
    "steps",  # the productive part, waits for the devices included
    "data",  # in which the loop waited for a batch
    "checkpoint",  # in which a save held the loop up
    "evaluation",  # held-out data, and the samples on the way
    "report",  # the run's page
    "lost",  # from a checkpoint to the start that went on from it
]
Item = TypeVar("Item")
_NONE: Any = object()
CURVE = "time/"  # what the names of the parts' seconds begin with


class TimeUse:
    """At every moment one part is counted, so that the parts add up to the time since the run's first start.

    Args:
        began: when this process began to work on the run, in Unix seconds.
    """

    def __init__(self, began: float):
        self._began = began
        self._seconds = dict.fromkeys(get_args(Part), 0.0)
        self._part: Part = "startup"
        self._since = time.monotonic() - max(0.0, time.time() - began)

    def go_on_from(self, record: Mapping[str, Any]) -> None:
        """Takes over what a checkpoint recorded; what came between it and this process is lost."""
        for part, seconds in record["seconds"].items():
            self._seconds[part] += seconds
        self._seconds["lost"] += max(0.0, self._began - record["until"])  # clocks may be set back

    def go_on_without_checkpoint(self, row: Mapping[str, Any]) -> None:
        """Counts all since the run's first start as lost: `row` is any that it logged, of which nothing was kept."""
        spent = sum(value for name, value in row.items() if name.startswith(CURVE))
        self.go_on_from({"seconds": {}, "until": row["time"] - spent})

    @contextlib.contextmanager
    def of(self, part: Part) -> Iterator[None]:
        """Counts what is done here as `part`."""
        before = self._switch(part)
        try:
            yield
        finally:
            self._switch(before)

    def waiting(self, part: Part, items: Iterable[Item]) -> Generator[Item]:
        """The items, of which the wait for each is counted as `part`."""
        iterator = iter(items)
        while True:
            with self.of(part):
                item = next(iterator, _NONE)
            if item is _NONE:
                return
            yield item

    def seconds(self) -> dict[str, float]:
        """The seconds of each part up to now."""
        self._switch(self._part)
        return dict(self._seconds)

    def record(self) -> dict[str, Any]:
        """What `go_on_from` takes over."""
        return {"seconds": self.seconds(), "until": time.time()}

    def curves(self) -> dict[str, float]:
        """The seconds of each part, and the share of the productive one, under TensorBoard's names."""
        seconds = self.seconds()
        curves = {f"{CURVE}{part}_seconds": value for part, value in seconds.items()}
        return {"perf/goodput": seconds["steps"] / max(1e-9, sum(seconds.values())), **curves}

    def summary(self) -> str:
        """The parts' shares in words, the largest first."""
        seconds = self.seconds()
        total = max(1e-9, sum(seconds.values()))
        shares = sorted(((value / total, part) for part, value in seconds.items()), reverse=True)
        return ", ".join(f"{part} {share:.1%}" for share, part in shares if share >= 0.0005) + f" of {total:,.1f} s"

    def _switch(self, part: Part) -> Part:
        now = time.monotonic()
        self._seconds[self._part] += now - self._since
        before, self._part, self._since = self._part, part, now
        return before
