"""The `export` and `import` commands: a run to a Hugging Face folder, and such a folder to a run."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
import tyro
from etils import epath

from data.dataset import DataConfig
from data.images import ImagesConfig
from model.cost import count_parameters
from model.encoder_decoder import EncoderDecoderConfig
from model.presets import family_of
from model.structures import kept_part
from model.vision import VisionConfig
from train.checkpoint import Checkpoints
from train.config import RunConfig, resolve, to_json
from train.console import Console
from train.export import export_folder, import_folder
from train.load import load_run
from train.mesh import MeshConfig, make_mesh, parameter_shardings
from train.objectives.table import usual_objective
from train.published import PAIRS
from train.run_directory import RunDirectory
from train.state import blueprint


@dataclass(frozen=True)
class ExportArguments:
    """Writes a run's model and tokenizer as a folder that transformers loads, and proves that it holds the same model.

    Attributes:
        run: RUN (its newest checkpoint), RUN/checkpoints/STEP or RUN@best.
        folder: where to; it must be empty or not exist.
        dtype: of the written weights; by default as they are, or as they were where the run was imported.
        mesh: where the model lies meanwhile.
    """

    run: tyro.conf.Positional[str]
    folder: tyro.conf.Positional[str]
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    mesh: MeshConfig = MeshConfig()


@dataclass(frozen=True)
class ImportArguments:
    """Reads a Hugging Face folder into a run at step 0, and proves that every tensor arrived with the same bits.

    Attributes:
        folder: the folder, of which only safetensors and JSON are read and nothing is run.
        run: the run directory to write; it must be empty or not exist.
    """

    folder: tyro.conf.Positional[str]
    run: tyro.conf.Positional[str]


def export_main(arguments: ExportArguments, console: Console) -> dict[str, Any]:
    """The `export` command."""
    run = load_run(arguments.run, arguments.mesh, console.say)
    model, params = kept_part(run.config.model, run.params)
    with console.progress("writing") as progress:
        receipt = export_folder(
            params,
            model,
            run.directory.tokenizer,
            arguments.folder,
            dtype=arguments.dtype or run.record.get("imported_dtype"),
            progress=progress,
        )
    console.say(
        f"wrote {receipt['path']}: {receipt['architecture']}, {receipt['parameters']:,} {receipt['dtype']} parameters; "
        f"read again, its logits differ by at most {receipt['max_logit_difference']:.2g}"
    )
    return receipt


def import_main(arguments: ImportArguments, console: Console) -> dict[str, Any]:
    """The `import` command."""
    run = RunDirectory(arguments.run)
    if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
        raise ValueError(f"{run} already exists and is not an empty folder; name another")
    with console.progress("reading") as progress:
        model, params, files = import_folder(arguments.folder, progress)
    config = resolve(
        RunConfig(
            name=epath.Path(arguments.run).name,
            run_dir=str(run),
            model=model,
            data=_no_data(model),
            objective=usual_objective(model),
        )
    )
    declared = blueprint(model).declared
    shardings = parameter_shardings(declared, make_mesh(MeshConfig()))
    weights = {name: jax.device_put(params[name].astype(np.float32), shardings[name]) for name in declared}
    dtypes = {array.dtype.name for array in params.values()}
    record = {
        "config": to_json(config),
        "step": 0,
        "examples_seen": 0,
        "tokens": 0,
        "loss": None,
        "evaluation": None,
        "figures": {},
    }
    with run.lock():
        run.tokenizer.mkdir()
        for name, content in files.items():
            (run.tokenizer / name).write_bytes(content)
        with Checkpoints(run.checkpoints, writer=True) as checkpoints:
            checkpoints.save(
                0, {"params": weights}, record | {"imported_dtype": dtypes.pop() if len(dtypes) == 1 else "float32"}
            )
        run.write_config(to_json(config))  # last: what has it is a run
    architecture, parameters = family_of(model).architecture(model), count_parameters(model)
    console.say(
        f"imported {arguments.folder} as {run}: {architecture}, {parameters:,} parameters, "
        "mapped back with the same bits"
    )
    return {"path": str(run), "architecture": architecture, "parameters": parameters, "max_logit_difference": 0.0}


def _no_data(model: Any) -> DataConfig | ImagesConfig:
    """What a model that was not trained here would learn from: nothing yet, in rows that fit it."""
    if isinstance(model, VisionConfig):
        return ImagesConfig()
    empty = PAIRS if isinstance(model, EncoderDecoderConfig) else DataConfig()
    return replace(empty, max_length=min(model.max_length, 1024))
