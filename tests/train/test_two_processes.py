"""Two processes as one run: what two hosts do, over JAX's own cluster on one machine."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from train import train
from train.config import RunConfig, to_json
from train.console import Console
from train.mesh import MeshConfig, make_mesh

# Trains the configuration on standard input as one process of two. Process 1 does not find its text, and both are
# refused; so are they where each has a run directory of its own. Then process 1 alone is sent a SIGTERM after its third
# step; when both have stopped, they go on.
PROCESS = """
import contextlib, json, os, signal, sys, tempfile
from dataclasses import replace
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
from train.config import RunConfig, from_json
from train.console import Console
from train.report import StepReport
from train.signals import Stopped
from train.train import main

def report_then_ask(self, turn, metrics, after=StepReport.after):
    after(self, turn, metrics)
    if turn.step == 3 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)

StepReport.after = report_then_ask
config = from_json(RunConfig, json.load(sys.stdin))
try:
    path = "nowhere.txt" if config.cluster.process == 1 else config.data.path
    main(replace(config, data=replace(config.data, path=path)), Console())
except ValueError as refusal:
    print(f"refused, since {refusal}; {os.listdir(os.path.dirname(config.run_dir))}")
with tempfile.TemporaryDirectory() as disk, contextlib.chdir(disk):
    try:
        main(replace(config, run_dir="run"), Console())
    except ValueError as refusal:
        print(f"refused, since {refusal}")
try:
    main(config, Console())
except Stopped as stopped:
    print(f"stopped with {stopped.exit_code}")
print(f"ended at {main(config, Console())['step']}")
"""


def run_two_processes(config: RunConfig) -> list[str]:
    """What each process printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    processes = []
    for number in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        cluster = dataclasses.replace(config.cluster, coordinator=coordinator, num_processes=2, process=number)
        assert process.stdin
        process.stdin.write(json.dumps(to_json(dataclasses.replace(config, cluster=cluster))))
        process.stdin.close()
        process.stdin = None
        processes.append(process)
    try:
        return [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def losses(run: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    return {row["step"]: row["learning/loss"] for row in rows}


def test_two_processes_are_one_run(small, tmp_path, monkeypatch):
    config = dataclasses.replace(
        small,
        steps=8,
        mesh=MeshConfig(data=2, fsdp=2),
        checkpoint=dataclasses.replace(small.checkpoint, every=2),
        run_dir=str(tmp_path / "two" / "run"),
    )
    (tmp_path / "two").mkdir()
    first, second = run_two_processes(config)
    assert (
        "refused, since process 1 of this run cannot begin, and says why; mend that, and start all again; []" in first
    )
    assert "refused, since the data path 'nowhere.txt' does not exist" in second
    assert "process 1 ends with the others, which are told: the data path 'nowhere.txt'" in second
    for said in (first, second):
        assert "refused, since the 2 processes of this run differ in run_directory; give all of them the same" in said
    assert "stopped with 143\n" in first, first
    assert "stopped with 143\n" in second, second
    assert first.endswith("ended at 8\n"), first
    assert second.endswith("ended at 8\n"), second
    said = re.search(r"stopped after step (\d), saved", first)
    assert said
    stopped_at = int(said[1])
    assert 3 <= stopped_at < 8
    assert f"resumes at step {stopped_at}" in first
    assert "step" not in second, "one process speaks for all"

    monkeypatch.setattr(train, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:4]))
    one = train.main(dataclasses.replace(config, run_dir=str(tmp_path / "one")), Console())
    assert losses(config.run_dir) == pytest.approx(losses(one["run_dir"]), rel=1e-6)
