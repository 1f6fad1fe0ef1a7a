"""Replaced-token detection: what is drawn, transformers' losses, and no gradient through the drawing."""

import dataclasses
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.dataset import DataConfig, prepare_dataset
from model.encoder import EncoderConfig
from model.families import electra
from model.families.weights import Layout
from model.generator_discriminator import GeneratorDiscriminatorConfig
from model.parameters import merge
from train.config import LogConfig, RunConfig, SampleConfig
from train.console import Console
from train.load import load_source
from train.mesh import MeshConfig, make_mesh
from train.objectives.replaced_token import ReplacedToken, ReplacedTokenConfig, _filled
from train.optimizer import OptimizerConfig
from train.rows_meter import RowsMeter
from train.state import blueprint
from train.train import main

pytestmark = pytest.mark.core

DISCRIMINATOR = EncoderConfig(
    num_layers=2,
    model_dim=32,
    num_heads=4,
    embedding_dim=16,
    vocab_size=400,
    max_length=32,
    head="replaced_token",
    pooler_activation="gelu",
    pooler_dropout=True,
)
MODEL = GeneratorDiscriminatorConfig(
    generator=dataclasses.replace(DISCRIMINATOR, num_layers=1, num_heads=4, mlp_dim=64, head="masked_lm"),
    discriminator=DISCRIMINATOR,
)
OBJECTIVE = ReplacedToken(ReplacedTokenConfig())


@pytest.fixture(scope="module")
def config(licence):
    return RunConfig(
        model=MODEL,
        data=DataConfig(path=str(licence), tokenizer="sentencepiece", max_length=32),
        objective=ReplacedTokenConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        log=LogConfig(every=1, tensorboard=False),
        sample=SampleConfig(tokens=0),
        steps=2,
        batch_size=16,
    )


@pytest.fixture(scope="module")
def dataset(config):
    return prepare_dataset(config.data, 400, 0, roles=ReplacedToken.roles)


@pytest.fixture(scope="module")
def rows(dataset):
    return dataset.loader(0, "text", OBJECTIVE.preparation(dataset.tokenizer)).rows_for(0, range(16))


@pytest.fixture(scope="module")
def params():
    """Weights of which all matter."""
    random = np.random.default_rng(0)
    return {
        name: (random.normal(size=w.shape) * 0.2 + (w.kind == "scale")).astype(np.float32)
        for name, w in blueprint(MODEL).declared.items()
    }


def test_all_chosen_tokens_are_masked_and_each_row_draws_by_its_key(dataset, rows):
    loader = dataset.loader(0, "text", OBJECTIVE.preparation(dataset.tokenizer))
    at = np.nonzero(rows["scored"])
    assert (rows["tokens"][at[0], rows["places"][at]] == dataset.tokenizer.special("mask")).all()
    assert rows["draws"].shape == (16,)
    assert rows["draws"].dtype == np.int32
    assert len(set(rows["draws"].tolist())) == 16
    np.testing.assert_array_equal(loader.rows_for(5, range(3))["draws"], rows["draws"][5:8])


def test_fillings_are_drawn_from_the_softmax():
    random = np.random.default_rng(0)
    B, L, V = 4000, 6, 4
    batch = {
        "tokens": np.full((B, L), 9, np.int32),
        "places": np.tile(np.array([4, 1, 0], np.int32), (B, 1)),
        "targets": np.tile(np.array([2, 3, 0], np.int32), (B, 1)),
        "scored": np.tile([True, True, False], (B, 1)),
        "draws": random.integers(0, 2**31, B, np.int32),
    }
    p = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.0, 0.2, 0.1], [0.25] * 4])
    logits = np.tile(np.log(p + 1e-20).astype(np.float32), (B, 1, 1))
    filled = jax.jit(_filled)
    tokens, replaced = (np.asarray(x) for x in filled(logits, batch))
    for place, expected, target in ((4, p[0], 2), (1, p[1], 3)):
        assert np.abs(np.bincount(tokens[:, place], minlength=V) / B - expected).max() < 0.03
        np.testing.assert_array_equal(replaced[:, place], tokens[:, place] != target)
    assert (tokens[:, [0, 2, 3, 5]] == 9).all()
    assert not replaced[:, [0, 2, 3, 5]].any()
    # A row's filling is its own, whatever stands beside it.
    part = {name: array[1000:1008] for name, array in batch.items()}
    np.testing.assert_array_equal(filled(logits[1000:1008], part)[0], tokens[1000:1008])


def transformers_model(kind: str, config: EncoderConfig, params, transformers: ModuleType, torch: ModuleType):
    """transformers' model with our weights."""
    layout = Layout(electra.weights(config), blueprint(config).declared, config.vocab_size)
    model = getattr(transformers, kind)(transformers.ElectraConfig(**electra.to_hugging_face_config(config)))
    weights = {name: torch.tensor(array) for name, array in layout.to_hugging_face(params)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"generator_lm_head.weight"}
    assert not unexpected
    return model.eval()


