"""Encoders: what each token sees, heads, families to and from Hugging Face, and parity with transformers."""

import dataclasses
import json
import math
import re
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

from model.encoder import CLASSIFYING, Encoder, EncoderConfig, count_parameters, matrix_parameters
from model.families import albert, bert, distilbert, electra, megatron_bert, roberta
from model.families.weights import Layout
from model.parameters import declarations, merge, split
from model.sharding import MESH_AXES, partition_spec

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FAMILIES: dict[str, ModuleType] = {
    "bert": bert,
    "roberta": roberta,
    "distilbert": distilbert,
    "albert": albert,
    "electra": electra,
    "megatron_bert": megatron_bert,
}
PRESETS: dict[str, EncoderConfig] = {n: c for family in FAMILIES.values() for n, c in family.PRESETS.items()}
FAMILY_AND_HEAD = [(name, head) for name, family in FAMILIES.items() for head in family.HEADS]

TINY = EncoderConfig(
    num_layers=2, model_dim=16, num_heads=4, mlp_dim=24, vocab_size=70, max_length=24, dropout=0.1, num_classes=3
)
# A tiny model of each family; ELECTRA's presets have no projection where they are wide.
SMALL = {
    "bert": dataclasses.replace(TINY, activation="relu"),
    "roberta": dataclasses.replace(TINY, position_offset=2, num_types=1, norm_epsilon=1e-5, pooler_dropout=True),
    "distilbert": dataclasses.replace(TINY, num_types=0, pooler_activation="relu", activation="gelu_tanh"),
    "albert": dataclasses.replace(TINY, num_layers=3, embedding_dim=8, share_layers=True, activation="gelu_tanh"),
    "electra": dataclasses.replace(TINY, pooler_activation="gelu", pooler_dropout=True),
    "megatron_bert": dataclasses.replace(TINY, norm_position="before", embedding_norm=False),
}

# Counted by building the models in transformers, tied tensors once.
COUNTS = {
    "bert-base-uncased": {
        "pooler": 109_482_240,
        "masked_lm": 109_514_298,
        "pretraining": 110_106_428,
        "sequence_classification": 109_483_778,
    },
    "bert-base-cased": {
        "pooler": 108_310_272,
        "masked_lm": 108_340_804,
        "pretraining": 108_932_934,
        "sequence_classification": 108_311_810,
    },
    "bert-large-uncased": {
        "pooler": 335_141_888,
        "masked_lm": 335_174_458,
        "pretraining": 336_226_108,
        "sequence_classification": 335_143_938,
    },
    "bert-large-cased": {"pooler": 333_579_264, "masked_lm": 333_610_308, "pretraining": 334_661_958},
    "roberta-base": {"none": 124_055_040, "pooler": 124_645_632, "masked_lm": 124_697_433},
    "roberta-large": {"none": 354_310_144, "pooler": 355_359_744, "masked_lm": 355_412_057},
    "distilbert-base-uncased": {
        "none": 66_362_880,
        "masked_lm": 66_985_530,
        "sequence_classification": 66_955_010,
    },
    "tinybert-4": {"pooler": 14_350_248},
    "tinybert-6": {"pooler": 66_955_008},
    "albert-base": {"pooler": 11_683_584, "masked_lm": 11_221_680, "pretraining": 11_813_810},
    "albert-large": {"pooler": 17_683_968, "masked_lm": 16_795_824, "pretraining": 17_847_474},
    "albert-xlarge": {"pooler": 58_724_864, "masked_lm": 54_821_040, "pretraining": 59_021_490},
    "albert-xxlarge": {"pooler": 222_595_584, "masked_lm": 206_368_944, "pretraining": 223_158_450},
    "electra-small-discriminator": {"none": 13_483_008, "replaced_token": 13_549_057},
    "electra-base-discriminator": {"none": 108_891_648, "replaced_token": 109_483_009},
    "electra-large-discriminator": {"none": 334_092_288, "replaced_token": 335_142_913},
    "electra-small-generator": {"masked_lm": 13_546_682},
    "electra-small-generator-quarter": {"masked_lm": 4_620_026},
    "electra-base-generator": {"masked_lm": 33_740_602},
    "electra-large-generator": {"masked_lm": 51_295_290},
    "finbert-prosus": {"sequence_classification": 109_484_547},
    "finbert-yiyanghkust": {"sequence_classification": 109_754_115},
    "megatron-bert-345m": {"pretraining": 334_723_458},
    "gatortron-base": {"pooler": 355_267_584},
    "gatortron-medium": {"pooler": 3_912_798_720},
    "gatortron-large": {"pooler": 8_829_015_552},
}


