"""kill -9 at random times, most of them inside a save: the run must become what an unbroken one is.

    python tests/drill/kill.py --kills 200

A small run on eight simulated devices is killed and started again, and again, by the same command. Then: every start
went on from the newest checkpoint that was committed, none needed a hand, metrics.jsonl has each step once, losses and
weights are bit-equal to those of a run that nobody killed, and the parts of the time add up to the wall time.
"""

import argparse
import itertools
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slow_disk
from run import Run

EVERY = 3  # steps from one checkpoint to the next
INSIDE = 0.8  # of the kills wait for a save; the others come at any time from the start on


@dataclass
class Kill:
    """What was seen of one start that was killed."""

    began: float  # when it was started, in Unix seconds
    logged: bool  # whether there was a row of metrics when it was killed
    resumed: int | None  # the step that it said it goes on from; None where it was killed before
    newest: int  # the newest committed step after the kill
    inside_a_save: bool
    seconds_to_new_step: float | None  # from the kill before it to the first step that no start before had reached


class Drill(Run):
    """A run on eight simulated devices that is started and killed."""

    def __init__(self, folder: Path, steps: int, chance: random.Random):
        options = ("--steps", steps, "--checkpoint.every", EVERY, "--mesh.fsdp", 4, "--mesh.tensor", 2)
        super().__init__(folder, *options, "--sample.tokens", 0, JAX_NUM_CPU_DEVICES="8")
        self.random = chance
        self.kills: list[Kill] = []

    def kill_once(self) -> None:
        """Starts the run, and kills it: in a save after at least one commit, or at any time before the third."""
        before, reached, last_kill = self.newest(), self.last_step(), time.monotonic()
        started, process, began, new_step = time.time(), self.start(), time.monotonic(), None
        is_inside = self.random.random() < INSIDE
        alive_for = self.random.uniform(0, 12)

        def is_due() -> bool:
            nonlocal new_step
            if new_step is None and self.last_step() > reached:
                new_step = time.monotonic() - last_kill
            if is_inside:
                return self.newest() > before and self.is_saving()
            return time.monotonic() - began > alive_for or self.newest() > before + EVERY

        self.wait(process, is_due)
        if is_inside:
            time.sleep(self.random.uniform(0, 5 * slow_disk.SECONDS))  # of a save that takes a little longer
        process.kill()
        process.wait()
        resumed = re.search(r"resumes at step (\d+)", self.said())
        logged, resumed_at = self.last_step() > 0, int(resumed[1]) if resumed else None
        self.kills.append(Kill(started, logged, resumed_at, self.newest(), self.is_saving(), new_step))


def drill(kills: int, seed: int, folder: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Kills a run so many times and compares it with an unbroken one; raises AssertionError at the first difference."""
    steps = (3 * kills + 2) * EVERY  # a start commits three times at most
    unbroken = Drill(folder / "unbroken", steps, random.Random(seed))
    unbroken.finish()
    broken = Drill(folder / "broken", steps, random.Random(seed))
    for number in range(kills):
        broken.kill_once()
        if (number + 1) % 10 == 0:
            say(f"{number + 1} kills, at step {broken.newest()} of {steps}")
    finish_began = time.time()
    broken.finish()

    newest = [0, *(kill.newest for kill in broken.kills)]
    commits = [(after - before) // EVERY for before, after in itertools.pairwise(newest)]
    inside = sum(kill.inside_a_save for kill in broken.kills)
    assert all(count >= 0 for count in commits), f"a committed checkpoint was lost: {newest}"
    for before, kill in zip(newest, broken.kills, strict=False):
        assert kill.resumed in (None, before or None), f"went on from {kill.resumed}, and {before} was committed"
    assert sum(commits) >= kills / 2, f"only {sum(commits)} commits between {kills} kills prove little"
    assert inside >= kills / 4, f"only {inside} of {kills} kills were inside a save"

    broken.must_equal(unbroken)
    rows = broken.rows()
    accounted = sum(value for name, value in rows[-1].items() if name.startswith("time/"))
    # A start of which not even a row is left is known to nobody.
    wall = rows[-1]["time"] - next((kill.began for kill in broken.kills if kill.logged), finish_began)
    assert abs(accounted - wall) <= 0.01 * wall, f"{accounted:.1f} s are accounted for, and {wall:.1f} s went by"

    waits = [kill.seconds_to_new_step for kill in broken.kills if kill.seconds_to_new_step is not None]
    return {
        "kills": kills,
        "inside_a_save": inside,
        "commits_between_kills": sum(commits),
        "starts_without_a_commit": commits.count(0),
        "steps": steps,
        "seconds_from_kill_to_new_step": {"median": statistics.median(waits), "most": max(waits)} if waits else None,
        "wall_seconds": wall,
        "accounted_seconds": accounted,
        "goodput": rows[-1]["perf/goodput"],
    }


def main() -> None:
    """Runs the drill as the command line says."""
    parser = argparse.ArgumentParser(description="kill -9 at random times; the run must become what an unbroken one is")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jumok-drill-") as folder:
        print(json.dumps(drill(options.kills, options.seed, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
