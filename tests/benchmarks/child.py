"""One row in a process of its own, prepared as a command's is: `child.py CORES REPETITIONS FILE MODULE:NAME`.

Cores and allocator are settled before JAX and PyTorch are imported, since both look only then.
"""

import importlib
import json
import os
import sys
from pathlib import Path

from train.environment import prepare


def main(cores: str, repetitions: str, file: str, row: str) -> None:
    """Measures the row on these cores ("0,1") and writes what it found."""
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.environ["OMP_NUM_THREADS"] = str(len(cores.split(",")))  # the default, unless the environment says otherwise
    prepare()
    module, _, name = row.partition(":")
    result = importlib.import_module(module).measure(name, int(repetitions))
    Path(file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
