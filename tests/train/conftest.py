"""Runs small enough to be made again and again: two layers of 32, bytes, and a little real text."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from data.dataset import DataConfig
from model.decoder import DecoderConfig
from train.config import LogConfig, RunConfig, SampleConfig
from train.console import Console
from train.optimizer import OptimizerConfig
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
