"""Opens a run for reading: its configuration, tokenizer and verified weights, on whatever devices are here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from data.dataset import Dataset, Prepare, classes_of, prepare_dataset
from data.images import ImageDataset, ImagesConfig, find_image_classes
from data.progress import Progress
from data.shards import Corpus
from data.sources import Source as TextSource
from data.tokenizers.base import Tokenizer
from data.tokenizers.load import load_tokenizer
from model.parameters import Params
from model.structures import ModelConfig, kept_part
from train.checkpoint import Checkpoints
from train.config import RunConfig, from_json
from train.export import import_folder
from train.mesh import MeshConfig, make_mesh, parameter_shardings
from train.objectives.objective import Objective
from train.objectives.table import make_objective
from train.run_directory import RunDirectory, resolve
from train.state import Blueprint, blueprint

Report = Callable[[str], None]
Run = TypeVar("Run", bound=RunConfig)


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
    with Checkpoints(directory.checkpoints, report=report) as checkpoints:
        if which == "best":
            which = checkpoints.best()
            if which is None:
                raise ValueError(
                    f"no checkpoint of {directory} was evaluated, so none is best; name RUN or RUN/checkpoints/STEP"
                )
        if which is None:
            newest = checkpoints.newest(abstract)
            if newest is None:
                raise ValueError(f"{directory} has no checkpoint yet; train it first")
            step, items, record = newest
        else:
            step, items, record = int(which), checkpoints.restore(int(which), abstract), checkpoints.record(int(which))
        digest = checkpoints.digest(step, "params")
    return LoadedRun(directory, config, plan, items["params"], step, record, digest, mesh)


def with_classes(config: Run) -> Run:
    """The valid configuration, its model with a class for each label of the data where it has none of its own."""
    model: Any = config.model
    if not (isinstance(config.data, ImagesConfig) or config.data.label_column) or model.classes:
        return config
    run = RunDirectory(config.folder)
    if run.exists():
        saved: Any = from_json(RunConfig, run.read_config(), str(run.config)).model
        classes = saved.classes
    elif isinstance(config.data, ImagesConfig):
        classes = find_image_classes(config.data)
    else:
        classes = classes_of(config.data)
    number = {"num_classes": len(classes)} if hasattr(model, "num_classes") else {}
    return replace(config, model=replace(model, classes=classes, **number))


@dataclass(frozen=True)
class Source:
    """What a new run may start from: a model and its weights."""

    model: ModelConfig
    params: Mapping[str, Any]


def load_source(spec: str, mesh_config: MeshConfig, report: Report = lambda sentence: None) -> Source:
    """The source that a user's RUN or Hugging Face folder names; raises ValueError where it is neither.

    Of a run that trained two models together it is the one that they were trained for.
    """
    if _is_hugging_face(spec):
        model, params, _ = import_folder(spec)
        return Source(model, {name: value.astype(np.float32) for name, value in params.items()})
    run = load_run(spec, mesh_config, report)
    return Source(*kept_part(run.config.model, run.params))


def open_dataset(
    config: RunConfig,
    tokenizer: Tokenizer | None,
    progress: Progress | None = None,
    make: Callable[[TextSource, Tokenizer, Progress | None], Corpus] | None = None,
) -> Dataset | ImageDataset:
    """What a run learns from and is measured by; `tokenizer` is the run's, or None where it begins.

    `make` is what tokenizes a source. Raises ValueError for data that can't be learned from.
    """
    objective, model = make_objective(config.objective), cast(Any, config.model)
    if isinstance(config.data, ImagesConfig):
        return ImageDataset.open(config.data, model, tokenizer, progress)
    # Weights that the run starts from bring a model of their tokenizer's size.
    vocab_size = max(model.vocab_size, tokenizer.vocab_size if tokenizer else 0)
    classes = getattr(model, "classes", ())
    return prepare_dataset(
        config.data, vocab_size, config.seed, tokenizer, progress, make, objective.roles, classes=classes
    )


def preparation_of(objective: Objective, dataset: Dataset | ImageDataset) -> Prepare | None:
    """What an objective does to rows before they are learned from; nothing where there is no text."""
    return objective.preparation(dataset.tokenizer) if dataset.tokenizer else None


def tokenizer_of(config: RunConfig) -> Tokenizer | None:
    """The tokenizer that a run has or would begin with; None where it would be made from the text, or none is needed.

    Raises ValueError where what it would start from is neither a run nor a folder with a tokenizer.
    """
    run = RunDirectory(config.folder)
    if not config.data.tokenizer:
        return None
    if run.exists():
        return load_tokenizer(run.tokenizer)
    named = config.starts_from
    if not named:
        return None
    return load_tokenizer(named if _is_hugging_face(named) else resolve(named)[0].tokenizer)


def _is_hugging_face(spec: str) -> bool:
    """Whether a folder is a Hugging Face model rather than a run."""
    folder = epath.Path(spec)
    config = folder / "config.json"
    return config.is_file() and b"architectures" in config.read_bytes() and not (folder / "checkpoints").is_dir()
