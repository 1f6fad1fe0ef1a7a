"""What a run says of itself: before its first step what it is and needs, and then, every few steps, how it goes."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax

from data.dataset import Dataset
from data.images import ImageDataset
from data.loader import Batch, Loader
from model.cost import count_parameters, train_flops_per_row, train_flops_per_token
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from train.config import ProfileConfig, RunConfig, to_json
from train.console import Console, printable
from train.environment import versions
from train.hardware import memory_in_use, memory_limit, mfu, peak_flops
from train.held_out import summary
from train.memory import device_memory, step_bytes
from train.mesh import describe_mesh
from train.metrics import Metrics, ProgressLine
from train.program import Program, tokens_per_row
from train.ramp import Turn
from train.run_directory import RunDirectory
from train.spikes import Diverged
from train.step import Metrics as StepMetrics
from train.time_use import TimeUse
from train.units import size
from train.watchdog import Watchdog

# TensorBoard names of the step's metrics that are not simply "learning/" and their own.
_CURVES = {"learning_rate": "learning/current_learning_rate"}


def describe_start(program: Program, compiled: Any, step: int) -> dict[str, Any]:
    """Where a run is started and what it needs there: what is kept of each start, as JSON.

    "memory" is bytes on one device: of parameters, of the optimizer, the most that a step holds in all, and the limit.
    """
    device = jax.local_devices()[0]
    return {
        "time": time.time(),
        "step": step,  # that it goes on behind
        "host": socket.gethostname(),
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "device_kind": device.device_kind,
        "platform": device.platform,
        "mesh": dict(program.mesh.shape),
        "memory": {**program.state_bytes(), "step": step_bytes(compiled), "limit": device_memory()},
        "versions": versions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "config": to_json(program.config),  # config.json is that of the first start
    }


def announce(
    console: Console,
    program: Program,
    dataset: Dataset | ImageDataset,
    loader: Loader,
    row: Batch,
    start: Mapping[str, Any],
    where: str,
) -> None:
    """Shows what is about to run, all of it known before the first step; `start` is what `describe_start` says."""
    config, model, memory = program.config, program.config.model, start["memory"]
    batch, length, parts = config.batch_size, tokens_per_row(model, row), config.micro_batches
    examples = config.batches.examples(config.steps)
    ramp = (
        f", from {config.ramp.batch_size} rows on doubled in {config.ramp.steps:,} steps" if config.ramp.steps else ""
    )
    rows = sum(map(len, loader.sources))
    filled = sum(source.fill * len(source) for source in loader.sources) / rows
    shown = {
        "model": f"{count_parameters(model):,} parameters ({type(model).__name__}), computed in {config.precision}",
        "devices": f"{start['devices']} x {start['device_kind']}, "
        + describe_mesh(program.mesh, program.plan.declared),
        "memory a device": f"{size(memory['step'])}, {size(memory['parameters'] + memory['optimizer'])} of it "
        "parameters and optimizer" + (f"; the limit is {size(memory['limit'])}" if memory["limit"] else ""),
        **dataset.describe(),
        "step": f"{batch} x {length} = {batch * length:,} tokens" + (f" in {parts} parts" if parts > 1 else "") + ramp,
        "rows": f"{rows:,} of {length:,} tokens"
        + ("" if "images" in row else f", {filled:.1%} filled")
        + "".join(f", {source.left_out}" for source in loader.sources if source.left_out),
        "epoch": f"{rows / batch:,.1f} steps; {config.steps:,} steps are {examples / rows:.2f} epochs",
        "run": where,
    }
    if len(loader.sources) > 1:
        del shown["epoch"]  # each source has its own
    console.table(config.name, ("", ""), [(name, printable(value)) for name, value in shown.items()])
    if len(loader.sources) > 1:
        describe_mixture(console, loader, examples)


def drawn(loader: Loader, examples_seen: int) -> list[dict[str, Any]]:
    """Of each source: its rows, how many were drawn, their share of all that were, and how many epochs they are."""
    return [
        {
            "name": name,
            "rows": len(rows),
            "drawn": count,
            "share": count / max(1, examples_seen),
            "epochs": count / len(rows),
        }
        for name, rows, count in zip(loader.names, loader.sources, loader.drawn(examples_seen), strict=True)
    ]


def describe_mixture(console: Console, loader: Loader, examples_seen: int) -> None:
    """Shows what each source gives to the first so many examples."""
    shown = [
        (each["name"], each["rows"], each["drawn"], f"{each['share']:.2%}", f"{each['epochs']:.3f}")
        for each in drawn(loader, examples_seen)
    ]
    console.table(f"{examples_seen:,} examples are of", ("source", "rows", "drawn", "share", "epochs"), shown)


class Profile:
    """While entered, writes an XProf trace of the configured steps into the run's tensorboard folder.

    Devices run behind the host, which waits for them where the trace begins and ends: it holds these steps whole, and
    no others.
    """

    def __init__(self, config: ProfileConfig, run: RunDirectory):
        self._config, self._folder, self._tracing = config, str(run.tensorboard), False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def of(self, step: int, state: Any) -> AbstractContextManager[Any]:
        """What surrounds a step, which begins from `state`: its name in the trace."""
        if step == self._config.start + self._config.steps and self._tracing:
            jax.block_until_ready(state)
            self._stop()
        elif step == self._config.start and self._config.steps:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False


class StepReport:
    """Logs a step once the next one is under way, so that the devices never wait for the host to read numbers."""

    def __init__(
        self,
        config: RunConfig,
        row: Batch,
        metrics: Metrics,
        line: ProgressLine,
        watchdog: Watchdog,
        time_use: TimeUse,
        start: int,
        examples: int,
    ):
        self.tokens_a_row = tokens_per_row(config.model, row)
        self._config, self._metrics, self._line = config, metrics, line
        self._watchdog, self._time_use = watchdog, time_use
        self._waiting: tuple[Turn, StepMetrics] | None = None
        self._row: dict[str, Any] | None = None
        self._clock = (start, examples, time.monotonic())  # up to where the last row's speed was measured
        self._nonfinite = 0
        self._flops = train_flops_per_row(config.model, row) / self.tokens_a_row
        self._palm_flops = None
        if isinstance(config.model, DecoderConfig | EncoderConfig):  # it is defined for one stack of layers
            self._palm_flops = train_flops_per_token(config.model, self.tokens_a_row, "palm")
        self._device = jax.local_devices()[0]
        self._peak = peak_flops(self._device)
        self.loss: float | None = None

    def after(self, turn: Turn, metrics: StepMetrics) -> None:
        """Takes the metrics of a step, still on the devices, and writes those of the step before it that was due."""
        if self._waiting is not None:
            self._read()
            self.write()
        if turn.step % self._config.log.every == 0 or turn.step == 1:
            self._waiting = (turn, metrics)

    def settle(self, turn: Turn, metrics: StepMetrics) -> None:
        """Waits for this step, and keeps its row back until `write` adds what is evaluated after it."""
        self._waiting = (turn, metrics)
        self._read()

    def write(self, evaluation: dict[str, Any] | None = None) -> None:
        """Writes the row that was read. Time from here on, until the next step, counts as nobody's speed.

        Raises Diverged where too many steps in a row changed nothing.
        """
        row, self._row = self._row, None
        if row is None:
            return
        evaluated = {f"eval/{name}": value for name, value in (evaluation or {}).items()}
        self._metrics.log(row | evaluated | self._time_use.curves())
        if evaluation:
            self._line.note(f"step {row['step']}: held-out data: {summary(evaluation)}")
        if row["learning/nonfinite_in_row"] >= self._config.nonfinite_limit:
            raise Diverged(
                f"the last {row['learning/nonfinite_in_row']} steps up to {row['step']} had gradients that were not "
                "finite; start anew, or --from RUN/checkpoints/STEP in another --run-dir, with a lower "
                "--optimizer.learning-rate"
            )

    def restart_clock(self) -> None:
        """Leaves the time since the last row out of the next one's speed."""
        self._clock = (*self._clock[:2], time.monotonic())

    def _read(self) -> None:
        """Brings the waiting metrics to the host, which waits for their step, and shows them."""
        assert self._waiting is not None
        (turn, metrics), self._waiting = self._waiting, None
        step, examples = turn.step, turn.position + turn.rows
        host = {name: value.item() for name, value in jax.device_get(metrics).items()}
        (step_before, examples_before, then), self._clock = self._clock, (step, examples, time.monotonic())
        elapsed = self._clock[2] - then
        seconds = elapsed / max(1, step - step_before)
        self._watchdog.ended(step, seconds)
        rate = (examples - examples_before) * self.tokens_a_row / elapsed / jax.device_count()
        utilisation = mfu(rate, self._flops, self._peak)
        self.loss = host["loss"]
        self._row = {
            "step": step,
            "tokens": examples * self.tokens_a_row,
            **{_CURVES.get(name, f"learning/{name}"): value for name, value in host.items()},
            "perf/step_time_seconds": seconds,
            "perf/per_device_tokens_per_sec": rate,
            "perf/per_device_tflops_per_sec": rate * self._flops / 1e12,
            "perf/mfu": utilisation,
            "perf/mfu_palm": mfu(rate, self._palm_flops, self._peak) if self._palm_flops else None,
            "perf/memory_bytes": memory_in_use(self._device),
        }
        memory = (memory_in_use(self._device), memory_limit(self._device))
        self._line.update(step, host["loss"], rate * jax.device_count(), utilisation, memory)
        if host["nonfinite_steps"] > self._nonfinite:
            self._nonfinite = host["nonfinite_steps"]
            self._line.note(
                f"step {step}: {self._nonfinite} steps so far had gradients that were not finite, and changed nothing"
            )
