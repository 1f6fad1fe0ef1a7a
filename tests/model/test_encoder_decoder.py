"""Encoder-decoders: what each token sees, decoding, counts, families to and from Hugging Face, and parity."""

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from safetensors.numpy import save_file

from model.beam import Beam, beam_search
from model.decode import Sampling, extend, start_from_source, unstack
from model.encoder_decoder import (
    EncoderDecoder,
    EncoderDecoderConfig,
    count_parameters,
    matrix_parameters,
    train_flops_per_row,
)
from model.families import bart, mbart, t5, transformer
from model.families.weights import Layout
from model.parameters import declarations, merge, split
from model.positions import RelativeBias
from model.sharding import MESH_AXES, partition_spec
from model.stack import layer_matrices

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FAMILIES: dict[str, ModuleType] = {"transformer": transformer, "bart": bart, "mbart": mbart, "t5": t5}
PRESETS: dict[str, EncoderDecoderConfig] = {n: c for family in FAMILIES.values() for n, c in family.PRESETS.items()}
OF_GOLDEN = {"marian": transformer, "bart": bart, "mbart": mbart, "t5": t5, "t5_v1.1": t5}

# Published, or counted by building the models in transformers: trainable parameters, tied tensors once.
COUNTS = {
    "transformer-base": 63_045_632,
    "transformer-big": 214_171_648,
    "transformer-tiny": 2_598_912,
    "bart-base": 139_420_416,
    "bart-large": 406_291_456,
    "megamolbart-style-xsmall": 7_801_856,
    "megamolbart-style-small": 44_996_608,
    "megamolbart-style-large": 236_859_392,
    "megamolbart-style-card": 15_174_656,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
}

# Between them they have every mechanism, stacks of two depths, and a vocabulary that needs padding.
_SIZES: dict[str, Any] = {"num_layers": 1, "num_decoder_layers": 2, "model_dim": 16, "num_heads": 4, "mlp_dim": 24}
_SIZES |= {"vocab_size": 70}
SMALL = {
    "transformer": dataclasses.replace(PRESETS["transformer-tiny"], **_SIZES, max_length=32),
    "separate": dataclasses.replace(
        PRESETS["transformer-tiny"], **_SIZES, max_length=32, share_embeddings=False, logit_bias=True
    ),
    "bart": dataclasses.replace(PRESETS["bart-base"], **_SIZES, max_length=32),
    "mbart": dataclasses.replace(PRESETS["megamolbart-style-small"], **_SIZES, max_length=32),
    "t5": dataclasses.replace(
        PRESETS["t5-small"],
        **_SIZES,
        head_dim=6,
        max_length=32,
        relative_buckets=8,
        relative_distance=12,
        logit_scale=0.25,
    ),
    "t5_v1.1": dataclasses.replace(PRESETS["t5-v1.1-small"], **_SIZES, head_dim=6, max_length=32),
}
FAMILY_OF = {"separate": "transformer", "t5_v1.1": "t5"}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> EncoderDecoderConfig:
    return SMALL[request.param]


@pytest.fixture(params=["transformer", "mbart", "t5"])
def structure(request: pytest.FixtureRequest) -> EncoderDecoderConfig:
    """Of each kind of positions, and of both places of norms, one: for what takes long to compile."""
    return SMALL[request.param]


def build(config: EncoderDecoderConfig) -> EncoderDecoder:
    config.validate()
    return EncoderDecoder(config, nnx.Rngs(params=jax.random.key(0)))


def declared(config: EncoderDecoderConfig):
    return declarations(jax.eval_shape(lambda: build(config)))


def random_params(config: EncoderDecoderConfig) -> dict[str, np.ndarray]:
    """Weights of which all matter, biases and scales too; padding is zero."""
    random = np.random.default_rng(0)
    params = {}
    for name, weight in declared(config).items():
        params[name] = (random.normal(size=weight.shape) * 0.2 + (weight.kind == "scale")).astype(np.float32)
        if "vocab" in weight.axes:
            params[name][config.vocab_size :] = 0
    return params


