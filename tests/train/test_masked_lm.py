"""Masked language modelling: what is masked, that a resume is exact, and what pseudo-perplexity is."""

import dataclasses

import jax
import numpy as np
import pytest

from data.dataset import DataConfig, prepare_dataset
from data.tokenizers.plain import ByteTokenizer
from data.tokenizers.sentence_piece import train_sentencepiece
from model.cost import train_flops_per_token
from model.encoder import EncoderConfig
from model.parameters import merge
from train.config import LogConfig, RunConfig, SampleConfig, validate
from train.console import Console
from train.mesh import MeshConfig, make_mesh
from train.objectives.masked_lm import MaskedLM, MaskedLMConfig
from train.optimizer import OptimizerConfig
from train.perplexity import PerplexityMeter
from train.program import Program
from train.train import main

pytestmark = pytest.mark.core

MODEL = EncoderConfig(num_layers=2, model_dim=32, num_heads=4, vocab_size=400, max_length=32, num_types=0)
ROBERTA = MaskedLMConfig()


@pytest.fixture(scope="module")
def config(licence):
    return RunConfig(
        model=MODEL,
        data=DataConfig(path=str(licence), tokenizer="sentencepiece", max_length=32),
        objective=MaskedLMConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        log=LogConfig(every=1, tensorboard=False),
        sample=SampleConfig(tokens=0),
        steps=6,
        batch_size=16,
    )


@pytest.fixture(scope="module")
def dataset(config):
    return prepare_dataset(config.data, MODEL.vocab_size, 0, roles=MaskedLM.roles)


def batches(config, dataset, objective=ROBERTA, rows=400):
    """Rows as they are packed, and as they are masked."""
    plain = dataset.loader(config.seed)
    masked = dataset.loader(config.seed, prepare=MaskedLM(objective).preparation(dataset.tokenizer))
    return plain.rows_for(0, range(rows)), masked.rows_for(0, range(rows)), masked


def test_what_is_masked(config, dataset):
    plain, masked, loader = batches(config, dataset)
    tokenizer, special = dataset.tokenizer, list(dataset.tokenizer.specials.values())
    rows, places = np.nonzero(masked["scored"])
    at = rows, masked["places"][rows, places]
    original, shown = plain["tokens"][at], masked["tokens"][at]
    np.testing.assert_array_equal(masked["targets"][rows, places], original)
    assert not np.isin(original, special).any()
    assert (plain["segments"][at] > 0).all()
    candidates = ((plain["segments"] > 0) & ~np.isin(plain["tokens"], special)).sum(1)
    np.testing.assert_array_equal(masked["scored"].sum(1), np.ceil(0.15 * candidates))
    assert all(
        len(set(row[scored])) == scored.sum() for row, scored in zip(masked["places"], masked["scored"], strict=True)
    )
    is_mask = shown == tokenizer.special("mask")
    assert abs(is_mask.mean() - 0.8) < 0.03
    assert abs((shown == original).mean() - 0.1) < 0.03
    assert not np.isin(shown[~is_mask], special).any()
    elsewhere = np.ones(plain["tokens"].shape, bool)
    elsewhere[at] = False
    np.testing.assert_array_equal(masked["tokens"][elsewhere], plain["tokens"][elsewhere])
    # A function of (seed, k) alone: read in other batches it is the same, and in another epoch another.
    np.testing.assert_array_equal(loader.rows_for(7, range(3))["tokens"], masked["tokens"][7:10])
    assert not np.array_equal(
        np.sort(loader.rows_for(loader.sources[0].__len__(), range(400))["tokens"].ravel()),
        np.sort(masked["tokens"].ravel()),
    )


def test_only_chosen_places_cost_a_projection():
    config = EncoderConfig(num_layers=2, model_dim=32, num_heads=4, vocab_size=320, max_length=128)
    everywhere, where_chosen = (train_flops_per_token(config, 128, predicted=share) for share in (1.0, 24 / 128))
    assert everywhere - where_chosen == 6 * (32 * 32 + 320 * 32) * 104 // 128


