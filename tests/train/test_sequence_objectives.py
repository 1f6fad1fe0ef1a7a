"""Objectives of encoder-decoders: what is summed, what is reported, and that both are what plain formulas say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data.dataset import DataConfig, prepare_dataset
from data.tokenizers.plain import ByteTokenizer
from model.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from model.parameters import merge, split
from train.objectives.cross_entropy import cross_entropy
from train.objectives.denoising import Denoising, DenoisingConfig
from train.objectives.seq2seq import Seq2Seq, Seq2SeqConfig
from train.objectives.span_corruption import SpanCorruption, SpanCorruptionConfig

pytestmark = pytest.mark.core

MODEL = EncoderDecoderConfig(
    num_layers=1, model_dim=16, num_heads=2, vocab_size=400, max_length=32, positions="learned"
)


def build(config):
    skeleton, params = split(EncoderDecoder(config, nnx.Rngs(params=jax.random.key(0))))
    # Not so small that every token is about as probable as the others.
    return merge(skeleton, {name: value * 8 if "table" in name else value for name, value in params.items()})


@pytest.fixture(scope="module")
def model():
    return build(MODEL)


@pytest.fixture(scope="module")
def pairs():
    """Two rows of two pairs, and padding behind them; targets end with the end token, 256."""
    random = np.random.default_rng(0)
    source_segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 2, 2, 2, 2, 0, 0]], np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 2, 0, 0, 0, 0], [1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0]], np.int32)
    targets = random.integers(0, 256, segments.shape, np.int32) * (segments > 0)
    targets[(segments > 0) & (np.roll(segments, -1, 1) != segments)] = 256
    opens = np.diff(segments, axis=1, prepend=0) > 0
    return {
        "source_tokens": random.integers(0, 256, source_segments.shape, np.int32) * (source_segments > 0),
        "source_segments": source_segments,
        "source_positions": places(source_segments),
        "tokens": np.where(opens, 256, np.roll(targets, 1, 1)).astype(np.int32) * (segments > 0),
        "segments": segments,
        "positions": places(segments),
        "targets": targets,
        "scored": segments > 0,
    }


def places(segments):
    """Counted from each segment's begin."""
    place = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    opens = np.diff(segments, axis=1, prepend=0) != 0
    return (place - np.maximum.accumulate(np.where(opens, place, 0), 1)) * (segments > 0)


def on_device(batch):
    return {name: jnp.asarray(array) for name, array in batch.items()}


def log_probabilities(model, batch):
    """[B, L, V], of real tokens alone, and the softmax's log-normalisers, in float64."""
    names = ("source_tokens", "tokens", "source_positions", "positions", "source_segments", "segments")
    logits = np.asarray(model(*(batch[name] for name in names))[..., : MODEL.vocab_size], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), np.log(np.exp(logits).sum(-1))


