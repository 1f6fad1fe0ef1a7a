"""Damaged and hostile files: every reader either reads them or refuses them in one sentence that names what is wrong.

    python tests/drill/foreign_files.py --inputs 100000 --seed 0

makes small whole files of every kind, changes a file of one of them for each input (mutations.py), and has it read by a
process beside this one (reader.py). It falls where that process raises anything but a refusal of ours, dies, is silent
for ten seconds, takes over twice the input and 200 MB of memory above its own at its start, or writes outside of the
cache, unpickles, or opens a connection. What fell is kept and named, and the exit code is then 1.
"""

import argparse
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import Any

from mutations import mutated

_SILENT_SECONDS = 10.0
_START_SECONDS = 600.0
_WORN = 100 << 20  # bytes of memory that many inputs have left behind, after which a fresh process goes on
_SHARES = {"model": 6, "tokenizer": 4, "run": 1, "sentencepiece": 1}  # of the inputs; of other kinds 2 each


class Reader:
    """The process that reads, started anew when it is lost."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._errors = (folder / "errors.txt").open("wb")
        self.starts = 0
        self.start()

    def start(self) -> None:
        """A fresh process, which has read the originals."""
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"JUMOK_CACHE": str(self._folder / "cache"), "JAX_PLATFORMS": "cpu"}
        environment["PYTHONPATH"] = path
        environment.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
        reader = [sys.executable, str(Path(__file__).with_name("reader.py")), str(self._folder)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(reader, stdin=pipe, stdout=pipe, stderr=self._errors, env=environment)
        self.starts += 1
        answer, problem = self._answer(_START_SECONDS)
        if answer is None:
            raise RuntimeError(f"the reader did not start: {problem}; see {self._errors.name}")
        self.originals: dict[str, list[str]] = answer["originals"]

    def read(self, kind: str, folder: Path, size: int) -> tuple[str, str]:
        """What becomes of a folder, and why; "crash" and "hang" beside what the reader itself says."""
        assert self._process.stdin
        self._process.stdin.write(f"{json.dumps({'kind': kind, 'folder': str(folder), 'bytes': size})}\n".encode())
        self._process.stdin.flush()
        answer, problem = self._answer(_SILENT_SECONDS)
        if answer is None:
            self.stop()
            self.start()
            return "fell", problem
        if answer["above"] > _WORN:
            self.stop()
            self.start()
        return answer["outcome"], answer["why"]

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self, seconds: float) -> tuple[dict[str, Any] | None, str]:
        """A line of the process, or what happened instead."""
        assert self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None, f"hang: silent for {seconds:g} seconds"
        line = self._process.stdout.readline()
        return (json.loads(line), "") if line else (None, f"crash: ended with code {self._process.wait()}")


def drill(inputs: int, seed: int, folder: Path, kinds: list[str] | None = None) -> dict[str, Any]:
    """Feeds so many inputs, and counts by kind what became of them."""
    reader = Reader(folder)
    originals = {kind: places for kind, places in reader.originals.items() if kinds is None or kind in kinds}
    shares = {kind: _SHARES.get(kind, 2) for kind in originals}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    fallen: list[dict[str, Any]] = []
    slowest = 0.0
    for number in range(inputs):
        random = Random(f"{seed}-{number}")
        kind = random.choices(list(shares), list(shares.values()))[0]
        place = folder / "inputs" / str(number)
        changed, size = make_input(random, [Path(original) for original in originals[kind]], place)
        began = time.monotonic()
        outcome, why = reader.read(kind, place, size)
        slowest = max(slowest, time.monotonic() - began)
        counts[kind][outcome] += 1
        if outcome == "fell":
            fallen.append({"number": number, "kind": kind, "file": changed, "why": why, "kept": str(place)})
            print(f"{kind} {changed}: {why}; kept in {place}", file=sys.stderr)
        else:
            shutil.rmtree(place)
    reader.stop()
    return {
        "inputs": inputs,
        "seed": seed,
        "counts": {kind: dict(counts[kind]) for kind in sorted(counts)},
        "fell": fallen,
        "readers": reader.starts,
        "slowest_seconds": round(slowest, 2),
    }


def make_input(random: Random, originals: list[Path], place: Path) -> tuple[str, int]:
    """A copy of one of the originals with one file changed, exchanged or gone: which file, and the bytes in all."""
    original = random.choice(originals)
    shutil.copytree(original, place, copy_function=os.link)
    files = sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file())
    if (
        random.random() < 0.5
    ):  # most of a run's files are small parts of arrays, and its JSON should not be lost among them
        files = [file for file in files if (original / file).read_bytes()[:1] == b"{"] or files
    if random.random() < 0.5:  # this one's digest would find all other damage first
        files = [file for file in files if file.name != "jumok_tokenizer.json"] or files
    chosen = random.choice(files)
    content = (original / chosen).read_bytes()
    others = [(random.choice(originals) / chosen) for _ in range(2)]
    others += [original / random.choice(files)]
    spliced = [other.read_bytes() for other in others if other.is_file()]
    (place / chosen).unlink()
    if random.random() > 0.01:  # else the file is gone
        (place / chosen).write_bytes(mutated(random, content, spliced, chosen.name))
    return str(chosen), sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def main() -> int:
    """Runs the drill and says what it saw; 1 where anything fell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many damaged folders are read")
    parser.add_argument("--seed", type=int, default=0, help="of the damage: the same seed, the same inputs")
    parser.add_argument("--kinds", nargs="+", help="only these kinds of files")
    parser.add_argument(
        "--folder", type=Path, help="a new folder, in which what fell is kept; by default a temporary one"
    )
    parser.add_argument("--json", action="store_true", help="one JSON value on standard output")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="jumok-drill-"))
    if arguments.folder:
        folder.mkdir(parents=True)
    found = drill(arguments.inputs, arguments.seed, folder.resolve(), arguments.kinds)
    if arguments.json:
        print(json.dumps(found))
    else:
        width = max(map(len, found["counts"]))
        for kind, counts in found["counts"].items():
            print(
                f"{kind:{width}}  "
                + "  ".join(f"{counts.get(name, 0):7,} {name}" for name in ("read", "refused", "fell"))
            )
        print(f"{arguments.inputs:,} inputs, {len(found['fell'])} fell; the slowest took {found['slowest_seconds']} s")
    if not found["fell"] and not arguments.folder:
        shutil.rmtree(folder)
    return 1 if found["fell"] else 0


if __name__ == "__main__":
    sys.exit(main())
