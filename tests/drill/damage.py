"""Harms the newest checkpoint of a small run again and again: what is damaged must be found, named and passed over.

python tests/drill/damage.py --times 200 --seed 0 [--json]: counts by kind of damage and outcome; exit code 1 if any
damage was missed, not named, or lost more than its own checkpoint.
"""

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.dataset import DataConfig
from model.decoder import DecoderConfig
from train.checkpoint import CheckpointConfig, Checkpoints
from train.config import LogConfig, RunConfig, SampleConfig
from train.console import Console
from train.mesh import make_mesh
from train.optimizer import OptimizerConfig
from train.program import Program
from train.train import _items, main

STEPS = (1, 2, 3)  # of which a checkpoint is kept
ITEMS = ("params", "opt_state", "progress")
HARMLESS, PASSED_OVER, REFUSED = "every array proven equal", "found, named, the one before it used", "refused"


def make_run(folder: Path) -> RunConfig:
    """A run of three steps, each with its checkpoint, in `folder`/run; returns its configuration."""
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    config = RunConfig(
        model=DecoderConfig(
            num_layers=1, model_dim=8, num_heads=2, vocab_size=257, max_length=16, positions="rope", use_bias=False
        ),
        data=DataConfig(path=str(text), max_length=16),
        optimizer=OptimizerConfig(name="sgd"),
        checkpoint=CheckpointConfig(every=1, keep_last=len(STEPS)),
        log=LogConfig(every=1, tensorboard=False),
        sample=SampleConfig(tokens=0),
        run_dir=str(folder / "run"),
        steps=STEPS[-1] + 1,
        stop_after=STEPS[-1],
        batch_size=8,
    )
    quiet = Console()
    quiet.quiet = True
    main(config, quiet)
    return config


def flip(path: Path, chance: random.Random, others: Sequence[Path]) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, chance: random.Random, others: Sequence[Path]) -> None:
    """The end is missing, or all of it."""
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def zero(path: Path, chance: random.Random, others: Sequence[Path]) -> None:
    """A block that was never written, as after a power cut."""
    data = bytearray(path.read_bytes())
    begin = chance.randrange(len(data))
    data[begin : begin + 512] = bytes(len(data[begin : begin + 512]))
    path.write_bytes(data)


def delete(path: Path, chance: random.Random, others: Sequence[Path]) -> None:
    """The file is gone."""
    path.unlink()


def swap(path: Path, chance: random.Random, others: Sequence[Path]) -> None:
    """The file and another of the same checkpoint have changed places."""
    other = chance.choice([other for other in others if other != path])
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def add(path: Path, chance: random.Random, others: Sequence[Path]) -> None:
    """A file that nobody expects."""
    (path.parent / f"{chance.randrange(16**8):08x}").write_bytes(chance.randbytes(100))


def leave(path: Path, chance: random.Random, others: Sequence[Path]) -> None:
    """Leftovers of a killed save and of an interrupted deletion; the checkpoint is whole."""
    checkpoint = next(parent for parent in path.parents if parent.parent.name == "checkpoints")
    for name in (f"{int(checkpoint.name) + 1}.orbax-checkpoint-tmp", "1.deleting"):
        shutil.copytree(checkpoint, checkpoint.with_name(name))


DAMAGES: tuple[Callable[[Path, random.Random, Sequence[Path]], None], ...] = (
    flip,
    truncate,
    zero,
    delete,
    swap,
    add,
    leave,
)


