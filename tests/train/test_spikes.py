"""After a spike a run goes back and past it, and does so again bit for bit when it is interrupted."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from train.checkpoint import CheckpointConfig, Checkpoints
from train.config import RunConfig
from train.console import Console
from train.mesh import MeshConfig
from train.ramp import Turn
from train.spikes import Diverged, Spike, SpikeConfig, SpikeWatch
from train.state import TrainState
from train.train import main

USUAL = [3.0 + 0.01 * (i % 5) for i in range(40)]


def judged(losses: list[float], config: SpikeConfig) -> SpikeWatch:
    watch = SpikeWatch(config)
    for i, loss in enumerate(losses):
        watch.after(Turn(i + 1, 8 * i, 8), jnp.float32(loss))
    watch.settle()
    return watch


@pytest.mark.core
def test_a_spike_is_what_is_far_over_the_median():
    config = SpikeConfig(deviations=20, skip=3)
    judged([*USUAL, 3.15, 2.0, float("nan")], config)
    judged([*USUAL, 9.0], SpikeConfig())
    judged([*USUAL[:10], 9.0], config)  # too early to say
    judged([*[1.0] * 40, 1.01], config)  # where nothing deviates, a little is no spike
    with pytest.raises(Spike, match=r"step 41: the loss is 3.5, and its median was 3.02") as spike:
        judged([*USUAL, 3.5, 3.0], config)
    assert spike.value.position == 8 * (40 + 1 + 3)


@pytest.mark.core
def test_what_is_remembered_judges_as_before():
    config = SpikeConfig(deviations=20)
    watch = SpikeWatch(config, json.loads(json.dumps(judged(USUAL, config).record())))
    watch.after(Turn(41, 320, 8), jnp.float32(3.5))
    with pytest.raises(Spike):
        watch.settle()


def spoilt(*positions: int) -> Callable[[TrainState, Any], Any]:
    """What makes the loss of the batches of two at these data positions a spike."""
    return lambda state, metrics: (
        state,
        metrics | {"loss": metrics["loss"] + (100.0 if int(state.examples_seen) - 2 in positions else 0.0)},
    )


def result_of(run: Path) -> tuple[dict[int, float], list[list[int]], str]:
    """The losses by step, what was left out, and the digest of the weights."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    with Checkpoints(run / "checkpoints") as checkpoints:
        last = checkpoints.steps()[-1]
        left_out = checkpoints.record(last)["left_out"]
        return {row["step"]: row["learning/loss"] for row in rows}, left_out, checkpoints.digest(last, "params")


def spiky(small: RunConfig, run: Path, **changes: Any) -> RunConfig:
    """A run of batches of two, on a mesh, that watches for spikes."""
    fields = {"batch_size": 2, "micro_batches": 1, "mesh": MeshConfig(fsdp=2, tensor=4), "run_dir": str(run)}
    return dataclasses.replace(small, **(fields | changes))


def test_a_run_leaves_a_spike_behind_the_same_way_however_it_is_interrupted(
    small: RunConfig, tmp_path: Path, after_each_step: Any, capsys: pytest.CaptureFixture[str]
):
    watch = {"steps": 50, "checkpoint": CheckpointConfig(every=15), "spikes": SpikeConfig(deviations=30, skip=2)}
    after_each_step(spoilt(2 * 35))  # in step 36
    assert main(spiky(small, tmp_path / "whole", **watch), Console())["step"] == 50
    assert "step 36: the loss is 10" in capsys.readouterr().out
    losses, left_out, weights = result_of(tmp_path / "whole")
    assert list(losses) == list(range(1, 51))
    assert max(losses.values()) < 10
    assert left_out == [[60, 76]]  # from the checkpoint of step 30, over step 36, and two batches more

    # One that is stopped before the spike, right after it went back, twice before it is as far again, and beyond.
    parts = spiky(small, tmp_path / "parts", **watch)
    for stop_after, reached in ((33, 33), (2, 35), (2, 32), (2, 34), (8, 42)):
        assert main(dataclasses.replace(parts, stop_after=stop_after), Console())["step"] == reached
    main(parts, Console())
    assert result_of(tmp_path / "parts") == (losses, left_out, weights)


def test_who_asks_to_stop_in_the_step_of_a_spike_is_heard(small: RunConfig, tmp_path: Path, after_each_step: Any):
    asked: list[int] = []

    def spoil_and_ask(state: TrainState, metrics: Any) -> Any:
        if int(state.step) == 36 and not asked:
            os.kill(os.getpid(), signal.SIGTERM)
            asked.append(36)
        return spoilt(2 * 35)(state, metrics)

    after_each_step(spoil_and_ask)
    before = signal.signal(signal.SIGTERM, lambda signum, frame: asked.append(signum))
    try:
        main(
            spiky(small, tmp_path, steps=40, checkpoint=CheckpointConfig(every=15), spikes=SpikeConfig(deviations=30)),
            Console(),
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == [36, signal.SIGTERM]


def test_a_run_that_spikes_again_and_again_ends(small: RunConfig, tmp_path: Path, after_each_step: Any):
    after_each_step(spoilt(*range(60, 2000, 2)))
    watch = {"steps": 40, "checkpoint": CheckpointConfig(every=25), "spikes": SpikeConfig(deviations=30, limit=1)}
    with pytest.raises(Diverged, match=r"step 26: .* has gone back 1 times before"):
        main(spiky(small, tmp_path, **watch), Console())
    assert 'class="state failed"' in (tmp_path / "report.html").read_text()
