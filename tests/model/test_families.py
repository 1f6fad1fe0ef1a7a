"""Families: counts of every preset, their configurations to and from Hugging Face's, and what models cost."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from model import decoder, encoder, encoder_decoder, recurrent, vision
from model.cost import count_parameters, train_flops_per_row, train_flops_per_token
from model.decoder import Decoder, DecoderConfig
from model.distillation import DistillationConfig
from model.encoder import EncoderConfig
from model.families.weights import Layout
from model.generator_discriminator import GeneratorDiscriminatorConfig
from model.image_decoder import ImageDecoderConfig
from model.parameters import declarations
from model.positions import rope_frequencies
from model.presets import FAMILIES, family_name, family_of, family_of_architecture
from model.presets import PRESETS as ALL_PRESETS
from model.vision import VisionConfig

PRESETS = {name: config for name, config in ALL_PRESETS.items() if isinstance(config, DecoderConfig)}
GOLDEN = Path(__file__).resolve().parents[1] / "golden"

# Counted by building the models in transformers, tied tensors once.
COUNTS = {
    "distilgpt2": 81_912_576,
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "gpt3-125m": 125_226_240,
    "gpt3-350m": 355_871_744,
    "gpt3-760m": 760_300_032,
    "gpt3-1.3b": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280,
    "gpt3-6.7b": 6_658_404_352,
    "gpt3-13b": 12_853_386_240,
    "gpt3-175b": 174_604_259_328,
    "llama1-7b": 6_738_415_616,
    "llama1-13b": 13_015_864_320,
    "llama1-33b": 32_528_943_616,
    "llama1-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3.3-70b": 70_553_706_496,
    "palm-8b": 8_632_012_800,
    "palm-62b": 62_495_662_080,
    "palm-540b": 540_356_474_880,
}
SMALL = DecoderConfig(num_layers=2, model_dim=16, num_heads=4, vocab_size=70, max_length=24)
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
LLAMA3["original_max_position_embeddings"] = 8192
PALM = {"norm_position": "parallel", "norm_bias": False, "activation": "swiglu", "positions": "rope", "use_bias": False}
LLAMA = {"norm": "rms", "activation": "swiglu", "positions": "rope", "use_bias": False}


def declared(config: DecoderConfig):
    return declarations(jax.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0))))


@pytest.mark.core
def test_every_preset_has_the_published_number_of_parameters():
    assert PRESETS.keys() == COUNTS.keys()
    for name, config in PRESETS.items():
        config.validate()
        assert count_parameters(config) == COUNTS[name], name
        built = 0
        for weight in declared(config).values():
            padding = weight.shape[0] - config.vocab_size if "vocab" in weight.axes else 0
            assert 0 <= padding < config.vocab_multiple
            built += math.prod(weight.shape) - padding * math.prod(weight.shape[1:])
        assert built == COUNTS[name], name


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, tie_embeddings=False, mlp_dim=20),
        dataclasses.replace(SMALL, **LLAMA, num_kv_heads=2, head_dim=6, mlp_dim=24, tie_embeddings=False),
        dataclasses.replace(SMALL, **PALM, num_kv_heads=1, head_dim=6, mlp_dim=24),
    ],
)
def test_count_of_any_size_and_the_table_of_its_tensors_agree(config: DecoderConfig):
    layout = Layout(family_of(config).weights(config), declared(config), config.vocab_size)
    shapes = list(layout.shapes())
    assert len({name for name, _ in shapes}) == len(shapes)
    assert sum(math.prod(shape) for _, shape in shapes) == count_parameters(config)


def test_the_dropout_of_presets_is_the_published_one():
    for name, config in PRESETS.items():
        rate = 0.1 if name.startswith(("gpt2", "distilgpt2")) else 0.0
        assert (config.dropout, config.attention_dropout) == (rate, rate), name


def test_rotary_frequencies_are_those_of_transformers():
    with np.load(GOLDEN / "rope.npz") as golden:
        for name, expected in golden.items():
            config = PRESETS[name]
            frequencies = rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling)
            np.testing.assert_allclose(frequencies, expected, rtol=2e-6)
    for name in ("llama3.1-70b", "llama3.1-405b", "llama3.3-70b"):
        assert PRESETS[name].rope_scaling == PRESETS["llama3.1-8b"].rope_scaling


def test_a_configuration_survives_the_way_to_hugging_face_and_back():
    for name, config in PRESETS.items():
        family = family_of(config)
        assert config in family.PRESETS.values()
        again = family.from_hugging_face_config(family.to_hugging_face_config(config))
        assert again.resolved() == config.resolved(), name


def test_new_and_old_keys_of_rotary_positions_mean_the_same():
    llama = FAMILIES["llama"]
    old = llama.to_hugging_face_config(PRESETS["llama3.1-8b"])
    inner: dict[str, Any] = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    parameters = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    for new in (
        inner | {"rope_parameters": parameters},
        old | {"rope_parameters": parameters},
        inner | {"rope_theta": 5e5, "rope_scaling": {**old["rope_scaling"], "rope_type": None, "type": "llama3"}},
    ):
        assert llama.from_hugging_face_config(new) == llama.from_hugging_face_config(old)


@pytest.mark.parametrize(
    ("family", "change", "sentence"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=true is not supported"),
        ("gpt2", {"activation_function": "relu"}, 'activation_function="relu" is not supported, only "gelu_new"'),
        ("gpt2", {"n_embd": 770}, "n_embd=770 must be a multiple of n_head=12"),
        ("gpt2", {"n_layer": "12"}, 'n_layer="12" must be a whole number'),
        ("gpt2", {"n_layer": 10**30}, "must be a whole number from 1 to"),
        ("gpt2", {"n_layer": True}, "n_layer=true must be a whole number"),
        ("gpt2", {"n_layer": None}, "has no n_layer"),
        ("gpt2", {"embd_pdrop": 0.2}, "embd_pdrop=0.2 and resid_pdrop=0.1 must be equal"),
        ("gpt2", {"attn_pdrop": 1.5}, "attention_dropout=1.5 must be at least 0 and less than 1"),
        ("gpt2", {"tie_word_embeddings": 1}, "tie_word_embeddings=1 must be true or false"),
        ("gpt2", {"auto_map": {"AutoModel": "x.Y"}}, "none is ever run"),
        ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config=.* is not known"),
        ("gpt2", {"per_layer_config": {"0": {}}}, "per_layer_config=.* is not known"),
        ("llama", {"attention_bias": True}, "attention_bias=true is not supported, only false"),
        ("llama", {"mlp_bias": True}, "mlp_bias=true is not supported"),
        ("llama", {"sliding_window": 4096}, "sliding_window=4096 is not known"),
        ("llama", {"hidden_act": "gelu"}, 'hidden_act="gelu" is not supported'),
        ("llama", {"num_key_value_heads": 5}, "num_attention_heads=32 must be a multiple of num_key_value_heads=5"),
        ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps=Infinity must be a finite number"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, 'type="linear" is not supported'),
        ("llama", {"rope_scaling": {"rope_type": "yarn"}}, 'rope_scaling: rope_type="yarn" is not supported'),
        ("llama", {"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling has no low_freq_factor"),
        (
            "llama",
            {"rope_scaling": LLAMA3 | {"high_freq_factor": 1}},
            "low_freq_factor=1.0 must be less than high_freq",
        ),
        ("llama", {"rope_scaling": LLAMA3 | {"factor": 0}}, "factor=0 must be a finite number of at least 1"),
        ("llama", {"rope_theta": 0}, "rope_theta=0 must be a finite number of at least 1"),
        ("llama", {"rope_scaling": [1]}, r"rope_scaling=\[1\] must be an object"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": 1.0}},
            "rope_theta is 10000.0 and, among the rope parameters, 1.0",
        ),
        ("llama", {"rope_parameters": {"attention_factor": 2.0}}, "attention_factor=2.0 is not known"),
        ("palm", {"use_qk_norm": True}, "use_qk_norm=true is not supported, only false"),
        ("palm", {"rope_scaling": {"type": "linear", "factor": 2.0}}, 'type="linear" is not supported, only "default"'),
        ("palm", {"rope_parameters": {"rope_theta": 1.0}}, "rope_theta is 10000.0 and, among the rope parameters, 1.0"),
        ("palm", {"num_key_value_heads": 5}, "num_attention_heads=16 must be a multiple of num_key_value_heads=5"),
    ],
)
def test_what_would_compute_something_else_is_refused(family: str, change: dict[str, Any], sentence: str):
    preset = PRESETS[{"gpt2": "gpt2-124m", "llama": "llama2-7b", "palm": "palm-8b"}[family]]
    values = FAMILIES[family].to_hugging_face_config(preset)
    assert FAMILIES[family].from_hugging_face_config(values).resolved() == preset.resolved()
    with pytest.raises(ValueError, match=sentence) as error:
        FAMILIES[family].from_hugging_face_config(values | change)
    assert "\n" not in str(error.value)


def test_a_model_that_no_architecture_expresses_is_refused_with_what_each_would_need():
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel needs norm=layer; LlamaForCausalLM needs activation=swiglu"):
        family_of(dataclasses.replace(SMALL, norm="rms"))
    with pytest.raises(ValueError, match="GPT2LMHeadModel needs num_kv_heads=4"):
        family_of(dataclasses.replace(SMALL, num_kv_heads=2))
    with pytest.raises(ValueError, match="GPT2LMHeadModel needs head_dim=model_dim/num_heads"):
        family_of(dataclasses.replace(SMALL, head_dim=8))
    with pytest.raises(ValueError, match="LlamaForCausalLM needs model_dim a multiple of num_heads"):
        family_of(dataclasses.replace(SMALL, **LLAMA, num_heads=3, head_dim=6))


def test_an_unknown_architecture_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="GPT2Model is not known; the nearest that is known is GPT2LMHeadModel"):
        family_of_architecture({"architectures": ["GPT2Model"]})
    for architectures in (None, [], "LlamaForCausalLM", ["LlamaForCausalLM", "GPT2LMHeadModel"], [3]):
        with pytest.raises(ValueError, match="must be a list of one name, such as GPT2LMHeadModel"):
            family_of_architecture({"architectures": architectures})


def test_operations_per_token():
    config = PRESETS["gpt2-124m"]
    attention = 12 * 12 * 768 * 1024
    matrices = 12 * 12 * 768 * 768 + 50257 * 768
    assert train_flops_per_token(config, 1024) == 6 * matrices + attention // 2
    assert train_flops_per_token(config, 1024, "palm") == 6 * COUNTS["gpt2-124m"] + attention
    untied = PRESETS["llama2-7b"]  # its embedding table is only looked up
    multiplied = COUNTS["llama2-7b"] - 32_000 * 4096 - 65 * 4096
    assert train_flops_per_token(untied, 4096) == 6 * multiplied + 6 * 32 * 4096 * 4096


def rows(**lengths: int) -> dict[str, np.ndarray]:
    """A row of which only the shapes matter."""
    return {name: np.zeros(length, np.int32) for name, length in lengths.items()}


def test_operations_of_a_row_are_those_of_its_tokens():
    text = PRESETS["gpt2-124m"]
    assert train_flops_per_row(text, rows(tokens=512, targets=512)) == 512 * train_flops_per_token(text, 512)
    bert = ALL_PRESETS["bert-base-uncased"]
    masked, labelled = rows(tokens=128, targets=24), rows(tokens=128)
    assert train_flops_per_row(bert, masked) == 128 * train_flops_per_token(bert, 128, predicted=24 / 128)
    assert train_flops_per_row(bert, labelled) == 128 * train_flops_per_token(bert, 128, predicted=0)
    pair = rows(source_tokens=40, tokens=30, targets=30)
    for name, count in (
        ("transformer-base", encoder_decoder.train_flops_per_row),
        ("t5-v1.1-small", encoder_decoder.train_flops_per_row),
        ("luong", recurrent.train_flops_per_row),
    ):
        assert train_flops_per_row(ALL_PRESETS[name], pair) == count(ALL_PRESETS[name], 40, 30)
    vit = ALL_PRESETS["vit-b16"]
    image = {"images": np.broadcast_to(np.uint8(0), (224, 224, 3))}
    assert train_flops_per_row(vit, image) == vision.train_flops_per_row(vit)


def test_operations_of_a_row_of_two_models_are_those_of_both():
    one, other = ALL_PRESETS["electra-small-generator"], ALL_PRESETS["electra-small-discriminator"]
    row = rows(tokens=128, targets=24)
    both = GeneratorDiscriminatorConfig(generator=one, discriminator=other)
    assert train_flops_per_row(both, row) == train_flops_per_row(one, row) + train_flops_per_row(other, row)
    teacher, student = ALL_PRESETS["bert-base-uncased"], ALL_PRESETS["tinybert-4"]
    distilled = train_flops_per_row(DistillationConfig(teacher=teacher, student=student), row)
    assert distilled == train_flops_per_row(student, row) + train_flops_per_row(teacher, row) // 3


def test_every_structure_counts_in_its_own_file():
    for name, file in (("gpt2-124m", decoder), ("albert-base", encoder), ("bart-base", encoder_decoder)):
        assert count_parameters(ALL_PRESETS[name]) == file.count_parameters(ALL_PRESETS[name])
    for name, file in (("luong", recurrent), ("vit-b16", vision)):
        assert count_parameters(ALL_PRESETS[name]) == file.count_parameters(ALL_PRESETS[name])


# Families of every structure


def test_every_preset_has_a_name_of_its_own_and_a_family():
    assert len(ALL_PRESETS) == sum(len(family.PRESETS) for family in FAMILIES.values()) + len(recurrent.PRESETS)
    for name, config in ALL_PRESETS.items():
        config.validate()
        if name in recurrent.PRESETS:
            assert family_name(config) == "recurrent"
        else:
            family = family_of(config)
            assert family.PRESETS[name] == config
            assert FAMILIES[family_name(config)] is family


def test_a_structure_that_no_architecture_has_is_refused_in_a_sentence_of_its_own():
    image_decoder = ImageDecoderConfig(vision=VisionConfig(num_layers=1, model_dim=8, num_heads=2), decoder=SMALL)
    for config, name in ((ALL_PRESETS["luong"], "recurrent"), (image_decoder, "image_decoder")):
        with pytest.raises(
            ValueError, match=rf"know no model of this structure \({name}\), so that jumok alone can use"
        ):
            family_of(config)
        assert family_name(config) == name


def test_of_two_models_the_kept_ones_family_is_named():
    generator, discriminator = (ALL_PRESETS[f"electra-small-{kind}"] for kind in ("generator", "discriminator"))
    assert family_name(GeneratorDiscriminatorConfig(generator=generator, discriminator=discriminator)) == "electra"


# Names of classes


BERT = EncoderConfig(
    num_layers=1, model_dim=8, num_heads=2, vocab_size=70, max_length=8, head="sequence_classification"
)
VIT = VisionConfig(num_layers=1, model_dim=8, num_heads=2, num_classes=2)


def values_of(config: Any, **changes: Any) -> dict[str, Any]:
    family = family_of(config)
    return {"architectures": [family.architecture(config)], **family.to_hugging_face_config(config), **changes}


@pytest.mark.parametrize("config", [BERT, VIT], ids=["bert", "vit"])
def test_names_of_classes_are_carried(config: Any):
    named = dataclasses.replace(config, classes=("ham", "spam"))
    values = values_of(named)
    assert values["id2label"] == {"0": "ham", "1": "spam"}
    assert values["label2id"] == {"ham": 0, "spam": 1}
    read = family_of(config).from_hugging_face_config
    assert read(values).resolved() == named.resolved()

    unnamed = values_of(config)
    assert unnamed["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    assert read(unnamed).classes == ()

    twice = read(values | {"id2label": {"2": "crane", "0": "crane", "1": "ham"}})
    assert (twice.num_classes, twice.classes) == (3, ("crane (0)", "ham", "crane (2)"))
    twice.validate()


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"0": "ham", "2": "spam"}, "config.json: id2label has no 1"),
        ({"0": "ham", "1": 1}, "config.json: id2label: 1=1 must be a string"),
        (["ham", "spam"], r"config.json: id2label=\[.*\] must be an object"),
    ],
)
def test_names_of_no_class_are_refused(labels: Any, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        FAMILIES["bert"].from_hugging_face_config(values_of(BERT, id2label=labels))


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (("ham",), "model.classes names 1 classes, and there are model.num_classes=2; name all or none"),
        (("ham", "ham"), "model.classes has the name 'ham' twice; give each class a name of its own"),
    ],
)
def test_classes_are_named_once_or_not_at_all(classes: tuple[str, ...], sentence: str):
    for config in (BERT, VIT):
        with pytest.raises(ValueError, match=sentence):
            dataclasses.replace(config, classes=classes).validate()


# What targets begin with


def test_the_token_that_targets_begin_with_is_carried():
    for name, published in (("bart-base", 2), ("t5-small", 0), ("transformer-base", None)):
        config = ALL_PRESETS[name]
        family = family_of(config)
        assert config.decoder_start_id == published
        assert ("decoder_start_token_id" in family.to_hugging_face_config(config)) == (published is not None)
        other = dataclasses.replace(config, decoder_start_id=9)
        assert family.from_hugging_face_config(family.to_hugging_face_config(other)).decoder_start_id == 9
    for value in (-1, 37_000):
        with pytest.raises(ValueError, match=rf"model.decoder_start_id={value} must be one of the 37000 tokens"):
            dataclasses.replace(ALL_PRESETS["transformer-base"], decoder_start_id=value).validate()