def files_of(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that hold anything."""
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)


def choose(files: Sequence[Path], chance: random.Random) -> Path:
    """Any file; every second time one that has to be read, which most are not."""
    needed = [path for path in files if path.parent.name == "manifest" or path.parent.parent.name in ITEMS]
    return chance.choice(needed if chance.random() < 0.5 else files)


class Drill:
    """A run of which copies are damaged, and what each of its checkpoints holds.

    Args:
        folder: an empty folder, for the run and its copies.
    """

    def __init__(self, folder: Path):
        self.config = make_run(folder)
        self._folder = folder
        self._run = folder / "run"
        program = Program.of(self.config, make_mesh(self.config.mesh))
        self._abstract = _items(program.abstract)
        with Checkpoints(self._run / "checkpoints") as checkpoints:
            self._held = {step: _bytes_of(checkpoints.restore(step, self._abstract)) for step in STEPS}

    def damage(self, harm: Callable[[Path, random.Random, Sequence[Path]], None], seed: int) -> str:
        """Damages a copy and opens it as a resumed run does; returns the outcome, or what went wrong with a "!"."""
        chance = random.Random(seed)
        copy = self._copy()
        files = files_of(copy / "checkpoints" / str(STEPS[-1]))
        harmed = choose(files, chance)
        harm(harmed, chance, files)
        said: list[str] = []
        with Checkpoints(copy / "checkpoints", self.config.checkpoint, writer=True, report=said.append) as checkpoints:
            found = checkpoints.newest(self._abstract)
            left = sorted(path.name for path in (copy / "checkpoints").iterdir())
        where = f"{harm.__name__} of {harmed.relative_to(copy)}, seed {seed}"
        if found is None:
            return f"! {where}: no checkpoint was found"
        step, items, record = found
        if left != [str(step) for step in STEPS]:
            return f"! {where}: {left} lie in the folder"
        if _bytes_of(items) != self._held[step] or record["step"] != step:
            return f"! {where}: other values than those of step {step}"
        if step == STEPS[-1] and not said:
            return HARMLESS
        named = len(said) == 1 and re.fullmatch(f"skipped checkpoint {STEPS[-1]} cannot be used: .+", said[0])
        return PASSED_OVER if step == STEPS[-2] and named else f"! {where}: step {step} was used, and said was {said}"

    def damage_all(self, seed: int) -> str:
        """Damages each checkpoint: the run must stop, naming each."""
        chance = random.Random(seed)
        copy = self._copy()
        for step in STEPS:
            for path in files_of(copy / "checkpoints" / str(step)):
                chance.choice((truncate, delete))(path, chance, ())
        return self._refusal(copy, self.config, r"no checkpoint in .* can be used \(3: .+; 2: .+; 1: .+\)")

    def change_tokenizer(self) -> str:
        """A tokenizer's file that is not what the run began with."""
        copy = self._copy()
        (copy / "tokenizer" / "jumok_tokenizer.json").write_text('{"kind": "bytes", "special": ["mask"]}')
        return self._refusal(copy, self.config, "tokenizer")

    def change_config(self) -> str:
        """A config.json of another run."""
        copy = self._copy()
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"seed": 7}))
        return self._refusal(copy, self.config, "holds a run of another configuration .*seed was 7 and is now 0")

    def _refusal(self, copy: Path, config: RunConfig, sentence: str) -> str:
        quiet = Console()
        quiet.quiet = True
        try:
            main(replace(config, run_dir=str(copy)), quiet)
        except ValueError as error:
            return REFUSED if re.search(sentence, str(error)) else f"! {sentence}: it said {error}"
        return f"! {sentence}: it trained"

    def _copy(self) -> Path:
        copy = self._folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        return Path(shutil.copytree(self._run, copy))


def _bytes_of(items: dict[str, Any]) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(items)]


def drill(folder: Path, times: int, seed: int) -> Counter[tuple[str, str]]:
    """Every kind of damage in turn, `times` in all, and then what ends a run; counts by kind and outcome."""
    run = Drill(folder)
    outcomes: Counter[tuple[str, str]] = Counter()
    for number in range(times):
        harm = DAMAGES[number % len(DAMAGES)]
        outcomes[harm.__name__, run.damage(harm, seed * 1_000_003 + number)] += 1
    outcomes["every checkpoint", run.damage_all(seed)] += 1
    outcomes["another tokenizer", run.change_tokenizer()] += 1
    outcomes["another config.json", run.change_config()] += 1
    return outcomes


def wrong(outcomes: Counter[tuple[str, str]]) -> list[str]:
    """What went wrong, in words."""
    missed = [outcome for _, outcome in outcomes if outcome.startswith("!")]
    found = any(outcome == PASSED_OVER for _, outcome in outcomes)
    return missed if found else [*missed, "! no damage was in what is read, so that nothing was proven"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200, help="damages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        counts = drill(Path(temporary), arguments.times, arguments.seed)
    rows = [(kind, outcome, count) for (kind, outcome), count in sorted(counts.items())]
    if arguments.json:
        print(json.dumps([dict(zip(("damage", "outcome", "count"), row, strict=True)) for row in rows]))
    else:
        Console().table(f"{arguments.times} damages", ("damage", "outcome", "times"), rows)
    sys.exit(1 if wrong(counts) else 0)
