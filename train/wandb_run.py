"""A run at Weights & Biases, beside its own metrics."""

import contextlib
import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from train.run_directory import RunDirectory, first_line, is_local, read_rows


def find_wandb() -> Any:
    """The module wandb; raises ValueError where it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise ValueError(
            '--log.wandb needs wandb; install it with pip install "jumok[wandb]", or leave the option out'
        ) from None


class WandbRun:
    """A run of Weights & Biases, the same for all starts of a run; nothing but for the first of many processes.

    What it is not told here, its own environment variables say, as WANDB_PROJECT and WANDB_MODE=offline. That it fails
    is said once, and never ends a run, which from then on goes on without it.

    Args:
        wandb: the module.
        run: the run directory, in which this start is written down.
        name: what the run is called.
        config: what it is.
        report: is told, in a sentence, that it failed.
    """

    def __init__(
        self, wandb: Any, run: RunDirectory, name: str, config: Mapping[str, Any], report: Callable[[str], None]
    ):
        self._report = report
        self._begun: Any = None
        if jax.process_index() != 0:
            return
        first = read_rows(run.starts)[0]
        known_as = hashlib.sha256(f"{first['host']} {first['time']}".encode()).hexdigest()[:16]
        folder = str(run.path) if is_local(run.path) else None
        with self._failing_once():
            begun = wandb.init(name=name, id=known_as, resume="allow", dir=folder, config=dict(config))
            begun.define_metric("*", step_metric="step")  # its own steps cannot go back, as a run does to a checkpoint
            self._begun = begun

    def log(self, values: Mapping[str, Any]) -> None:
        """Sends values by name, "step" among them."""
        if self._begun is not None:
            with self._failing_once():
                self._begun.log(dict(values))

    def finish(self) -> None:
        """Sends what is left, and ends it."""
        if self._begun is not None:
            with self._failing_once():
                self._begun.finish()

    @contextlib.contextmanager
    def _failing_once(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is: what is learned matters more
            self._begun = None
            self._report(f"Weights & Biases failed ({first_line(error)}); the run goes on without it")
