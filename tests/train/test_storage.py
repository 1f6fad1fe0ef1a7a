"""Storage that fails: full, read-only, limited or slow. One sentence, nothing lost, and no waiting for what is over."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from etils import epath

from train import metrics as metrics_module
from train.checkpoint import CheckpointConfig, Checkpoints
from train.config import LogConfig, RunConfig
from train.console import Console
from train.metrics import Metrics
from train.ramp import Turn
from train.report import StepReport
from train.run_directory import RunDirectory, StorageError, write_atomically
from train.train import main

ITEMS = {"params": {"w": jnp.arange(20_000.0)}, "progress": {"step": jnp.int32(3)}}
KEEP_ONE = CheckpointConfig(keep_last=1, keep_best=0)


class Disk:
    """A file system of its own, in memory, which can be filled and made read-only."""

    def __init__(self, path: Path):
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            for size in (2**20, 4096, 1):
                while True:
                    try:
                        file.write(bytes(size))
                    except OSError:
                        break

    def free(self) -> None:
        self._filler.unlink()

    def allow(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file system in memory")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def settle(checkpoints: Checkpoints) -> None:
    """Steps until the save that runs has ended."""
    while checkpoints._saving is not None:
        checkpoints.check()
        time.sleep(0.005)


def test_a_full_disk_loses_no_checkpoint_and_leaves_nothing(disk: Disk, capfd: pytest.CaptureFixture[str]):
    reports: list[str] = []
    config = dataclasses.replace(KEEP_ONE, failures=2)
    folder = disk.path / "checkpoints"
    with Checkpoints(folder, config, writer=True, report=reports.append) as checkpoints:
        checkpoints.save(1, ITEMS, {})
        checkpoints.wait()
        disk.fill()
        for step in (2, 3):
            checkpoints.save(step, ITEMS, {})
            settle(checkpoints)
        assert checkpoints.steps() == [1]
        assert reports == [
            f"checkpoint {step} cannot be saved: No space left on device: it takes 80,004 bytes, and 0 are free; "
            f"the run goes on (failure {row} in a row, and checkpoint.failures allows 2)"
            for step, row in ((2, 1), (3, 2))
        ]
        checkpoints.save(4, ITEMS, {})
        with pytest.raises(StorageError, match=r"^checkpoint 4 cannot be saved: No space left on device"):
            settle(checkpoints)
        disk.free()
        checkpoints.save(5, ITEMS, {})
        checkpoints.wait()
        assert [path.name for path in folder.iterdir()] == ["5"]
        disk.fill()
        checkpoints.save(6, ITEMS, {})
        with pytest.raises(StorageError, match="checkpoint 6"):
            checkpoints.wait()  # a run's last
        assert checkpoints.steps() == [5]
    assert capfd.readouterr().err == ""


def test_a_disk_that_became_read_only(disk: Disk):
    with Checkpoints(disk.path / "checkpoints", KEEP_ONE, writer=True) as checkpoints:
        checkpoints.save(1, ITEMS, {})
        checkpoints.wait()
        disk.allow("ro")
        checkpoints.save(2, ITEMS, {})
        with pytest.raises(StorageError, match=r"^checkpoint 2 cannot be saved: Read-only file system$"):
            checkpoints.wait()
        waiting = [thread.name for thread in threading.enumerate() if "array" in thread.name or "json" in thread.name]
        assert not waiting, "they would keep the process from ending"
        assert checkpoints.steps() == [1]
    with (
        pytest.raises(ValueError, match=rf"^{disk.path} cannot be written: Read-only file system; give"),
        RunDirectory(disk.path).lock(),
    ):
        pass


def test_a_place_where_nothing_can_be_made_is_refused():
    with pytest.raises(ValueError, match=r"^/sys/jumok cannot be made: .*; give another --run-dir$"):
        RunDirectory("/sys/jumok").lock().__enter__()


QUOTA = """
import os, resource, sys
import jax.numpy as jnp
from train.checkpoint import CheckpointConfig, Checkpoints

items = {"params": {"w": jnp.arange(20_000.0)}}
with Checkpoints(sys.argv[1], CheckpointConfig(failures=2), writer=True, report=print) as checkpoints:
    checkpoints.save(1, items, {})
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    checkpoints.save(2, items, {})
    checkpoints.save(3, items, {})
    try:
        checkpoints.wait()
    except OSError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    print(checkpoints.steps())
    checkpoints.save(4, items, {})  # the error of the last one is not raised again, and its leftovers go
    checkpoints.wait()
    print(sorted(os.listdir(sys.argv[1])))
