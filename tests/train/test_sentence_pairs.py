"""BERT's two objectives: both sentences are masked, the losses are transformers' own, every mesh and batch agree."""

import dataclasses
import math
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

from data.dataset import DataConfig, prepare_dataset
from model.encoder import EncoderConfig
from model.families import albert, bert
from model.families.weights import Layout
from model.parameters import merge
from train.mesh import MeshConfig, make_mesh, parameter_shardings, place_batch
from train.objectives.sentence_pairs import SentencePairs, SentencePairsConfig
from train.rows_meter import RowsMeter
from train.state import blueprint

pytestmark = pytest.mark.core

BERT = EncoderConfig(num_layers=2, model_dim=16, num_heads=4, vocab_size=400, max_length=32, head="pretraining")
ALBERT = dataclasses.replace(BERT, embedding_dim=8, share_layers=True, activation="gelu_tanh")
NEXT, ORDER = (SentencePairs(SentencePairsConfig(relation=relation)) for relation in ("next", "order"))


@pytest.fixture(scope="module")
def dataset(licence):
    data = DataConfig(path=str(licence), tokenizer="sentencepiece", max_length=32)
    return prepare_dataset(data, 400, 0, roles=SentencePairs.roles)


@pytest.fixture(scope="module")
def rows(dataset):
    return dataset.loader(0, "sentence_pairs", NEXT.preparation(dataset.tokenizer)).rows_for(0, range(16))


def random_params(config: EncoderConfig) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        name: (random.normal(size=w.shape) * 0.2 + (w.kind == "scale")).astype(np.float32)
        for name, w in blueprint(config).declared.items()
    }


@pytest.mark.parametrize("objective", [NEXT, ORDER], ids=["next", "order"])
def test_some_tokens_of_both_sentences_are_masked(dataset, objective):
    tokenizer = dataset.tokenizer
    loader = dataset.loader(0, "sentence_pairs", objective.preparation(tokenizer))
    masked = loader.rows_for(0, range(300))
    row, place = np.nonzero(masked["scored"])
    at = row, masked["places"][row, place]
    original = masked["tokens"].copy()
    original[at] = masked["targets"][row, place]
    special = np.isin(original, list(tokenizer.specials.values()))
    assert not special[at].any()
    assert (masked["segments"][at] == 1).all()
    ordinary = ((masked["segments"] > 0) & ~special).sum(1)
    np.testing.assert_array_equal(masked["scored"].sum(1), np.ceil(0.15 * ordinary))
    assert abs((masked["tokens"][at] == tokenizer.special("mask")).mean() - 0.8) < 0.05
    assert 0.3 < masked["types"][at].mean() < 0.7
    # Nothing but those changed: a row still is start, text, separator, text, separator.
    separators = [np.flatnonzero(tokens == tokenizer.special("separator")) for tokens in masked["tokens"]]
    assert all(len(found) == 2 for found in separators)
    assert [found[1] + 1 for found in separators] == masked["segments"].sum(1).tolist()
    assert (masked["tokens"][:, 0] == tokenizer.start_id).all()
    assert abs(masked["labels"].mean() - 0.5) < 0.1
    for name, array in loader.rows_for(7, range(3)).items():
        np.testing.assert_array_equal(array, masked[name][7:10])


@pytest.mark.parametrize(
    ("family", "kind", "config", "label"),
    [
        (bert, "BertForPreTraining", BERT, "next_sentence_label"),
        (albert, "AlbertForPreTraining", ALBERT, "sentence_order_label"),
    ],
    ids=["bert", "albert"],
)
def test_losses_are_those_of_transformers(rows, family: ModuleType, kind: str, config: EncoderConfig, label: str):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    params, plan = random_params(config), blueprint(config)

    @jax.jit
    def ours(params):
        model = merge(plan.skeleton, params)
        return NEXT.loss(model, rows, None), NEXT.weights(rows), model(*inputs)["class_logits"]

    inputs = [rows[name] for name in ("tokens", "positions", "segments", "types")]
    loss, weights, class_logits = jax.tree.map(np.asarray, ours(params))
    layout = Layout(family.weights(config), plan.declared, config.vocab_size)
    model = getattr(transformers, kind)
    model = model(model.config_class(**family.to_hugging_face_config(config))).eval()
    model.load_state_dict({n: torch.tensor(a) for n, a in layout.to_hugging_face(params)}, strict=False)
    labels = np.full((16, 32), -100)
    row, place = np.nonzero(rows["scored"])
    labels[row, rows["places"][row, place]] = rows["targets"][row, place]
    arrays = {
        "input_ids": rows["tokens"],
        "attention_mask": rows["segments"],
        "token_type_ids": rows["types"],
        "labels": labels,
        label: rows["labels"],
    }
    with torch.no_grad():
        said = model(**{name: torch.tensor(array).long() for name, array in arrays.items()})
    means = {name: float(loss[name] / weights[name]) for name in loss}
    assert means["masked_lm"] + means["sentence_pair"] == pytest.approx(said.loss.item(), rel=1e-5)
    log_p = torch.log_softmax(torch.tensor(class_logits), -1)[torch.arange(16), torch.tensor(rows["labels"]).long()]
    assert means["sentence_pair"] == pytest.approx(-log_p.mean().item(), rel=1e-5)


def test_any_mesh_computes_the_same(rows):
    plan, params = blueprint(BERT), random_params(BERT)

    def sums(shape: MeshConfig):
        mesh = make_mesh(shape, jax.devices()[: math.prod(dataclasses.astuple(shape))])
        shardings = parameter_shardings(plan.declared, mesh)
        placed = {name: jax.device_put(array, shardings[name]) for name, array in params.items()}
        batch = place_batch(mesh, 16, lambda places: {name: array[places] for name, array in rows.items()})
        with jax.set_mesh(mesh):
            return jax.jit(lambda params, batch: NEXT.loss(merge(plan.skeleton, params), batch, None))(placed, batch)

    one, eight = sums(MeshConfig(data=1)), sums(MeshConfig(data=1, fsdp=2, context=2, tensor=2))
    for name, value in one.items():
        assert float(eight[name]) == pytest.approx(float(value), rel=1e-6), name


def test_figures_are_the_same_for_any_batch(dataset):
    plan, mesh = blueprint(BERT), make_mesh(MeshConfig(data=1), jax.devices()[:1])
    params, held_out = random_params(BERT), dataset.held_out_rows("sentence_pairs")
    prepare = NEXT.preparation(dataset.tokenizer)
    one, other = (RowsMeter(plan, NEXT, mesh, batch_size=size).score(params, held_out, prepare) for size in (4, 7))
    for name, figure in one.items():
        assert figure == pytest.approx(other[name], rel=1e-6), name
    assert list(one) == ["nats_per_token", "relation_nats", "accuracy", "tokens", "rows"]
    assert one["rows"] == len(held_out)
    assert 0 < one["accuracy"] < 1


def test_refusals(dataset):
    with pytest.raises(ValueError, match=r"model.num_types=1 must be at least 2, for the two sentences of a pair"):
        SentencePairsConfig().check(dataclasses.replace(BERT, num_types=1))
    masks_only = prepare_dataset(dataset.config, 400, 0, roles=("mask",)).tokenizer
    with pytest.raises(ValueError, match=r"no separator token; its special tokens are: .*mask"):
        NEXT.preparation(masks_only)
