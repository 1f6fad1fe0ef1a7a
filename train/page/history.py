"""What a run's metrics.jsonl says, in bounded memory, however many rows it has."""

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from etils import epath

from train.run_directory import count_of, is_number, number_of, read_row
from train.units import count

SPEED, MFU, MEMORY = "perf/per_device_tokens_per_sec", "perf/mfu", "perf/memory_bytes"
_CURVES = 64  # of a run at most
_DRAWN = ("learning/", "eval/", SPEED, MFU, MEMORY)
_KEPT, _MOST = 4_000, 16_000  # points of a curve after it was thinned, and before
_RISES = 400


class Measured(NamedTuple):
    """A value of a row: at which step, and after how many tokens."""

    step: int
    tokens: int
    value: float


class History:
    """The curves of a run's rows by name, thinned, and its first and last row; `read_on` takes what rows are new."""

    def __init__(self) -> None:
        self.curves: dict[str, list[Measured]] = {}
        self.first: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self._read = 0  # bytes

    def read_on(self, path: epath.Path) -> None:
        """Takes the rows behind those that were taken; a torn last line waits for its end, others are passed over."""
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                row = read_row(line)
                self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """Takes a row, unless its step is not behind those before."""
        step, tokens = count_of(row, "step"), count_of(row, "tokens")
        if step <= count_of(self.last, "step"):
            return
        self.first, self.last = self.first or row, row
        for name, value in row.items():
            if not name.startswith(_DRAWN) or not is_number(value):
                continue
            if name not in self.curves and len(self.curves) == _CURVES:
                continue
            curve = self.curves.setdefault(name, [])
            curve.append(Measured(step, tokens, value))
            if len(curve) > _MOST:
                curve[:] = thin(curve, _KEPT)

    def curve(self, name: str, most: int = _KEPT) -> list[Measured]:
        """At most about so many points of a curve."""
        return thin(self.curves.get(name, []), most)

    def rises(self, name: str) -> Iterator[tuple[Measured, float]]:
        """Where a value that only counts upwards became more, and by how much; of very many, some together."""
        before = 0.0
        for point in self.curve(name, _RISES):
            if point.value > before:
                yield point, point.value - before
            before = point.value


def thin(points: Sequence[Measured], most: int) -> list[Measured]:
    """Of each stretch of steps the first point, the lowest, the highest and the last: at most `most` in all.

    The stretches are short by count of steps and by their logarithm, so that on either axis nothing is lost to the eye.
    """
    if len(points) <= most:
        return list(points)
    begin, end = points[0].step, points[-1].step
    each = most // 8 - 1  # of two kinds of stretches, four points each

    def stretch(point: Measured) -> tuple[int, int]:
        share = (point.step - begin) / (end - begin)
        share_of_log = math.log1p(point.step - begin) / math.log1p(end - begin)
        return int(each * share), int(each * share_of_log)

    kept: list[Measured] = []
    for _, group in itertools.groupby(points, key=stretch):
        within = list(group)
        lowest, highest = (choose(within, key=attrgetter("value")) for choose in (min, max))
        kept += sorted({within[0], lowest, highest, within[-1]})
    return kept


def figure(value: Any) -> str:
    """A measured number as people read it: four digits of it, or -."""
    if not is_number(value):
        return "-"
    return f"{value:,.4g}".replace("e-0", "e-") if abs(value) < 1e4 else count(value)


def moment(row: Mapping[str, Any]) -> str:
    """When a row was written, in this machine's time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(max(0.0, min(number_of(row, "time"), 1e11))))