"""


def test_a_quota_is_named(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", QUOTA, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        "checkpoint 2 cannot be saved: File too large; the run goes on (failure 1 in a row, and checkpoint.failures "
        "allows 2)",
        "checkpoint 3 cannot be saved: File too large",
        "[1]",
        "['1', '4']",
    ]
    assert done.stderr == ""


def test_a_slow_disk_stops_nobody_but_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    may_commit = threading.Event()
    finalize = ocp.path.atomicity.AtomicRenameTemporaryPath.finalize

    async def commit_when_allowed(path: Any) -> None:
        assert may_commit.wait(20)
        await finalize(path)

    monkeypatch.setattr(ocp.path.atomicity.AtomicRenameTemporaryPath, "finalize", commit_when_allowed)
    with Checkpoints(tmp_path, KEEP_ONE, writer=True) as checkpoints:
        checkpoints.save(1, ITEMS, {})
        for _ in range(1000):
            checkpoints.check()
        assert checkpoints.steps() == []
        threading.Timer(0.3, may_commit.set).start()
        checkpoints.save(2, ITEMS, {})
        assert checkpoints.steps() == [1]
        checkpoints.wait()
        assert checkpoints.steps() == [2]


def test_what_cannot_be_deleted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Checkpoints, path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Checkpoints, "_delete", refuse)
    with Checkpoints(tmp_path, KEEP_ONE, writer=True) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, ITEMS, {})
        with pytest.raises(
            StorageError, match=r"checkpoint 2 is saved, and older ones cannot be deleted: .*Input/output"
        ):
            checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def test_what_ends_a_run_is_not_hidden_by_a_failed_save(disk: Disk):
    reports: list[str] = []
    disk.fill()

    def diverge() -> None:
        with Checkpoints(disk.path / "checkpoints", writer=True, report=reports.append) as checkpoints:
            checkpoints.save(1, ITEMS, {})
            raise RuntimeError("it diverged")

    with pytest.raises(RuntimeError, match="it diverged"):
        diverge()
    assert len(reports) == 1
    assert reports[0].startswith("checkpoint 1 cannot be saved: No space left on device")


def test_rows_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    run = RunDirectory(tmp_path)
    write = os.write
    with Metrics(run) as metrics:
        metrics.log({"step": 1, "learning/loss": 2.0})
        with monkeypatch.context() as patch:
            patch.setattr(metrics_module.os, "write", full)
            for step in range(2, 40):
                metrics.log({"step": step, "learning/loss": 2.0})
            with pytest.raises(StorageError, match=rf"^{run.metrics} cannot be written: No space left on device$"):
                metrics.flush()
            patch.setattr(metrics_module.os, "write", lambda descriptor, data: write(descriptor, data[:7]))
            metrics.log({"step": 40, "learning/loss": 2.0})

    def diverge() -> None:
        with Metrics(run, 40) as metrics:
            metrics.log({"step": 41})
            monkeypatch.setattr(metrics_module.os, "write", full)
            metrics.log({"step": 42})
            raise RuntimeError("it diverged")

    with pytest.raises(RuntimeError, match="it diverged"):
        diverge()
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == list(range(1, 42))


def test_a_file_that_could_not_be_written_leaves_no_part(disk: Disk):
    write_atomically(epath.Path(disk.path / "config.json"), "old")
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        write_atomically(epath.Path(disk.path / "config.json"), "new" * 9999)
    assert (disk.path / "config.json").read_text() == "old"
    assert sorted(path.name for path in disk.path.iterdir()) == ["config.json", "filler"]


def full_between(disk: Disk, monkeypatch: pytest.MonkeyPatch, begin: int, end: int) -> None:
    """Has the disk full from behind one step until behind another."""
    after = StepReport.after

    def report_and_change(self: StepReport, turn: Turn, metrics: Any) -> None:
        after(self, turn, metrics)
        if turn.step == begin:
            disk.fill()
        if turn.step == end:
            disk.free()

    monkeypatch.setattr(StepReport, "after", report_and_change)


def measured(run: Path | str) -> list[tuple[int, float]]:
    rows = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["learning/loss"]) for row in rows]


@pytest.mark.parametrize("failures", [0, 2])
def test_a_run_outlives_a_full_disk_or_ends_with_a_sentence(
    small: RunConfig, uninterrupted, disk: Disk, monkeypatch, capsys, failures: int
):
    config = dataclasses.replace(
        small,
        run_dir=str(disk.path / "run"),
        checkpoint=CheckpointConfig(every=4, failures=failures),
        log=LogConfig(every=1, tensorboard=True),
    )
    full_between(disk, monkeypatch, 3, 6)
    if failures:
        result = main(config, Console())
        said = capsys.readouterr().out
        assert "checkpoint 4 cannot be saved: " in said
        assert "the run goes on (failure 1 in a row" in said
    else:
        with pytest.raises(StorageError, match=r"^checkpoint 4 cannot be saved: .*No space left on device"):
            main(config, Console())
        monkeypatch.undo()
        disk.free()
        result = main(config, Console())
    assert result["loss"] == uninterrupted[1]["loss"]
    assert measured(disk.path / "run") == measured(uninterrupted[0].run_dir)
