"""Runs small enough to be made again and again: two layers of 32, bytes, and a little real text."""

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import ObjectStore, serve

from data.dataset import DataConfig
from data.tokenizers.base import Tokenizer
from model.decoder import DecoderConfig
from train import run_directory
from train.checkpoint import Checkpoints
from train.config import LogConfig, RunConfig, SampleConfig, to_json
from train.console import Console
from train.objectives.table import usual_objective
from train.optimizer import OptimizerConfig
from train.program import Program
from train.run_directory import RunDirectory
from train.state import TrainState, blueprint
from train.train import main

_LICENCE = Path(__file__).resolve().parents[2] / "LICENSE"


def _write_documents(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture(scope="session")
def licence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some real text: the paragraphs of the project's licence, each a document."""
    paragraphs = _LICENCE.read_text().split("\n\n")
    random.Random(0).shuffle(paragraphs)  # those that are held out are like the others
    return _write_documents(tmp_path_factory.mktemp("text") / "licence.jsonl", paragraphs)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of ten steps with dropout and two micro-batches, whose epoch ends within its fifth step."""
    paragraphs = _LICENCE.read_text()[:2700].split("\n\n")
    text = _write_documents(tmp_path_factory.mktemp("text") / "paragraphs.jsonl", paragraphs)
    return RunConfig(
        model=DecoderConfig(num_layers=2, model_dim=32, num_heads=4, vocab_size=257, max_length=32, dropout=0.1),
        data=DataConfig(path=str(text), max_length=32),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        log=LogConfig(every=1, tensorboard=False),
        sample=SampleConfig(tokens=0),
        steps=10,
        batch_size=16,
        micro_batches=2,
    )


@pytest.fixture(scope="session")
def uninterrupted(small: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Any]]:
    """That run, done in one go, and what it returned. Not to be written to."""
    config = dataclasses.replace(small, run_dir=str(tmp_path_factory.mktemp("runs") / "uninterrupted"))
    return config, main(config, Console())


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    store = ObjectStore()
    with pytest.MonkeyPatch.context() as patch, serve(store) as address:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        yield store


@pytest.fixture
def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """What gs:// is in this test, empty at its start, with heartbeats that are quick enough for it."""
    object_store.store.clear()
    object_store.is_full = False
    object_store.replace_gs(monkeypatch)
    monkeypatch.setattr(run_directory, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(run_directory, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(run_directory, "_SETTLE_SECONDS", 0.02)
    return object_store


@pytest.fixture
def after_each_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[TrainState, Any], Any]], None]:
    """A function (change): from then on, what runs compute in a step is change(state, metrics), as if hardware had."""
    compile_step = Program.compile_step

    def change_each(change: Callable[[TrainState, Any], Any]) -> None:
        class Changed:
            def __init__(self, compiled: Any):
                self.memory_analysis, self._compiled = compiled.memory_analysis, compiled

            def __call__(self, state: TrainState, batch: Any) -> Any:
                return change(*self._compiled(state, batch))

        monkeypatch.setattr(
            Program, "compile_step", lambda self, row, rows=None: Changed(compile_step(self, row, rows))
        )

    return change_each


@pytest.fixture(scope="session")
def write_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A function (model, tokenizer, **fields of the configuration): a run of random weights, as if it were imported."""

    def write(model: Any, tokenizer: Tokenizer, seed: int = 0, **fields: Any) -> str:
        run = RunDirectory(tmp_path_factory.mktemp("runs") / "run")
        fields = {"objective": usual_objective(model), "data": DataConfig(max_length=32)} | fields
        config = RunConfig(model=model, run_dir=str(run), **fields)
        with Checkpoints(run.checkpoints, writer=True) as checkpoints:
            checkpoints.save(0, {"params": blueprint(model).init(seed)}, {"config": to_json(config), "step": 0})
        tokenizer.save(run.tokenizer)
        run.write_config(to_json(config))
        return str(run)

    return write
