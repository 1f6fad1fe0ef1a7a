"""Distillation: each loss is torch's own on the same states, the teacher stays as it is, and every mesh agrees."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest

from model.distillation import DistillationConfig
from model.encoder import EncoderConfig
from model.parameters import merge
from train.mesh import MeshConfig, make_mesh, parameter_shardings, place_batch
from train.objectives.distill import Distill, DistillConfig
from train.state import blueprint

pytestmark = pytest.mark.core

TEACHER = EncoderConfig(num_layers=4, model_dim=32, num_heads=4, mlp_dim=64, vocab_size=70, max_length=32)
DISTILBERT = DistillationConfig(student=dataclasses.replace(TEACHER, num_layers=2, num_types=0), teacher=TEACHER)
TINYBERT = DistillationConfig(student=dataclasses.replace(TEACHER, num_layers=2, model_dim=16), teacher=TEACHER)
LAYERS = DistillConfig(
    teacher="runs/bert", soft=1.0, temperature=1.0, masked_lm=0.0, cosine=0.0, hidden=1.0, attention=1.0, embedding=1.0
)


def random_params(config: DistillationConfig) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        name: (random.normal(size=w.shape) * 0.2 + (w.kind == "scale")).astype(np.float32)
        for name, w in blueprint(config).declared.items()
    }


@pytest.fixture(scope="module")
def masked_rows():
    """Sixteen rows of 32 tokens, one document each; all but the first have padding at their end."""
    random = np.random.default_rng(0)
    place = np.broadcast_to(np.arange(32, dtype=np.int32), (16, 32))
    segments = (place < 32 - np.arange(16)[:, None]).astype(np.int32)
    places = np.sort(random.permuted(place, axis=1)[:, :8], axis=1)
    scored = np.take_along_axis(segments, places, 1) > 0
    return {
        "tokens": random.integers(0, 70, (16, 32), np.int32) * segments,
        "positions": place * segments,
        "segments": segments,
        "places": places * scored,
        "targets": random.integers(0, 70, (16, 8), np.int32) * scored,
        "scored": scored,
    }


def means(config: DistillationConfig, objective: DistillConfig, params, rows):
    """Each term as the step divides it, and what both models make of the rows: logits, hidden states and captures."""
    distill, skeleton = Distill(objective), blueprint(config).skeleton
    inputs = rows["tokens"], rows["positions"], rows["segments"]

    @jax.jit
    def everything(params):
        model = merge(skeleton, params)
        sums, weights = distill.loss(model, rows, None), distill.weights(rows)
        states = {}
        for name, encoder in (("student", model.student), ("teacher", model.teacher)):
            hidden, captured = encoder.hidden(*inputs, capture=("embedding", "hidden", "attention_scores"))
            states[name] = captured | {"last": hidden, "logits": encoder.logits(hidden)[..., :70]}
        return {name: sums[name] / weights[name] for name in sums}, states

    return jax.tree.map(np.asarray, everything(params))


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_losses_of_distilbert(masked_rows, everywhere):
    torch = pytest.importorskip("torch")
    objective = DistillConfig(teacher="runs/bert", soft_everywhere=everywhere)
    terms, states = means(DISTILBERT, objective, random_params(DISTILBERT), masked_rows)
    real = torch.tensor(masked_rows["segments"] > 0)
    row, place = np.nonzero(masked_rows["scored"])
    labels = torch.full((16, 32), -100)
    labels[row, masked_rows["places"][row, place]] = torch.tensor(masked_rows["targets"][row, place]).long()
    compared = real if everywhere else labels >= 0
    student, teacher = ({k: torch.tensor(x) for k, x in states[name].items()} for name in ("student", "teacher"))
    divergence = torch.nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(student["logits"][compared] / 2, -1), torch.softmax(teacher["logits"][compared] / 2, -1)
    )
    expected = {
        "soft": divergence * 2**2,
        "masked_lm": torch.nn.CrossEntropyLoss()(student["logits"].flatten(0, 1), labels.flatten()),
        "cosine": torch.nn.CosineEmbeddingLoss()(student["last"][real], teacher["last"][real], torch.ones(real.sum())),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value.item(), rel=1e-5), name


def test_the_losses_of_tinybert(masked_rows):
    torch = pytest.importorskip("torch")
    rows = masked_rows | {"segments": np.ones((16, 32), np.int32)}  # theirs count padding, ours does not
    params = random_params(TINYBERT)
    terms, states = means(TINYBERT, LAYERS, params, rows)
    student, teacher = ({k: torch.tensor(x) for k, x in states[name].items()} for name in ("student", "teacher"))
    hidden, embedding = (torch.tensor(params[f"{name}_projection"]) for name in ("hidden", "embedding"))
    square = torch.nn.MSELoss()
    chosen = torch.tensor(np.take_along_axis(states["student"]["logits"], rows["places"][..., None], 1)[rows["scored"]])
    taught = torch.tensor(np.take_along_axis(states["teacher"]["logits"], rows["places"][..., None], 1)[rows["scored"]])
    soft = torch.nn.CrossEntropyLoss()(chosen, torch.softmax(taught, -1))
    entropy = torch.nn.CrossEntropyLoss()(taught, torch.softmax(taught, -1))
    expected = {
        "soft": soft - entropy,
        "hidden": sum(square(student["hidden"][m] @ hidden, teacher["hidden"][2 * m + 1]) for m in range(2)),
        "attention": sum(
            square(student["attention_scores"][m], teacher["attention_scores"][2 * m + 1]) for m in range(2)
        ),
        "embedding": square(student["embedding"] @ embedding, teacher["embedding"]),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value.item(), rel=1e-5), name


def test_padding_and_other_documents_change_no_attention_loss(masked_rows):
    """Each token's mean is over the keys that it sees."""
    rows = {name: array[3:4] for name, array in masked_rows.items()}  # 29 tokens
    cut = {name: array[:, :29] for name, array in rows.items() if name in ("tokens", "positions", "segments")}
    objective = dataclasses.replace(LAYERS, soft=0.0)
    params = random_params(TINYBERT)
    padded, _ = means(TINYBERT, objective, params, rows)
    alone, _ = means(TINYBERT, objective, params, {**rows, **cut})
    for name, value in alone.items():
        assert padded[name] == pytest.approx(value, rel=1e-5), name