def with_params(config: EncoderDecoderConfig, params: Any) -> EncoderDecoder:
    skeleton = split(jax.eval_shape(lambda: build(config)))[0]
    return merge(skeleton, {name: jnp.asarray(a) for name, a in params.items()})


@jax.jit
def compute(model: EncoderDecoder, *inputs: Any, **segments: Any) -> jax.Array:
    return model(*inputs, **segments)


@partial(jax.jit, static_argnames="capture")
def compute_hidden(model: EncoderDecoder, *, key: jax.Array | None = None, capture: tuple[str, ...] = ()):
    return model.hidden(SOURCE, TARGET, key=key, capture=capture)


def random_tokens(length: int, seed: int) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (1, length), 0, 70)


SOURCE, TARGET = random_tokens(7, 1), random_tokens(5, 2)
SEGMENTS = {
    "source_segments_BM": jnp.array([[1] * 3 + [2] * 2 + [0] * 2]),
    "target_segments_BL": jnp.array([[1, 1, 2, 2, 0]]),
}


# What each token sees


def reach(model: EncoderDecoder, **segments: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Whether the logits at a place of the target (rows) move at all with each token of the source and the target."""
    M, L = SOURCE.shape[1], TARGET.shape[1]
    sources, targets = jnp.repeat(SOURCE, 1 + M + L, axis=0), jnp.repeat(TARGET, 1 + M + L, axis=0)
    sources = sources.at[1 + jnp.arange(M), jnp.arange(M)].add(1) % 70
    targets = targets.at[1 + M + jnp.arange(L), jnp.arange(L)].add(1) % 70
    segments = {name: jnp.repeat(array, 1 + M + L, axis=0) for name, array in segments.items()}
    logits = np.asarray(compute(model, sources, targets, **segments))
    moved = (logits[1:] != logits[:1]).any(-1).T
    return moved[:, :M], moved[:, M:]


def test_a_target_sees_its_whole_source_and_nothing_later_of_itself(structure):
    of_source, of_target = reach(with_params(structure, random_params(structure)))
    assert of_source.all()
    np.testing.assert_array_equal(of_target, np.tri(5, dtype=bool))


def test_a_packed_target_sees_its_own_source_only(structure):
    of_source, of_target = reach(with_params(structure, random_params(structure)), **SEGMENTS)
    source, target = (np.asarray(array)[0] for array in SEGMENTS.values())
    real = target > 0
    np.testing.assert_array_equal(of_source[real], (target[:, None] == source[None])[real])
    np.testing.assert_array_equal(of_target[real], (np.tri(5, dtype=bool) & (target[:, None] == target[None]))[real])


@pytest.mark.core
def test_a_packed_pair_is_computed_as_if_alone(structure):
    model = with_params(structure, random_params(structure))
    packed = compute(model, SOURCE, TARGET, **SEGMENTS)
    np.testing.assert_allclose(packed[:, :2], compute(model, SOURCE[:, :3], TARGET[:, :2]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 2:4], compute(model, SOURCE[:, 3:5], TARGET[:, 2:4]), atol=1e-5)


def test_padding_changes_nothing(structure):
    model = with_params(structure, random_params(structure))
    expected = compute(model, SOURCE[:, :5], TARGET[:, :4])
    padded_source = {"source_segments_BM": SEGMENTS["source_segments_BM"].clip(max=1)}
    np.testing.assert_allclose(compute(model, SOURCE, TARGET[:, :4], **padded_source), expected, atol=1e-5)
    padded_target = {"target_segments_BL": SEGMENTS["target_segments_BL"].clip(max=1)}
    np.testing.assert_allclose(compute(model, SOURCE[:, :5], TARGET, **padded_target)[:, :4], expected, atol=1e-5)


def test_positions_are_those_given(structure):
    model = with_params(structure, random_params(structure))
    default = compute(model, SOURCE, TARGET)
    given = compute(model, SOURCE, TARGET, jnp.arange(7)[None], jnp.arange(5)[None])
    np.testing.assert_allclose(given, default, atol=1e-6)
    shifted = compute(model, SOURCE, TARGET, jnp.arange(7)[None] + 3, jnp.arange(5)[None])
    assert (np.abs(shifted - default)[..., :70].max() > 1e-3) == (structure.positions != "relative")


def test_captures_of_both_stacks():
    config = SMALL["mbart"]
    model = with_params(config, random_params(config))
    shapes = {
        "hidden": (2, 1, 5, 16),
        "attention_scores": (2, 1, 4, 5, 5),
        "cross_attention_probabilities": (2, 1, 4, 5, 7),
        "encoder_hidden": (1, 1, 7, 16),
        "encoder_attention_probabilities": (1, 1, 4, 7, 7),
    }
    hidden, captured = compute_hidden(model, capture=tuple(shapes))
    assert {name: array.shape for name, array in captured.items()} == shapes
    np.testing.assert_allclose(captured["cross_attention_probabilities"].sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(model.decoder.norm(captured["hidden"][-1]), hidden, atol=1e-5)
    np.testing.assert_allclose(model.encoder.norm(captured["encoder_hidden"][-1]), model.encode(SOURCE)[0], atol=1e-5)
    plain, nothing = compute_hidden(model)
    np.testing.assert_allclose(plain, hidden, atol=1e-5)
    assert nothing == {}


# Training


def test_dropout_needs_a_key_and_follows_it():
    model = build(dataclasses.replace(SMALL["transformer"], attention_dropout=0.1))
    first, again, other, none = (
        np.asarray(compute_hidden(model, key=key)[0])
        for key in (jax.random.key(1), jax.random.key(1), jax.random.key(2), None)
    )
    np.testing.assert_array_equal(again, first)
    assert np.abs(other - first).max() > 0.1
    assert np.abs(none - first).max() > 0.1


@pytest.mark.parametrize("name", ["transformer-tiny", "t5-small", "t5-v1.1-small"])
def test_a_fresh_model_is_neither_certain_nor_indifferent(name: str):
    """Scores and logits of order one, although T5 does not scale the former, nor its embeddings the latter."""
    config = dataclasses.replace(PRESETS[name], num_layers=1, vocab_size=300, model_dim=256, head_dim=None)
    config = dataclasses.replace(config, logit_scale=256**-0.5 if name == "t5-small" else 1.0, num_heads=4)
    model = build(config)
    source, target = random_tokens(24, 1) * 4, random_tokens(24, 2) * 4
    names = ("cross_attention_scores", "encoder_attention_scores")

    def compute(model: EncoderDecoder):
        hidden, captured = model.hidden(source, target, capture=names)
        return model.logits(hidden)[..., :300], captured

    logits, captured = jax.jit(compute)(model)
    assert 0.5 < logits.std() < 2
    for scores in captured.values():
        assert 0.3 < scores.std() < 3


def test_bfloat16_parameters_compute_in_bfloat16_near_float32(structure):
    model = build(structure)
    skeleton, params = split(model)
    half = compute(merge(skeleton, {name: p.astype(jnp.bfloat16) for name, p in params.items()}), SOURCE, TARGET)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half[..., :70].astype(jnp.float32), compute(model, SOURCE, TARGET)[..., :70], atol=0.06)


def on_mesh(config: EncoderDecoderConfig, shape: tuple[int, ...]):
    """The logits of four packed pairs and the gradients of their sines, on a mesh of this shape."""
    skeleton, weights = split(jax.eval_shape(lambda: build(config)))[0], declared(config)
    random = np.random.default_rng(1)
    batch = {"source_BM": random.integers(0, 70, (4, 8)), "target_BL": random.integers(0, 70, (4, 6))}
    batch |= {"source_segments_BM": np.repeat([[1] * 4 + [2] * 2 + [0] * 2], 4, axis=0)}
    batch |= {"target_segments_BL": np.repeat([[1] * 2 + [2] * 3 + [0]], 4, axis=0)}
    mesh = Mesh(np.array(jax.devices()[: math.prod(shape)]).reshape(shape), MESH_AXES)

    def laid(array, axes):
        return jax.device_put(array, NamedSharding(mesh, partition_spec(axes, array.shape, mesh)))

    def sines(params, batch):
        logits = merge(skeleton, params)(**batch)[..., :70]
        return jnp.sin(logits).sum(), logits

    with jax.set_mesh(mesh):
        params = {name: laid(array, weights[name].axes) for name, array in random_params(config).items()}
        batch = {name: laid(array.astype(np.int32), ("act_batch", "act_length")) for name, array in batch.items()}
        (_, logits), gradients = jax.jit(jax.value_and_grad(sines, has_aux=True))(params, batch)
    return np.asarray(logits), {name: np.asarray(gradient) for name, gradient in gradients.items()}


@pytest.mark.parametrize(("name", "shape"), [("bart", (2, 2, 1, 2)), ("t5_v1.1", (1, 1, 2, 4))])
def test_any_mesh_computes_the_same(name: str, shape: tuple[int, ...]):
    logits, gradients = on_mesh(SMALL[name], shape)
    expected, expected_gradients = on_mesh(SMALL[name], (1, 1, 1, 1))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for key, gradient in expected_gradients.items():
        # A key bias shifts all scores of a query alike: its true gradient is zero.
        scale = np.abs(expected_gradients[key.replace("key_bias", "query_bias")]).max()
        assert np.abs(gradients[key] - gradient).max() <= 1e-5 * scale, key


def test_every_parameter_is_declared(small):
    weights = declared(small)
    assert set(weights) == set(split(build(small))[1])
    for name, weight in weights.items():
        assert len(weight.axes) == len(weight.shape)
        assert ("layers" in weight.axes) == (".stack.layers." in name)


# Decoding


@pytest.mark.core
def test_cached_decoding_is_uncached_decoding(structure):
    params = random_params(structure)
    model, (outer, layers) = with_params(structure, params), unstack(with_params(structure, params))
    sources = np.random.default_rng(0).integers(0, 70, (3, 7), np.int32)
    present = (np.arange(7)[None] < np.array([7, 4, 6])[:, None]).astype(np.int32)
    prompts, lengths = np.random.default_rng(1).integers(0, 70, (3, 4), np.int32), np.array([4, 1, 2], np.int32)
    decoding = start_from_source(outer, layers, sources, present, prompts, lengths, cache_length=16)
    greedily = Sampling(temperature=0)
    never = jnp.array([], jnp.int32)
    _, drawn, log_p = extend(outer, layers, decoding, jax.random.key(0), never, num_tokens=8, sampling=greedily)
    targets = np.zeros((3, 12), np.int32)
    for row, length in enumerate(lengths):
        targets[row, :length] = prompts[row, :length]
        targets[row, length : length + 8] = drawn[row]
    log_softmax = jax.nn.log_softmax(compute(model, sources, targets, source_segments_BM=present))
    for row, length in enumerate(lengths):
        whole = log_softmax[row, length - 1 : length + 7]
        np.testing.assert_array_equal(drawn[row], whole.argmax(-1))
        np.testing.assert_allclose(log_p[row], whole.max(-1), atol=1e-5)


# Counts


@pytest.mark.core
def test_every_preset_has_the_published_number_of_parameters():
    assert PRESETS.keys() == COUNTS.keys()
    for name, config in PRESETS.items():
        config.validate()
        assert count_parameters(config) == COUNTS[name], name
        assert counted(config) == COUNTS[name], name


def counted(config: EncoderDecoderConfig) -> int:
    """The number of declared parameters, without the padding of the vocabulary."""
    total = 0
    for weight in declared(config).values():
        padding = weight.shape[0] - config.vocab_size if "vocab" in weight.axes else 0
        assert 0 <= padding < config.vocab_multiple
        total += math.prod(weight.shape) - padding * math.prod(weight.shape[1:])
    return total


def test_the_papers_models_in_other_forms():
    base, big = PRESETS["transformer-base"], PRESETS["transformer-big"]
    assert count_parameters(dataclasses.replace(base, attention_bias=True)) == 63_082_496
    assert count_parameters(dataclasses.replace(big, attention_bias=True)) == 214_245_376
    assert count_parameters(dataclasses.replace(base, vocab_size=32_000)) == 60_485_632
    assert count_parameters(dataclasses.replace(big, vocab_size=32_000)) == 209_051_648
    narrow = dataclasses.replace(base, head_dim=16, value_head_dim=64)  # table 3 (B): queries and keys shrink alone
    assert count_parameters(base) - count_parameters(narrow) == 18 * 2 * 512 * (512 - 128)


def test_counts_of_any_size(small):
    assert count_parameters(small) == counted(small)
    for changes in ({"tie_embeddings": False}, {"logit_bias": True}, {"num_kv_heads": 2, "value_head_dim": 3}):
        config = dataclasses.replace(small, **changes)
        assert count_parameters(config) == counted(config)


def test_what_a_token_is_multiplied_by(small):
    """Of the declared matrices, and the table that projects onto the vocabulary."""
    source = target = 0
    for name, weight in declared(small).items():
        if weight.kind != "matrix" or name.startswith("head"):
            continue
        if name.startswith("encoder.") or name.endswith(("cross_attention.key", "cross_attention.value")):
            source += math.prod(weight.shape)
        else:
            target += math.prod(weight.shape)
    assert matrix_parameters(small) == (source, target + 70 * 16)


def test_operations_of_a_row():
    config = PRESETS["transformer-base"]
    projection = 37_000 * 512
    layer, cross_layer = layer_matrices(config), layer_matrices(config, cross=True)
    assert (layer, cross_layer) == (4 * 512**2 + 2 * 512 * 2048, 8 * 512**2 + 2 * 512 * 2048)
    products = 6 * 100 * layer + 6 * 100 * 2 * 512**2 + 6 * 80 * (cross_layer - 2 * 512**2) + 80 * projection
    attention = 6 * 2 * 512 * (100 * 100 + 80 * 80 // 2 + 80 * 100)
    assert train_flops_per_row(config, 100, 80) == 6 * (products + attention)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"norm_position": "parallel"}, "norm_position=parallel is not for encoder-decoders; take one of"),
        ({"positions": "rope"}, "positions=rope is not for encoder-decoders"),
        ({"window": 8}, "window=8 is not for encoder-decoders"),
        ({"num_decoder_layers": 0}, "model.num_decoder_layers=0 must be at least 1"),
        ({"max_length": 0}, "max_length=0 must be at least 1"),
        ({"position_offset": 2}, "position_offset=2 must be .* 0 unless positions are learned"),
        ({"model_dim": 18}, "model_dim=18 must be a multiple of model.num_heads=4"),
    ],
)
def test_what_no_model_can_be_is_refused_in_one_sentence(changes: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence) as error:
        dataclasses.replace(SMALL["transformer"], **changes).validate()
    assert "\n" not in str(error.value)


# Families


def family_of(name: str) -> ModuleType:
    return FAMILIES[FAMILY_OF.get(name, name)]


@pytest.mark.core
def test_a_configuration_survives_the_way_to_hugging_face_and_back():
    for family in FAMILIES.values():
        for name, config in family.PRESETS.items():
            assert family.obstacles(config) == [], name
            assert family.architecture(config) == family.ARCHITECTURES[0]
            values = json.loads(json.dumps(family.to_hugging_face_config(config)))
            assert family.from_hugging_face_config(values).resolved() == config.resolved(), name
    for name, config in SMALL.items():
        again = family_of(name).from_hugging_face_config(family_of(name).to_hugging_face_config(config))
        assert again.resolved() == dataclasses.replace(config, init_std=again.init_std).resolved(), name


def test_the_table_and_the_constants_are_all_that_a_file_holds(small, request):
    family = family_of(request.node.callspec.params["small"])
    shapes = dict(Layout(family.weights(small), declared(small), small.vocab_size).shapes())
    constants = family.constants(small)
    assert not shapes.keys() & constants.keys()
    assert sum(math.prod(shape) for shape in shapes.values()) == count_parameters(small)


@pytest.mark.parametrize(
    ("family", "change", "sentence"),
    [
        ("transformer", {"decoder_ffn_dim": 4}, "encoder_ffn_dim=256 and decoder_ffn_dim=4 must be equal"),
        ("transformer", {"decoder_vocab_size": 4}, "vocab_size=10000 and decoder_vocab_size=4 must be equal"),
        ("transformer", {"normalize_before": True}, "normalize_before=true is not supported"),
        ("transformer", {"static_position_embeddings": False}, "static_position_embeddings=false is not supported"),
        ("transformer", {"encoder_attention_heads": 3, "decoder_attention_heads": 3}, "d_model=128 must be a multiple"),
        ("bart", {"normalize_embedding": False}, "normalize_embedding=false is not supported"),
        ("bart", {"activation_function": "tanh"}, 'activation_function="tanh" is not supported'),
        ("bart", {"scale_embedding": 1}, "scale_embedding=1 must be true or false"),
        ("bart", {"dropout": 1.5}, "dropout=1.5 must be at least 0 and less than 1"),
        ("mbart", {"normalize_before": False}, "normalize_before=false is not supported"),
        ("mbart", {"is_encoder_decoder": False}, "is_encoder_decoder=false is not supported"),
        ("t5", {"feed_forward_proj": "gated-silu"}, 'feed_forward_proj="gated-silu" is not supported'),
        ("t5", {"relative_attention_num_buckets": 2}, "relative_buckets=2 must be at least 4"),
        ("t5", {"quantization_config": {}}, "quantization_config={} is not known"),
        ("t5", {"d_kv": None}, "has no d_kv"),
    ],
)
def test_what_would_compute_something_else_is_refused(family: str, change: dict[str, Any], sentence: str):
    preset = list(FAMILIES[family].PRESETS.values())[2 if family == "transformer" else 0]
    values = FAMILIES[family].to_hugging_face_config(preset)
    with pytest.raises(ValueError, match=sentence) as error:
        FAMILIES[family].from_hugging_face_config(values | change)
    assert "\n" not in str(error.value)


def test_what_an_architecture_cannot_express_is_named():
    base, small_t5 = PRESETS["bart-base"], PRESETS["t5-small"]
    assert bart.obstacles(dataclasses.replace(base, norm_position="before")) == ["norm_position=after"]
    assert mbart.obstacles(base) == ["norm_position=before"]
    assert bart.obstacles(dataclasses.replace(base, norm_epsilon=1e-6)) == ["norm_epsilon=1e-05"]
    assert bart.obstacles(dataclasses.replace(base, attention_bias=False)) == ["attention_bias=True"]
    assert bart.obstacles(dataclasses.replace(base, num_kv_heads=4)) == ["num_kv_heads=12"]
    assert bart.obstacles(dataclasses.replace(base, head_dim=16)) == ["head_dim=model_dim/num_heads"]
    assert transformer.obstacles(dataclasses.replace(PRESETS["transformer-base"], value_head_dim=32)) == [
        "value_head_dim=64"
    ]
    assert t5.obstacles(dataclasses.replace(small_t5, attention_scale=None)) == ["attention_scale=1.0"]
    assert t5.obstacles(dataclasses.replace(small_t5, tie_embeddings=False)) == ["logit_scale=1.0"]
    assert "activation=relu" in t5.obstacles(base)


def test_of_old_and_new_keys_of_t5():
    values = t5.to_hugging_face_config(PRESETS["t5-v1.1-small"])
    new = values | {"tie_word_embeddings": True, "scale_decoder_outputs": False}  # as transformers 5 rewrites it
    assert t5.from_hugging_face_config(new) == t5.from_hugging_face_config(values)
    assert not t5.from_hugging_face_config(values).tie_embeddings


def test_the_keys_of_a_published_translation_model():
    """As the config.json of the OPUS-MT models has them."""
    stored = """{
        "_num_labels": 3, "activation_dropout": 0.0, "activation_function": "swish", "add_bias_logits": false,
        "add_final_layer_norm": false, "attention_dropout": 0.0, "bad_words_ids": [[58100]], "bos_token_id": 0,
        "classif_dropout": 0.0, "classifier_dropout": 0.0, "d_model": 512, "decoder_attention_heads": 8,
        "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0, "decoder_layers": 6, "decoder_start_token_id": 58100,
        "decoder_vocab_size": 58101, "dropout": 0.1, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048,
        "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 0, "forced_eos_token_id": 0, "init_std": 0.02,
        "is_encoder_decoder": true, "max_length": 512, "max_position_embeddings": 512, "model_type": "marian",
        "normalize_before": false, "normalize_embedding": false, "num_beams": 6, "num_hidden_layers": 6,
        "pad_token_id": 58100, "scale_embedding": true, "share_encoder_decoder_embeddings": true,
        "static_position_embeddings": true, "use_cache": true, "vocab_size": 58101
    }"""
    config = transformer.from_hugging_face_config(json.loads(stored))
    expected = dataclasses.replace(PRESETS["transformer-base"], vocab_size=58101, activation="silu")
    expected = dataclasses.replace(expected, attention_bias=True, logit_bias=True, decoder_start_id=58100)
    assert config.resolved() == expected.resolved()


# Parity with transformers


def golden_of(name: str) -> tuple[EncoderDecoderConfig, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A golden model: its configuration, its weights as ours, and what is known of it."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = dict(file.items())
    config = OF_GOLDEN[name].from_hugging_face_config(json.loads(str(golden["config"])))
    layout = Layout(OF_GOLDEN[name].weights(config), declared(config), config.vocab_size)
    stored = {key.removeprefix("weight/"): a for key, a in golden.items() if key.startswith("weight/")}
    constants = OF_GOLDEN[name].constants(config)
    for key in stored.keys() & constants.keys():
        np.testing.assert_array_equal(stored.pop(key), constants[key])
    assert stored.keys() == {key for key, _ in layout.shapes()}
    return config, layout.from_hugging_face(stored.__getitem__, np.float32), golden


@pytest.mark.core
@pytest.mark.parametrize("name", OF_GOLDEN)
def test_an_imported_model_computes_what_transformers_computes(name: str):
    config, params, golden = golden_of(name)
    skeleton = split(jax.eval_shape(lambda: build(config)))[0]
    targets = np.append(golden["target"][:, 1:], np.full((2, 1), end_of(golden), np.int32), axis=1)

    def loss(params):
        model = merge(skeleton, params)
        logits = model(golden["source"], golden["target"], source_segments_BM=golden["present"])
        log_p = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_p, targets[..., None], axis=-1).mean(), logits[..., : config.vocab_size]

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.abs(logits - golden["logits"]).max() <= 1e-5 * np.abs(golden["logits"]).max()
    assert abs(value - golden["loss"]) <= 1e-5 * golden["loss"]
    layout = Layout(OF_GOLDEN[name].weights(config), declared(config), config.vocab_size)
    theirs = dict(layout.to_hugging_face(gradients))
    for key in (key for key in golden if key.startswith("gradient/")):
        difference = np.abs(theirs[key.removeprefix("gradient/")] - golden[key]).max()
        assert difference <= 1e-5 * np.abs(golden[key]).max(), key


def end_of(golden: dict[str, np.ndarray]) -> int:
    return json.loads(str(golden["config"]))["eos_token_id"]


def up_to_the_end(row: np.ndarray, end: int) -> list[int]:
    """What was written, of tokens that begin with the start token or end with -1."""
    tokens = [token for token in row.tolist() if token >= 0]
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


@pytest.mark.parametrize("name", OF_GOLDEN)
def test_an_imported_model_writes_what_transformers_writes(name: str):
    config, params, golden = golden_of(name)
    outer, layers = unstack(with_params(config, params))
    end, num_tokens = end_of(golden), 8
    first, one = np.zeros((2, 1), np.int32), np.ones(2, np.int32)
    decoding = start_from_source(
        outer, layers, golden["source"], golden["present"], first, one, cache_length=num_tokens
    )
    stop = jnp.array([end], jnp.int32)
    greedily = Sampling(temperature=0)
    _, drawn, _ = extend(outer, layers, decoding, jax.random.key(0), stop, num_tokens=num_tokens, sampling=greedily)
    for ours, theirs in zip(np.asarray(drawn), golden["greedy"], strict=True):
        assert up_to_the_end(ours, end) == up_to_the_end(theirs[1:], end)

    limits = np.full(2, num_tokens, np.int32)
    found, scores = beam_search(
        outer,
        layers,
        golden["source"],
        golden["present"],
        limits,
        0,
        end,
        beam=Beam(num_beams=3, length_penalty=0.6, penalty="power"),
        max_tokens=num_tokens,
    )
    for ours, theirs in zip(np.asarray(found).reshape(6, -1), golden["beams"], strict=True):
        assert up_to_the_end(ours, end) == up_to_the_end(theirs[1:], end)
    np.testing.assert_allclose(np.asarray(scores).ravel(), golden["beam_scores"], rtol=1e-5)


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 12), (20, 100), (64, 512)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_distances_have_the_buckets_of_transformers(buckets: int, distance: int, bidirectional: bool):
    torch = pytest.importorskip("torch")
    t5_attention = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    ahead = np.arange(-2 * distance, 2 * distance + 1)
    expected = t5_attention._relative_position_bucket(torch.tensor(ahead), bidirectional, buckets, distance).numpy()
    relative = RelativeBias(1, buckets, distance, 1.0, nnx.Rngs(0))
    relative.table = nnx.Param(jnp.arange(buckets, dtype=jnp.float32)[:, None])
    found = relative(jnp.zeros((1, 1), jnp.int32), jnp.asarray(ahead)[None], bidirectional=bidirectional)
    np.testing.assert_array_equal(found[0, 0, 0], expected)


def test_gradients_of_relative_positions_are_summed_in_float32():
    """The first bucket has most pairs of places: of these, all where the key is not before the query."""
    place_1L = jnp.arange(64)[None]
    skeleton, _ = split(RelativeBias(1, 8, 16, 1.0, nnx.Rngs(0)))

    def total(table):
        return merge(skeleton, {"table": table})(place_1L, place_1L, bidirectional=False).sum(dtype=jnp.float32)

    gradient = jax.grad(total)(jnp.zeros((8, 1), jnp.bfloat16))[:, 0].astype(jnp.float32)
    np.testing.assert_allclose(gradient[0], 64 * 65 / 2, rtol=0.01)
    np.testing.assert_allclose(gradient.sum(), 64 * 64, rtol=0.01)


@pytest.mark.parametrize("name", SMALL)
def test_transformers_loads_what_is_written_and_computes_the_same(name: str, tmp_path: Path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, family = SMALL[name], family_of(name)
    params = random_params(config)
    values = {"architectures": [family.architecture(config)], "model_type": family.MODEL_TYPE}
    values |= family.to_hugging_face_config(config) | {
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    layout = Layout(family.weights(config), declared(config), config.vocab_size)
    tensors = dict(layout.to_hugging_face(params)) | family.constants(config)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    model, facts = getattr(transformers, family.architecture(config)).from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(facts[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = EncoderDecoder.example(config)
    with torch.no_grad():
        theirs = model.eval()(
            input_ids=torch.tensor(inputs["source_BM"]),
            attention_mask=torch.tensor(inputs["source_segments_BM"]),
            decoder_input_ids=torch.tensor(inputs["target_BL"]),
        ).logits.numpy()
    ours = np.asarray(compute(with_params(config, params), **inputs))[..., : config.vocab_size]
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
