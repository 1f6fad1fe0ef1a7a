"""Two encoders as one state: what they share, how many weights there are, and what a student takes from its teacher."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import distillation, encoder, generator_discriminator
from model.distillation import Distillation, DistillationConfig, student_from_teacher
from model.encoder import Encoder, EncoderConfig
from model.families.electra import PRESETS
from model.generator_discriminator import GeneratorDiscriminator, GeneratorDiscriminatorConfig
from model.parameters import declarations, merge, split

pytestmark = pytest.mark.core

SMALL = EncoderConfig(num_layers=1, model_dim=16, num_heads=2, vocab_size=70, max_length=24)
ELECTRA = GeneratorDiscriminatorConfig(
    generator=dataclasses.replace(SMALL, model_dim=8, embedding_dim=16),
    discriminator=dataclasses.replace(SMALL, num_layers=2, head="replaced_token"),
)
TINYBERT = DistillationConfig(
    student=dataclasses.replace(SMALL, num_layers=2, model_dim=8, num_types=0),
    teacher=dataclasses.replace(SMALL, num_layers=4),
)


MODELS = {
    EncoderConfig: Encoder,
    GeneratorDiscriminatorConfig: GeneratorDiscriminator,
    DistillationConfig: Distillation,
}


def abstract(config: Any) -> Any:
    config.validate()
    return jax.eval_shape(lambda: MODELS[type(config)](config, nnx.Rngs(params=jax.random.key(0))))


def declared(config: Any):
    return declarations(abstract(config))


def random_model(config: Any) -> tuple[Any, dict[str, Any]]:
    """A skeleton, and weights of which all matter."""
    random = np.random.default_rng(0)
    params = {
        name: (random.normal(size=w.shape) * 0.2 + (w.kind == "scale")).astype(np.float32)
        for name, w in declared(config).items()
    }
    return split(abstract(config))[0], params


def declared_count(config: Any, vocab_size: int) -> int:
    """The declared weights, the padding of the vocabulary not counted."""
    return sum(
        math.prod(vocab_size if axis == "vocab" else size for size, axis in zip(w.shape, w.axes, strict=True))
        for w in declared(config).values()
    )


# A generator and a discriminator


def test_the_published_pairs_have_the_published_number_of_parameters():
    small = GeneratorDiscriminatorConfig(
        generator=PRESETS["electra-small-generator-quarter"], discriminator=PRESETS["electra-small-discriminator"]
    )
    assert encoder.count_parameters(small.discriminator) == 13_549_057
    assert encoder.count_parameters(small.generator) == 4_620_026
    tables = 128 * (30_522 + 512 + 2) + 2 * 128
    assert generator_discriminator.count_parameters(small) == 13_549_057 + 4_620_026 - tables
    for size in ("base", "large"):
        pair = GeneratorDiscriminatorConfig(
            generator=PRESETS[f"electra-{size}-generator"], discriminator=PRESETS[f"electra-{size}-discriminator"]
        )
        pair.validate()
        assert generator_discriminator.count_parameters(pair) == declared_count(pair, 30_522)
    assert generator_discriminator.count_parameters(small) == declared_count(small, 30_522)
    assert generator_discriminator.count_parameters(ELECTRA) == declared_count(ELECTRA, 70)


def test_the_discriminator_is_kept_under_an_encoders_own_names():
    names, alone = declared(ELECTRA), declared(ELECTRA.kept)
    assert {name.removeprefix("discriminator."): w for name, w in names.items() if "discriminator." in name} == alone
    assert ELECTRA.kept is ELECTRA.discriminator
    assert not {"generator.embedding.table", "generator.positions", "generator.types"} & names.keys()
    assert "generator.projection.weight" in names


def test_the_generator_is_an_encoder_with_the_discriminators_embeddings():
    skeleton, params = random_model(ELECTRA)
    shared = ("embedding.", "positions", "types", "embedding_norm.")
    own = {name.removeprefix("generator."): x for name, x in params.items() if name.startswith("generator.")}
    kept = {name.removeprefix("discriminator."): x for name, x in params.items() if name.startswith("discriminator.")}
    own |= {name: x for name, x in kept.items() if name.startswith(shared)}
    alone = split(abstract(ELECTRA.generator))[0]
    inputs = GeneratorDiscriminator.example(ELECTRA)

    def sines(params, skeleton):
        logits = merge(skeleton, params)(**inputs)["logits"][..., :70]
        return jnp.sin(logits).sum(), logits

    both = jax.jit(jax.value_and_grad(sines, has_aux=True), static_argnums=1)
    ((_, logits), gradients), ((_, expected_logits), expected) = both(params, skeleton), both(own, alone)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    for name, value in expected.items():
        owner = "discriminator" if name.startswith(shared) else "generator"
        np.testing.assert_allclose(gradients[f"{owner}.{name}"], value, atol=1e-4)
    model = merge(skeleton, params)
    model.whole_generator()
    assert tuple(declarations(model)) == skeleton.names  # as it was


@pytest.mark.parametrize(
    ("part", "fields", "sentence"),
    [
        ("generator", {"vocab_size": 80}, r"model.generator.vocab_size=80 must be 70, that of model.discriminator"),
        ("generator", {"max_length": 16}, r"model.generator.max_length=16 must be 24"),
        ("generator", {"embedding_dim": 4}, r"model.generator.embedding_dim=4 must be 16.*they share their embeddings"),
        ("generator", {"head": "pooler"}, r"model.generator.head=pooler must be masked_lm"),
        ("discriminator", {"head": "masked_lm"}, r"pass --model.discriminator.head replaced_token"),
        (
            "discriminator",
            {"num_heads": 3},
            r"model.discriminator.model_dim=16 must be a multiple of model.discriminator",
        ),
    ],
)
def test_a_pair_that_can_not_share_is_refused(part: str, fields: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(ELECTRA, **{part: dataclasses.replace(getattr(ELECTRA, part), **fields)}).validate()


# A teacher and a student


def test_a_narrower_student_has_projections_and_the_count_has_them_too():
    names = declared(TINYBERT)
    assert names["hidden_projection"].shape == names["embedding_projection"].shape == (8, 16)
    assert distillation.count_parameters(TINYBERT) == declared_count(TINYBERT, 70)
    alike = dataclasses.replace(TINYBERT, student=dataclasses.replace(TINYBERT.student, model_dim=16))
    assert "hidden_projection" not in declared(alike)
    assert distillation.count_parameters(alike) == declared_count(alike, 70)
    student = declared(TINYBERT.kept)
    assert {n.removeprefix("student."): w for n, w in names.items() if n.startswith("student.")} == student
    assert all(name.startswith("teacher.") or not name.startswith("t") for name in names)


def test_both_say_what_they_say_alone():
    inputs = Distillation.example(TINYBERT)
    skeleton, params = random_model(TINYBERT)

    @jax.jit
    def everything(params):
        model = merge(skeleton, params)
        return model(**inputs), model.student(**inputs)["logits"], model.teacher(**inputs)["logits"]

    said, student, teacher = everything(params)
    np.testing.assert_allclose(said["logits"], student, atol=1e-5)
    np.testing.assert_allclose(said["teacher_logits"], teacher, atol=1e-5)


def test_one_projection_is_for_all_layers():
    model = merge(*random_model(TINYBERT))
    x_NBLD = np.random.default_rng(1).normal(size=(3, 2, 4, 8)).astype(np.float32)
    projected = model.project_hidden(x_NBLD)
    np.testing.assert_allclose(projected, x_NBLD @ np.asarray(model.hidden_projection[...]), atol=1e-5)
    np.testing.assert_allclose(model.project_hidden(x_NBLD[1]), projected[1], atol=1e-6)


def test_a_student_begins_with_its_teachers_layers():
    bert = EncoderConfig(num_layers=12, model_dim=4, num_heads=2, vocab_size=70, max_length=8)
    config = DistillationConfig(student=dataclasses.replace(bert, num_layers=6, num_types=0), teacher=bert)
    _, params = random_model(config)
    params["teacher.stack.layers.mlp.up"][...] = np.arange(12)[:, None, None]
    started = student_from_teacher(config, params)
    assert started.keys() == params.keys()
    assert started["student.stack.layers.mlp.up"][:, 0, 0].tolist() == [0, 2, 4, 7, 9, 11]  # those of DistilBERT
    for name, value in started.items():
        if not name.startswith("student."):
            assert value is params[name]
        elif "layers" not in name:
            assert value is params[name.replace("student.", "teacher.")]
    with pytest.raises(ValueError, match=r"can't begin with its teacher's weights, since its embedding.table has .* 8"):
        student_from_teacher(TINYBERT, random_model(TINYBERT)[1])


@pytest.mark.parametrize(
    ("part", "fields", "sentence"),
    [
        ("student", {"vocab_size": 71}, r"model.student.vocab_size=71 must be 70, that of model.teacher, since"),
        (
            "student",
            {"head": "none"},
            r"model.student.head=none predicts no tokens; pass --model.student.head masked_lm",
        ),
    ],
)
def test_a_student_that_can_not_learn_is_refused(part: str, fields: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(TINYBERT, **{part: dataclasses.replace(getattr(TINYBERT, part), **fields)}).validate()


@pytest.mark.parametrize("config", [ELECTRA, TINYBERT], ids=["electra", "tinybert"])
def test_what_a_run_reads_of_a_configuration(config: Any):
    assert (config.vocab_size, config.max_length, config.positions) == (70, 24, "learned")
    assert config.resolved().kept == config.kept.resolved()
