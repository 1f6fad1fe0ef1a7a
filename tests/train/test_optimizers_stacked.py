"""Rules of whole tensors act on every layer's tensor alone, and what they keep lies on the mesh as its weights do.

The weights of a small stack go through our optimizers as they are stored, and through Optax's one by one, as Hugging
Face stores them: a tensor a layer, matrices of two axes. Layers differ in scale, so that none can pass for another.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import optax
import pytest
from optax import contrib

from data.dataset import DataConfig
from model.decoder import DecoderConfig
from model.families.weights import Layout, Tensor
from model.parameters import Declaration
from train.config import RunConfig
from train.mesh import MeshConfig, make_mesh, place_batch
from train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from train.program import Program

LAYERS, STEPS = 3, 3
DECLARED = {
    "query": Declaration((LAYERS, 128, 4, 36), ("layers", "embed", "heads", "head_dim"), "matrix"),
    "query_bias": Declaration((LAYERS, 4, 36), ("layers", "heads", "head_dim"), "bias"),
    "out": Declaration((LAYERS, 4, 36, 128), ("layers", "heads", "head_dim", "embed"), "matrix"),
    "norm": Declaration((LAYERS, 128), ("layers", "norm"), "scale"),
    "gate_up": Declaration((LAYERS, 128, 2, 160), ("layers", "embed", "gate", "mlp"), "matrix"),
    "down": Declaration((LAYERS, 160, 128), ("layers", "mlp", "embed"), "matrix"),
    "low": Declaration((LAYERS, 128, 8), ("layers", "embed", "features"), "matrix"),  # too narrow to be factored
    "patch": Declaration((3, 7, 7, 128), ("channels", "pixels", "pixels", "embed"), "matrix"),
    "embedding": Declaration((132, 128), ("vocab", "embed"), "embedding"),
    "head": Declaration((132, 128), ("vocab", "embed"), "matrix"),
}
LAYOUT = Layout(
    (
        Tensor("layers.{layer}.query.weight", ("query",), inputs=1, transposed=True),
        Tensor("layers.{layer}.query.bias", ("query_bias",)),
        Tensor("layers.{layer}.out.weight", ("out",), inputs=2, transposed=True),
        Tensor("layers.{layer}.norm.scale", ("norm",)),
        Tensor("layers.{layer}.gate.weight", ("gate_up",), inputs=1, transposed=True, gate=0),
        Tensor("layers.{layer}.up.weight", ("gate_up",), inputs=1, transposed=True, gate=1),
        Tensor("layers.{layer}.down.weight", ("down",), inputs=1, transposed=True),
        Tensor("layers.{layer}.low.weight", ("low",), inputs=1, transposed=True),
        Tensor("patch.weight", ("patch",), inputs=3, transposed=True),
        Tensor("embedding.weight", ("embedding",), inputs=1),
        Tensor("head.weight", ("head",), inputs=1),
    ),
    DECLARED,
    vocab_size=132,
)
PALM = OptimizerConfig(
    name="adafactor",
    learning_rate=1e-2,
    schedule="rsqrt",
    warmup_steps=10_000,
    factored=False,
    b1=0.9,
    weight_decay=1.0,
    weight_decay_power=2.0,
    clip_norm=1.0,
)
RULES = {
    "adafactor": OptimizerConfig(name="adafactor"),
    "adafactor_absolute": OptimizerConfig(name="adafactor", parameter_scaling=False, b1=0.5, weight_decay=0.1),
    "palm": PALM,
    "lamb": OptimizerConfig(name="lamb"),
    "lion": OptimizerConfig(name="lion"),
    "muon": OptimizerConfig(name="muon"),
}


def published(params) -> dict[str, Any]:
    """The tensors as Hugging Face would store them."""
    return dict(LAYOUT.to_hugging_face(params))


def layer_of(weights, layer: int) -> dict[str, Any]:
    """The weights of one layer, and those outside of the stack."""
    return {name: w[layer] if DECLARED[name].axes[0] == "layers" else w for name, w in weights.items()}


def draw(seed: int) -> dict[str, Any]:
    """Numbers for all weights, ten times larger in each layer than in the one before."""
    random = np.random.default_rng(seed)
    drawn = {name: 0.1 * random.standard_normal(d.shape, np.float32) for name, d in DECLARED.items()}
    for name, d in DECLARED.items():
        if d.axes[0] == "layers":
            drawn[name] *= np.float32(10) ** np.arange(LAYERS).reshape(-1, *[1] * (len(d.shape) - 1))
    return drawn


def run(optimizer: optax.GradientTransformation, before, gradients) -> list[dict[str, np.ndarray]]:
    """The weights after all steps, for each of several models of one optimizer, which is compiled once for all."""
    init = jax.jit(optimizer.init)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    after = []
    for params, steps in zip(before, gradients, strict=True):
        state = init(params)
        for gradient in steps:
            params, state = step(params, state, gradient)
        after.append(jax.tree.map(np.asarray, params))
    return after


def by_optax(config: OptimizerConfig, rate: optax.Schedule, kind: str) -> optax.GradientTransformation:
    """What Optax has for one tensor: a hidden layer's "matrix", the "head", an "embedding", or a "vector"."""
    decay = config.value("weight_decay") if kind in ("matrix", "head") else 0.0
    b1, b2, epsilon = (config.value(field) for field in ("b1", "b2", "epsilon"))
    match config.name:
        case "adafactor":
            return optax.adafactor(
                rate,
                factored=config.factored,
                multiply_by_parameter_scale=config.parameter_scaling,
                momentum=b1 or None,
                weight_decay_rate=lambda n: decay * rate(n) ** config.weight_decay_power,
            )
        case "lamb" if kind != "vector":
            return optax.lamb(rate, b1, b2, epsilon, weight_decay=decay)
        case "lion":
            return optax.lion(rate, b1, b2, weight_decay=decay)
        case "muon" if kind == "matrix":
            return contrib.muon(rate, beta=config.value("momentum"), weight_decay=decay, consistent_rms=0.2)
    return optax.adamw(rate, b1, b2, epsilon, weight_decay=decay)


def assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], before: dict[str, np.ndarray]):
    """To float32 rounding, of what has moved and of what was added to."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        moved = np.abs(expected - before[name]).max()
        rounding = np.finfo(np.float32).eps * np.abs(expected).max()
        assert moved > 100 * rounding, name
        assert np.abs(ours[name] - expected).max() <= 1e-5 * moved + STEPS * rounding, name


@pytest.mark.parametrize("config", RULES.values(), ids=RULES)
def test_a_stack_learns_as_its_layers_would_alone(config):
    config = dataclasses.replace(config, clip_norm=0.0)  # the one rule that is of all weights together
    if config.schedule == "cosine":
        config = dataclasses.replace(config, learning_rate=0.1, warmup_steps=2)
    rate = make_schedule(config, STEPS)
    before, gradients = draw(0), [draw(1 + step) for step in range(STEPS)]
    (after,) = run(make_optimizer(config, rate, DECLARED), [before], [gradients])

    # Our optimizer of one layer that is no stack.
    alone = {
        name: dataclasses.replace(d, shape=d.shape[1:], axes=d.axes[1:]) if d.axes[0] == "layers" else d
        for name, d in DECLARED.items()
    }
    layers = [layer_of(before, layer) for layer in range(LAYERS)]
    steps = [[layer_of(gradient, layer) for gradient in gradients] for layer in range(LAYERS)]
    for layer, expected in enumerate(run(make_optimizer(config, rate, alone), layers, steps)):
        assert_equal(layer_of(after, layer), expected, layers[layer])

    # Optax's, of the tensors as they are published.
    start, published_gradients = published(before), [published(gradient) for gradient in gradients]
    kinds: dict[str, list[str]] = {"matrix": [], "head": [], "embedding": [], "vector": []}
    for name in start:
        outer = name.split(".")[0]
        kinds[outer if outer in kinds else "matrix" if name.endswith("weight") else "vector"].append(name)
    expected = {}
    for kind, names in kinds.items():
        tensors = [[gradient[name] for gradient in published_gradients] for name in names]
        expected |= zip(names, run(by_optax(config, rate, kind), [start[name] for name in names], tensors), strict=True)
    assert_equal(published(after), expected, start)


MODEL = DecoderConfig(
    num_layers=2,
    model_dim=128,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=256,
    norm="rms",
    activation="swiglu",
    positions="rope",
    use_bias=False,
    tie_embeddings=False,
    vocab_size=256,
    max_length=32,
)
BIASED = DecoderConfig(num_layers=2, model_dim=128, num_heads=4, vocab_size=256, max_length=32)
ONE_DEVICE = MeshConfig(data=1)
MESHES = {
    "tensor4": MeshConfig(data=1, tensor=4),  # more than there are key/value heads
    "fsdp2_tensor2_data2": MeshConfig(data=2, fsdp=2, tensor=2),
}


def make_program(model: DecoderConfig, optimizer: OptimizerConfig, mesh: MeshConfig) -> Program:
    devices = jax.devices()[: math.prod(dataclasses.astuple(mesh))]
    config = RunConfig(model, DataConfig(max_length=32), optimizer=optimizer, batch_size=16, precision="float32")
    return Program.of(config, make_mesh(mesh, devices))


def kept_of(optimizer_state) -> dict[str, dict[str, Any]]:
    """What an optimizer keeps of each weight, by the name of the field that it is kept in."""
    found: dict[str, dict[str, Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer_state):
        fields = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        for key in path:
            if isinstance(key, jax.tree_util.DictKey):
                found.setdefault(key.key, {})[fields[-1]] = leaf
    return found


def pieces(leaf) -> int:
    """How many devices an array is spread over."""
    return leaf.size // math.prod(leaf.sharding.shard_shape(leaf.shape))


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("model", [MODEL, BIASED], ids=["llama", "gpt2"])
@pytest.mark.parametrize("config", [OptimizerConfig(), *RULES.values()], ids=["adamw", *RULES])
def test_moments_lie_as_their_parameters(config, model, mesh):
    abstract = make_program(model, config, mesh).abstract
    kept = kept_of(abstract.opt_state)
    assert kept.keys() == abstract.params.keys()
    for name, weight in abstract.params.items():
        moments = [leaf for leaf in kept[name].values() if leaf.size == weight.size]
        assert moments or (config.name == "adafactor" and config.factored)
        assert {pieces(moment) for moment in moments} <= {pieces(weight)}, name
    assert pieces(abstract.params["embedding.table"]) == mesh.fsdp * mesh.tensor


def test_factored_moments_lie_as_the_axes_they_keep():
    opt_state = make_program(MODEL, RULES["adafactor"], MESHES["fsdp2_tensor2_data2"]).abstract.opt_state
    kept = {
        name: {field: (leaf.shape, tuple(leaf.sharding.spec)) for field, leaf in fields.items()}
        for name, fields in kept_of(opt_state).items()
    }
    layers, attention = "stack.layers", "stack.layers.attention"
    expected = {  # v_row keeps the shorter axis, and of equal ones the first
        f"{attention}.query": (((2, 128), (None, "fsdp")), ((2, 128), (None, "tensor"))),
        f"{attention}.out": (((2, 128), (None, "tensor")), ((2, 128), (None, "fsdp"))),
        f"{layers}.mlp.gate_up": (((2, 2, 128), (None, None, "fsdp")), ((2, 2, 256), (None, None, "tensor"))),
        f"{layers}.mlp.down": (((2, 128), (None, "fsdp")), ((2, 256), (None, "tensor"))),
        "embedding.table": (((128,), ("fsdp",)), ((256,), ("tensor",))),
        "head.table": (((128,), ("fsdp",)), ((256,), ("tensor",))),
    }
    assert {name: (kept[name]["v_row"], kept[name]["v_col"]) for name in expected} == expected
    # Two heads of 32: too narrow to be factored.
    assert kept[f"{attention}.key"]["v"] == ((2, 128, 64), (None, "fsdp", "tensor"))


@pytest.mark.parametrize(
    ("config", "bytes_a_weight"),
    [
        (OptimizerConfig(), 8),
        (OptimizerConfig(name="sgd"), 4),
        (OptimizerConfig(name="lamb"), 8),
        (OptimizerConfig(name="lion"), 4),
        (PALM, 8),
        (OptimizerConfig(name="muon"), 4 * (1 + 2 * 256 * 128 / 361_088)),  # two tables, by AdamW, of all weights
        (OptimizerConfig(name="adafactor"), 0.416),  # most of it for keys and values, too narrow to be factored
    ],
)
def test_an_optimizer_keeps_no_more_than_it_needs(config, bytes_a_weight):
    abstract = make_program(MODEL, config, ONE_DEVICE).abstract
    weights = sum(weight.size for weight in abstract.params.values())
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract.opt_state))
    assert kept / weights == pytest.approx(bytes_a_weight, rel=0.01)


@pytest.mark.parametrize("name", ["adafactor", "palm", "lamb", "lion", "muon"])
def test_a_sharded_update_is_the_unsharded_one(name):
    after = []
    for mesh in (ONE_DEVICE, MESHES["fsdp2_tensor2_data2"]):
        program, random = make_program(MODEL, RULES[name], mesh), np.random.default_rng(0)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)

        def draw_weights(program=program, random=random, shardings=shardings) -> dict[str, jax.Array]:
            drawn = {name: random.standard_normal(d.shape, np.float32) for name, d in program.plan.declared.items()}
            return jax.device_put(drawn, shardings.params)

        def update(params, state, gradient, optimizer=program.optimizer):
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        with jax.set_mesh(program.mesh):
            params = draw_weights()
            state = jax.jit(program.optimizer.init, out_shardings=shardings.opt_state)(params)
            step = jax.jit(update, out_shardings=(shardings.params, shardings.opt_state))
            for _ in range(2):
                params, state = step(params, state, draw_weights())
        after.append(jax.tree.map(np.asarray, (params, state)))
    for expected, actual in zip(*map(jax.tree.leaves, after), strict=True):
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_factored_moments_go_through_whole_steps(packed_rows):
    losses = []
    for mesh in (ONE_DEVICE, MESHES["fsdp2_tensor2_data2"]):
        program = make_program(MODEL, RULES["adafactor"], mesh)
        state = program.first_state()
        assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, program.abstract)
        step = program.compile_step({name: array[0] for name, array in packed_rows.items()})
        batch = place_batch(program.mesh, 16, lambda at: {name: array[at] for name, array in packed_rows.items()})
        losses.append([])
        for _ in range(4):
            state, metrics = step(state, batch)
            losses[-1].append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[0][-1] < losses[0][0]