def test_only_the_student_learns_and_figures_are_the_means(masked_rows):
    objective = dataclasses.replace(LAYERS, masked_lm=2.0, cosine=0.5)
    distill, plan = Distill(objective), blueprint(TINYBERT)

    @jax.jit
    def run(params):
        def loss(params):
            sums = distill.loss(merge(plan.skeleton, params), masked_rows, None)
            return sum(c * sums[name] for name, c in distill.coefficients.items())

        return jax.grad(loss)(params), distill.evaluate(merge(plan.skeleton, params), masked_rows)

    gradients, figures = run(random_params(TINYBERT))
    for name, gradient in gradients.items():
        assert bool(np.abs(gradient).max() > 0) == (not name.startswith("teacher.")), name
    assert {array.shape for array in figures.values()} == {(16,)}
    reported = distill.figures({name: np.asarray(array, np.float64).sum(0) for name, array in figures.items()})
    terms, _ = means(TINYBERT, objective, random_params(TINYBERT), masked_rows)
    assert next(iter(reported)) == "loss"
    for name, value in terms.items():
        assert reported[name] == pytest.approx(value, rel=1e-5), name
    assert reported["loss"] == pytest.approx(sum(c * terms[n] for n, c in distill.coefficients.items()), rel=1e-5)


def test_any_mesh_computes_the_same(masked_rows):
    distill, plan, params = (
        Distill(dataclasses.replace(LAYERS, cosine=1.0)),
        blueprint(TINYBERT),
        random_params(TINYBERT),
    )

    def sums(shape: MeshConfig):
        mesh = make_mesh(shape, jax.devices()[: math.prod(dataclasses.astuple(shape))])
        shardings = parameter_shardings(plan.declared, mesh)
        placed = {name: jax.device_put(array, shardings[name]) for name, array in params.items()}
        batch = place_batch(mesh, 16, lambda places: {name: array[places] for name, array in masked_rows.items()})
        with jax.set_mesh(mesh):
            return jax.jit(lambda params, batch: distill.loss(merge(plan.skeleton, params), batch, None))(placed, batch)

    one, eight = sums(MeshConfig(data=1)), sums(MeshConfig(data=1, fsdp=2, context=2, tensor=2))
    for name, value in one.items():
        assert float(eight[name]) == pytest.approx(float(value), rel=1e-6), name


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"teacher": ""}, r"objective.teacher is empty; pass --objective.teacher RUN, or a Hugging Face folder"),
        ({"temperature": 0.0}, r"objective.temperature=0.0 must be more than 0"),
        ({"hidden": -1.0}, r"objective.hidden=-1.0 must be at least 0"),
        ({"soft": 0.0, "masked_lm": 0.0, "cosine": 0.0}, r"nothing is learned with soft, masked_lm, cosine, hidden"),
        ({"rate": 0.0}, r"objective.rate=0.0 must be more than 0"),
    ],
)
def test_what_can_not_be_learned_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(DistillConfig(teacher="runs/bert"), **fields).validate(32)


def test_layers_that_can_not_be_compared_are_refused():
    LAYERS.check(TINYBERT)
    student = TINYBERT.student
    three = dataclasses.replace(TINYBERT, student=dataclasses.replace(student, num_layers=3))
    heads = dataclasses.replace(TINYBERT, student=dataclasses.replace(student, num_heads=2))
    with pytest.raises(ValueError, match=r"model.student.num_layers=3 must divide the teacher's 4"):
        LAYERS.check(three)
    with pytest.raises(ValueError, match=r"model.student.num_heads=2 must be the teacher's 4 .* head by head"):
        LAYERS.check(heads)
    for config in (three, heads):
        DistillConfig(teacher="runs/bert").check(config)
