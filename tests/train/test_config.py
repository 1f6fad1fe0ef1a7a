"""A configuration survives JSON exactly, is refused in one sentence, and knows which of its changes matter."""

import dataclasses
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import hypothesis
import hypothesis.strategies as st
import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from data.dataset import DataConfig
from model.parameters import Declaration
from model.positions import RopeScaling
from model.sharding import MESH_AXES
from train.config import LogConfig, ProfileConfig, RunConfig, differences, from_json, resolve, to_json, validate
from train.mesh import check_batch, parameter_shardings
from train.objectives.causal_lm import CausalLMConfig
from train.objectives.distill import DistillConfig
from train.optimizer import OptimizerConfig
from train.published import MUST_BE_GIVEN
from train.recipes import RECIPES, find_recipe, needs, smoke
from train.state import blueprint

pytestmark = pytest.mark.core


def through_json(config: Any) -> Any:
    return from_json(type(config), json.loads(json.dumps(to_json(config), allow_nan=False)))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_whole(name: str):
    config = find_recipe(name)
    assert config.name == name
    given = replace(config, data=replace(config.data, path="text")) if config.data.path == MUST_BE_GIVEN else config
    if isinstance(config.objective, DistillConfig):
        given = replace(given, objective=replace(config.objective, teacher="a run"))
    validate(given)
    assert through_json(config) == config
    assert through_json(resolve(config)) == resolve(config) == resolve(resolve(config))
    if needs(config):
        with pytest.raises(ValueError, match="|".join(f"--{option}" for option in needs(config))):
            validate(config)


@st.composite
def run_configs(draw: st.DrawFn) -> RunConfig:
    number = st.floats(0, 1, exclude_max=True)
    return replace(
        smoke(),
        model=replace(
            smoke().model,
            dropout=draw(number),
            num_kv_heads=draw(st.none() | st.integers(1, 8)),
            rope_scaling=draw(st.none() | st.builds(RopeScaling, factor=number)),
            norm=draw(st.sampled_from(["layer", "rms"])),
        ),
        data=DataConfig(path=draw(st.text(min_size=1)), valid_path=draw(st.none() | st.text())),
        optimizer=OptimizerConfig(
            b1=draw(number), decayed=draw(st.sampled_from([(), ("matrix",), ("matrix", "bias")]))
        ),
        steps=draw(st.integers(1, 2**40)),
        init_from=draw(st.none() | st.text()),
        deterministic=draw(st.booleans()),
        freeze=tuple(draw(st.lists(st.text(), max_size=3))),
    )


@hypothesis.given(run_configs())
def test_json_brings_back_an_equal_configuration(config: RunConfig):
    again = through_json(config)
    assert again == config
    assert hash(again) == hash(config)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": {"b1": "x"}}, "optimizer.b1 must be a finite number, got 'x'"),
    ({"optimizer": {"b1": float("inf")}}, "optimizer.b1 must be a finite number, got inf"),
    ({"optimizer": {"b1": True}}, "optimizer.b1 must be a finite number, got True"),
    (
        {"optimizer": {"epsilom": 0.5}},
        "optimizer.epsilom is not a field of this version; the nearest is optimizer.epsilon",
    ),
    ({"optimizer": {"schedule": "cosin"}}, "optimizer.schedule must be one of cosine, linear, constant, noam, wsd"),
    ({"optimizer": {"decayed": "matrix"}}, "optimizer.decayed must be a list, got 'matrix'"),
    ({"optimizer": {"decayed": ["matrix", "x"]}}, "optimizer.decayed[1] must be one of matrix, bias"),
    ({"optimizer": []}, "optimizer must be an object, got []"),
    ({"steps": 2.0}, "steps must be a whole number, got 2.0"),
    ({"steps": True}, "steps must be a whole number, got True"),
    ({"stop_after": "3"}, "stop_after must be a whole number, got '3'"),
    ({"deterministic": 1}, "deterministic must be true or false, got 1"),
    ({"stesp": 5}, "stesp is not a field of this version; the nearest is steps"),
    ({"model": {"num_layers": 2}}, "model.model_dim is missing"),
]


