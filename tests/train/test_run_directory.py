"""Run directories: one writer, whatever dies; configurations whole or not at all; and how a RUN is spelled."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from object_store import ObjectStore

from train import run_directory
from train.run_directory import RunDirectory, is_step, json_text, resolve

HOLD_THE_LOCK = """
import sys, time
from train.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(100)
"""


def test_nothing_is_created_before_create(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "a")
    assert not run.exists()
    with pytest.raises(ValueError, match=r"is not a run directory: it has no config.json"):
        run.read_config()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").write_text("")
    with pytest.raises(ValueError, match="cannot be a run directory: a file stands in its place"):
        run.create()


@pytest.mark.parametrize("remote", [False, True])
def test_config_round_trip(tmp_path: Path, bucket: ObjectStore, remote: bool) -> None:
    run = RunDirectory("gs://bucket/a" if remote else tmp_path / "a")
    config = {"name": "é", "model": {"sizes": [1, 2]}, "steps": 10, "rate": 1e-3, "path": None}
    run.create()
    run.write_config({"old": 1})
    run.write_config(config)
    assert run.read_config() == config
    assert [path.name for path in run.path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"", b"[" * 100_000, b'{"a": 1, "a": 2}', b'{"a": NaN}'])
def test_a_config_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json (is not valid JSON|must hold an object)"):
        RunDirectory(tmp_path).read_config()


def test_an_interrupted_write_leaves_the_old_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    run = RunDirectory(tmp_path)
    run.write_config({"steps": 1})
    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        run.write_config({"steps": 2})
    assert run.read_config() == {"steps": 1}


@pytest.mark.core
def test_spellings_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=f"^{folder} is not a run directory: it has no config.json$"):
        resolve(str(folder))
    RunDirectory(folder).write_config({})
    for spec, which in [("", None), ("/", None), ("@best", "best"), ("/checkpoints/20", 20), ("/checkpoints/0/", 0)]:
        run, found = resolve(f"{folder}{spec}")
        assert (str(run), found) == (str(folder), which)
    for spec in ("/checkpoints", "/checkpoints/020", "/checkpoints/last", "/tokenizer", "x"):
        with pytest.raises(ValueError, match="there is no run directory"):
            resolve(f"{folder}{spec}")
    with pytest.raises(ValueError, match="names two checkpoints"):
        resolve(f"{folder}/checkpoints/20@best")


def test_step_names() -> None:
    assert [name for name in ("0", "10", "007", "1.tmp", "-1", "", "٣", "1e3") if is_step(name)] == ["0", "10"]


def test_tracebacks_have_files_of_their_own(tmp_path: Path) -> None:
    path = RunDirectory(tmp_path / "a").write_traceback("Traceback ...")
    assert path.parent == tmp_path / "a"
    assert path.read_text() == "Traceback ..."


def test_json_is_strict() -> None:
    value = {"loss": float("nan"), "norm": np.float32("inf"), 3: (np.int64(2), np.bool_(True)), "text": "ü"}
    assert json.loads(json_text(value)) == {"loss": None, "norm": None, "3": [2, True], "text": "ü"}


@pytest.mark.core
def test_one_writer_until_it_dies(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a")
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(run)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert run.is_written()
        with pytest.raises(ValueError, match=f"^{run} is being written by process {holder.pid} on .*; wait") as error:
            run.lock().__enter__()
        assert "\n" not in str(error.value)
        holder.send_signal(signal.SIGKILL)
    assert not run.is_written()
    with run.lock() as check:
        check()
        with pytest.raises(ValueError, match=f"is being written by process {os.getpid()} on"):
            run.lock().__enter__()
    with run.lock():
        pass


@pytest.mark.parametrize("has_locks", [True, False])
def test_what_a_dead_holder_left_holds_nobody_up(
    tmp_path: Path, bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    """Its process number belongs to a living process again, and its clock was ahead of ours."""
    if not has_locks:
        monkeypatch.setattr(run_directory.fcntl, "flock", unsupported)
    left = tmp_path / ("lock" if has_locks else "heartbeat.json")
    left.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getppid(), "lock": "x", "beat": 7}))
    os.utime(left, (time.time() + 9e6, time.time() + 9e6))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with RunDirectory(tmp_path).lock() as check:
        check()
        assert json.loads(left.read_text())["pid"] == os.getpid()
        with pytest.raises(ValueError, match=f"is being written by process {os.getpid()} on"):
            RunDirectory(tmp_path).lock().__enter__()


def unsupported(*_: object) -> None:
    raise OSError(95, "Operation not supported")


def test_a_heartbeat_where_there_are_no_locks(bucket: ObjectStore) -> None:
    run = RunDirectory("gs://bucket/a")
    heartbeat = run.path / "heartbeat.json"
    with run.lock() as check:
        with pytest.raises(ValueError, match=f"^gs://bucket/a is being written by process {os.getpid()} on"):
            run.lock().__enter__()
        check()
    assert not heartbeat.exists()

    heartbeat.write_text('{"host": "dead", "pid": 1, "lock": "x", "beat": 7}')
    began = time.monotonic()
    with run.lock() as check:
        assert time.monotonic() - began > run_directory.STALE_SECONDS
        heartbeat.write_text('{"host": "other", "pid": 1, "lock": "y", "beat": 0}')  # taken over while this one slept
        with pytest.raises(RuntimeError, match="was taken over by another writer"):
            check_for_seconds(check, 5)
    assert json.loads(heartbeat.read_text())["host"] == "other"


def check_for_seconds(check, seconds: float) -> None:
    for _ in range(int(seconds * 100)):
        check()
        time.sleep(0.01)


def test_a_file_system_without_locks_gets_a_heartbeat(
    tmp_path: Path, bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_directory.fcntl, "flock", unsupported)
    run = RunDirectory(tmp_path)
    with run.lock():
        assert (tmp_path / "heartbeat.json").exists()
        with pytest.raises(ValueError, match="is being written by process"):
            run.lock().__enter__()
    assert not (tmp_path / "heartbeat.json").exists()
