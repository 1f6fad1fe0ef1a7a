"""Opens a run for reading: its configuration, tokenizer and verified weights, on whatever devices are here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from data.tokenizers.base import Tokenizer
from data.tokenizers.load import load_tokenizer
from model.parameters import Params
from model.structures import ModelConfig
from train.checkpoint import Checkpoints
from train.config import RunConfig, from_json
from train.export import import_folder
from train.mesh import MeshConfig, make_mesh, parameter_shardings
from train.run_directory import RunDirectory, resolve
from train.state import Blueprint, blueprint

Report = Callable[[str], None]


@dataclass(frozen=True)
class LoadedRun:
    """A run as it was at `step`. `record` is what was saved beside the weights, `weights_digest` identifies them."""

    directory: RunDirectory
    config: RunConfig
    plan: Blueprint
    params: Params
    step: int
    record: dict[str, Any]
    weights_digest: str
    mesh: Mesh

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer; raises ValueError where there is none, as in a folder imported without one."""
        return load_tokenizer(self.directory.tokenizer)


def load_run(spec: str, mesh_config: MeshConfig | None = None, report: Report = lambda sentence: None) -> LoadedRun:
    """The run that a user's RUN names.

    That is "RUN" (its newest checkpoint that verifies), "RUN/checkpoints/STEP" or "RUN@best".
    `report` gets a sentence for each checkpoint that is skipped. Raises ValueError where there is no run, or none that
    can be used.
    """
    directory, which = resolve(spec)
    config = from_json(RunConfig, directory.read_config(), str(directory.config))
    plan = blueprint(config.model)
    mesh = make_mesh(mesh_config or MeshConfig())
    shardings = parameter_shardings(plan.declared, mesh)
    abstract = {
        "params": {
            name: jax.ShapeDtypeStruct(d.shape, np.float32, sharding=shardings[name])
            for name, d in plan.declared.items()
        }
    }
    with Checkpoints(directory.checkpoints) as checkpoints:
        if which == "best":
            which = checkpoints.best()
            if which is None:
                raise ValueError(
                    f"no checkpoint of {directory} was evaluated, so none is best; name RUN or RUN/checkpoints/STEP"
                )
        if which is None:
            newest = checkpoints.newest(abstract, report)
            if newest is None:
                raise ValueError(f"{directory} has no checkpoint yet; train it first")
            step, items, record = newest
        else:
            step, items, record = int(which), checkpoints.restore(int(which), abstract), checkpoints.record(int(which))
        digest = checkpoints.digest(step, "params")
    return LoadedRun(directory, config, plan, items["params"], step, record, digest, mesh)


@dataclass(frozen=True)
class Source:
    """What a new run may start from: a model, its weights, and the tokenizer that they were learned with."""

    model: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer


def load_source(spec: str, mesh_config: MeshConfig, report: Report = lambda sentence: None) -> Source:
    """The source that a user's RUN or Hugging Face folder names; raises ValueError where it is neither."""
    if _is_foreign(spec):
        model, params, _ = import_folder(spec)
        return Source(model, {name: value.astype(np.float32) for name, value in params.items()}, load_tokenizer(spec))
    run = load_run(spec, mesh_config, report)
    return Source(run.config.model, run.params, run.tokenizer)


def tokenizer_of(config: RunConfig) -> Tokenizer | None:
    """The tokenizer that a run has or would begin with; None where it would be made from the text.

    Raises ValueError where what it would start from is neither a run nor a folder with a tokenizer.
    """
    run = RunDirectory(config.run_dir or f"runs/{config.name}")
    if run.exists():
        return load_tokenizer(run.tokenizer)
    if config.init_from is None:
        return None
    return load_tokenizer(config.init_from if _is_foreign(config.init_from) else resolve(config.init_from)[0].tokenizer)


def _is_foreign(spec: str) -> bool:
    """Whether a folder is a Hugging Face model rather than a run."""
    folder = epath.Path(spec)
    config = folder / "config.json"
    return config.is_file() and "architectures" in config.read_text() and not (folder / "checkpoints").is_dir()