def test_loss_and_report_are_the_plain_formulas(model, pairs):
    objective = Seq2Seq(Seq2SeqConfig(label_smoothing=0.1, z_loss=1e-3))
    batch = on_device(objective.preparation(ByteTokenizer())(pairs, np.zeros(2, np.uint64)))
    log_p, log_z = log_probabilities(model, pairs)
    own = np.take_along_axis(log_p, pairs["targets"][..., None], 2)[..., 0]
    scored, text = pairs["scored"], pairs["scored"] & (pairs["targets"] != 256)
    sums = objective.loss(model, batch, None)
    assert sums["seq2seq"] == pytest.approx(-(0.9 * own + 0.1 * log_p.mean(-1))[scored].sum(), rel=1e-5)
    assert sums["z_loss"] == pytest.approx(np.square(log_z)[scored].sum(), rel=1e-5)
    assert objective.coefficients == {"seq2seq": 1.0, "z_loss": 1e-3}
    assert objective.weights(batch) == {"seq2seq": 15, "z_loss": 15}
    # What is reported knows of no smoothing, and of no end tokens.
    rows = objective.evaluate(model, batch)
    np.testing.assert_allclose(rows["nats"], [-own[row][text[row]].sum() for row in range(2)], rtol=1e-5)
    np.testing.assert_array_equal(rows["tokens"], [6, 5])
    figures = objective.figures({name: np.asarray(values, np.float64).sum(0) for name, values in rows.items()})
    assert figures["nats_per_token"] == pytest.approx(-own[text].mean(), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(np.exp(-own[text].mean()), rel=1e-4)
    assert figures["tokens"] == 11
    with pytest.raises(ValueError, match="no tokens to score"):
        objective.figures({"nats": np.zeros(()), "tokens": np.zeros(())})


def test_chunks_of_the_loss_compute_the_same(model, pairs):
    config = Seq2SeqConfig(label_smoothing=0.1, z_loss=1e-3)

    def gradients(config):
        def loss(hidden):
            given = Given(model, hidden)
            return sum(Seq2Seq(config).loss(given, on_device(pairs), None).values())

        hidden = np.random.default_rng(1).normal(size=(2, 12, 16)).astype(np.float32)
        return jax.value_and_grad(loss)(hidden)

    loss, gradient = gradients(config)
    chunked_loss, chunked = gradients(dataclasses.replace(config, loss_chunks=3))
    assert float(chunked_loss) == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(chunked, gradient, rtol=1e-5, atol=1e-6)


class Given:
    """A model whose hidden states are given."""

    def __init__(self, model, hidden):
        self.config, self.logits, self._hidden = model.config, model.logits, hidden

    def hidden(self, *inputs, key):
        return self._hidden, {}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_cross_entropy_is_torchs(smoothing):
    """Also where logits of no token stand behind those of the vocabulary."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, 10)).astype(np.float32) * 3
    targets = random.integers(0, 10, (2, 3), np.int32)
    shares = random.random((2, 3)).astype(np.float32)  # of the targets in the sum
    padded = np.pad(logits, ((0, 0), (0, 0), (0, 6)), constant_values=-1e30)

    def total(logits, vocab_size):
        return (cross_entropy(logits, jnp.asarray(targets), smoothing, vocab_size)[0] * shares).sum()

    theirs = torch.tensor(logits, requires_grad=True)
    each = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
    expected = each(theirs.flatten(0, 1), torch.tensor(targets).long().flatten())
    (expected * torch.tensor(shares).flatten()).sum().backward()
    for given, vocab_size in ((logits, None), (padded, 10)):
        value, gradient = jax.value_and_grad(total)(jnp.asarray(given), vocab_size)
        assert value == pytest.approx((expected.detach().numpy() * shares.ravel()).sum(), rel=1e-5)
        np.testing.assert_allclose(gradient[..., :10], theirs.grad, atol=1e-6)
        np.testing.assert_array_equal(gradient[..., 10:], 0)


def test_a_model_may_have_its_own_token_to_begin_with(model, pairs):
    own = build(dataclasses.replace(MODEL, decoder_start_id=300))
    tokens = np.where((pairs["positions"] == 0) & pairs["scored"], 300, pairs["tokens"])
    objective, batch = Seq2Seq(Seq2SeqConfig()), on_device(pairs)
    loss = float(objective.loss(own, batch, None)["seq2seq"])
    assert loss == float(objective.loss(model, on_device({**pairs, "tokens": tokens}), None)["seq2seq"])
    assert loss != float(objective.loss(model, batch, None)["seq2seq"])


def corrupted(objective, licence):
    """Rows of real text as packed and as corrupted, and what reads them."""
    data = DataConfig(path=str(licence), tokenizer="sentencepiece", max_length=32)
    dataset = prepare_dataset(data, MODEL.vocab_size, 0, roles=objective.roles)
    loader = dataset.loader(0, "text", objective.preparation(dataset.tokenizer))
    return dataset.loader(0).rows_for(0, range(12)), loader.rows_for(0, range(12)), loader, dataset.tokenizer


def check_corrupted(objective, model, licence):
    """What all corruption of text has in common; returns rows as packed and as corrupted, and the tokenizer."""
    plain, rows, loader, tokenizer = corrupted(objective, licence)
    for name, array in loader.rows_for(7, range(3)).items():  # resumed, and in batches of another size
        np.testing.assert_array_equal(array, rows[name][7:10])
    np.testing.assert_array_equal(rows["reported"], rows["scored"] & (rows["targets"] != tokenizer.end_id))
    ends = rows["scored"] & ~rows["reported"]
    np.testing.assert_array_equal(ends.sum(1), rows["segments"].max(1))
    batch = on_device(rows)
    log_p, _ = log_probabilities(model, rows)
    own = np.take_along_axis(log_p, rows["targets"][..., None], 2)[..., 0]
    (loss,) = objective.loss(model, batch, None).values()
    assert float(loss) == pytest.approx(-own[rows["scored"]].sum(), rel=1e-5)
    evaluated = objective.evaluate(model, batch)
    assert float(evaluated["nats"].sum()) == pytest.approx(-own[rows["reported"]].sum(), rel=1e-5)
    assert objective.weights(batch) == {objective.term: rows["scored"].sum()}
    return plain, rows, tokenizer


def test_span_corruption_of_text(model, licence):
    objective = SpanCorruption(SpanCorruptionConfig(sentinels=4))
    plain, rows, tokenizer = check_corrupted(objective, model, licence)
    assert rows["source_tokens"].shape[1] == 32
    assert rows["targets"].shape[1] == 16
    sentinels = [tokenizer.special(role) for role in objective.roles]
    assert len(sentinels) == 4
    first = rows["targets"][(rows["positions"] == 0) & rows["scored"]]
    np.testing.assert_array_equal(first, sentinels[0])
    # Sources and targets have together what was there, but for documents of one token.
    text = np.concatenate([side[~np.isin(side, [*sentinels, 0, 1, 2])] for side in corrupted_sides(rows)])
    original = plain["tokens"][~np.isin(plain["tokens"], [0, 1, 2])]
    assert len(original) - 12 <= len(text) <= len(original)


def corrupted_sides(rows):
    return rows["source_tokens"], rows["targets"]


@pytest.mark.parametrize("permute", [True, False])
def test_denoising_of_text(model, licence, permute):
    objective = Denoising(DenoisingConfig(permute_sentences=permute))
    plain, rows, tokenizer = check_corrupted(objective, model, licence)
    mask = tokenizer.special("mask")
    sources = [source[(source > 2) & (source != mask)].tolist() for source in rows["source_tokens"]]
    stays = [is_within(source, text[text > 2].tolist()) for source, text in zip(sources, rows["targets"], strict=True)]
    assert all(stays) != permute
    assert 0.1 < np.mean(rows["source_tokens"] == mask) < 0.2
    assert plain["tokens"].shape == rows["targets"].shape == rows["source_tokens"].shape


def is_within(part, whole):
    """Whether tokens stand in another list in the same order."""
    remaining = iter(whole)
    return all(token in remaining for token in part)


def test_sentences_end_where_people_end_them(licence):
    """What a source begins with, the text begins with or has behind the mark of an end."""
    _, rows, _, tokenizer = corrupted(Denoising(DenoisingConfig(rate=0.05)), licence)
    moved = 0
    for source, target in zip(rows["source_tokens"], rows["targets"], strict=True):
        if source[1] == tokenizer.special("mask"):
            continue
        places = np.flatnonzero(target == source[1])
        behind = [tokenizer.decode(target[:place]).rstrip(" ")[-1:] for place in places]
        assert any(mark in ("", ".", "!", "?", "\n") for mark in behind)
        moved += target[0] != source[1]
    assert moved


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Seq2SeqConfig(label_smoothing=1.0), "objective.label_smoothing=1.0 must be at least 0 and less than 1"),
        (Seq2SeqConfig(z_loss=-1.0), "objective.z_loss=-1.0 must be at least 0"),
        (Seq2SeqConfig(loss_chunks=0), "objective.loss_chunks=0 must be at least 1"),
        (DenoisingConfig(z_loss=-1.0), "objective.z_loss=-1.0 must be at least 0"),
        (DenoisingConfig(rate=1.0), "objective.rate=1.0 must be more than 0 and less than 1"),
        (DenoisingConfig(rate=0.001), "objective.rate=0.001 leaves out less than two tokens of data.max_length=512"),
        (DenoisingConfig(mean_span=0.0), "objective.mean_span=0.0 must be more than 0"),
        (SpanCorruptionConfig(rate=0.0), "objective.rate=0.0 must be more than 0 and less than 1"),
        (SpanCorruptionConfig(mean_span=0.5), "objective.mean_span=0.5 must be at least 1"),
        (SpanCorruptionConfig(mean_span=1.0), "make sources of up to 513 tokens .* of data.max_length=512; pass"),
        (SpanCorruptionConfig(sentinels=25), "objective.sentinels=25 is less than the 26 spans of a row"),
        (SpanCorruptionConfig(loss_chunks=3), "objective.loss_chunks=3 must divide the 136 places of a target"),
    ],
)
def test_refusals(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        config.validate(512)


@pytest.mark.parametrize(
    ("objective", "role"),
    [(SpanCorruption(SpanCorruptionConfig()), "sentinel_0"), (Denoising(DenoisingConfig()), "mask")],
)
def test_tokenizers_without_the_marks_are_refused(objective, role):
    with pytest.raises(ValueError, match=f"this bytes tokenizer has no {role} token"):
        objective.preparation(ByteTokenizer())
