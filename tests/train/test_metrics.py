"""metrics.jsonl has one row a logged step whatever happened; TensorBoard's names; the progress line; MFU."""

import io
import json
import math
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from google.protobuf import message_factory
from object_store import ObjectStore
from tensorboardX.proto import event_pb2

from train import metrics as metrics_module
from train.hardware import find_hardware, memory_in_use, memory_limit, mfu, peak_flops
from train.metrics import Metrics, ProgressLine
from train.run_directory import RunDirectory, is_local, write_rows
from train.wandb_run import WandbRun, find_wandb

Event = message_factory.GetMessageClass(event_pb2.DESCRIPTOR.message_types_by_name["Event"])


@pytest.fixture(params=["local", "remote"])
def run(request: pytest.FixtureRequest, tmp_path: Path, bucket: ObjectStore) -> RunDirectory:
    run = RunDirectory("gs://bucket/a" if request.param == "remote" else tmp_path / "a")
    run.create()
    return run


def rows(run: RunDirectory) -> list[dict]:
    text = run.metrics.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def log(metrics: Metrics, *steps: int) -> None:
    for step in steps:
        metrics.log({"step": step, "tokens": 64 * step, "learning/loss": 1 / step})


@pytest.mark.core
def test_rows_are_one_a_step_after_any_restart(run: RunDirectory) -> None:
    with Metrics(run, tensorboard=False) as metrics:
        log(metrics, 10, 20, 30)
        metrics.flush()
        log(metrics, 40)
    first = rows(run)
    assert [row["step"] for row in first] == [10, 20, 30, 40]
    assert list(first[0]) == ["step", "tokens", "time", "learning/loss"]

    run.metrics.write_bytes(run.metrics.read_bytes() + b'{"step": 50, "tokens": 32')  # killed in mid-row
    with Metrics(run, resume_step=25, tensorboard=False) as metrics:
        with pytest.raises(RuntimeError, match="step 20 was logged after step 20: a step has one row"):
            log(metrics, 20)
        log(metrics, 30)
    with Metrics(run, resume_step=30, tensorboard=False) as metrics:
        log(metrics, 40)
    again = rows(run)
    assert [row["step"] for row in again] == [10, 20, 30, 40]
    assert again[:2] == first[:2]

    with Metrics(run, tensorboard=False):  # a new run, or one without a checkpoint yet
        pass
    assert rows(run) == []


@pytest.mark.parametrize("torn", [b'{"step": 30', b'{"step": 30, "tokens": 1}', b"\x00\x00\x00", b"[1]\n", b"30\n"])
def test_a_torn_last_line_is_cut(run: RunDirectory, torn: bytes) -> None:
    whole = b'{"step": 10, "tokens": 1}\n{"step": 20, "tokens": 2}\n'
    run.metrics.write_bytes(whole + torn)
    with Metrics(run, resume_step=30, tensorboard=False):
        pass
    assert run.metrics.read_bytes() == whole


