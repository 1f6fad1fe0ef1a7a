"""One row in a process of its own, prepared as a command's is: `child.py CORES REPETITIONS FILE MODULE:ROW:NAME`.

Cores and allocator are settled before JAX and PyTorch are imported, since both look only then.
"""

import importlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from train.environment import prepare

_LEAST_SECONDS = 0.3  # a sample's; what takes less is called several times
_SETTLE_SECONDS = 0.05  # thread pools spin for a moment after their work, and would be billed to the next system


def main(cores: str, repetitions: str, file: str, row: str) -> None:
    """Measures the row on these cores ("0,1"), and writes what it found."""
    tempfile.tempdir = str(Path(file).parent)  # which is deleted when the row is done
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    prepare()
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")  # on a GPU, which PyTorch shares
    module, function, name = row.split(":")
    found = getattr(importlib.import_module(module), function)(name)
    if "systems" in found:
        found["samples"] = interleaved(found.pop("systems"), int(repetitions))
    Path(file).write_text(json.dumps(found))


def interleaved(systems: Mapping[str, Callable], repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Seconds that a call takes, "cpu" (of all threads) and "wall", one of each a round; in a round each has its turn.

    So whatever else the machine does meets all systems alike. A call returns when its work is done.
    """
    calls = {}
    for name, call in systems.items():
        call()  # compiles, and fills caches
        calls[name] = math.ceil(_LEAST_SECONDS / _seconds(call, 1)[1])
    rounds = [{name: _seconds(call, calls[name]) for name, call in systems.items()} for _ in range(repetitions)]
    return {name: {"cpu": [r[name][0] for r in rounds], "wall": [r[name][1] for r in rounds]} for name in systems}


def _seconds(call: Callable, times: int) -> tuple[float, float]:
    time.sleep(_SETTLE_SECONDS)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(times):
        call()
    return (time.process_time() - cpu) / times, (time.perf_counter() - wall) / times


if __name__ == "__main__":
    main(*sys.argv[1:])
