"""Any mesh computes what one device does, with packing, accumulation, a padded vocabulary and replicated heads."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from data.dataset import DataConfig
from train.config import RunConfig
from train.mesh import MeshConfig, make_mesh, place_batch
from train.optimizer import OptimizerConfig
from train.program import Program

SGD = OptimizerConfig(name="sgd", learning_rate=0.5, schedule="constant", warmup_steps=0, weight_decay=0.1, clip_norm=0)
MESHES = {
    "data8": MeshConfig(data=8),
    "fsdp8": MeshConfig(data=1, fsdp=8),
    "tensor4": MeshConfig(data=1, tensor=4),
    "fsdp2_tensor2_data2": MeshConfig(data=2, fsdp=2, tensor=2),
    "context2": MeshConfig(data=1, context=2),
}


def run_config(model, **changes) -> RunConfig:
    return dataclasses.replace(
        RunConfig(
            model=model,
            data=DataConfig(max_length=32),
            optimizer=SGD,
            batch_size=16,
            micro_batches=2,
            precision="float32",
            steps=3,
        ),
        **changes,
    )


def train(config: RunConfig, mesh_config: MeshConfig, rows, steps=3):
    """Loss of each step, the first step's gradients (SGD's momentum holds them), and the last parameters."""
    size = math.prod(dataclasses.astuple(mesh_config))
    mesh = make_mesh(mesh_config, jax.devices()[:size])
    program = Program.of(config, mesh)
    rows = program.inputs(rows)
    state = program.first_state()
    step = program.compile_step({name: array[0] for name, array in rows.items()})
    batch = place_batch(mesh, len(rows["tokens"]), lambda places: {name: array[places] for name, array in rows.items()})
    losses, gradients = [], {}
    for number in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        if number == 0 and config.optimizer.name == "sgd":
            gradients = {name: np.asarray(g) for name, g in state.opt_state[1].trace.items()}
    return losses, gradients, {name: np.asarray(p) for name, p in state.params.items()}


def test_contiguous_rows_that_are_read_causally_need_no_segments(tiny_llama, packed_rows):
    rows = packed_rows | {"segments": np.minimum(packed_rows["segments"], 1)}
    assert rows["segments"].min() == 0, "some of it is padding"
    config = run_config(tiny_llama)
    without = dataclasses.replace(config, data=dataclasses.replace(config.data, packing="contiguous"))
    program = Program.of(without, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    assert program.inputs(rows).keys() == rows.keys() - {"segments"}
    expected, actual = (train(each, MeshConfig(data=1), rows, steps=2) for each in (config, without))
    assert actual[0] == expected[0]
    assert_close_to_largest(actual[1], expected[1], 1e-6)


@pytest.fixture(scope="module")
def one_device():
    """Results on one device by configuration, computed once."""
    results = {}

    def result(config, rows):
        if config not in results:
            results[config] = train(config, MeshConfig(data=1), rows)
        return results[config]

    return result


def assert_close_to_largest(actual, expected, tolerance):
    for name, value in expected.items():
        # A key bias shifts all scores of a query alike, so its true gradient is zero: what is left is rounding on the
        # scale of the query bias.
        scale = np.abs(expected[name.replace("key_bias", "query_bias")]).max()
        assert np.abs(actual[name] - value).max() <= tolerance * scale, name


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_any_mesh_computes_the_same(tiny, mesh, packed_rows, one_device):
    config = run_config(tiny)
    expected = one_device(config, packed_rows)
    actual = train(config, mesh, packed_rows)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    assert_close_to_largest(actual[1], expected[1], 1e-5)
    assert_close_to_largest(actual[2], expected[2], 1e-5)


@pytest.mark.core
@pytest.mark.parametrize(("micro_batches", "loss_chunks"), [(1, 1), (4, 1), (1, 4)])
def test_any_accumulation_and_chunking_computes_the_same(tiny, micro_batches, loss_chunks, packed_rows, one_device):
    config = run_config(tiny)
    expected = one_device(config, packed_rows)
    objective = dataclasses.replace(config.objective, loss_chunks=loss_chunks)
    actual = train(
        dataclasses.replace(config, micro_batches=micro_batches, objective=objective), MeshConfig(data=1), packed_rows
    )
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    assert_close_to_largest(actual[1], expected[1], 1e-5)


@pytest.mark.parametrize("mesh", [MeshConfig(data=1, fsdp=2, context=2, tensor=2), MESHES["fsdp8"]], ids=["2x2x2", "8"])
def test_weights_that_come_and_go_change_nothing(mesh, tiny_llama, packed_rows, one_device, monkeypatch):
    """Each device works on its own rows, and gathers weights to use them; gradients part in two steps, as on TPUs."""
    monkeypatch.setattr("model.fsdp.device_platform", lambda: "tpu")
    config = run_config(tiny_llama)
    expected = one_device(config, packed_rows)
    changed = run_config(
        dataclasses.replace(tiny_llama, remat="dots"), objective=dataclasses.replace(config.objective, loss_chunks=4)
    )
    actual = train(changed, mesh, packed_rows)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    assert_close_to_largest(actual[1], expected[1], 1e-5)


def test_dropout_is_the_same_on_every_mesh(tiny_gpt2, packed_rows):
    model = dataclasses.replace(tiny_gpt2, dropout=0.2, attention_dropout=0.1)
    plain, *_ = train(run_config(tiny_gpt2), MeshConfig(data=1), packed_rows)
    one, *_ = train(run_config(model), MeshConfig(data=1), packed_rows)
    eight, *_ = train(run_config(model), MeshConfig(data=2, fsdp=2, tensor=2), packed_rows)
    np.testing.assert_allclose(eight, one, rtol=1e-6)
    assert abs(one[0] - plain[0]) > 1e-4, "dropout did nothing"


def test_adamw_follows_one_curve_and_its_state_is_split(tiny_llama, packed_rows):
    config = run_config(tiny_llama, optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2), steps=6)
    one, *_ = train(config, MeshConfig(data=1), packed_rows, steps=6)
    eight, *_ = train(config, MeshConfig(data=1, fsdp=8), packed_rows, steps=6)
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    assert one[-1] < one[0]

    split = Program.of(config, make_mesh(MeshConfig(data=1, fsdp=8)))
    whole = Program.of(config, make_mesh(MeshConfig(data=8)))
    state = split.first_state()
    on_one_device = sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state))
    )
    assert on_one_device < 0.14 * sum(whole.state_bytes().values()), (
        "parameters, mu and nu lie an eighth on each device, but for norms"
    )


def test_a_step_compiles_once_and_gives_its_state_back_in_place(tiny, packed_rows):
    config = run_config(tiny, optimizer=OptimizerConfig())
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    program = Program.of(config, mesh)
    compiled = program.compile_step({name: array[0] for name, array in packed_rows.items()})
    state = program.first_state()
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, program.abstract)
    analysis = compiled.memory_analysis()
    assert analysis.alias_size_in_bytes >= sum(program.state_bytes().values())
    batch = place_batch(mesh, 16, lambda places: {name: array[places] for name, array in packed_rows.items()})
    new, _ = compiled(state, batch)
    compiled(new, batch)  # a compiled program refuses a state that came back laid out otherwise


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_position(tiny_gpt2, packed_rows):
    config = run_config(tiny_gpt2, optimizer=OptimizerConfig())
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    program = Program.of(config, mesh)
    step = program.compile_step({name: array[0] for name, array in packed_rows.items()})
    batch = place_batch(mesh, 16, lambda places: {name: array[places] for name, array in packed_rows.items()})
    poisoned = {n: p.at[...].set(np.inf) if n == "norm.scale" else p for n, p in program.first_state().params.items()}
    before = jax.tree.map(np.asarray, program.first_state(poisoned))
    after, metrics = step(program.first_state(poisoned), batch)
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (before.params, before.opt_state))
    assert (int(after.step), int(after.examples_seen)) == (1, 16)
    assert (int(metrics["nonfinite_steps"]), int(after.nonfinite_in_row)) == (1, 1)


def test_frozen_parameters_stay(tiny_gpt2, packed_rows):
    config = run_config(tiny_gpt2, freeze=("embedding.*", "positions"))
    _, gradients, after = train(config, MeshConfig(data=1), packed_rows)
    before = Program.of(config, make_mesh(MeshConfig(data=8))).first_state().params
    frozen = {name for name in after if np.array_equal(after[name], before[name])}
    assert frozen == {"embedding.table", "positions"}
    assert not frozen & set(gradients)


def test_padding_rows_of_the_vocabulary_stay_zero(tiny_llama, packed_rows):
    _, _, after = train(run_config(tiny_llama), MeshConfig(data=1), packed_rows)
    for name in ("embedding.table", "head.table"):
        assert after[name].shape[0] == 128
        assert not after[name][70:].any()
        assert after[name][:70].any(axis=1).all()


@pytest.mark.parametrize(
    ("mesh", "changes", "sentence"),
    [
        (
            MeshConfig(data=3),
            {},
            r"mesh data=3 x fsdp=1 x context=1 x tensor=1 takes 3 devices, and 8 are here; .*JAX_NUM_CPU_DEVICES=3",
        ),
        (MeshConfig(fsdp=-1), {}, r"at most one may be -1"),
        (MeshConfig(fsdp=16), {}, r"takes a multiple of 16 devices, and 8 are here"),
        (
            MeshConfig(),
            {"batch_size": 12},
            r"batch_size=12 must be a multiple of data\*fsdp\*micro_batches=16 .*; try 16",
        ),
        (
            MeshConfig(data=1, tensor=8),
            {},
            r"act_heads=4|heads=4 must be a multiple of 8, the mesh's tensor .*; try tensor 4 or heads 8",
        ),
        (
            MeshConfig(data=1, context=8),
            {"data": DataConfig(max_length=30)},
            r"data.max_length=30 must be a multiple of the mesh's context=8; try 32",
        ),
    ],
)
def test_what_does_not_divide_is_refused_in_a_sentence(tiny_llama, mesh, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Program.of(run_config(tiny_llama, **changes), make_mesh(mesh))
