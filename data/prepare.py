"""Documents to tokens on disk, once: by any number of processes on any number of hosts that share the cache.

Each process makes shards that nobody else has in hand, until all are there (data/plan.py). Then one of them puts the
documents' columns and `index.json` beside the tokens, and the folder becomes a corpus that data/shards.py reads.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from data.cache import cache_path, digest_of, sync, written_atomically
from data.plan import Plan, locked, make_plan
from data.progress import Progress
from data.shard_writer import REFUSALS_KEPT, write_shard
from data.shards import DOCUMENT_COLUMNS, FORMAT, PreparedCorpus
from data.sources import Source
from data.tokenizers.base import Tokenizer

_POLL_SECONDS = 0.5
_ROWS = 1 << 16  # documents that are put together at once


class Tally:
    """Adds up how far the shards are, for a progress bar."""

    def __init__(self, plan: Plan, progress: Progress | None):
        self._plan, self._progress = plan, progress or (lambda done, total: None)
        self._reached = [0] * len(plan.pieces)

    def at(self, number: int, read: int) -> None:
        """Shard `number` is made as far as `read` stored bytes of its piece."""
        self._reached[number] = min(read, self._plan.sizes[number])
        self._progress(sum(self._reached), sum(self._plan.sizes))

    def made(self, number: int) -> None:
        """Shard `number` is there."""
        self.at(number, self._plan.sizes[number])

    def look(self) -> None:
        """Counts what other processes made."""
        for number, size in enumerate(self._plan.sizes):
            if self._reached[number] < size and self._plan.record(number).exists():
                self.made(number)


Engine = Callable[[Plan, Tally], None]
"""Makes the shards of a plan, all or some of them, by calling `write_shard`."""


def prepare_corpus(
    source: Source, tokenizer: Tokenizer, progress: Progress | None = None, workers: int | None = None
) -> PreparedCorpus:
    """The source's documents as tokens: from the cache, or tokenized into it.

    Args:
        source: whose documents.
        tokenizer: of which tokens.
        progress: called now and then, where there is something to do, with the stored bytes done and those in all.
        workers: how many processes at most; by default one for each core that this process may use.

    Raises:
        ValueError: whatever is wrong with a file, text that the tokenizer can't encode, or no text at all.
        RuntimeError: a process died; calling again goes on.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} must be at least 1; leave it out to use all {_cores()} cores")

    def in_processes(plan: Plan, tally: Tally) -> None:
        processes = min(len(plan.pieces), workers or _cores())
        if processes > 1:
            _run_workers(plan, tally, processes, max(1, _cores() // processes))

    return prepare_with(in_processes, source, tokenizer, progress)


def prepare_with(engine: Engine, source: Source, tokenizer: Tokenizer, progress: Progress | None) -> PreparedCorpus:
    """`prepare_corpus`, its shards made by `engine`, and in this process what that leaves."""
    digest = digest_of(FORMAT, source.digest, tokenizer.digest)
    target = cache_path("corpora") / digest
    if not target.exists():  # what is there is only read, and the cache may be read-only
        _prepare(engine, make_plan(target, source, tokenizer), progress)
    for left in target.parent.glob(f"{digest}-*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    return PreparedCorpus(target)


def _prepare(engine: Engine, plan: Plan, progress: Progress | None) -> None:
    is_new = not plan.folder.exists()
    plan.corpus.mkdir(parents=True, exist_ok=True)
    try:
        tally = Tally(plan, progress)
        engine(plan, tally)
        missing = range(len(plan.pieces))
        while missing := [number for number in missing if not write_shard(plan, number, _cores(), tally.at)]:
            tally.look()
            time.sleep(_POLL_SECONDS)  # these are in the hands of other processes
        tally.look()
        _finish(plan)
    except FileNotFoundError as error:
        if not plan.target.exists():  # otherwise another process was faster, and tidied up
            raise RuntimeError(f"{plan.folder} was removed while it was in use; run again") from error
    except ValueError:
        with suppress(FileNotFoundError):  # another process refuses the same file, and has tidied up
            if is_new and not any(path.stat().st_size for path in plan.corpus.iterdir()):  # nothing worth keeping
                shutil.rmtree(plan.folder, ignore_errors=True)
        raise


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _finish(plan: Plan) -> None:
    """Makes the corpus of its shards, or waits for the process that does."""
    while not plan.target.exists():
        with locked(plan.folder / "lock-finish") as ours:
            if ours and not plan.target.exists():
                _write_index(plan)
                os.rename(plan.corpus, plan.target)
                sync(plan.target.parent)
        if not ours:
            time.sleep(_POLL_SECONDS)


def _write_index(plan: Plan) -> None:
    records = [json.loads(plan.record(number).read_text()) for number in range(len(plan.pieces))]
    counted = ("tokens", "documents", "given", "bytes", "words", "empty", "refused")
    total = {name: sum(record[name] for record in records) for name in counted}
    refusals = [sentence for record in records for sentence in record["refusals"]][:REFUSALS_KEPT]
    if not total["documents"]:
        why = f" that can be read ({refusals[0]})" if refusals else ""
        first = plan.pieces[0]
        remedy = f"pass {first.valid_options}" if first.is_held_out else "give a file with some"
        raise ValueError(f"{plan.name} holds no text{why}; {remedy}")
    columns = list(DOCUMENT_COLUMNS)
    if total["given"] == total["documents"]:  # start tokens alone, which takes no column to say
        columns.remove("given")
    longest = 0
    with ExitStack() as stack:
        files = {}
        for name in columns:
            path = stack.enter_context(written_atomically(plan.corpus / f"{name}.bin", plan.folder))
            files[name] = stack.enter_context(path.open("wb"))
        for rows, following in _documents(plan, records):
            for name, file in files.items():
                file.write(np.ascontiguousarray(rows[:, DOCUMENT_COLUMNS.index(name)]))
            longest = max(longest, int(np.diff(rows[:, 0], append=following).max()))
    shards = [
        {"file": plan.tokens(number).name, "tokens": record["tokens"], "sha256": record["sha256"]}
        for number, record in enumerate(records)
        if record["tokens"]
    ]
    index = {
        "format": FORMAT,
        "digest": plan.target.name,
        "tokenizer": plan.tokenizer.digest,
        "ids": plan.tokenizer.vocab_size,
        "dtype": plan.dtype.name,
        **total,
        "longest": longest,
        "refusals": refusals,
        "columns": columns,
        "shards": shards,
    }
    with written_atomically(plan.corpus / "index.json", plan.folder) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n")


def _documents(plan: Plan, records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[np.ndarray, int]]:
    """The documents in chunks: rows of int64 [n, 4] that start in the whole stream, and where the next one starts."""
    width, offset = len(DOCUMENT_COLUMNS), 0
    held = np.zeros((0, width), np.int64)  # the last document, which the next shard may go on with
    for number, record in enumerate(records):
        with plan.documents(number).open("rb") as file:
            while len(numbers := np.fromfile(file, "<i8", _ROWS * width)):
                rows = numbers.reshape(-1, width)
                if rows[0, 0] < 0:
                    held[:, 1:] += rows[0, 1:]
                    rows = rows[1:]
                rows[:, 0] += offset
                rows = np.concatenate([held, rows])
                if len(rows) > 1:
                    yield rows[:-1], int(rows[-1, 0])
                held = rows[-1:]
        offset += record["tokens"]
    yield held, offset


def _run_workers(plan: Plan, tally: Tally, processes: int, threads: int) -> None:
    """Makes shards in processes of their own, until all are there or in the hands of other hosts.

    Raises:
        ValueError: what a worker refused.
        RuntimeError: a worker died.
    """
    # `data` is this one, whatever else of that name lies in the working directory or along the path.
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    described = json.dumps(plan.to_json()).encode() + b"\n"
    events: SimpleQueue[dict[str, Any]] = SimpleQueue()
    running: list[tuple[subprocess.Popen[bytes], threading.Thread]] = []
    try:
        for number in range(processes):
            first = number * len(plan.pieces) // processes
            worker = subprocess.Popen(
                [sys.executable, "-P", "-m", "data.prepare_worker", str(first), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": path},
                process_group=0,  # Ctrl-C is for this process, which ends the others
            )
            listener = threading.Thread(target=_listen, args=(worker, described, events), daemon=True)
            running.append((worker, listener))
            listener.start()
        while processes:
            try:
                event = events.get(timeout=_POLL_SECONDS)
            except Empty:
                tally.look()
                continue
            if "read" in event:
                tally.at(event["shard"], event["read"])
            elif "refused" in event:
                raise ValueError(event["refused"])
            elif event["ended"]:
                raise RuntimeError(_death(event["ended"]))
            else:
                processes -= 1
    finally:
        for worker, listener in running:
            worker.kill()
            listener.join()


def _listen(worker: subprocess.Popen[bytes], described: bytes, events: "SimpleQueue[dict[str, Any]]") -> None:
    """Hands a worker its plan, and on what it says; the pipe to it stays open, since its end ends the worker."""
    with suppress(BrokenPipeError), worker:
        assert worker.stdin
        assert worker.stdout
        worker.stdin.write(described)
        worker.stdin.flush()
        for line in worker.stdout:
            if line.endswith(b"\n"):  # else it was killed in the middle of a word
                events.put(json.loads(line))
    events.put({"ended": worker.wait()})


def _death(code: int) -> str:
    how = f"failed with exit code {code}"
    if code < 0:
        cause = ", probably for want of memory" if code == -signal.SIGKILL else ""
        how = f"was ended by {signal.Signals(-code).name}{cause}"
    return f"a process that prepares tokens {how}; run again to go on: finished shards are kept"
