"""A run of the smallest recipe as a child process, and what can be seen of it from outside while it goes on."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 300.0  # seconds in which a start must come to the moment that is waited for


class Run:
    """A run that is started again and again by the same command.

    Args:
        folder: its run directory; what it says goes to `log`, a file beside it.
        options: of the command.
        environment: variables that it is started with.
    """

    def __init__(self, folder: Path, *options: object, **environment: str):
        self.folder = folder
        self.log = Path(f"{folder}.log")
        program = [str(Path(__file__).with_name("slow_disk.py")), str(ROOT / "train" / "train.py")]
        self._command = [sys.executable, *program, "smoke", "--run-dir", str(folder)]
        self._command += ["--log.every", "1", "--log.no-tensorboard", *map(str, options)]
        self._environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}

    def start(self, *more: object) -> subprocess.Popen[bytes]:
        """The run's command, with more options for this time, its output in a file."""
        with self.log.open("wb") as log:
            return subprocess.Popen([*self._command, *map(str, more)], env=self._environment, stdout=log, stderr=log)

    def finish(self) -> None:
        """Runs to the end; raises where the command fails."""
        self.must_end(self.start(), 0)

    def wait(self, process: subprocess.Popen[bytes], is_due: Callable[[], bool]) -> None:
        """Waits for a moment of a start; raises where it ends before, or the moment does not come."""
        began = time.monotonic()
        while not is_due():
            if process.poll() is not None:
                raise AssertionError(f"a start needed a hand: exit code {process.returncode}: {self.said()[-2000:]}")
            if time.monotonic() - began > _PATIENCE:
                process.kill()
                raise AssertionError(f"nothing happened for {_PATIENCE:.0f} s: {self.said()[-2000:]}")
            time.sleep(0.001)

    def must_end(self, process: subprocess.Popen[bytes], code: int) -> None:
        """Waits until it has ended; raises where that was not with this exit code, or with a traceback."""
        ended, said = process.wait(), self.said()
        if ended != code or "Traceback" in said:
            raise AssertionError(f"it ended with code {ended} instead of {code}, and said: {said[-2000:]}")

    def committed(self) -> list[int]:
        """The steps whose checkpoints are committed, ascending."""
        folder = self.folder / "checkpoints"
        names = os.listdir(folder) if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def newest(self) -> int:
        """The newest committed step; 0 for none."""
        return max(self.committed(), default=0)

    def is_saving(self) -> bool:
        """Whether a save is under way, or was when it was killed."""
        folder = self.folder / "checkpoints"
        return folder.is_dir() and any("tmp" in name for name in os.listdir(folder))

    def last_step(self) -> int:
        """The last step in metrics.jsonl."""
        file = self.folder / "metrics.jsonl"
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        whole = [line for line in lines[-2:] if line.endswith(b"\n")]
        return json.loads(whole[-1])["step"] if whole else 0

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        text = (self.folder / "metrics.jsonl").read_text()
        assert text.endswith("\n"), "the last row is torn"
        return [json.loads(line) for line in text.splitlines()]

    def weights(self) -> dict[str, str]:
        """The digest of each array of the newest checkpoint."""
        manifest = json.loads((self.folder / "checkpoints" / str(self.newest()) / "manifest" / "metadata").read_text())
        return {name: array["digest"] for name, array in manifest["arrays"].items()}

    def said(self) -> str:
        """What the last start said."""
        return self.log.read_text()

    def must_equal(self, unbroken: "Run") -> None:
        """Raises where it has not each step once, or not the losses and weights of another run, bit for bit."""
        rows, expected = self.rows(), unbroken.rows()
        assert [row["step"] for row in rows] == list(range(1, len(expected) + 1)), "steps are missing or there twice"
        losses, unbroken_losses = ([row["learning/loss"] for row in each] for each in (rows, expected))
        assert losses == unbroken_losses, "the losses are not those of the unbroken run"
        assert self.weights() == unbroken.weights(), "the weights are not those of the unbroken run"
