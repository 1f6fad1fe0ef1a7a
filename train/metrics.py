"""What a run measured: rows of metrics.jsonl, TensorBoard's and W&B's curves, and one line of progress for people."""

import contextlib
import json
import os
import socket
import struct
import sys
import time
from typing import Any, TextIO

import jax
from etils import epath
from google.protobuf import message_factory
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from train.run_directory import (
    RunDirectory,
    StorageError,
    is_local,
    json_text,
    sync_folder,
    writing,
)
from train.units import count, duration
from train.wandb_run import WandbRun

_Event = message_factory.GetMessageClass(event_pb2.DESCRIPTOR.message_types_by_name["Event"])


class Metrics:
    """Writes rows to metrics.jsonl and their named values to TensorBoard; of many processes only the first writes.

    After any number of restarts there is one row for each logged step: rows behind `resume_step` belong to updates
    that will be made again, and are cut with a torn last line when the file is opened.

    What cannot be written, as on a full disk, is kept and tried again with the next row. That it failed is said where
    rows have to be durable: by `flush` and `close`, which raise StorageError.

    Args:
        run: the run directory, which exists.
        resume_step: the checkpoint that the run goes on from; 0 for a new run.
        tensorboard: whether RUN/tensorboard is written.
        wandb: a run of Weights & Biases, to which the named values go too.
    """

    def __init__(
        self,
        run: RunDirectory,
        resume_step: int = 0,
        *,
        tensorboard: bool = True,
        wandb: WandbRun | None = None,
    ):
        self._rows: _LocalFile | _RemoteFile | None = None
        self._curves: _LocalFile | _RemoteFile | None = None
        self._wandb = wandb
        self._last_step = 0
        if jax.process_index() != 0:
            return
        open_file = _LocalFile if is_local(run.path) else _RemoteFile
        rows = run.metrics.read_bytes() if run.metrics.exists() else b""
        end, self._last_step = _end_of_rows(rows, resume_step)
        self._rows = open_file(run.metrics, rows[:end])
        if tensorboard:
            # Files are named by the second: the step keeps a quick restart from overwriting one.
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{resume_step}"
            self._curves = open_file(run.tensorboard / name, b"")
            self._curves.append(_record(file_version="brain.Event:2"))
            if resume_step:  # TensorBoard hides the points of updates that will be made again, since this purges them
                self._curves.append(_record(step=resume_step + 1, session_log={"status": "START"}))

    def log(self, row: dict[str, Any]) -> None:
        """Adds a row: "step", "tokens" and values by name ("learning/loss", ...); its "time", in Unix seconds, is now.

        A value that is None is left out; one that is not finite becomes null, and no point of a curve.
        """
        if self._rows is None:
            return
        row = {name: value for name, value in row.items() if value is not None}
        if row["step"] <= self._last_step:
            raise RuntimeError(f"step {row['step']} was logged after step {self._last_step}: a step has one row")
        self._last_step = row["step"]
        first = {"step": row["step"], "tokens": row.get("tokens"), "time": round(time.time(), 3)}
        line = json_text({**first, **row})
        self._rows.append(line.encode() + b"\n")
        values = {n: v for n, v in json.loads(line).items() if "/" in n and isinstance(v, int | float)}
        if self._curves:
            tagged = [{"tag": name, "simple_value": value} for name, value in values.items()]
            self._curves.append(_record(step=int(row["step"]), summary={"value": tagged}))
        if self._wandb:
            self._wandb.log(values | {name: row.get(name) for name in ("step", "tokens")})

    def flush(self) -> None:
        """Makes the rows durable: called before a checkpoint commits."""
        for file in (self._rows, self._curves):
            if file:
                file.flush()

    def close(self) -> None:
        """Makes the rows durable and closes the files."""
        try:
            self.flush()
        finally:
            for file in (self._rows, self._curves):
                if file:
                    file.close()
            if self._wandb:
                self._wandb.finish()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # What ends a run is said; that its last rows could not be written either would hide it.
        with contextlib.suppress(*(StorageError,) if kind else ()):
            self.close()


def first_row(path: epath.Path) -> dict[str, Any] | None:
    """The first row of a metrics.jsonl; None where there is no whole one."""
    data = path.read_bytes() if path.exists() else b""
    end, _ = _end_of_rows(data[: data.find(b"\n") + 1], sys.maxsize)
    return json.loads(data[:end]) if end else None


class _LocalFile:
    """A file that can be appended to and synced; what could not be written yet is kept.

    Args:
        path: the file; its folder is made.
        kept: how the file begins already; what follows is cut.
    """

    def __init__(self, path: epath.Path, kept: bytes):
        self._path = path
        self._unwritten = bytearray()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.ftruncate(self._descriptor, len(kept))  # one call to the kernel: whole or not at all
            os.fsync(self._descriptor)
            sync_folder(path.parent)

    def append(self, data: bytes) -> None:
        self._unwritten += data
        with contextlib.suppress(OSError):  # which `flush` would raise
            self._write()  # for those who watch the file

    def flush(self) -> None:
        with writing(self._path):
            self._write()
            os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self) -> None:
        while self._unwritten:
            del self._unwritten[: os.write(self._descriptor, self._unwritten)]


class _RemoteFile:
    """An object, which cannot be appended to: kept here, and written whole."""

    def __init__(self, path: epath.Path, kept: bytes):
        self._path = path
        self._data = bytearray(kept)
        self._is_written = False

    def append(self, data: bytes) -> None:
        self._data += data
        self._is_written = False

    def flush(self) -> None:
        if not self._is_written:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.write_bytes(bytes(self._data))
            self._is_written = True

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


def _record(**fields: Any) -> bytes:
    """An event as TensorBoard's files hold it: its length and its bytes, each followed by its checksum.

    The writer of tensorboardX does this in a thread, which a full disk ends; the next rows then wait for it for ever.
    """
    data = _Event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join((length, _checksum(length), data, _checksum(data)))


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))


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
        parts = [f"step {step}/{self._steps}", f"loss {loss:.4f}", f"{count(tokens_per_second)} tokens/s"]
        if mfu is not None:
            parts.append(f"MFU {100 * mfu:.1f} %")
        used, limit = memory
        if used is not None:
            parts.append(f"memory {used / 2**30:.1f}" + (f"/{limit / 2**30:.1f} GiB" if limit else " GiB"))
        if step > self._began[0]:
            seconds = (now - self._began[1]) / (step - self._began[0]) * (self._steps - step)
            parts.append(f"{duration(seconds)} left")
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