def with_head(config: EncoderConfig, head: Any) -> EncoderConfig:
    return dataclasses.replace(config, head=head)


def build(config: EncoderConfig) -> Encoder:
    config.validate()
    return Encoder(config, nnx.Rngs(params=jax.random.key(0)))


def declared(config: EncoderConfig):
    return declarations(jax.eval_shape(lambda: build(config)))


def random_params(config: EncoderConfig) -> dict[str, np.ndarray]:
    """Weights of which all matter, biases and scales too; padding is zero."""
    random = np.random.default_rng(0)
    params = {}
    for name, weight in declared(config).items():
        params[name] = (random.normal(size=weight.shape) * 0.2 + (weight.kind == "scale")).astype(np.float32)
        if "vocab" in weight.axes:
            params[name][config.vocab_size :] = 0
    return params


def skeleton_of(config: EncoderConfig):
    return split(jax.eval_shape(lambda: build(config)))[0]


def run(config: EncoderConfig, params: dict[str, Any], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a model says, the padding of the vocabulary cut off."""
    skeleton = skeleton_of(config)
    said = jax.jit(lambda params: merge(skeleton, params)(**inputs))(params)
    return {name: cut(name, array, config) for name, array in said.items()}


def cut(name: str, array: Any, config: EncoderConfig) -> Any:
    return array[..., : config.vocab_size] if name == "logits" else array


# What a token sees


def sensitivity(config: EncoderConfig, segments: Any) -> np.ndarray:
    """Whether the output at place l (rows) moves with the embedding at place m (columns), [L, L], by exact zeros."""
    model = build(config)
    x_BLD = model.embed(jax.random.randint(jax.random.key(1), (1, 12), 0, 70))

    def output_sum(x_BLD, place):
        return jnp.sin(model.transform(x_BLD, segments)[0][0, place]).sum()

    gradients = jax.vmap(jax.grad(output_sum), in_axes=(None, 0))(x_BLD, jnp.arange(12))
    return np.asarray(jnp.abs(gradients[:, 0]).max(-1) > 0)


@pytest.mark.core
@pytest.mark.parametrize("name", ["bert", "albert", "megatron_bert"])
def test_a_token_sees_all_of_its_document_and_nothing_else(name: str):
    assert sensitivity(SMALL[name], None).all()
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3])
    np.testing.assert_array_equal(sensitivity(SMALL[name], segments), segments[0][:, None] == segments[0][None])


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_packed_document_is_computed_as_if_alone(name: str):
    model = build(SMALL[name])
    tokens = jax.random.randint(jax.random.key(1), (1, 12), 2, 70)
    segments = jnp.array([[1] * 3 + [2] * 6 + [0] * 3])
    packed, alone = model(tokens, None, segments)["logits"][:, 3:9], model(tokens[:, 3:9])["logits"]
    np.testing.assert_allclose(packed, alone, atol=1e-5)
    given = model(tokens, jnp.array([[*range(3), *range(6), 0, 0, 0]]), segments)["logits"][:, 3:9]
    np.testing.assert_array_equal(given, packed)


def test_positions_begin_after_the_paddings():
    """RoBERTa's table has 26 rows for 24 tokens: row 0 is never used, row 1 is the padding's."""
    model = build(SMALL["roberta"])
    assert model.positions[...].shape[0] == 26
    skeleton, params = split(model)

    def output(positions, segments):
        embedded = merge(skeleton, params | {"positions": positions}).embed(jnp.full((1, 5), 9), None, segments)
        return jnp.sin(embedded).sum()

    for segments, rows in ((None, {2, 3, 4, 5, 6}), (np.array([[1, 1, 2, 0, 0]]), {1, 2, 3})):
        gradient = jax.grad(output)(params["positions"], segments)
        assert set(np.flatnonzero(np.abs(gradient).max(-1)).tolist()) == rows


def test_types_tell_sentences_apart_and_default_to_the_first():
    model = build(SMALL["bert"])
    tokens = jax.random.randint(jax.random.key(1), (1, 8), 0, 70)
    plain = model(tokens)["logits"]
    np.testing.assert_array_equal(model(tokens, types_BL=jnp.zeros((1, 8), jnp.int32))["logits"], plain)
    pair = model(tokens, types_BL=jnp.array([[0] * 4 + [1] * 4]))["logits"]
    assert np.abs(pair - plain)[..., :70].max() > 1e-3


# What the configuration says


@pytest.mark.core
def test_every_preset_has_the_published_number_of_parameters():
    assert PRESETS.keys() == COUNTS.keys()
    for name, counts in COUNTS.items():
        PRESETS[name].validate()
        for head, count in counts.items():
            assert count_parameters(with_head(PRESETS[name], head)) == count, (name, head)


@pytest.mark.parametrize(("name", "head"), FAMILY_AND_HEAD)
def test_counts_and_the_table_of_tensors_agree_with_the_declarations(name: str, head: str):
    config = with_head(SMALL[name], head)
    weights = declared(config)
    padding = 128 - config.vocab_size
    built = sum(
        math.prod(w.shape) - (padding * math.prod(w.shape[1:]) if "vocab" in w.axes else 0) for w in weights.values()
    )
    assert count_parameters(config) == built
    shapes = list(Layout(FAMILIES[name].weights(config), weights, config.vocab_size).shapes())
    assert len({tensor for tensor, _ in shapes}) == len(shapes)
    assert sum(math.prod(shape) for _, shape in shapes) == built
    assert {w.kind for w in weights.values()} == {"matrix", "bias", "scale", "embedding"}


def test_multiplied_parameters():
    layer = 4 * 768 * 768 + 2 * 768 * 3072
    bert_base = PRESETS["bert-base-uncased"]
    assert matrix_parameters(with_head(bert_base, "pooler")) == 12 * layer
    assert matrix_parameters(bert_base) == 12 * layer + 768 * 768 + 30_522 * 768
    assert matrix_parameters(with_head(bert_base, "token_classification")) == 12 * layer + 768 * 2
    shared = 128 * 768 + 12 * layer + 768 * 128 + 30_000 * 128
    assert matrix_parameters(PRESETS["albert-base"]) == shared


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_types": -1}, "model.num_types=-1 must be at least 0"),
        ({"embedding_dim": 0}, "model.embedding_dim=0 must be at least 1"),
        ({"num_classes": 0}, "model.num_classes=0 must be at least 1"),
        ({"classifier_dropout": 1.0}, "model.classifier_dropout=1.0 must be at least 0 and less than 1"),
        ({"positions": "rope"}, "model.positions=rope is not for encoders"),
        ({"norm_position": "parallel"}, "model.norm_position=parallel is not for encoders; take one of .*'after'"),
        ({"model_dim": 18}, "model.model_dim=18 must be a multiple of model.num_heads=4"),
    ],
)
def test_a_configuration_that_no_encoder_can_have_is_refused(fields: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(TINY, **fields).validate()


# Heads


@pytest.mark.parametrize(
    ("head", "shapes"),
    [
        ("none", {"hidden": (2, 24, 16)}),
        ("pooler", {"hidden": (2, 24, 16), "pooled": (2, 16)}),
        ("masked_lm", {"logits": (2, 24, 128)}),
        ("pretraining", {"logits": (2, 24, 128), "class_logits": (2, 2)}),
        ("sentence_pair", {"class_logits": (2, 2)}),
        ("sequence_classification", {"class_logits": (2, 3)}),
        ("token_classification", {"class_logits": (2, 24, 3)}),
        ("span", {"class_logits": (2, 24, 2)}),
        ("replaced_token", {"class_logits": (2, 24, 1)}),
    ],
)
def test_heads_say_what_they_are_for(head: str, shapes: dict[str, tuple[int, ...]]):
    config = with_head(TINY, head)
    said = build(config)(**jax.tree.map(jnp.asarray, Encoder.example(config)))
    assert {name: array.shape for name, array in said.items()} == shapes


def test_no_probability_falls_on_the_padding_of_the_vocabulary():
    config = TINY
    skeleton, params = split(build(config))
    params["vocab_bias"] = jnp.full(128, 5.0)
    tokens = Encoder.example(config)["tokens_BL"]

    def log_z(params):
        return jax.nn.logsumexp(merge(skeleton, params)(tokens)["logits"], axis=-1).sum()

    logits = merge(skeleton, params)(tokens)["logits"]
    np.testing.assert_array_equal(jax.nn.softmax(logits)[..., 70:], 0)
    gradients = jax.grad(log_z)(params)
    for name in ("vocab_bias", "embedding.table"):
        np.testing.assert_array_equal(gradients[name][70:], 0)
        assert np.abs(gradients[name][:70]).max() > 0


def test_a_masked_place_alone_has_the_logits_that_it_has_among_all():
    model = build(TINY)
    hidden, _ = model.hidden(jax.random.randint(jax.random.key(1), (2, 12), 0, 70))
    np.testing.assert_allclose(model.logits(hidden[:, 3:5]), model.logits(hidden)[:, 3:5], atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_only_a_key_turns_dropout_on(name: str):
    config = dataclasses.replace(SMALL[name], head="sequence_classification", dropout=0.3, classifier_dropout=0.5)
    model = build(config)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 2, 70)
    hidden, _ = model.hidden(tokens)
    np.testing.assert_array_equal(model.class_logits(hidden), model(tokens)["class_logits"])
    keys = [jax.random.key(i) for i in range(2)]
    first, again, second = (model.class_logits(hidden, key=key) for key in (keys[0], *keys))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 0
    pooled = [model.pool(hidden, key=key) for key in keys]
    assert (np.abs(pooled[0] - pooled[1]).max() > 0) == config.pooler_dropout
    assert np.abs(model.hidden(tokens, key=keys[0])[0] - hidden).max() > 0


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_captures_of_what_distillation_compares(name: str):
    config = SMALL[name]
    model = build(config)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 70)
    hidden, captured = model.hidden(tokens, capture=("embedding", "hidden", "attention_scores"))
    layers = config.num_layers
    assert {name: array.shape for name, array in captured.items()} == {
        "embedding": (2, 12, 16),
        "hidden": (layers, 2, 12, 16),
        "attention_scores": (layers, 2, 4, 12, 12),
    }
    np.testing.assert_allclose(captured["hidden"][-1], hidden, atol=1e-6)
    np.testing.assert_array_equal(captured["embedding"], model.embed(tokens))


# Any mesh, any precision


def on_mesh(config: EncoderConfig, params: dict[str, np.ndarray], inputs: dict[str, Any], shape: tuple[int, ...]):
    """What the model says and the gradients of its sines, on a mesh of this shape."""
    skeleton, weights = skeleton_of(config), declared(config)
    mesh = Mesh(np.array(jax.devices()[: math.prod(shape)]).reshape(shape), MESH_AXES)

    def laid(array, axes):
        return jax.device_put(array, NamedSharding(mesh, partition_spec(axes, array.shape, mesh)))

    def sines(params, inputs):
        said = merge(skeleton, params)(**inputs)
        return sum(jnp.sin(cut(name, array, config)).sum() for name, array in said.items()), said

    with jax.set_mesh(mesh):
        params = {name: laid(array, weights[name].axes) for name, array in params.items()}
        inputs = {name: laid(array, ("act_batch", "act_length")) for name, array in inputs.items()}
        (_, said), gradients = jax.jit(jax.value_and_grad(sines, has_aux=True))(params, inputs)
    return jax.tree.map(np.asarray, (said, gradients))


@pytest.mark.parametrize("shape", [(2, 2, 1, 2), (1, 1, 2, 2)], ids=["data2_fsdp2_tensor2", "context2_tensor2"])
@pytest.mark.parametrize(("name", "head"), [("albert", "pretraining"), ("megatron_bert", "token_classification")])
def test_any_mesh_computes_the_same(name: str, head: str, shape: tuple[int, ...]):
    config = with_head(SMALL[name], head)
    params = random_params(config)
    inputs = {name: np.concatenate([array, array[::-1]]) for name, array in Encoder.example(config).items()}
    said, gradients = on_mesh(config, params, inputs, shape)
    expected, expected_gradients = on_mesh(config, params, inputs, (1, 1, 1, 1))
    for actual, one in ((said, expected), (gradients, expected_gradients)):
        for key, array in one.items():
            # A key bias shifts all scores of a query alike: its true gradient is zero, and what is left is rounding.
            scale = np.abs(cut(key, one[key.replace("key_bias", "query_bias")], config)).max()
            assert np.abs(cut(key, actual[key] - array, config)).max() <= 1e-5 * scale, key


def test_bfloat16_parameters_compute_in_bfloat16_near_float32():
    config = with_head(TINY, "pretraining")
    skeleton, params = split(build(config))
    inputs = Encoder.example(config)
    half = merge(skeleton, {name: p.astype(jnp.bfloat16) for name, p in params.items()})(**inputs)
    for name, array in merge(skeleton, params)(**inputs).items():
        assert half[name].dtype == jnp.bfloat16
        np.testing.assert_allclose(
            cut(name, half[name], config).astype(jnp.float32), cut(name, array, config), atol=0.03
        )


# To and from Hugging Face


def values_of(family: ModuleType, config: EncoderConfig) -> dict[str, Any]:
    """The config.json of a model."""
    identity = {"architectures": [family.architecture(config)], "model_type": family.MODEL_TYPE}
    return identity | family.to_hugging_face_config(config)


@pytest.mark.core
def test_a_configuration_survives_the_way_to_hugging_face_and_back():
    for name, family in FAMILIES.items():
        assert list(family.ARCHITECTURES) == [*family.HEADS.values()]
        for config in (*family.PRESETS.values(), *(with_head(SMALL[name], head) for head in family.HEADS)):
            again = family.from_hugging_face_config(json.loads(json.dumps(values_of(family, config))))
            expected = config if config.head in CLASSIFYING else dataclasses.replace(config, num_classes=2)
            assert again.resolved() == expected.resolved(), (name, config)


def test_one_family_expresses_each_model_and_says_why_the_others_do_not():
    for name, head in FAMILY_AND_HEAD:
        for config in (SMALL[name], *FAMILIES[name].PRESETS.values()):
            expressing = [other for other in FAMILIES if not FAMILIES[other].obstacles(with_head(config, head))]
            assert expressing == [name]
    assert bert.obstacles(SMALL["megatron_bert"]) == ["norm_position=after", "embedding_norm=True"]
    assert bert.obstacles(SMALL["roberta"]) == ["position_offset=0"]
    assert roberta.obstacles(TINY) == ["position_offset=1"]
    assert "num_types of at least 1" in bert.obstacles(SMALL["distilbert"])
    assert distilbert.obstacles(TINY) == ["pooler_activation=relu", "num_types=0"]
    assert electra.obstacles(with_head(SMALL["electra"], "pretraining")) == [
        "head=none or masked_lm or replaced_token or sequence_classification or token_classification or span"
    ]
    assert bert.obstacles(dataclasses.replace(TINY, num_kv_heads=2)) == ["num_kv_heads=4"]
    assert bert.obstacles(dataclasses.replace(TINY, head_dim=8)) == ["head_dim=model_dim/num_heads"]
    assert bert.obstacles(dataclasses.replace(TINY, attention_bias=False)) == ["attention_bias=True"]


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("bert", {"is_decoder": True}, "is_decoder=true is not supported, only false"),
        (
            "bert",
            {"position_embedding_type": "relative_key"},
            'position_embedding_type="relative_key" is not supported',
        ),
        ("bert", {"hidden_act": "silu"}, 'hidden_act="silu" is not supported, only "gelu" or'),
        ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings=false is not supported"),
        ("bert", {"hidden_size": 18}, "hidden_size=18 must be a multiple of num_attention_heads=4"),
        (
            "bert",
            {"architectures": ["BertForMultipleChoice"]},
            r'architectures=\["BertForMultipleChoice"\] is not supp',
        ),
        ("bert", {"architectures": None}, "config.json has no architectures"),
        ("bert", {"num_hidden_groups": 1}, "num_hidden_groups=1 is not known"),
        ("bert", {"auto_map": {"AutoModel": "x.Y"}}, "none is ever run"),
        ("roberta", {"hidden_act": "relu"}, 'hidden_act="relu" is not supported, only "gelu"'),
        ("roberta", {"pad_token_id": 25}, "max_position_embeddings=26 must be more than pad_token_id . 1 = 26"),
        ("roberta", {"pad_token_id": -1}, "pad_token_id=-1 must be a whole number from 0"),
        ("distilbert", {"sinusoidal_pos_embds": True}, "sinusoidal_pos_embds=true is not supported"),
        ("distilbert", {"dim": 18}, "dim=18 must be a multiple of n_heads=4"),
        ("distilbert", {"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05 is not known"),
        ("albert", {"num_hidden_groups": 2}, "num_hidden_groups=2 is not supported, only 1"),
        ("albert", {"inner_group_num": 2}, "inner_group_num=2 is not supported, only 1"),
        ("electra", {"hidden_act": "gelu_new"}, 'hidden_act="gelu_new" is not supported'),
        ("megatron_bert", {"classifier_dropout": 0.1}, "classifier_dropout=0.1 is not known"),
    ],
)
def test_what_would_compute_something_else_is_refused(name: str, change: dict[str, Any], sentence: str):
    family = FAMILIES[name]
    values = values_of(family, SMALL[name])
    assert family.from_hugging_face_config(values).head == "masked_lm"
    with pytest.raises(ValueError, match=sentence) as error:
        family.from_hugging_face_config(values | change)
    assert "\n" not in str(error.value)


def test_classes_are_counted_by_their_names_or_their_number():
    values = values_of(bert, with_head(TINY, "sequence_classification"))
    assert bert.from_hugging_face_config(values).num_classes == 3
    old = {key: value for key, value in values.items() if key not in ("id2label", "label2id")}
    assert bert.from_hugging_face_config(old).num_classes == 2
    assert bert.from_hugging_face_config(old | {"num_labels": 5}).num_classes == 5


@pytest.mark.parametrize("name", FAMILIES)
def test_what_published_files_have_beside_is_told_from_weights(name: str):
    family, config = FAMILIES[name], with_head(SMALL[name], "masked_lm")
    tensors = {tensor for tensor, _ in Layout(family.weights(config), declared(config), 70).shapes()}
    assert set(family.COPIES.values()) <= tensors
    assert not family.COPIES.keys() & tensors
    assert not any(re.fullmatch(family.IGNORED, tensor) for tensor in tensors)
    assert re.fullmatch(family.IGNORED, f"{family.PREFIX}embeddings.position_ids")
    pooled = FAMILIES[name].weights(with_head(config, "pooler")) if "pooler" in family.HEADS else ()
    poolers = [tensor.name for tensor in pooled if tensor.ours[0].startswith("pooler.")]
    assert all(re.fullmatch(family.IGNORED, tensor) for tensor in poolers)


def test_the_norms_of_the_first_release_have_other_names():
    tensors = [tensor for tensor, _ in Layout(bert.weights(TINY), declared(TINY), 70).shapes()]
    for old, new in bert.RENAMED.items():
        assert not any(tensor.endswith(old) for tensor in tensors)
        assert sum(tensor.endswith(new) for tensor in tensors) == 2 * TINY.num_layers + 2  # embeddings, layers, head


# Parity with transformers


def golden_of(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file.items())


def inputs_of(golden: dict[str, np.ndarray], config: EncoderConfig) -> dict[str, np.ndarray]:
    """A golden file's inputs by our names."""
    inputs = {"tokens_BL": golden["input/input_ids"], "segments_BL": golden["input/attention_mask"]}
    return inputs | ({"types_BL": golden["input/token_type_ids"]} if config.num_types > 1 else {})


def assert_close(actual: np.ndarray, expected: np.ndarray, what: str, real: np.ndarray | None = None) -> None:
    """Equal to 1e-5 of the largest, at the places that are not padding."""
    if real is not None and expected.ndim == 3:
        actual, expected = actual[real], expected[real]
    assert actual.shape == expected.shape, what
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max(), what


def imported(name: str, golden: dict[str, np.ndarray], head: str):
    """A golden model's configuration, weights and layout, once its file is seen to hold every tensor and no other."""
    family = FAMILIES[name]
    config = family.from_hugging_face_config(json.loads(str(golden[f"{family.HEADS[head]}/config"])))
    assert config.head == head
    stored = golden[f"{family.HEADS[head]}/tensors"].tolist()
    bare = not any(tensor.startswith(family.PREFIX) for tensor in stored)
    layout = Layout(family.weights(config), declared(config), config.vocab_size)
    assert {tensor for tensor, _ in layout.shapes()} == {(family.PREFIX if bare else "") + tensor for tensor in stored}
    params = layout.from_hugging_face(lambda t: golden[f"weight/{t.removeprefix(family.PREFIX)}"], np.float32)
    return config, params, layout


def under(golden: dict[str, np.ndarray], folder: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(folder): array for key, array in golden.items() if key.startswith(folder)}


@pytest.mark.parametrize(("name", "head"), FAMILY_AND_HEAD)
def test_an_imported_model_computes_what_transformers_computes(name: str, head: str):
    golden = golden_of(name)
    config, params, _ = imported(name, golden, head)
    inputs = inputs_of(golden, config)
    said, outputs = run(config, params, inputs), under(golden, f"{FAMILIES[name].HEADS[head]}/output/")
    assert said.keys() == outputs.keys()
    for output, expected in outputs.items():
        assert_close(said[output], expected, output, inputs["segments_BL"] > 0)


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "head"), [*((name, "masked_lm") for name in FAMILIES), ("bert", "sequence_classification")]
)
def test_an_imported_model_learns_what_transformers_learns(name: str, head: str):
    golden = golden_of(name)
    config, params, layout = imported(name, golden, head)
    inputs, skeleton = inputs_of(golden, config), skeleton_of(config)
    real = inputs["segments_BL"][..., None] > 0

    def loss(params):
        [(output, array)] = merge(skeleton, params)(**inputs).items()
        sines = jnp.sin(cut(output, array, config))
        return (jnp.where(real, sines, 0) if sines.ndim == 3 else sines).sum()

    theirs = dict(layout.to_hugging_face(jax.jit(jax.grad(loss))(params)))
    found = under(golden, f"{FAMILIES[name].HEADS[head]}/gradient/")
    assert len(found) == len(theirs)
    for tensor, expected in found.items():
        # A key bias shifts all scores of a query alike: its true gradient is zero, and what is left is rounding.
        like = tensor.replace("key.bias", "query.bias").replace("k_lin.bias", "q_lin.bias")
        assert np.abs(theirs[tensor] - expected).max() <= 1e-5 * np.abs(found[like]).max(), tensor


