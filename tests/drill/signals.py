"""SIGTERM in every phase of a run: it ends as asked and says so, and the same command makes it what an unbroken one is.

    python tests/drill/signals.py

A small run is stopped while it starts, compiles, makes a step, saves and is evaluated, another while it writes its
sample. Each ends with code 143, in the sentence that belongs to the phase; what was committed stays, and the losses and
weights at the end are bit-equal. A run of long steps refuses a second writer, ends at once when it is asked twice, and
stops behind its step when it is asked once. Of two processes one alone is asked, one is asked twice while the other
stands still, and one alone cannot begin. Linux only, where it is seen from outside what a process has loaded.
"""

import argparse
import json
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from run import ROOT, Run

STEPS = 24
EVERY = 3  # steps from one checkpoint to the next
PHASES = ("start", "compile", "step", "save")  # the first two leave nothing, and so come first
STOPPED = r"stopped after step (\d+), saved; the same command goes on from here$"
AT_THE_END = rf"stopped after step ({STEPS}), the last, saved; what comes after it was broken off$"
TERMINATED, REFUSED = 143, 2
_AT_ONCE = 2.0  # seconds
_NO_LONGER_THE_SAME = 1.5  # seconds after which another signal is another request
_LONG = ("--batch-size", 1024)  # whose steps take seconds