@pytest.mark.parametrize(("value", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_what_is_wrong_with_a_file_is_said_in_one_sentence(value: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=r"config\.json: ") as error:
        from_json(RunConfig, to_json(smoke()) | value)
    assert str(error.value).startswith(f"config.json: {sentence}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [None, [], "tiny", 3])
def test_a_file_of_something_else_is_refused(value: Any):
    with pytest.raises(ValueError, match="must be an object"):
        from_json(RunConfig, value)


def test_fields_that_are_left_out_take_their_defaults():
    config = from_json(RunConfig, {"model": to_json(smoke().model)})
    assert config == RunConfig(model=smoke().model)


@dataclass(frozen=True)
class Shapes:
    pair: tuple[int, str]
    choice: Literal["a", 1] = "a"
    maybe: tuple[float, ...] | None = None


def test_tuples_of_a_fixed_length_and_mixed_choices():
    assert from_json(Shapes, {"pair": [1, "x"], "choice": 1, "maybe": [1, 2.5]}) == Shapes((1, "x"), 1, (1.0, 2.5))
    for wrong in ({"pair": [1]}, {"pair": [1, 2]}, {"pair": [1, "x"], "choice": True}, {"pair": [1, "x"], "maybe": 3}):
        with pytest.raises(ValueError, match="must be"):
            from_json(Shapes, wrong)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps=0 must be at least 1"),
    ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ({"profile": ProfileConfig(start=0, steps=1)}, "profile.start=0 must be at least 1"),
    ({"micro_batches": 3}, "batch_size=8 must be a multiple of micro_batches=3"),
    ({"seed": -1}, "seed=-1 must be at least 0"),
    ({"seed": 2**31}, "must be less than"),
    ({"stop_after": 0}, "stop_after=0 must be at least 1"),
    ({"steps": 2**30}, "take fewer steps"),
    ({"log": LogConfig(every=0)}, "log.every=0 must be at least 1"),
    ({"optimizer": OptimizerConfig(b1=1.0)}, "optimizer.b1=1.0 must be"),
    ({"optimizer": OptimizerConfig(learning_rate=float("inf"))}, "optimizer.learning_rate must be a finite number"),
    ({"objective": CausalLMConfig(loss_chunks=3)}, "loss_chunks=3"),
    ({"data": DataConfig(path="")}, "--data.path"),
    ({"model": replace(smoke().model, num_heads=7)}, "num_heads=7"),
    ({"compiler_options": ("xla_tpu_scoped_vmem_limit_kib",)}, "must be NAME=VALUE"),
    ({"precision": "float16"}, "precision must be one of auto, float32, bfloat16, got 'float16'"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_what_no_run_can_have_is_refused(change: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=r"must|is|take") as error:
        validate(replace(smoke(), **change))
    assert sentence in str(error.value)


def test_rows_are_no_longer_than_learned_positions():
    config = replace(smoke(), data=DataConfig(max_length=256))
    validate(config)  # rotary positions have no end
    learned = replace(config.model, positions="learned")
    with pytest.raises(ValueError, match=r"data\.max_length=256 is longer than the model's max_length=128"):
        validate(replace(config, model=learned))


def test_only_changes_of_identity_are_differences():
    old = resolve(smoke())
    assert differences(old, old) == []
    operational = replace(
        old,
        run_dir="elsewhere",
        batch_size=16,
        micro_batches=2,
        stop_after=1,
        deterministic=True,
        mesh=replace(old.mesh, fsdp=4),
        log=LogConfig(every=1),
        model=replace(old.model, remat="full"),
    )
    assert differences(old, operational) == []
    changed = replace(
        old, seed=1, optimizer=replace(old.optimizer, b1=0.5), model=replace(old.model, rope_scaling=RopeScaling())
    )
    assert differences(old, changed) == [
        ("model.rope_scaling", None, RopeScaling()),
        ("optimizer.b1", 0.9, 0.5),
        ("seed", 0, 1),
    ]


@pytest.mark.parametrize(
    ("schedule", "warmup", "matters"),
    [
        ("cosine", 5, True),
        ("linear", 5, True),
        ("wsd", 5, True),
        ("constant", 5, False),
        ("noam", 5, False),
        ("noam", 45, True),
    ],
)
def test_the_number_of_steps_matters_where_the_schedule_reads_it(schedule: Any, warmup: int, matters: bool):
    old = replace(smoke(), optimizer=replace(smoke().optimizer, schedule=schedule, warmup_steps=warmup))
    assert differences(old, replace(old, steps=40)) == ([("steps", 50, 40)] if matters else [])


def test_what_follows_is_filled_in():
    model: Any = smoke().model
    resolved = resolve(replace(smoke(), model=replace(model, num_kv_heads=None)))
    filled: Any = resolved.model
    assert (filled.num_kv_heads, filled.head_dim) == (8, 8)
    assert (resolved.precision, resolved.run_dir) == (
        "float32" if jax.default_backend() == "cpu" else "bfloat16",
        "runs/smoke",
    )
    assert resolve(replace(smoke(), precision="bfloat16", run_dir="x")).run_dir == "x"


def test_the_smallest_recipe_is_for_meshes_and_export():
    from_here = {name: blueprint(find_recipe(name).model).declared for name in ("smoke", "tiny", "char_shakespeare")}
    sizes = {name: sum(map(_size, declared.values())) for name, declared in from_here.items()}
    assert min(sizes, key=lambda name: sizes[name]) == "smoke"
    config: Any = smoke()
    assert needs(config) == []
    assert config.model.dropout == config.model.attention_dropout == 0
    assert config.data.tokenizer == "bytes"
    mesh = AbstractMesh((1, 4, 1, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    check_batch(mesh, config.batch_size, config.micro_batches, config.data.max_length)
    parameter_shardings(from_here["smoke"], mesh)


def _size(declaration: Declaration) -> int:
    size = 1
    for dimension in declaration.shape:
        size *= dimension
    return size


def test_every_field_of_a_run_is_a_plain_value():
    def leaves(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return [leaf for item in dataclasses.fields(value) for leaf in leaves(getattr(value, item.name))]
        return [value]

    for recipe in RECIPES.values():
        assert all(isinstance(leaf, int | float | str | bool | tuple | None) for leaf in leaves(recipe()))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_dim": 65, "num_heads": 8}, r"model_dim=65 must be a multiple of model.num_heads=8; try model_dim 72"),
        ({"num_heads": 0}, r"model.num_heads=0 must be at least 1"),
    ],
)
def test_what_follows_from_other_fields_is_checked_before_it_is_filled_in(changes, sentence):
    config = find_recipe("smoke")
    with pytest.raises(ValueError, match=sentence):
        validate(dataclasses.replace(config, model=dataclasses.replace(config.model, **changes)))
