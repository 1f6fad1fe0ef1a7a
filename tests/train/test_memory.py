"""A step that does not fit is refused with remedies that do."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import pytest

from train.config import RunConfig, SampleConfig
from train.console import Console
from train.held_out import HeldOut
from train.load import open_dataset
from train.memory import OutOfMemory
from train.mesh import MeshConfig, make_mesh
from train.run_directory import RunDirectory
from train.samples import Samples
from train.state import blueprint
from train.train import main

MEMORY = 6_000_000  # bytes a device
GIVEN = re.compile(r"((?:--[\w.-]+ \S+ ?)+)\((\S+) MiB\)")


@pytest.fixture
def wide(small: RunConfig, tmp_path: Path) -> RunConfig:
    """A run whose activations are most of what it needs."""
    model = dataclasses.replace(small.model, vocab_size=1024)
    return dataclasses.replace(
        small,
        model=model,
        batch_size=128,
        micro_batches=1,
        steps=2,
        run_dir=str(tmp_path / "run"),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
    )


def with_options(config: RunConfig, options: str) -> RunConfig:
    words = options.split()
    for name, value in zip(words[::2], words[1::2], strict=True):
        match name:
            case "--micro-batches":
                config = dataclasses.replace(config, micro_batches=int(value))
            case "--mesh.data" | "--mesh.fsdp":
                config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **{name[7:]: int(value)}))
            case "--model.remat":
                config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=value))
    return config


def test_what_does_not_fit_is_refused_and_its_remedies_fit(wide: RunConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("train.memory.device_memory", lambda: MEMORY)
    with pytest.raises(
        OutOfMemory, match=r"a step of 128 rows needs \S+ MiB of a device's memory, \S+ MiB of it"
    ) as said:
        main(wide, Console())
    assert not Path(wide.folder).exists()
    remedies = GIVEN.findall(str(said.value))
    assert len(remedies) == 2
    assert all(float(needed) * 2**20 <= MEMORY * 1.03 for _, needed in remedies)  # shown in tenths of a MiB
    assert main(with_options(wide, remedies[1][0]), Console())["step"] == 2


@pytest.mark.core
def test_a_device_that_runs_out_while_training_says_so(wide: RunConfig, after_each_step: Any):
    def run_out(state: Any, metrics: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345 bytes.")

    after_each_step(run_out)
    sentence = (
        r"a device has run out of memory: beside .* compiled, --micro-batches 2 \(\S+ MiB\) or --\S+ .* would fit"
    )
    with pytest.raises(RuntimeError, match=sentence):
        main(wide, Console())


@pytest.mark.core
def test_a_device_that_runs_out_beside_the_steps_says_where(
    wide: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def run_out(*_: Any, **__: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345 bytes.")

    monkeypatch.setattr("train.perplexity.PerplexityMeter.score", run_out)
    monkeypatch.setattr("train.samples.Writer", run_out)
    plan, mesh, dataset = blueprint(wide.model), make_mesh(wide.mesh), open_dataset(wide, None)
    assert dataset.tokenizer
    with pytest.raises(RuntimeError, match="while scoring held-out data, 64 rows at a time; a larger --micro-batches"):
        HeldOut(wide, plan, mesh, dataset, 64).score({})
    samples = Samples(SampleConfig(), plan, dataset.tokenizer, mesh, RunDirectory(tmp_path), 0, pytest.fail)
    with pytest.raises(RuntimeError, match=r"while writing a sample; --sample.every 0 and --sample.tokens 0 leave"):
        samples.write(1, {})


@pytest.mark.core
def test_other_failures_stay_what_they_are(wide: RunConfig, after_each_step: Any):
    def fail(state: Any, metrics: Any) -> Any:
        raise jax.errors.JaxRuntimeError("INTERNAL: a cable was pulled")

    after_each_step(fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a cable was pulled"):
        main(wide, Console())
