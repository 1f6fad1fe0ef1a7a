"""The rows about what a run does beside its steps: compiling them, evaluating, saving and restoring."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rows import SIZES, TORCH, tensors, text_batch, text_run

from model.families import gpt2
from train.checkpoint import CheckpointConfig, Checkpoints
from train.config import resolve
from train.mesh import MeshConfig, make_mesh, place_batch
from train.program import Program
from train.step import make_evaluation

if TORCH:
    from torch_gpt2 import gpt2_loss, turned
    from torch_training import on_device, torch


def _program(size: str) -> Program:
    return Program.of(resolve(text_run(size)), make_mesh(MeshConfig(data=1), jax.devices()[:1]))


def compiling(size: str) -> dict[str, Any]:
    """A step from its configuration to the program that the devices run, nothing of it remembered."""
    program = _program(size)
    row = {name: array[0] for name, array in program.inputs(text_batch(size)[1]).items()}
    jax.config.update("jax_enable_compilation_cache", False)

    def compile_anew() -> None:
        jax.clear_caches()
        program.compile_step(row)

    columns = [("CPU ms", "cpu", None), ("ms", "wall", None)]
    return {"what": "the step traced and compiled", "systems": {"jumok": compile_anew}, "columns": columns}


def evaluating(size: str) -> dict[str, Any]:
    """The losses of a batch of held-out text, in float32, without gradients."""
    program, (stream, batch) = _program(size), text_batch(size)
    rows, length = batch["tokens"].shape
    evaluate = make_evaluation(program.plan, program.objective, program.mesh, "float32")
    params = program.first_state().params
    placed = place_batch(program.mesh, rows, lambda places: {name: array[places] for name, array in batch.items()})

    def ours() -> float:
        with jax.set_mesh(program.mesh):
            sums = jax.device_get(evaluate(params, placed))
        return float(np.sum(sums["nats"]) / (rows * length))

    systems: dict[str, Callable[[], float]] = {"jumok": ours}
    if TORCH:
        loss = gpt2_loss(SIZES[size][0], turned(tensors(gpt2, program.plan, params)), stream)

        def theirs() -> float:
            with torch.no_grad():
                return loss().item()

        systems["torch"] = theirs
    losses = {name: call() for name, call in systems.items()}
    apart = max(abs(loss / losses["jumok"] - 1) for loss in losses.values())
    if not apart < 1e-4:
        raise ArithmeticError(f"they do not find the same: losses {losses}")
    return {
        "what": f"{rows} x {length} tokens, vocabulary {SIZES[size][0].vocab_size}, float32",
        "systems": systems,
        "columns": [("tokens / CPU-s", "cpu", rows * length), ("tokens / s", "wall", rows * length)],
        "agreement": f"losses agree to {apart:.0e}" if TORCH else "",
    }


def saving(size: str) -> dict[str, Any]:
    """A checkpoint from the first digest until it is committed, beside torch.save of the same arrays."""
    items, megabytes = _items(size)
    folder = Path(tempfile.mkdtemp())
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig(keep_last=1), writer=True)
    steps = itertools.count(1)

    def save() -> None:
        checkpoints.save(next(steps), items, {})
        checkpoints.wait()

    systems: dict[str, Callable[[], None]] = {"jumok": save}
    if TORCH:
        theirs = _torch_arrays(items)
        systems["torch.save"] = lambda: torch.save(theirs, folder / "theirs.pt")
    return _moved(megabytes, systems)


def restoring(size: str) -> dict[str, Any]:
    """A checkpoint read and every array's digest compared, beside torch.load, which compares nothing."""
    items, megabytes = _items(size)
    folder = Path(tempfile.mkdtemp())
    checkpoints = Checkpoints(folder / "checkpoints", writer=True)
    checkpoints.save(1, items, {})
    checkpoints.wait()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), items)
    systems: dict[str, Callable[[], Any]] = {"jumok": lambda: jax.block_until_ready(checkpoints.restore(1, abstract))}
    if TORCH:
        file = folder / "theirs.pt"
        torch.save(_torch_arrays(items), file)
        systems["torch.load"] = lambda: torch.load(file, weights_only=True)
    return _moved(megabytes, systems)


def blocking(size: str) -> dict[str, Any]:
    """How long training waits for a save, which then goes on in the background."""
    items, megabytes = _items(size)
    waits = []
    folder = Path(tempfile.mkdtemp()) / "checkpoints"
    with Checkpoints(folder, CheckpointConfig(keep_last=1), writer=True) as checkpoints:
        for step in range(1, 9):
            began = time.perf_counter()
            checkpoints.save(step, items, {})
            waits.append((time.perf_counter() - began) * 1e3)
            checkpoints.wait()
    waits = waits[1:]  # the first compiles
    figures = {"ms, least": min(waits), "median": statistics.median(waits), "most": max(waits)}
    return {"what": f"{megabytes:,.0f} MB of parameters and moments", "figures": figures}


def _items(size: str) -> tuple[dict[str, Any], float]:
    """Weights and moments of a run, and how many MB they are; random, since zeros would compress."""
    program = _program(size)
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(program.abstract))))

    def drawn(leaf: Any) -> jax.Array:
        key = next(keys)
        return (
            jax.random.normal(key, leaf.shape) if leaf.dtype == np.float32 else jax.numpy.zeros(leaf.shape, leaf.dtype)
        )

    state = jax.tree.map(drawn, program.abstract)
    items = {"params": state.params, "opt_state": state.opt_state}
    return items, sum(leaf.nbytes for leaf in jax.tree.leaves(items)) / 1e6


def _torch_arrays(items: dict[str, Any]) -> list[Any]:
    return [on_device(np.array(leaf)) for leaf in jax.tree.leaves(items)]


def _moved(megabytes: float, systems: dict[str, Callable]) -> dict[str, Any]:
    return {
        "what": f"{megabytes:,.0f} MB of parameters and moments",
        "systems": systems,
        "columns": [("MB / CPU-s", "cpu", megabytes), ("MB / s", "wall", megabytes)],
    }
