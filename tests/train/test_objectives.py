"""Every objective, with a model and data of its kind: any mesh agrees, and an interrupted run goes on."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data.dataset import DataConfig
from data.images import ImagesConfig
from model.decoder import DecoderConfig
from model.distillation import DistillationConfig
from model.encoder import EncoderConfig
from model.encoder_decoder import EncoderDecoderConfig
from model.generator_discriminator import GeneratorDiscriminatorConfig
from model.image_decoder import ImageDecoderConfig
from model.recurrent import RecurrentConfig
from model.vision import VisionConfig
from train.config import LogConfig, RunConfig, SampleConfig, resolve
from train.console import Console
from train.load import open_dataset, preparation_of, with_classes
from train.mesh import MeshConfig, make_mesh, place_batch
from train.objectives.caption import CaptionConfig
from train.objectives.classify import ClassifyConfig, ClassifyImagesConfig
from train.objectives.denoising import DenoisingConfig
from train.objectives.distill import DistillConfig
from train.objectives.masked_lm import MaskedLMConfig
from train.objectives.replaced_token import ReplacedTokenConfig
from train.objectives.sentence_pairs import SentencePairsConfig
from train.objectives.seq2seq import Seq2SeqConfig
from train.objectives.span_corruption import SpanCorruptionConfig
from train.objectives.table import OBJECTIVES
from train.optimizer import OptimizerConfig
from train.program import Program
from train.train import main

SGD = OptimizerConfig(name="sgd", learning_rate=0.3, schedule="constant", warmup_steps=0, clip_norm=0)
SIZES: dict[str, Any] = {"num_layers": 2, "model_dim": 16, "num_heads": 4, "mlp_dim": 32}
ENCODER = EncoderConfig(**SIZES, vocab_size=448, max_length=32)
PAIRS = EncoderDecoderConfig(**SIZES, vocab_size=448, max_length=32, positions="sinusoidal", norm_position="after")
RECURRENT = RecurrentConfig(num_layers=1, model_dim=16, vocab_size=448, max_length=32, attention="general")
VISION = VisionConfig(**SIZES, image_size=8, patch_size=4, channels=1, num_classes=2)
BYTES = DecoderConfig(**SIZES, vocab_size=257, max_length=16)

OF_TEXT = {
    "masked_lm": (ENCODER, MaskedLMConfig()),
    "next_sentence": (dataclasses.replace(ENCODER, head="pretraining"), SentencePairsConfig()),
    "replaced_token": (
        GeneratorDiscriminatorConfig(
            generator=dataclasses.replace(ENCODER, model_dim=8, mlp_dim=16, embedding_dim=16),
            discriminator=dataclasses.replace(ENCODER, head="replaced_token"),
        ),
        ReplacedTokenConfig(),
    ),
    "distill": (
        DistillationConfig(student=dataclasses.replace(ENCODER, num_layers=1), teacher=ENCODER),
        DistillConfig(teacher="teacher", hidden=1.0, attention=1.0),
    ),
    "span_corruption": (PAIRS, SpanCorruptionConfig()),
    "denoising": (dataclasses.replace(PAIRS, positions="learned"), DenoisingConfig()),
}
MESHES = dict.fromkeys(("masked_lm", "replaced_token"), MeshConfig(data=1, fsdp=2, context=2, tensor=2))
KINDS = (*OF_TEXT, "translation", "recurrent", "classify", "classify_images", "caption")


@pytest.fixture(scope="module")
def runs(licence: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """A run of each kind, on real text and images of noise."""
    folder = tmp_path_factory.mktemp("data")
    lines = [json.loads(line)["text"].split("\n") for line in licence.read_text().splitlines()]
    words = [" ".join(line.split()[:6]) for lines_of_one in lines for line in lines_of_one if line.strip()]
    (folder / "source.txt").write_text("".join(f"{line}\n" for line in words))
    (folder / "target.txt").write_text("".join(f"{line[::-1]}\n" for line in words))
    records = [{"text": line, "label": ["short", "long"][len(line) > 30]} for line in words]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8, 1), np.uint8), np.arange(40) % 2
    np.savez(folder / "images.npz", images=images, labels=labels)

    text = DataConfig(str(licence), tokenizer="sentencepiece", max_length=32)
    pairs = dataclasses.replace(
        text, path="", source_path=str(folder / "source.txt"), target_path=str(folder / "target.txt"), too_long="drop"
    )
    labelled = dataclasses.replace(text, path=str(folder / "labelled.jsonl"), label_column="label", too_long="cut")
    noise = ImagesConfig(str(folder / "images.npz"), shift=1, flip=True)
    kinds = {
        **{name: (model, objective, text) for name, (model, objective) in OF_TEXT.items()},
        "translation": (PAIRS, Seq2SeqConfig(label_smoothing=0.1, z_loss=1e-3), pairs),
        "recurrent": (RECURRENT, Seq2SeqConfig(), pairs),
        "classify": (dataclasses.replace(ENCODER, head="sequence_classification"), ClassifyConfig(), labelled),
        "classify_images": (VISION, ClassifyImagesConfig(label_smoothing=0.1), noise),
        "caption": (
            ImageDecoderConfig(vision=dataclasses.replace(VISION, head="none"), decoder=BYTES, classes=("no", "yes")),
            CaptionConfig(),
            dataclasses.replace(noise, tokenizer="bytes"),
        ),
    }
    return {
        name: RunConfig(
            name=name,
            model=model,
            data=data,
            objective=objective,
            optimizer=SGD,
            log=LogConfig(every=1, tensorboard=False),
            sample=SampleConfig(tokens=0),
            precision="float32",
            steps=4,
            batch_size=8,
        )
        for name, (model, objective, data) in kinds.items()
    }


def test_every_objective_is_here(runs):
    assert {type(config.objective) for config in runs.values()} | {type(RunConfig(BYTES).objective)} == set(OBJECTIVES)


def first_steps(config: RunConfig, mesh_config: MeshConfig, steps: int = 2):
    """The terms of each step's loss, and the first step's gradients, which SGD's momentum holds."""
    mesh = make_mesh(mesh_config, jax.devices()[: math.prod(dataclasses.astuple(mesh_config))])
    program = Program.of(config, mesh)
    dataset = open_dataset(config, None)
    loader = dataset.loader(config.seed, program.objective.rows, preparation_of(program.objective, dataset))
    step = program.compile_step({name: array[0] for name, array in loader.rows_for(0, range(1)).items()})
    state, losses, gradients = program.first_state(), [], {}
    for number in range(steps):
        position = number * config.batch_size
        batch = place_batch(mesh, config.batch_size, lambda places, at=position: loader.rows_for(at, places))
        state, metrics = step(state, batch)
        losses.append(
            [float(metrics[name]) for name in ("loss", *(n for n in program.objective.coefficients if n in metrics))]
        )
        gradients = gradients or {name: np.asarray(g) for name, g in state.opt_state[1].trace.items()}
    return np.array(losses), gradients