def test_losses_are_those_of_transformers(params, rows):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    real = np.arange(32) < np.arange(17, 33)[:, None]  # each row one document, and padding
    batch = rows | {"segments": real.astype(np.int32), "positions": np.tile(np.arange(32, dtype=np.int32), (16, 1))}
    batch["scored"] = rows["scored"] & np.take_along_axis(real, rows["places"], 1)
    skeleton = blueprint(MODEL).skeleton

    @jax.jit
    def ours(batch):
        model = merge(skeleton, params)
        logits_BLV = model.whole_generator()(batch["tokens"], batch["positions"], batch["segments"])["logits"]
        chosen_BPV = jnp.take_along_axis(logits_BLV, batch["places"][..., None], 1)
        return OBJECTIVE.loss(model, batch, None), OBJECTIVE.weights(batch), _filled(chosen_BPV, batch)

    loss, weights, (filled, replaced) = jax.tree.map(np.asarray, ours(batch))
    of_generator = {name.removeprefix("generator."): x for name, x in params.items() if name.startswith("generator.")}
    of_discriminator = {
        n.removeprefix("discriminator."): x for n, x in params.items() if n.startswith("discriminator.")
    }
    shared = {name: x for name, x in of_discriminator.items() if name in blueprint(MODEL.generator).declared}
    generator = transformers_model("ElectraForMaskedLM", MODEL.generator, shared | of_generator, transformers, torch)
    discriminator = transformers_model("ElectraForPreTraining", DISCRIMINATOR, of_discriminator, transformers, torch)
    labels = np.full((16, 32), -100)
    row, place = np.nonzero(batch["scored"])
    labels[row, batch["places"][row, place]] = batch["targets"][row, place]
    with torch.no_grad():
        mask = torch.tensor(real).long()
        theirs = [
            generator(torch.tensor(rows["tokens"]).long(), attention_mask=mask, labels=torch.tensor(labels)).loss,
            discriminator(torch.tensor(filled).long(), attention_mask=mask, labels=torch.tensor(replaced).long()).loss,
        ]
    for name, expected in zip(("masked_lm", "replaced_token"), theirs, strict=True):
        assert loss[name] / weights[name] == pytest.approx(expected.item(), rel=1e-5), name
    assert 0.5 < replaced.sum() / batch["scored"].sum() <= 1


def test_no_gradient_flows_through_the_drawing(params, rows):
    skeleton = blueprint(MODEL).skeleton

    def terms(params, rows):
        return OBJECTIVE.loss(merge(skeleton, params), rows, None)

    gradients = jax.jit(jax.jacrev(terms))(params, rows)
    shared = ("embedding", "positions", "types")
    for name in params:
        owner, _, own_name = name.partition(".")
        moves = {"replaced_token": owner == "discriminator", "masked_lm": own_name.startswith(shared)}
        moves["masked_lm"] |= owner == "generator"
        for term, moves_it in moves.items():
            assert bool(np.abs(gradients[term][name]).max() > 0) == moves_it, (term, name)


def test_figures_are_the_same_for_any_batch(params, dataset):
    plan, mesh = blueprint(MODEL), make_mesh(MeshConfig(data=1), jax.devices()[:1])
    held_out, prepare = dataset.held_out_rows("text"), OBJECTIVE.preparation(dataset.tokenizer)
    one, other = (RowsMeter(plan, OBJECTIVE, mesh, batch_size=size).score(params, held_out, prepare) for size in (4, 7))
    assert one.keys() == other.keys()
    for name, figure in one.items():
        assert figure == pytest.approx(other[name], rel=1e-6), name
    corpus = dataset.valid
    assert one["tokens"] == corpus.num_tokens
    assert next(iter(one)) == "nats_per_token"
    assert 0 < one["accuracy"] < 1
    assert 0 < one["replaced_recall"] < 1


def test_a_run_keeps_the_discriminator(config, tmp_path):
    result = main(dataclasses.replace(config, run_dir=str(tmp_path / "run")), Console())
    assert result["evaluation"]["nats_per_token"] < 5.9 < np.log(400)
    source = load_source(str(tmp_path / "run"), MeshConfig())
    assert source.model == DISCRIMINATOR.resolved()
    assert source.params.keys() == blueprint(DISCRIMINATOR).declared.keys()


def test_refusals():
    with pytest.raises(ValueError, match=r"objective.discriminator_weight=0 must be more than 0"):
        ReplacedTokenConfig(discriminator_weight=0).validate(32)
    with pytest.raises(ValueError, match=r"objective.rate=1.5 must be more than 0"):
        ReplacedTokenConfig(rate=1.5).validate(32)
