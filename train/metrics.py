"""What a run measured: rows of metrics.jsonl, TensorBoard's curves, and one line of progress for people."""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

import jax
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tensorboardX import SummaryWriter

from train.run_directory import RunDirectory, is_local, json_text, sync_folder


class Metrics:
    """Writes rows to metrics.jsonl and their named values to TensorBoard; of many processes only the first writes.

    After any number of restarts there is one row for each logged step: rows behind `resume_step` belong to updates
    that will be made again, and are cut with a torn last line when the file is opened.

    Args:
        run: the run directory, which exists.
        resume_step: the checkpoint that the run goes on from; 0 for a new run.
        tensorboard: whether RUN/tensorboard is written.
    """

    def __init__(self, run: RunDirectory, resume_step: int = 0, *, tensorboard: bool = True):
        self._rows: _LocalRows | _RemoteRows | None = None
        self._tensorboard: _TensorBoard | None = None
        if jax.process_index() != 0:
            return
        self._rows = (_LocalRows if is_local(run.metrics) else _RemoteRows)(run.metrics, resume_step)
        if tensorboard:
            self._tensorboard = _TensorBoard(run.tensorboard, resume_step)

    def log(self, row: dict[str, Any]) -> None:
        """Adds a row: "step", "tokens" and values by name ("learning/loss", ...); its "time", in Unix seconds, is now.

        A value that is None is left out; one that is not finite becomes null, and no point of a curve.
        """
        if self._rows is None:
            return
        row = {name: value for name, value in row.items() if value is not None}
        if row["step"] <= self._rows.last_step:
            raise RuntimeError(f"step {row['step']} was logged after step {self._rows.last_step}: a step has one row")
        self._rows.last_step = row["step"]
        first = {"step": row["step"], "tokens": row.get("tokens"), "time": round(time.time(), 3)}
        line = json_text({**first, **row})
        self._rows.append(line.encode() + b"\n")
        if self._tensorboard:
            self._tensorboard.add(json.loads(line))

    def flush(self) -> None:
        """Makes the rows durable: called before a checkpoint commits."""
        if self._rows:
            self._rows.flush()
        if self._tensorboard:
            self._tensorboard.flush()

    def close(self) -> None:
        """Makes the rows durable and closes the files."""
        if self._rows:
            self._rows.flush()
            self._rows.close()
        if self._tensorboard:
            self._tensorboard.close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def first_row(path: epath.Path) -> dict[str, Any] | None:
    """The first row of a metrics.jsonl; None where there is no whole one."""
    data = path.read_bytes() if path.exists() else b""
    end, _ = _end_of_rows(data[: data.find(b"\n") + 1], sys.maxsize)
    return json.loads(data[:end]) if end else None