def test_rows_are_durable_after_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(metrics_module.os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
    run = RunDirectory(tmp_path)
    metrics = Metrics(run, tensorboard=False)
    synced.clear()
    log(metrics, 1)
    assert [row["step"] for row in rows(run)] == [1]  # seen at once
    metrics.flush()
    assert synced == [str(run.metrics)]  # and durable when asked
    metrics.close()


def test_values_are_strict_json(run: RunDirectory) -> None:
    row = {
        "step": np.int64(1),
        "tokens": 5,
        "learning/loss": jnp.float32(np.nan),
        "perf/mfu": None,
        "eval/x": np.float32(0.5),
    }
    with Metrics(run, tensorboard=False) as metrics:
        metrics.log(row)
    (written,) = rows(run)
    assert "perf/mfu" not in written
    assert (written["learning/loss"], written["eval/x"], written["step"]) == (None, 0.5, 1)


def events(folder: epath.Path) -> list:
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_tensorboard_has_the_names_and_hides_what_is_done_again(run: RunDirectory) -> None:
    with Metrics(run) as metrics:
        metrics.log({"step": 10, "tokens": 1, "learning/loss": 2.5, "perf/mfu": None, "eval/loss": float("nan")})
        log(metrics, 20)
    with Metrics(run, resume_step=10) as metrics:
        log(metrics, 20)
    found = events(run.tensorboard)
    points = [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value]
    assert sorted(points) == [(10, "learning/loss", 2.5), *[(20, "learning/loss", pytest.approx(0.05))] * 2]
    assert [event.step for event in found if event.HasField("session_log")] == [11]


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    stream = io.StringIO()
    with Metrics(RunDirectory(tmp_path)) as metrics, ProgressLine(10, stream=stream) as line:
        log(metrics, 1)
        line.update(1, 2.0, 100.0)
        line.note("hello")
    assert list(tmp_path.iterdir()) == []
    assert stream.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    clock = iter([100.0, 130.0])
    monkeypatch.setattr(metrics_module.time, "monotonic", lambda: next(clock, 130.0))
    with ProgressLine(200, stream=stream) as line:
        line.update(10, 2.51234, 35_200, memory=(3 * 2**30, None))
        line.note("skipped checkpoint 3 [of 4]")
        line.update(20, 2.25, 1_234_567, mfu=0.4623, memory=(3 * 2**30, 16 * 2**30))
    return stream.getvalue()


def test_progress_is_a_line_each_time_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(io.StringIO(), monkeypatch).splitlines() == [
        "step 10/200 · loss 2.5123 · 35.2k tokens/s · memory 3.0 GiB",
        "skipped checkpoint 3 [of 4]",
        "step 20/200 · loss 2.2500 · 1.2M tokens/s · MFU 46.2 % · memory 3.0/16.0 GiB · 9:00 left",
    ]


def test_progress_stays_in_place_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    text = show(Terminal(), monkeypatch)
    assert "\r" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "skipped checkpoint 3 [of 4]" in plain
    assert "step 20/200 · loss 2.2500 · 1.2M tokens/s · MFU 46.2 % · memory 3.0/16.0 GiB · 9:00 left" in plain


@pytest.mark.core
def test_mfu_is_palms() -> None:
    flops = 6 * 540.35e9 + 12 * 118 * 48 * 256 * 2048
    peak = find_hardware("TPU v4")
    assert peak is not None
    assert round(100 * (mfu(238_300, flops, 6144 * peak.peak_flops) or 0), 2) == 46.23
    assert round(100 * (mfu(238_300, 6 * 540.35e9, 6144 * peak.peak_flops) or 0), 2) == 45.73
    assert mfu(238_300, flops, None) is None


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v5 lite", 197), ("TPU v5", 459), ("TPU v6 lite", 918), ("TPU7x", 1153.5), ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA L4", 121),
        ("NVIDIA L40", None), ("TPU v55", None), ("cpu", None), ("", None),
    ],
)  # fmt: skip
def test_known_devices(kind: str, teraflops: float | None) -> None:
    hardware = find_hardware(kind)
    assert (hardware and hardware.peak_flops / 1e12) == teraflops


def test_a_cpu_has_no_peak_and_tells_the_processs_memory() -> None:
    device = jax.devices("cpu")[0]
    used, limit = memory_in_use(device), memory_limit(device)
    assert peak_flops(device) is None
    assert used is not None
    assert limit is not None
    assert 2**26 < used < limit


class FakeWandb:
    """What is used of the module wandb, and what it was told."""

    def __init__(self) -> None:
        self.begun: dict[str, Any] = {}
        self.logged: list[dict[str, Any]] = []
        self.defined: dict[str, str] = {}
        self.finished = False

    def init(self, **settings: Any) -> "FakeWandb":
        self.begun = settings
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.defined[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


def test_weights_and_biases_hears_what_tensorboard_hears(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    write_rows(run.starts, [{"host": "here", "time": 1.5}, {"host": "there", "time": 9.5}])
    theirs = WandbRun(find_wandb(), run, "mine", {"steps": 7}, pytest.fail)
    with Metrics(run, tensorboard=False, wandb=theirs) as metrics:
        metrics.log({"step": 1, "tokens": 64, "learning/loss": 2.5, "perf/mfu": None, "learning/grad_norm": math.nan})
    assert fake.logged == [{"step": 1, "tokens": 64, "learning/loss": 2.5}]
    assert fake.defined == {"*": "step"}
    assert fake.finished
    known_as = fake.begun["id"]
    assert fake.begun | {"id": ""} == {
        "name": "mine",
        "id": "",
        "resume": "allow",
        "dir": str(run.path) if is_local(run.path) else None,
        "config": {"steps": 7},
    }
    write_rows(run.starts, [{"host": "here", "time": 1.5}])
    WandbRun(fake, run, "mine", {}, pytest.fail)
    assert fake.begun["id"] == known_as, "all starts are one run there"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    fake.begun = {}
    WandbRun(fake, run, "mine", {}, pytest.fail)
    assert not fake.begun


@pytest.mark.parametrize("fails", ["init", "define_metric", "log", "finish"])
def test_weights_and_biases_that_fail_end_no_run(
    run: RunDirectory, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **settings: Any) -> None:
        raise OSError("the network is down\nand more of it")

    monkeypatch.setattr(FakeWandb, fails, fail)
    write_rows(run.starts, [{"host": "here", "time": 1.5}])
    said: list[str] = []
    theirs = WandbRun(FakeWandb(), run, "mine", {}, said.append)
    with Metrics(run, tensorboard=False, wandb=theirs) as metrics:
        log(metrics, 1, 2)
    assert said == ["Weights & Biases failed (the network is down); the run goes on without it"]
    assert [row["step"] for row in rows(run)] == [1, 2]


def test_weights_and_biases_that_are_not_installed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r'--log.wandb needs wandb; install it with pip install "jumok\[wandb\]"'):
        find_wandb()