def test_whole_words_are_masked_whole(config, dataset):
    plain, masked, _ = batches(config, dataset, MaskedLMConfig(whole_words=True, random=0.0, kept=0.0), rows=100)
    hidden = masked["tokens"] != plain["tokens"]
    assert 0.1 < hidden.mean() < 0.15
    opens = np.array(
        [dataset.tokenizer.token_bytes(i)[:1].isspace() or not dataset.tokenizer.token_bytes(i) for i in range(400)]
    )
    inside = ~opens[plain["tokens"][:, 1:]] & (plain["segments"][:, 1:] > 0)
    np.testing.assert_array_equal(hidden[:, 1:][inside], hidden[:, :-1][inside])


def test_it_learns_and_resumes(config, tmp_path):
    result = main(dataclasses.replace(config, run_dir=str(tmp_path / "whole")), Console())
    for _ in range(2):
        parts = main(dataclasses.replace(config, run_dir=str(tmp_path / "parts"), stop_after=3), Console())
    assert parts["loss"] == result["loss"]
    assert parts["evaluation"] == result["evaluation"]
    assert result["loss"] < 5.9 < np.log(400)


def test_pseudo_perplexity_masks_every_token_once(config, dataset):
    """Computed anew token by token: each is masked with every eighth of its window, and the others are given."""
    program = Program.of(
        dataclasses.replace(config, precision="float32"), make_mesh(MeshConfig(data=1), jax.devices()[:1])
    )
    params, tokenizer, corpus = program.first_state().params, dataset.tokenizer, dataset.valid
    meter = PerplexityMeter(program.plan, MaskedLM(MaskedLMConfig()), program.mesh, window=16, stride=16, batch_size=4)
    score = meter.score(params, corpus, tokenizer, limit=120)
    assert score.tokens == 120

    model = jax.jit(lambda tokens: merge(program.plan.skeleton, params)(tokens)["logits"][..., : MODEL.vocab_size])
    nats, left = 0.0, 120
    for number in range(corpus.num_documents):
        text = corpus.document(number)[1:][:left].astype(np.int32)
        left -= len(text)
        document = np.append(corpus.document(number)[:1], text).astype(np.int32)
        for begin in range(0, len(document) - 1, 15):
            window = document[begin : begin + 16]
            for place in range(1, len(window)):
                hidden = window.copy()
                # A window's place in its row decides with which tokens it is masked; alone in a row it begins at 0.
                hidden[place % 8 :: 8] = tokenizer.special("mask")
                hidden[0] = window[0]
                log_p = jax.nn.log_softmax(model(hidden[None])[0, place])
                nats -= float(log_p[window[place]])
        if not left:
            break
    assert score.nats == pytest.approx(nats, rel=1e-2)  # windows that share a row are masked at other places


def test_refusals(config, dataset):
    with pytest.raises(ValueError, match=r"this bytes tokenizer has no mask token; its special tokens are: start, end"):
        MaskedLM(MaskedLMConfig()).preparation(ByteTokenizer())
    with pytest.raises(ValueError, match=r"no mask token"):
        MaskedLM(MaskedLMConfig()).preparation(train_sentencepiece(["some text " * 40], 280))
    for objective, sentence in (
        (MaskedLMConfig(rate=0.0), "objective.rate=0.0 must be more than 0"),
        (MaskedLMConfig(random=0.6, kept=0.5), "must be shares of one"),
    ):
        with pytest.raises(ValueError, match=sentence):
            validate(dataclasses.replace(config, objective=objective))
    with pytest.raises(ValueError, match=r"causal_lm is not for this model"):
        validate(dataclasses.replace(config, objective=RunConfig(MODEL).objective))
    with pytest.raises(ValueError, match=r"there is none to sample; pass --sample.tokens 0"):
        validate(dataclasses.replace(config, sample=SampleConfig(tokens=3)))
    with pytest.raises(ValueError, match=r"model.head=span is not what masked_lm trains"):
        validate(dataclasses.replace(config, model=dataclasses.replace(MODEL, head="span")))
