"""A decoder that reads images: what its text sees, that the image's side learns, and that any mesh agrees."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.decoder import DecoderConfig
from model.image_decoder import ImageDecoder, ImageDecoderConfig, count_parameters, train_flops_per_row
from model.parameters import declarations, merge, split
from model.vision import VisionConfig
from train.mesh import MeshConfig, batch_sharding, make_mesh, parameter_shardings

pytestmark = pytest.mark.core

CONFIG = ImageDecoderConfig(
    vision=VisionConfig(num_layers=1, model_dim=16, num_heads=2, image_size=12, patch_size=4, channels=1, head="none"),
    decoder=DecoderConfig(num_layers=2, model_dim=32, num_heads=4, vocab_size=70, max_length=8),
)
ROPE = dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, positions="rope", tie_embeddings=False))
IMAGES = np.random.default_rng(1).uniform(-1, 1, (4, 12, 12, 1)).astype(np.float32)
TEXTS = np.random.default_rng(2).integers(0, 70, (4, 6), np.int32)


def model_of(config: ImageDecoderConfig) -> Any:
    """A model whose every weight matters, biases and scales too."""
    skeleton, params = split(ImageDecoder(config, nnx.Rngs(params=jax.random.key(0))))
    random = np.random.default_rng(0)
    return merge(skeleton, {n: p + 0.1 * random.normal(size=p.shape).astype(np.float32) for n, p in params.items()})


logits_of = jax.jit(ImageDecoder.__call__)
hidden_of = jax.jit(ImageDecoder.hidden, static_argnames="capture")


def test_every_token_sees_the_image_and_the_text_before_it():
    model = model_of(CONFIG)

    def loss(image_BHWC, text_BLD, place):
        """The logits of one place, by what the images' pixels and the text's vectors are."""
        image_BMD, _ = model.vision.hidden(image_BHWC)
        embedded_BLD = jnp.concatenate([model.projection(image_BMD), text_BLD], axis=1)
        hidden_BLD, _ = model.decoder.transform(embedded_BLD, jnp.arange(-10, 6)[None])
        return jnp.sin(model.logits(hidden_BLD[:, 10:])[:, place, :70]).sum()

    text_BLD = model.decoder.embed(TEXTS, jnp.arange(6)[None])
    of_pixels, of_text = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)), (None, None, 0)))(
        IMAGES, text_BLD, np.arange(6)
    )
    assert (np.asarray(of_pixels) != 0).all()  # every pixel, from every place
    seen = (np.asarray(of_text) != 0).any((1, 3))
    np.testing.assert_array_equal(seen, np.tri(6, dtype=bool))

    # And this is what the model does.
    expected = jnp.sin(logits_of(model, IMAGES, TEXTS)[:, 3, :70]).sum()
    np.testing.assert_allclose(loss(IMAGES, text_BLD, 3), expected, rtol=1e-5)


def test_texts_of_other_images_differ_and_rows_are_independent():
    model = model_of(CONFIG)
    logits = logits_of(model, IMAGES, TEXTS)
    other = logits_of(model, IMAGES[::-1], TEXTS)
    assert (np.abs(logits - other).max((1, 2)) > 0.01).all()
    again = logits_of(model, IMAGES[::-1], TEXTS[::-1])[::-1]
    np.testing.assert_allclose(logits[..., :70], again[..., :70], atol=1e-5)


def test_a_text_stands_where_it_stood_without_an_image():
    """So that one to which nothing attends leaves the logits as the decoder alone has them."""
    model = model_of(ROPE)
    unseen = jax.tree.map(jnp.zeros_like, model.decoder.stack.layers.attention.out)
    model.decoder.stack.layers.attention.out = unseen  # nothing attended to counts
    without = jax.jit(lambda model: model(TEXTS))(model.decoder)
    np.testing.assert_allclose(logits_of(model, IMAGES, TEXTS), without, rtol=1e-5, atol=1e-5)


def test_captures_tell_the_sides_apart():
    hidden_BLD, captured = hidden_of(
        model_of(CONFIG), IMAGES, TEXTS, capture=("hidden", "vision_hidden", "attention_probabilities")
    )
    assert hidden_BLD.shape == (4, 6, 32)
    assert {name: array.shape for name, array in captured.items()} == {
        "hidden": (2, 4, 16, 32),
        "vision_hidden": (1, 4, 10, 16),
        "attention_probabilities": (2, 4, 4, 16, 16),
    }


def test_dropout_is_for_training():
    dropped = {side: dataclasses.replace(getattr(CONFIG, side), dropout=0.2) for side in ("vision", "decoder")}
    without = logits_of(model_of(CONFIG), IMAGES, TEXTS)
    for side, changed in dropped.items():
        model = model_of(dataclasses.replace(CONFIG, **{side: changed}))
        np.testing.assert_array_equal(logits_of(model, IMAGES, TEXTS), without)
        one, other = (hidden_of(model, IMAGES, TEXTS, key=jax.random.key(seed))[0] for seed in (0, 1))
        assert np.abs(one - other).max() > 0.01, side


def test_any_mesh_computes_the_same_gradients_for_every_weight():
    skeleton, params = split(model_of(CONFIG))

    def loss(params, images, texts):
        return jnp.sin(merge(skeleton, params)(images, texts)[..., :70]).mean()

    gradient = jax.jit(jax.value_and_grad(loss))
    expected, gradients = gradient(params, IMAGES, TEXTS)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    shardings = parameter_shardings(declarations(merge(skeleton, params)), mesh)
    with jax.set_mesh(mesh):
        placed = {n: jax.device_put(p, shardings[n]) for n, p in params.items()}
        batch = (jax.device_put(array, batch_sharding(mesh, array.shape)) for array in (IMAGES, TEXTS))
        value, others = gradient(placed, *batch)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for name, g in gradients.items():
        # The true gradient of a key bias is zero: what is left is rounding on the scale of the query bias.
        scale = np.abs(gradients[name.replace("key_bias", "query_bias")]).max()
        assert scale > 0, name
        assert np.abs(others[name] - g).max() <= 1e-5 * scale, name


# Configurations


@pytest.mark.parametrize("config", [CONFIG, ROPE], ids=["learned", "rope"])
def test_counts(config: ImageDecoderConfig):
    declared = declarations(jax.eval_shape(lambda: ImageDecoder(config, nnx.Rngs(params=jax.random.key(0)))))
    sizes = {name: math.prod(d.shape) for name, d in declared.items()}
    tables = 1 if config.decoder.tie_embeddings else 2
    assert count_parameters(config) == sum(sizes.values()) - (128 - 70) * 32 * tables
    # The same by the matrices as they are declared, each for the tokens that it meets.
    matrices = {
        name: sizes[name] for name, d in declared.items() if d.kind == "matrix" and name != "decoder.head.table"
    }
    meets = {"vision.patch": 9, "vision": 10, "projection": 10, "decoder": 10 + 5}
    products = sum(
        size * next(meets[part] for part in meets if name.startswith(part)) for name, size in matrices.items()
    )
    scores = 1 * 2 * (8 + 8) * 10 * 10 + 2 * 4 * (8 + 8) * 15 * 15 // 2  # causal ones are half of the square
    assert train_flops_per_row(config, 5) == 6 * (products + scores + 5 * 70 * 32)


def test_an_example_is_what_a_model_takes():
    assert np.isfinite(np.asarray(logits_of(model_of(CONFIG), **ImageDecoder.example(CONFIG)))).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vision": dataclasses.replace(CONFIG.vision, channels=0)}, "model.vision.channels=0 must be at least 1"),
        (
            {"decoder": dataclasses.replace(CONFIG.decoder, num_heads=5)},
            "model.decoder.model_dim=32 must be a multiple of model.decoder.num_heads=5",
        ),
        (
            {"vision": dataclasses.replace(CONFIG.vision, head="pooler")},
            "model.vision.head=pooler would never be learned",
        ),
        ({"classes": ("cat", "cat")}, "model.classes has the name 'cat' twice; give each class a name of its own"),
    ],
)
def test_what_no_model_can_have_is_refused(change: dict[str, Any], sentence: str):
    CONFIG.resolved().validate()
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(CONFIG, **change).validate()
