"""Naming images: the rows, the loss and the accuracy, each by the plain way to the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data.captions import CaptionRows
from data.loader import Rows
from data.tokenizers.plain import ByteTokenizer, CharacterTokenizer
from model.decoder import DecoderConfig
from model.image_decoder import ImageDecoder, ImageDecoderConfig
from model.parameters import merge, split
from model.vision import VisionConfig
from train.objectives.caption import Caption, CaptionConfig

pytestmark = pytest.mark.core

NAMES = ("ant", "anteater", "bee")
CONFIG = ImageDecoderConfig(
    vision=VisionConfig(num_layers=1, model_dim=16, num_heads=2, image_size=8, patch_size=4, channels=1, head="none"),
    decoder=DecoderConfig(num_layers=1, model_dim=32, num_heads=2, vocab_size=257, max_length=9),
    classes=NAMES,
)


class Stripes(Rows):
    """Images whose class says which rows of pixels are bright."""

    def __len__(self):
        return 12

    def take(self, indices):
        labels = (indices % 3).astype(np.int32)
        pixels = np.random.default_rng(0).integers(0, 60, (12, 8, 8, 1), np.uint8)[indices]
        bright = np.arange(8)[None, :, None, None] % 3 == labels[:, None, None, None]
        return {"images": np.where(bright, 255 - pixels, pixels), "labels": labels}

    @property
    def left_out(self):
        return "2 images are damaged"


ROWS = CaptionRows(Stripes(), NAMES, ByteTokenizer(), CONFIG.max_length)
OBJECTIVE = Caption(CaptionConfig())


def test_rows_hold_the_names():
    assert len(ROWS) == 12
    assert ROWS.left_out == "2 images are damaged"
    batch = ROWS.take(np.array([3, 4, 11]))
    np.testing.assert_array_equal(batch.pop("images"), Stripes().take(np.array([3, 4, 11]))["images"])
    assert {array.shape for array in batch.values()} == {(3, 9)}
    for row, name in enumerate(NAMES):
        read, learned = ([256, *name.encode()], [*name.encode(), 256])
        assert batch["tokens"][row, : len(read)].tolist() == read
        assert batch["targets"][row, batch["scored"][row]].tolist() == learned


@pytest.fixture(scope="module")
def learned():
    """A model that has learned the names, a batch of all images, and the losses on the way."""
    skeleton, params = split(ImageDecoder(CONFIG, nnx.Rngs(params=jax.random.key(0))))
    batch = {name: jnp.asarray(array) for name, array in ROWS.take(np.arange(12)).items()}

    @jax.jit
    def step(params, moments):
        def mean(params):
            sums, weights = OBJECTIVE.loss(merge(skeleton, params), batch, None), OBJECTIVE.weights(batch)
            return sums["caption"] / weights["caption"]

        loss, gradients = jax.value_and_grad(mean)(params)
        moments = jax.tree.map(lambda m, g: 0.9 * m + g, moments, gradients)
        return jax.tree.map(lambda p, m: p - 0.02 * m, params, moments), moments, loss

    moments, losses = jax.tree.map(jnp.zeros_like, params), []
    for _ in range(60):
        params, moments, loss = step(params, moments)
        losses.append(float(loss))
    return merge(skeleton, params), batch, losses


def test_it_learns(learned):
    _, _, losses = learned
    assert losses[0] > 5
    assert losses[-1] < 0.3


def test_figures_are_those_of_writing_greedily(learned):
    model, batch, _ = learned
    images = np.array(batch["images"])
    images[:5] = images[1:6]  # of other classes than the names say
    evaluate = jax.jit(lambda batch: OBJECTIVE.evaluate(model, batch))
    evaluated = {name: np.asarray(array) for name, array in evaluate(batch | {"images": images}).items()}
    assert {array.shape for array in evaluated.values()} == {(12,)}

    # Written by the model itself, token by token.
    said, pixels = jax.jit(model.__call__), images / np.float32(127.5) - 1
    texts = np.full((12, 10), 256, np.int32)
    for place in range(9):
        texts[:, place + 1] = said(pixels, texts[:, :9])[:, place].argmax(-1)
    written = [bytes(row[: row.index(256)]).decode() for row in np.c_[texts[:, 1:], np.full(12, 256)].tolist()]
    assert written == [NAMES[(n + (n < 5)) % 3] for n in range(12)]
    np.testing.assert_array_equal(evaluated["right"], np.arange(12) >= 5)

    log_p = np.asarray(jax.nn.log_softmax(said(pixels, batch["tokens"])[..., :257]), np.float64)
    nats = [-sum(log_p[n, i, t] for i, t in enumerate([*NAMES[n % 3].encode(), 256])) for n in range(12)]
    np.testing.assert_allclose(evaluated["nats"], nats, rtol=1e-4, atol=1e-5)
    figures = OBJECTIVE.figures({name: array.astype(np.float64).sum(0) for name, array in evaluated.items()})
    tokens = 4 * (4 + 9 + 4)
    expected = {"nats_per_token": sum(nats) / tokens, "accuracy": 7 / 12, "tokens": tokens, "examples": 12}
    assert figures == pytest.approx(expected, rel=1e-4)


def test_names_that_cannot_be_learned_are_refused():
    with pytest.raises(ValueError, match=r"classes have no names to be learned; give them with --model.classes"):
        CaptionRows(Stripes(), (), ByteTokenizer(), 9)
    with pytest.raises(ValueError, match=r"the class 'anteater' takes 9 tokens with its start token, more than .*=8"):
        CaptionRows(Stripes(), NAMES, ByteTokenizer(), 8)
    with pytest.raises(ValueError, match=r"makes the same tokens of the names 'bee' and 'bee'; take"):
        CaptionRows(Stripes(), (*NAMES, "bee"), ByteTokenizer(), 9)
    with pytest.raises(ValueError, match=r"the character 'b' .* is not among"):
        CaptionRows(Stripes(), NAMES, CharacterTokenizer("aenrt"), 9)