class _LocalRows:
    """Rows of a file that can be appended to and synced."""

    def __init__(self, path: epath.Path, resume_step: int):
        self._file = open(path, "ab")  # noqa: SIM115  (held open for the run)
        end, self.last_step = _end_of_rows(path.read_bytes(), resume_step)
        os.truncate(path, end)  # one call to the kernel: whole or not at all
        self.flush()
        sync_folder(path.parent)

    def append(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()  # for those who watch the file

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _RemoteRows:
    """Rows of an object, which cannot be appended to: kept here, and written whole."""

    def __init__(self, path: epath.Path, resume_step: int):
        self._path = path
        data = path.read_bytes() if path.exists() else b""
        end, self.last_step = _end_of_rows(data, resume_step)
        self._data = bytearray(data[:end])
        self._written = len(data)

    def append(self, line: bytes) -> None:
        self._data += line

    def flush(self) -> None:
        if len(self._data) != self._written:
            self._path.write_bytes(bytes(self._data))
            self._written = len(self._data)

    def close(self) -> None:
        pass  # nothing is held open


def _end_of_rows(data: bytes, resume_step: int) -> tuple[int, int]:
    """Where the last whole row of a step up to `resume_step` ends, in bytes, and its step (0 where there is none)."""
    end = position = last_step = 0
    for line in data.splitlines(keepends=True):
        position += len(line)
        try:
            step = json.loads(line)["step"]
        except (ValueError, LookupError, TypeError):
            continue
        if step > resume_step:
            break
        if line.endswith(b"\n"):
            end, last_step = position, step
    return end, last_step


class _TensorBoard:
    """TensorBoard's curves; for an object store event files are written here and uploaded by `flush` and `close`."""

    def __init__(self, folder: epath.Path, resume_step: int):
        self._folder = folder
        self._local = os.fspath(folder) if is_local(folder) else tempfile.mkdtemp(prefix="tensorboard")
        # TensorBoard hides the points of updates that will be made again, since this file tells it to purge them. Files
        # are named by the second: the suffix keeps a quick restart from overwriting one.
        purge_step = resume_step + 1 if resume_step else None
        self._writer = SummaryWriter(
            self._local, purge_step=purge_step, flush_secs=10, filename_suffix=f".{resume_step}"
        )

    def add(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if "/" in name and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        self._writer.flush()
        self._upload()

    def close(self) -> None:
        self._writer.close()
        self._upload()
        if not is_local(self._folder):
            shutil.rmtree(self._local)

    def _upload(self) -> None:
        if not is_local(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in Path(self._local).iterdir():
                (self._folder / path.name).write_bytes(path.read_bytes())


class ProgressLine:
    """One line that says how a run goes: in place on a terminal, a new line each time elsewhere.

    Of many processes only the first shows it.

    Args:
        steps: the run's last step.
        start: the step that this invocation begins behind.
        stream: where it is shown.
    """

    def __init__(self, steps: int, start: int = 0, stream: TextIO | None = None):
        self._steps = steps
        self._start = start
        self._shown = jax.process_index() == 0
        self._stream = stream or sys.stderr
        self._began: tuple[int, float] | None = None
        console = Console(file=self._stream)
        self._bar = None
        if console.is_terminal and self._shown:
            # Drawn only when there is news: a refreshing thread would take time from the training on small machines.
            self._bar = Progress(BarColumn(20), TextColumn("{task.description}"), console=console, auto_refresh=False)
            self._task = self._bar.add_task("compiling", total=steps, completed=start)
            self._bar.start()

    def update(
        self,
        step: int,
        loss: float,
        tokens_per_second: float,
        mfu: float | None = None,
        memory: tuple[int | None, int | None] = (None, None),
    ) -> None:
        """Shows a step.

        Args:
            step: completed updates.
            loss: nats.
            tokens_per_second: over all devices.
            mfu: a fraction, where the peak is known.
            memory: bytes in use and at most, of one device, where known.
        """
        if not self._shown:
            return
        now = time.monotonic()
        # The first update holds the compilation: the time left is told from what came after.
        self._began = self._began or (step, now)
        parts = [f"step {step}/{self._steps}", f"loss {loss:.4f}", f"{_count(tokens_per_second)} tokens/s"]
        if mfu is not None:
            parts.append(f"MFU {100 * mfu:.1f} %")
        used, limit = memory
        if used is not None:
            parts.append(f"memory {used / 2**30:.1f}" + (f"/{limit / 2**30:.1f} GiB" if limit else " GiB"))
        if step > self._began[0]:
            seconds = (now - self._began[1]) / (step - self._began[0]) * (self._steps - step)
            parts.append(f"{_duration(seconds)} left")
        text = " · ".join(parts)
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
            self._bar.refresh()
        else:
            print(text, file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """A sentence that stays, above the line."""
        if not self._shown:
            return
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the last state on the screen."""
        if self._bar:
            self._bar.stop()

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _count(number: float) -> str:
    """A number short enough for a line: 950, 35.2k, 1.2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    """Seconds as 0:41, 3:21 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
