"""Vision transformers: transformers' numbers both ways, at their own resolution and others, on any mesh."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from model.families import vit
from model.families.weights import Layout
from model.parameters import declarations, merge, split
from model.vision import (
    Vision,
    VisionConfig,
    count_parameters,
    cubic_weights,
    cut,
    matrix_parameters,
    resized,
    train_flops_per_row,
)
from train.mesh import MeshConfig, batch_sharding, make_mesh, parameter_shardings

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SMALL = VisionConfig(
    num_layers=2, model_dim=12, num_heads=3, mlp_dim=20, image_size=12, patch_size=4, channels=2, num_classes=5
)

# Counted by building the models in transformers.
COUNTS = {
    "vit-ti16": 5_717_416,
    "vit-s16": 22_050_664,
    "vit-b16": 86_567_656,
    "vit-b32": 88_224_232,
    "vit-l16": 304_326_632,
    "vit-h14": 632_045_800,
    "vit-b16-384": 86_859_496,
    "vit-l32-384": 306_632_680,
}
WITHOUT_HEAD = {
    "vit-ti16": 5_524_416,
    "vit-s16": 21_665_664,
    "vit-b16": 85_798_656,
    "vit-b32": 87_455_232,
    "vit-l16": 303_301_632,
    "vit-h14": 630_764_800,
}


def built(config: VisionConfig) -> Any:
    return Vision(config, nnx.Rngs(params=jax.random.key(0)))


def model_of(config: VisionConfig) -> Any:
    """A model whose every weight matters, biases and scales too."""
    skeleton, params = split(built(config))
    random = np.random.default_rng(0)
    return merge(skeleton, {n: p + 0.2 * random.normal(size=p.shape).astype(np.float32) for n, p in params.items()})


said_by = jax.jit(Vision.__call__)
hidden_of = jax.jit(Vision.hidden, static_argnames="capture")


def images(config: VisionConfig, height: int = 12, width: int = 12) -> np.ndarray:
    shape = (2, height, width, config.channels)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def layout(config: VisionConfig) -> Layout:
    return Layout(vit.weights(config), declarations(jax.eval_shape(lambda: built(config))), 0)


def assert_near(actual: Any, expected: Any, what: str = "") -> None:
    """Equal to 1e-5 of the largest number expected."""
    assert np.abs(np.asarray(actual) - expected).max() <= 1e-5 * np.abs(expected).max(), what


# Parity with transformers


@pytest.mark.core
@pytest.mark.parametrize("name", ["vit", "vit_pooled"])
def test_an_imported_model_computes_what_transformers_computes(name: str):
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = dict(file.items())
    config = vit.from_hugging_face_config(json.loads(str(golden["config"])))
    assert vit.architecture(config) == {"vit": "ViTForImageClassification", "vit_pooled": "ViTModel"}[name]
    bare = "" if name == "vit" else vit.PREFIX  # ViTModel's own files lack it
    table = layout(config)
    params = table.from_hugging_face(lambda tensor: golden[f"weight/{tensor.removeprefix(bare)}"], np.float32)
    assert {f"weight/{tensor.removeprefix(bare)}" for tensor, _ in table.shapes()} == {
        key for key in golden if key.startswith("weight/")
    }
    skeleton = split(built(config))[0]

    def loss(params):
        outputs = {kind: merge(skeleton, params)(golden[f"{kind}images"]) for kind in ("", "other_")}
        return sum(jnp.sin(3 * a).mean() for said in outputs.values() for a in said.values()), outputs

    (value, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    for kind, said in outputs.items():
        assert set(said) == ({"class_logits"} if name == "vit" else {"hidden", "pooled"})
        for i, what in enumerate(sorted(said)):
            assert_near(said[what], golden[f"{kind}output/{i}"], f"{kind}{what}")
    assert abs(value - golden["loss"]) <= 1e-5 * abs(golden["loss"])
    theirs = dict(table.to_hugging_face(gradients))
    expected = {key.removeprefix("gradient/"): array for key, array in golden.items() if key.startswith("gradient/")}
    assert len(expected) == 5
    for tensor, gradient in expected.items():
        assert_near(theirs[bare + tensor], gradient, tensor)


CONFIGS = {
    "classes": SMALL,
    "pooler": dataclasses.replace(SMALL, head="pooler", channels=1),
    "tanh": dataclasses.replace(SMALL, activation="gelu_tanh", channels=3, norm_epsilon=1e-12),
    "relu": dataclasses.replace(SMALL, activation="relu", num_classes=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_loads_an_exported_model_and_computes_the_same(name: str, tmp_path: Path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = CONFIGS[name]
    model = model_of(config)
    values = {"architectures": [vit.architecture(config)], "model_type": vit.MODEL_TYPE}
    (tmp_path / "config.json").write_text(json.dumps(values | vit.to_hugging_face_config(config)))
    tensors = dict(layout(config).to_hugging_face(split(model)[1]))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, facts = getattr(transformers, vit.architecture(config)).from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(facts[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.num_parameters() == count_parameters(config)
    for height, width in ((12, 12), (24, 20), (8, 4)):
        pixels = images(config, height, width)
        with torch.no_grad():
            expected = theirs.eval()(torch.tensor(pixels).permute(0, 3, 1, 2), interpolate_pos_encoding=True)
        said = said_by(model, pixels)
        if config.head == "pooler":
            assert_near(said["hidden"], expected.last_hidden_state.numpy())
            assert_near(said["pooled"], expected.pooler_output.numpy())
        else:
            assert_near(said["class_logits"], expected.logits.numpy())


@pytest.mark.parametrize(("old", "new"), [(14, 24), (24, 14), (7, 7), (3, 10), (1, 4), (5, 1)])
def test_positions_are_resized_as_torch_does(old: int, new: int):
    torch = pytest.importorskip("torch")
    grid = np.random.default_rng(0).normal(size=(old, old, 3))
    expected = torch.nn.functional.interpolate(
        torch.tensor(grid).permute(2, 0, 1)[None], size=(new, old), mode="bicubic", align_corners=False
    )
    actual = resized(jnp.asarray(grid.reshape(-1, 3), jnp.float32), new, old).reshape(new, old, 3)
    np.testing.assert_allclose(actual, expected[0].permute(1, 2, 0), atol=2e-6)


def test_resizing_keeps_what_must_stay():
    np.testing.assert_array_equal(cubic_weights(9, 9), np.eye(9))
    np.testing.assert_allclose(cubic_weights(9, 23).sum(1), 1, rtol=1e-6)
    ramp = np.arange(12.0)
    np.testing.assert_allclose((cubic_weights(12, 24) @ ramp)[5:-5], (np.arange(24) / 2 - 0.25)[5:-5], atol=0.1)


# What it is made of


def test_patches_are_squares_of_the_image_row_by_row():
    pixels = images(SMALL, 12, 8)
    patches = np.asarray(cut(jnp.asarray(pixels), 4))
    assert patches.shape == (2, 6, 2, 4, 4)
    for row in range(3):
        for column in range(2):
            square = pixels[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            np.testing.assert_array_equal(patches[:, 2 * row + column], square.transpose(0, 3, 1, 2))


def test_every_patch_reaches_the_class_token_and_captures_show_it():
    model, pixels = model_of(SMALL), images(SMALL)
    hidden_BLD, captured = hidden_of(model, pixels, capture=("hidden", "attention_probabilities"))
    assert captured["attention_probabilities"].shape == (2, 2, 3, 10, 10)
    assert (np.asarray(captured["attention_probabilities"]) > 0).all()
    assert_near(model.norm(captured["hidden"][-1]), np.asarray(hidden_BLD))
    gradient = jax.jit(jax.grad(lambda pixels: model(pixels)["class_logits"][0, 0]))(pixels)
    assert (np.asarray(gradient[0]) != 0).all()
    assert not np.asarray(gradient[1]).any()


def test_a_new_classifier_prefers_no_class():
    assert not np.asarray(said_by(built(SMALL), images(SMALL))["class_logits"]).any()


def test_dropout_is_for_training():
    model, pixels = model_of(dataclasses.replace(SMALL, dropout=0.2, attention_dropout=0.2)), images(SMALL)
    without, _ = hidden_of(model, pixels)
    np.testing.assert_array_equal(without, hidden_of(model_of(SMALL), pixels)[0])
    one, other = (hidden_of(model, pixels, key=jax.random.key(seed))[0] for seed in (0, 1))
    assert np.abs(one - other).max() > 0.1


def test_bfloat16_parameters_compute_in_bfloat16_near_float32():
    skeleton, params = split(model_of(SMALL))
    half = merge(skeleton, {name: p.astype(jnp.bfloat16) for name, p in params.items()})
    for height in (12, 16):
        logits = said_by(half, images(SMALL, height))["class_logits"]
        assert logits.dtype == jnp.bfloat16
        expected = said_by(merge(skeleton, params), images(SMALL, height))["class_logits"]
        assert np.abs(logits.astype(jnp.float32) - expected).max() < 0.05 * np.abs(expected).max()


def test_gradients_of_what_all_images_share_are_summed_in_float32():
    skeleton, params = split(built(SMALL))
    pixels = np.tile(images(SMALL), (300, 1, 1, 1))

    def loss(params):
        return merge(skeleton, params).embed(pixels).sum(dtype=jnp.float32)

    found = jax.jit(jax.grad(loss))({name: p.astype(jnp.bfloat16) for name, p in params.items()})
    for name, expected in (("positions", 600), ("class_token", 600), ("patch_bias", 9 * 600)):
        np.testing.assert_allclose(found[name].astype(jnp.float32), expected, rtol=0.01)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((2, 12, 12, 3), "images of 12 x 12 pixels with 3 channels must have 2 channels"),
        ((2, 12, 10, 2), "images of 12 x 10 pixels .* sides that are multiples of the patches' 4 pixels"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        built(SMALL)(np.zeros(shape, np.float32))


# Configurations


@pytest.mark.core
def test_every_preset_has_the_published_number_of_parameters():
    assert vit.PRESETS.keys() == COUNTS.keys()
    for name, config in vit.PRESETS.items():
        config.validate()
        assert count_parameters(config) == COUNTS[name], name
        assert sum(math.prod(shape) for _, shape in layout(config).shapes()) == COUNTS[name], name
    for name, count in WITHOUT_HEAD.items():
        assert count_parameters(dataclasses.replace(vit.PRESETS[name], head="none")) == count, name


def test_parameters_are_as_declared_whatever_the_head():
    for head in ("none", "pooler", "classification"):
        config = dataclasses.replace(SMALL, head=head, image_size=20)
        declared = declarations(jax.eval_shape(lambda config=config: built(config)))
        assert count_parameters(config) == sum(math.prod(d.shape) for d in declared.values())
        once = {"pooler.weight", "classifier.weight"}
        assert matrix_parameters(config) == sum(
            math.prod(d.shape) for name, d in declared.items() if d.kind == "matrix" and name not in once
        )


def test_operations_of_an_image():
    config = vit.PRESETS["vit-b16"]
    layers = 12 * (12 * 768**2 + 2 * 768 * 197) * 197
    assert train_flops_per_row(config) == 6 * (layers + 196 * 768 * 768 + 768 * 1000)
    assert matrix_parameters(config) == 12 * 12 * 768**2 + 768 * 768


@pytest.mark.parametrize("config", [*vit.PRESETS.values(), *CONFIGS.values()])
def test_a_configuration_survives_the_way_to_hugging_face_and_back(config: VisionConfig):
    if config.head == "pooler":
        config = dataclasses.replace(config, num_classes=VisionConfig.num_classes)
    assert vit.obstacles(config) == []
    values = {"architectures": [vit.architecture(config)]} | vit.to_hugging_face_config(config)
    assert vit.from_hugging_face_config(values).resolved() == config.resolved()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"qkv_bias": False}, "qkv_bias=false is not supported, only true"),
        ({"hidden_act": "silu"}, 'hidden_act="silu" is not supported'),
        ({"image_size": [12, 20]}, r"image_size=\[12, 20\] must be a whole number"),
        ({"image_size": 15}, "image_size=15 must be a multiple of model.patch_size=4; try image_size 16"),
        ({"hidden_size": 13}, "hidden_size=13 must be a multiple of num_attention_heads=3"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, r"architectures=\[.*\] is not supported"),
        ({"architectures": ["ViTModel"], "pooler_output_size": 6}, "pooler_output_size=6 is not supported, only 12"),
        ({"architectures": ["ViTModel"], "pooler_act": "relu"}, 'pooler_act="relu" is not supported'),
        ({"relative_attention": True}, "relative_attention=true is not known"),
    ],
)
def test_what_would_compute_something_else_is_refused(change: dict[str, Any], sentence: str):
    values = {"architectures": ["ViTForImageClassification"]} | vit.to_hugging_face_config(SMALL)
    assert vit.from_hugging_face_config(values).resolved() == SMALL.resolved()
    with pytest.raises(ValueError, match=sentence) as error:
        vit.from_hugging_face_config(values | change)
    assert "\n" not in str(error.value)


def test_the_default_epsilon_of_a_folder_is_transformers():
    values = {"architectures": ["ViTModel"]} | vit.to_hugging_face_config(SMALL)
    del values["layer_norm_eps"]
    assert vit.from_hugging_face_config(values).norm_epsilon == 1e-12
    assert VisionConfig.norm_epsilon == 1e-6


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        ({"norm": "rms"}, "norm=layer"),
        ({"num_kv_heads": 1}, "num_kv_heads=3"),
        ({"head_dim": 8}, "head_dim=model_dim/num_heads"),
        ({"attention_bias": False}, "attention_bias=True"),
        ({"activation": "swiglu", "use_bias": False}, "activation=gelu or gelu_tanh or relu"),
        ({"head": "none"}, "head=classification or pooler"),
    ],
)
def test_what_no_folder_expresses_is_named(change: dict[str, Any], obstacle: str):
    assert obstacle in vit.obstacles(dataclasses.replace(SMALL, **change))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"channels": 0}, "model.channels=0 must be at least 1"),
        ({"patch_size": 5}, "model.image_size=12 must be a multiple of model.patch_size=5; try image_size 15"),
        ({"positions": "rope"}, r"model.positions=rope is not for vision transformers; take one of \('learned',\)"),
        ({"num_heads": 5}, "model.model_dim=12 must be a multiple of model.num_heads=5"),
    ],
)
def test_what_no_model_can_have_is_refused(change: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(SMALL, **change).validate()


def test_an_example_is_what_a_model_takes():
    for config in CONFIGS.values():
        example = Vision.example(config)
        assert -1 <= example["images_BHWC"].min() < -0.5
        assert 0.5 < example["images_BHWC"].max() <= 1
        assert all(np.isfinite(array).all() for array in said_by(model_of(config), **example).values())


# Meshes


@pytest.mark.parametrize(
    "mesh_config",
    [MeshConfig(data=8), MeshConfig(data=1, fsdp=4), MeshConfig(data=2, fsdp=2, tensor=2)],
    ids=["data8", "fsdp4", "data2_fsdp2_tensor2"],
)
def test_any_mesh_computes_the_same(mesh_config: MeshConfig):
    config = dataclasses.replace(SMALL, model_dim=16, num_heads=4, dropout=0.1)
    skeleton, params = split(model_of(config))
    pixels = np.concatenate([images(config, 12, 16)] * 4)

    def loss(params, pixels):
        model = merge(skeleton, params)
        return jnp.sin(model.class_logits(model.hidden(pixels, key=jax.random.key(0))[0])).mean()

    gradient = jax.jit(jax.value_and_grad(loss))
    expected = gradient(params, pixels)
    mesh = make_mesh(mesh_config, jax.devices()[: math.prod(dataclasses.astuple(mesh_config))])
    shardings = parameter_shardings(declarations(merge(skeleton, params)), mesh)
    with jax.set_mesh(mesh):
        placed = {n: jax.device_put(p, shardings[n]) for n, p in params.items()}
        value, gradients = gradient(placed, jax.device_put(pixels, batch_sharding(mesh, pixels.shape)))
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    for weight, g in gradients.items():
        # The true gradient of a key bias is zero: what is left is rounding on the scale of the query bias.
        scale = np.abs(expected[1][weight.replace("key_bias", "query_bias")]).max()
        assert np.abs(g - expected[1][weight]).max() <= 1e-5 * scale, weight