@pytest.mark.parametrize(("name", "head"), FAMILY_AND_HEAD)
def test_transformers_loads_an_exported_model_and_computes_the_same(name: str, head: str, tmp_path: Path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, config = FAMILIES[name], with_head(SMALL[name], head)
    params = random_params(config)
    layout = Layout(family.weights(config), declared(config), config.vocab_size)
    (tmp_path / "config.json").write_text(json.dumps(values_of(family, config)))
    save_file(dict(layout.to_hugging_face(params)), tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, facts = getattr(transformers, family.architecture(config)).from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(facts[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.num_parameters() == count_parameters(config)

    golden = golden_of(name)
    theirs = {key.split("/")[-1]: torch.tensor(a).long() for key, a in golden.items() if key.startswith("input/")}
    with torch.no_grad():
        found = dict(model.eval()(**theirs))
    if "start_logits" in found:
        found["logits"] = torch.stack([found["start_logits"], found["end_logits"]], -1)
    ours = {"hidden": "last_hidden_state", "pooled": "pooler_output"}
    if head == "pretraining":
        sentence = "sop_logits" if name == "albert" else "seq_relationship_logits"
        ours |= {"logits": "prediction_logits", "class_logits": sentence}
    inputs = inputs_of(golden, config)
    for output, actual in run(config, params, inputs).items():
        expected = found[ours.get(output, "logits")].numpy()
        expected = expected[..., None] if head == "replaced_token" else expected
        assert_close(actual, expected, output, inputs["segments_BL"] > 0)


def test_transformers_counts_as_many_parameters_of_every_preset():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for name, family in FAMILIES.items():
        for preset, config in family.PRESETS.items():
            values = values_of(family, config)
            theirs = getattr(transformers, family.architecture(config))
            with torch.device("meta"):
                model = theirs(theirs.config_class.from_dict(values))
            assert model.num_parameters() == count_parameters(config), (name, preset)
