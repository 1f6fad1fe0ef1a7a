"""Timing: systems in turn in one process, so that what else the machine does meets all of them alike."""

import math
import time
from collections.abc import Callable, Mapping

_LEAST_SECONDS = 0.3  # a sample's; what takes less is called several times
_SETTLE_SECONDS = 0.05  # thread pools spin for a moment after their work, and would be billed to the next system

Samples = dict[str, list[float]]


def interleaved(systems: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, Samples]:
    """Seconds that one call takes: for each system "cpu" (of all threads together) and "wall", one a repetition.

    Args:
        systems: what is called; a call returns when its work is done, and its first two are not counted.
        repetitions: rounds, in each of which every system has its turn.
    """
    calls = {}
    for name, call in systems.items():
        call()  # compiles, and fills caches
        calls[name] = math.ceil(_LEAST_SECONDS / _seconds(call, 1)["wall"])
    samples: dict[str, Samples] = {name: {"cpu": [], "wall": []} for name in systems}
    for _ in range(repetitions):
        for name, call in systems.items():
            for clock, seconds in _seconds(call, calls[name]).items():
                samples[name][clock].append(seconds)
    return samples


def _seconds(call: Callable[[], object], times: int) -> dict[str, float]:
    time.sleep(_SETTLE_SECONDS)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(times):
        call()
    return {"cpu": (time.process_time() - cpu) / times, "wall": (time.perf_counter() - wall) / times}
