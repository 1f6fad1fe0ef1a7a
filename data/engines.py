"""Corpora that outgrow one machine: the same shards, made by an engine that has many.

Ray Data (https://docs.ray.io/en/latest/data/data.html, extra "ray") hands out the numbers of the shards; each task
makes its shard in the cache's folder, as every process does that prepares (data/plan.py), so the result is the same
byte by byte. The machines must see the cache and the text under the same paths, and have this program installed.
"""

import importlib
import json
import os
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

from data.plan import Plan
from data.prepare import Tally, prepare_with
from data.progress import Progress
from data.shard_writer import write_shard
from data.shards import PreparedCorpus
from data.sources import Source
from data.tokenizers.base import Tokenizer


def prepare_with_ray(source: Source, tokenizer: Tokenizer, progress: Progress | None = None) -> PreparedCorpus:
    """`prepare_corpus` on the Ray cluster that this process has joined with `ray.init`, or else on one of its own.

    Raises:
        ValueError: as of `prepare_corpus`; or Ray is not installed.
    """
    return prepare_with(_run_tasks, source, tokenizer, progress)


def _run_tasks(plan: Plan, tally: Tally) -> None:
    try:
        ray_data = importlib.import_module("ray.data")  # checked without this extra, too
    except ImportError as error:
        raise ValueError('Ray is not installed; run pip install "jumok[ray]"') from error
    count, described = len(plan.pieces), json.dumps(plan.to_json() | {"directory": os.getcwd()})
    numbers = ray_data.range(count, override_num_blocks=count)  # a task each
    for row in numbers.map(partial(_make, described)).iter_rows():
        if row["refused"]:
            raise ValueError(row["refused"])
        if row["made"]:
            tally.made(row["id"])


def _make(described: str, row: dict[str, Any]) -> dict[str, Any]:
    """Makes the shard of number `id`. What is refused is returned: Ray would wrap an exception in its own."""
    try:
        return row | {"made": write_shard(_opened(described), row["id"], threads=1), "refused": ""}
    except ValueError as error:
        return row | {"made": False, "refused": str(error)}


@lru_cache(1)
def _opened(described: str) -> Plan:
    value = json.loads(described)
    with suppress(FileNotFoundError):  # where there is none, absolute paths still serve
        os.chdir(value["directory"])
    return Plan.from_json(value)