@pytest.mark.parametrize("kind", KINDS)
def test_any_mesh_and_accumulation_computes_the_same(kind, runs):
    config = resolve(with_classes(runs[kind]))
    one, gradients = first_steps(config, MeshConfig(data=1))
    split = dataclasses.replace(config, micro_batches=2)
    eight, others = first_steps(split, MESHES.get(kind, MeshConfig(data=2, fsdp=2, tensor=2)))
    assert np.isfinite(one).all()
    assert one.min() > 0
    # A small term, such as a divergence, is a difference of numbers as large as the whole loss.
    assert (np.abs(eight - one) <= 1e-6 * np.maximum(one, one[:, :1])).all()
    for name, gradient in gradients.items():
        scale = np.abs(gradients[name.replace("key_bias", "query_bias")]).max()  # a key bias has no true gradient
        assert np.abs(others[name] - gradient).max() <= 1e-5 * scale, name


@pytest.mark.parametrize("kind", ["translation", "classify_images"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(kind, runs, tmp_path):
    config = dataclasses.replace(runs[kind], batch_size=24)  # an epoch ends within a batch

    def train(name: str, stops: tuple[int | None, ...]) -> tuple[dict[str, Any], list[float]]:
        run_dir = tmp_path / name
        results = [main(dataclasses.replace(config, run_dir=str(run_dir), stop_after=at), Console()) for at in stops]
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return results[-1]["evaluation"], [row["learning/loss"] for row in rows]

    figures, losses = train("whole", (None,))
    assert (figures, losses) == train("parts", (3, None))
    assert len(losses) == config.steps
