"""One of the processes that data/prepare.py starts: `python -m data.prepare_worker FIRST THREADS`.

It reads the plan from standard input and makes what shards it can, from number FIRST on and around. On standard output
it says in lines of JSON how far it is, and what it refuses. It ends with its parent: when standard input closes.
"""

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

from data.plan import Plan
from data.shard_writer import write_shard


def main(first: int, threads: int) -> None:
    """Makes shards until all are there or in others' hands. What libraries print goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        _make_shards(first, threads)


def _make_shards(first: int, threads: int) -> None:
    described = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        plan = Plan.from_json(described)
        count = len(plan.pieces)
        for number in range(first, first + count):
            write_shard(plan, number % count, threads, lambda shard, read: _say(shard=shard, read=read))
    except (ValueError, FileNotFoundError) as error:
        if Path(described["target"]).exists():  # another host has finished the corpus, and tidied up
            return
        if not isinstance(error, ValueError):
            raise
        _say(refused=str(error))


def _say(**values: int | str) -> None:
    os.write(1, f"{json.dumps(values)}\n".encode())


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
