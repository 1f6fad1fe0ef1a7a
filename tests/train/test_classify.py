"""Classification: torch's loss, sklearn's figures, for texts and images alike."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.encoder import Encoder, EncoderConfig
from model.parameters import merge, split
from model.vision import Vision, VisionConfig
from train.config import RunConfig, with_model
from train.load import Source
from train.mesh import MeshConfig, make_mesh
from train.objectives.classify import Classify, ClassifyConfig, ClassifyImages, ClassifyImagesConfig
from train.pixels import pixel_values
from train.program import Program

pytestmark = pytest.mark.core

SIZE = {"num_layers": 1, "model_dim": 16, "num_heads": 2, "num_classes": 5, "init_std": 0.5}
TEXTS = EncoderConfig(**SIZE, vocab_size=40, max_length=12, head="sequence_classification", dropout=0.2)
IMAGES = VisionConfig(**SIZE, image_size=8, patch_size=4, channels=1, dropout=0.2)
B = 24


def text_case():
    random = np.random.default_rng(0)
    place = np.broadcast_to(np.arange(12, dtype=np.int32), (B, 12))
    segments = (place < random.integers(2, 13, (B, 1))).astype(np.int32)
    batch = {"tokens": random.integers(0, 40, (B, 12), np.int32) * segments, "positions": place * segments}
    model = Encoder(TEXTS, nnx.Rngs(params=jax.random.key(0)))
    return Classify, ClassifyConfig, model, batch | {"segments": segments, "labels": random.integers(0, 4, B, np.int32)}


def image_case():
    random = np.random.default_rng(0)
    skeleton, params = split(Vision(IMAGES, nnx.Rngs(params=jax.random.key(0))))
    params["classifier.weight"] = jax.random.normal(jax.random.key(1), (16, 5))  # a fresh one prefers no class
    batch = {"images": random.integers(0, 256, (B, 8, 8, 1), np.uint8), "labels": random.integers(0, 4, B, np.int32)}
    return ClassifyImages, ClassifyImagesConfig, merge(skeleton, params), batch


@pytest.fixture(scope="module", params=[text_case, image_case], ids=["texts", "images"])
def case(request):
    """An objective's class and its configuration's, a model, and a batch in which no example is of the last class."""
    return request.param()


def logits_of(model, batch):
    if "images" in batch:
        return np.asarray(model(pixel_values(jnp.asarray(batch["images"])))["class_logits"], np.float64)
    arguments = (batch[name] for name in ("tokens", "positions", "segments"))
    return np.asarray(model(*arguments)["class_logits"], np.float64)


def test_loss_is_the_smoothed_cross_entropy(case):
    make, config, model, batch = case
    logits = logits_of(model, batch)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for smoothing in (0.0, 0.1):
        objective = make(config(label_smoothing=smoothing))
        (loss,) = jax.jit(lambda batch, objective=objective: objective.loss(model, batch, None))(batch).values()
        own = log_p[np.arange(B), batch["labels"]]
        assert loss == pytest.approx(-((1 - smoothing) * own + smoothing * log_p.mean(1)).sum(), rel=1e-5)
        assert objective.weights(batch) == {"classify": B}


def test_loss_and_gradient_are_torchs(case):
    torch = pytest.importorskip("torch")
    make, config, model, batch = case
    objective, logits = make(config(label_smoothing=0.1)), logits_of(model, batch)

    class Given:
        """A model that says what it is told to."""

        def __init__(self, logits):
            self.logits = logits

        def hidden(self, *inputs, key):
            return inputs[0], {}

        def class_logits(self, hidden, *, key):
            return self.logits

    loss, gradient = jax.value_and_grad(lambda x: objective.loss(Given(x), batch, None)["classify"])(
        jnp.asarray(logits)
    )
    theirs = torch.tensor(logits, requires_grad=True)
    labels = torch.tensor(batch["labels"], dtype=torch.int64)
    expected = torch.nn.functional.cross_entropy(theirs, labels, label_smoothing=0.1, reduction="sum")
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-5)


@pytest.fixture(scope="module")
def figures(case):
    """The figures of all rows, evaluated in three batches."""
    make, config, model, batch = case
    objective = make(config(label_smoothing=0.3))
    evaluate = jax.jit(lambda batch: objective.evaluate(model, batch))
    parts = [evaluate({name: array[i : i + 8] for name, array in batch.items()}) for i in (0, 8, 16)]
    sums = {name: sum(np.asarray(part[name], np.float64).sum(0) for part in parts) for name in parts[0]}
    return objective.figures(sums)


def test_figures_count_every_class(case, figures):
    _, _, model, batch = case
    logits, labels = logits_of(model, batch), batch["labels"]
    predicted = logits.argmax(1)
    f1 = []
    for number in range(5):
        right = ((predicted == number) & (labels == number)).sum()
        wrong = ((predicted == number) ^ (labels == number)).sum()
        f1.append(2 * right / (2 * right + wrong) if right + wrong else 0)
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(B), labels]
    expected = {"nats_per_example": nats.mean(), "accuracy": (predicted == labels).mean(), "macro_f1": np.mean(f1)}
    assert figures == pytest.approx(expected | {"examples": B}, rel=1e-5)
    assert 0 < figures["macro_f1"] != figures["accuracy"]


def test_figures_are_sklearns(case, figures):
    metrics = pytest.importorskip("sklearn.metrics")
    _, _, model, batch = case
    predicted = logits_of(model, batch).argmax(1)
    macro = metrics.f1_score(batch["labels"], predicted, labels=range(5), average="macro", zero_division=0)
    assert figures["macro_f1"] == pytest.approx(macro)
    assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(batch["labels"], predicted))


def test_a_key_drops_and_padding_is_not_seen(case):
    make, config, model, batch = case
    loss = jax.jit(lambda batch, key=None: make(config()).loss(model, batch, key)["classify"])
    plain = loss(batch)
    assert len({float(plain), float(loss(batch, jax.random.key(0))), float(loss(batch, jax.random.key(1)))}) == 3
    if "segments" in batch:
        other = batch | {"tokens": np.where(batch["segments"] == 0, 7, batch["tokens"])}
        assert loss(other) == plain


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_that_means_nothing_is_refused(smoothing):
    with pytest.raises(ValueError, match=f"objective.label_smoothing={smoothing} must be at least 0 and less than 1"):
        ClassifyConfig(label_smoothing=smoothing).validate(8)


@pytest.mark.parametrize(
    ("found", "wanted", "begins_afresh"),
    [
        (("a", "b"), (), False),
        (("a", "b"), ("a", "b"), False),
        (("a", "b"), ("b", "a"), True),
        (("a", "b"), ("a", "b", "c"), True),
        ((), ("a", "b"), False),  # unnamed, as many imported ones
        ((), ("a", "b", "c"), True),
    ],
)
def test_a_head_for_other_classes_begins_afresh(found, wanted, begins_afresh):
    source = replace(TEXTS, num_classes=2, classes=found)
    params = split(Encoder(source, nnx.Rngs(params=jax.random.key(0))))[1]
    model = replace(TEXTS, num_classes=len(wanted) or 2, classes=wanted)
    config = with_model(RunConfig(name="x", model=model, objective=ClassifyConfig()), source)
    said: list[str] = []
    kept = Program.of(config, make_mesh(MeshConfig())).weights_of(Source(source, params), said.append)
    head = {"classifier.weight", "classifier.bias"}
    assert params.keys() - kept.keys() == (head if begins_afresh else set())
    expected = ["of the weights, classifier.bias, classifier.weight begin afresh"] if begins_afresh else []
    assert said == expected
    assert isinstance(config.model, EncoderConfig)
    assert config.model.classes == (wanted or found)


def test_a_head_of_another_kind_begins_afresh():
    source = replace(TEXTS, head="replaced_token")  # its classifier tells one thing apart
    params = split(Encoder(source, nnx.Rngs(params=jax.random.key(0))))[1]
    config = with_model(RunConfig(name="x", model=replace(TEXTS, num_classes=2), objective=ClassifyConfig()), source)
    kept = Program.of(config, make_mesh(MeshConfig())).weights_of(Source(source, params), lambda sentence: None)
    assert not any(name.startswith(("classifier", "head_dense")) for name in kept)
    assert {"embedding", "positions"} <= {name.split(".")[0] for name in kept}
