"""What a step needs of a device's memory, as its compiler says, and what would fit where that is too much."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from typing import Any

import jax
import numpy as np

from model.config import StackConfig
from train.config import RunConfig
from train.console import Console
from train.hardware import memory_limit
from train.mesh import make_mesh
from train.program import Program
from train.run_directory import first_line
from train.units import size

_REMEDIES = 2  # so many are told
_MARGIN = 0.9  # of what did not fit, though by its compiler's count it should have, a remedy may need so much


class OutOfMemory(ValueError):
    """A step does not fit in a device's memory."""


def step_bytes(compiled: Any) -> int:
    """The most memory that the compiled step holds on one device, in bytes, as its compiler says."""
    analysis = compiled.memory_analysis()
    peak = getattr(analysis, "peak_memory_in_bytes", 0)
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return max(peak, held + analysis.temp_size_in_bytes)


def device_memory() -> int | None:
    """The memory of one device, in bytes, where it is known; simulated ones share the machine's."""
    device = jax.local_devices()[0]
    limit = memory_limit(device)
    return limit // jax.local_device_count() if limit and device.platform == "cpu" else limit


def compile_that_fits(program: Program, row: Mapping[str, np.ndarray], console: Console) -> Any:
    """The compiled step of a whole batch; raises OutOfMemory, with remedies, where a device has not the memory."""
    limit = device_memory()
    try:
        with console.progress("compiling the step"):
            compiled = program.compile_step(row)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            raise ValueError(f"--compiler-options: {first_line(error)}; leave it out") from error
        if not _is_out_of_memory(error):
            raise
        raise _too_large(program, row, None, limit, console) from error
    if limit and step_bytes(compiled) > limit:
        raise _too_large(program, row, step_bytes(compiled), limit, console)
    return compiled


def explained(
    program: Program, row: Mapping[str, np.ndarray], needed: int, console: Console
) -> AbstractContextManager[None]:
    """Raises RuntimeError, with remedies, where a device runs out of memory here though the step should fit."""
    return _explaining(lambda: f": beside all else, {_too_large(program, row, needed, int(_MARGIN * needed), console)}")


def explained_beside_steps(what: str, remedy: str) -> AbstractContextManager[None]:
    """Raises RuntimeError, with a remedy, where a device runs out of memory in what a run does beside its steps."""
    return _explaining(lambda: f" while {what}; {remedy}")


@contextlib.contextmanager
def _explaining(how: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise RuntimeError(f"a device has run out of memory{how()}") from error


def _is_out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


def _too_large(
    program: Program, row: Mapping[str, np.ndarray], needed: int | None, limit: int | None, console: Console
) -> OutOfMemory:
    """The error, once what would fit has been compiled too."""
    device, memory = jax.local_devices()[0].device_kind, device_memory()
    said = f"a step of {program.config.batch_size} rows "
    said += f"needs {size(needed)} of a device's memory" if needed else "needs more than a device's memory"
    said += f", {size(sum(program.state_bytes().values()))} of it for parameters and optimizer"
    said += f", and one {device} has {size(memory)}" if memory else ""
    with console.progress("looking for what would fit"):
        found = (_first_fitting(ladder, row, limit) for ladder in _ladders(program.config))
        fitting = list(islice(filter(None, found), _REMEDIES))
    if not fitting:
        return OutOfMemory(f"{said}; nothing that was tried fits: take more devices, or a smaller --batch-size")
    return OutOfMemory(f"{said}; as compiled, {' or '.join(fitting)} would fit")


def _ladders(config: RunConfig) -> Iterator[Iterator[tuple[str, RunConfig]]]:
    """Ways to learn the same in less memory, the cheapest in time first, each as options and configurations."""
    yield _in_parts("", config, 2 * config.micro_batches)
    split = replace(config.mesh, data=1, fsdp=-1)
    if jax.device_count() > 1 and config.mesh != split:
        yield _in_parts("--mesh.data 1 --mesh.fsdp -1", replace(config, mesh=split), config.micro_batches)
    if isinstance(config.model, StackConfig) and config.model.remat != "full":
        model: Any = replace(config.model, remat="full")
        yield _in_parts("--model.remat full", replace(config, model=model), config.micro_batches)


def _in_parts(options: str, config: RunConfig, parts: int) -> Iterator[tuple[str, RunConfig]]:
    while parts <= config.batch_size:
        added = f" --micro-batches {parts}" if parts > config.micro_batches else ""
        yield (options + added).strip(), replace(config, micro_batches=parts)
        parts *= 2


def _first_fitting(
    ladder: Iterator[tuple[str, RunConfig]], row: Mapping[str, np.ndarray], limit: int | None
) -> str | None:
    """The first that compiles to no more than `limit` bytes, and what it needs."""
    for options, config in ladder:
        try:
            needed = step_bytes(Program.of(config, make_mesh(config.mesh)).compile_step(row))
        except (ValueError, jax.errors.JaxRuntimeError):  # the mesh does not divide it; it does not fit either
            continue
        if limit is None or needed <= limit:
            return f"{options} ({size(needed)})"
    return None