class Stopping(Run):
    """A run that is asked to stop."""

    def stop(self, is_due: Callable[[int], bool], sentence: str) -> float:
        """Starts it, and sends SIGTERM at a moment, told by the process's number; returns seconds until it has ended.

        Raises:
            AssertionError: it did not end with 143, or not with the sentence; or a commit was lost, or a row.
        """
        before, process = self.newest(), self.start()
        self.wait(process, lambda: is_due(process.pid))
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        self.must_end(process, TERMINATED)
        seconds = time.monotonic() - asked
        match = re.search(sentence, self.said().strip())
        assert match, f"it ended with other words than {sentence!r}: {self.said()[-2000:]}"
        at = int(match[1]) if match.groups() else self.newest()
        assert before <= self.newest() == self.last_step() == at, (
            f"step {before} was committed, it stopped after {at}, and {self.newest()} is committed"
        )
        return seconds

    def is_loading(self, pid: int) -> bool:
        """Whether a process imports JAX, or has done so."""
        return "jaxlib" in Path(f"/proc/{pid}/maps").read_text()

    def is_compiling(self, pid: int) -> bool:
        """Whether a process of a fresh run has its text open, and prepares its first step."""
        return "/corpora/" in Path(f"/proc/{pid}/maps").read_text() and not (self.folder / "config.json").exists()

    def files(self) -> set[str]:
        """The names in the run directory."""
        return {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()


def drill(folder: Path, phases: Sequence[str] = PHASES) -> dict[str, float]:
    """Stops a run in these phases, in its evaluation and in its sample; the seconds from each signal to the end."""
    options = ("--data.path", make_text(folder), "--steps", STEPS, "--checkpoint.every", EVERY)
    options += ("--evaluate.tokens", 1000, "--sample.tokens")
    seconds: dict[str, float] = {}
    unbroken, broken = Stopping(folder / "unbroken", *options, 100), Stopping(folder / "broken", *options, 0)
    seconds["generation"] = unbroken.stop(lambda pid: "what it writes" in unbroken.said(), "what it writes:")

    for phase in phases:
        before = broken.newest()
        match phase:
            case "start" | "compile":
                is_due = broken.is_loading if phase == "start" else broken.is_compiling
                seconds[phase] = broken.stop(is_due, r"\A\Z")
                assert broken.files() <= {"lock"}, f"it left {broken.files()}"
            case "step":
                seconds[phase] = broken.stop(lambda pid, before=before: broken.last_step() > before, STOPPED)
            case "save":
                seconds[phase] = broken.stop(lambda pid: broken.is_saving(), STOPPED)
    assert broken.newest() < STEPS, "it came to its end before it could be stopped"
    seconds["evaluation"] = broken.stop(lambda pid: broken.newest() == STEPS, AT_THE_END)
    broken.must_equal(unbroken)
    return seconds


def drill_of_long_steps(folder: Path) -> dict[str, float]:
    """A second writer, a second SIGTERM, and a single one, in steps that take seconds."""
    run = Stopping(folder / "long", "--data.path", make_text(folder), *_LONG, "--sample.tokens", 0)
    process = run.start()
    run.wait(process, (run.folder / "starts.jsonl").exists)  # the last file before its first step
    files = run.files()
    second = Run(run.folder, "--data.path", make_text(folder), *_LONG, "--sample.tokens", 0)
    second.log = folder / "second.log"
    second.must_end(second.start(), REFUSED)
    assert f"is being written by process {process.pid} on" in second.said(), second.said()
    assert files <= run.files() <= {*files, "metrics.jsonl"}, "what was refused wrote something"

    reached = run.last_step()
    run.wait(process, lambda: run.last_step() > reached)  # a step has just begun
    process.send_signal(signal.SIGTERM)
    time.sleep(_NO_LONGER_THE_SAME)
    assert process.poll() is None, "the steps of this run are too short for this drill; give a greater batch"
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    run.must_end(process, TERMINATED)
    twice = time.monotonic() - asked
    assert twice < _AT_ONCE, f"asked twice, it took {twice:.1f} s to end"
    assert not run.committed()
    return {"twice": twice, "once_in_a_long_step": run.stop(lambda pid: "step 1/" in run.said(), STOPPED)}


class Pair:
    """Two processes that are one run."""

    def __init__(self, folder: Path, *options: object):
        self.hosts = [Run(folder, *options, JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo") for _ in range(2)]
        for number, host in enumerate(self.hosts):
            host.log = Path(f"{folder}.{number}.log")

    def start(self, of_second: Sequence[object] = ()) -> list[subprocess.Popen[bytes]]:
        """Both, the second with more options."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            cluster = ("--cluster.coordinator", f"127.0.0.1:{free.getsockname()[1]}", "--cluster.num-processes", 2)
        more = ((), of_second)
        return [
            host.start(*cluster, "--cluster.process", number, *more[number]) for number, host in enumerate(self.hosts)
        ]

    def must_end(self, processes: list[subprocess.Popen[bytes]], code: int) -> None:
        """Waits for both; raises where one has not ended with this code."""
        for host, process in zip(self.hosts, processes, strict=True):
            host.must_end(process, code)


def drill_of_two(folder: Path) -> dict[str, float]:
    """What happens to one of two processes alone."""
    steps = 80
    options = ("--data.path", make_text(folder), "--steps", steps, "--batch-size", 64, "--sample.tokens", 0)
    pair, seconds = Pair(folder / "two", *options, "--mesh.data", 2), {}
    first = pair.hosts[0]

    began = time.monotonic()
    pair.must_end(pair.start(("--data.path", folder / "nowhere.txt")), REFUSED)
    seconds["one_cannot_begin"] = time.monotonic() - began
    assert first.said().endswith(
        "jumok: process 1 of this run cannot begin, and says why; mend that, and start all again\n"
    )
    assert not first.folder.exists(), "what was refused wrote something"

    for asked in (1, 0):
        processes, before = pair.start(), first.newest()
        first.wait(processes[0], lambda before=before: first.last_step() > before)
        processes[asked].send_signal(signal.SIGTERM)
        began = time.monotonic()
        pair.must_end(processes, TERMINATED)
        seconds[f"process_{asked}_alone"] = time.monotonic() - began
        match = re.search(STOPPED, first.said().strip())
        assert match, first.said()
        assert before < first.newest() == first.last_step() == int(match[1]) < steps

    processes, before = pair.start(), first.newest()
    first.wait(processes[0], lambda: first.last_step() > before)
    processes[1].send_signal(signal.SIGSTOP)  # so that no step ends any more
    for _ in range(2):
        processes[0].send_signal(signal.SIGTERM)
        began = time.monotonic()
        time.sleep(_NO_LONGER_THE_SAME)
    first.must_end(processes[0], TERMINATED)
    seconds["twice_of_two_at_most"] = time.monotonic() - began
    assert seconds["twice_of_two_at_most"] < _AT_ONCE
    processes[1].kill()
    processes[1].wait()
    assert first.newest() == before

    pair.must_end(pair.start(), 0)
    assert [row["step"] for row in first.rows()] == list(range(1, steps + 1)), "steps are missing or there twice"
    return seconds


def make_text(folder: Path) -> Path:
    """A text that is small, and large enough for its evaluation to be met."""
    text = folder / "text.txt"
    text.write_text((ROOT / "LICENSE").read_text() * 20)
    return text


def main() -> None:
    """Runs the drill as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", nargs="+", choices=PHASES, help="one run alone, stopped in these of its phases")
    phases = parser.parse_args().phases
    with tempfile.TemporaryDirectory(prefix="jumok-drill-") as name:
        folder = Path(name)
        seconds = (
            drill(folder, phases) if phases else drill(folder) | drill_of_long_steps(folder) | drill_of_two(folder)
        )
    print(json.dumps({name: round(value, 2) for name, value in seconds.items()}, indent=2))


if __name__ == "__main__":
    main()
