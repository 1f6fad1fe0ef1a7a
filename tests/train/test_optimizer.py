"""Optimizers and schedules against closed forms and other implementations of them."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model.parameters import Declaration
from train.optimizer import OptimizerConfig, make_optimizer, make_schedule

PEAK = 0.5
DECLARED = {
    "layers.attention.query": Declaration((2, 4, 3), ("layers", "embed", "heads"), "matrix"),
    "layers.attention.query_bias": Declaration((2, 3), ("layers", "heads"), "bias"),  # two dimensions, being stacked
    "layers.norm.scale": Declaration((2, 4), ("layers", "norm"), "scale"),
    "embedding.table": Declaration((5, 4), ("vocab", "embed"), "embedding"),
}


def rates(schedule: optax.Schedule, numbers: Iterable[int]) -> np.ndarray:
    return np.array([jnp.asarray(schedule(number)) for number in numbers])


def falling(fraction: float, of: float = 0.1) -> float:
    """From the peak, at 0, along a straight line to `of` the peak, at 1."""
    return PEAK * (1 - (1 - of) * fraction)


@pytest.mark.parametrize(
    ("schedule", "after_warmup"),
    [
        ("constant", lambda n: PEAK),
        ("linear", lambda n: falling((n - 10) / 90)),
        ("cosine", lambda n: PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi * (n - 10) / 90)) / 2)),
        ("wsd", lambda n: PEAK if n <= 80 else falling((n - 80) / 20)),
    ],
)
def test_schedules_have_their_closed_forms(schedule, after_warmup):
    rate = make_schedule(OptimizerConfig(learning_rate=PEAK, schedule=schedule, warmup_steps=10), 100)
    expected = [PEAK * (n + 1) / 10 if n < 10 else after_warmup(n) for n in range(100)]
    np.testing.assert_allclose(rates(rate, range(100)), expected, rtol=1e-6)
    assert rates(rate, (9, 10)).tolist() == [PEAK, PEAK]


def test_noam_rises_and_falls_with_the_square_root():
    rate = make_schedule(OptimizerConfig(learning_rate=PEAK, schedule="noam", warmup_steps=10), 1000)
    np.testing.assert_allclose(rates(rate, (0, 4, 9, 39, 999)), [0.05, 0.25, 0.5, 0.25, 0.05], rtol=1e-6)


def test_rsqrt_is_the_schedule_of_palm_whatever_the_steps():
    config = OptimizerConfig(learning_rate=1e-2, schedule="rsqrt", warmup_steps=10_000)
    steps = np.array([1, 5_000, 10_000, 20_000, 255_000])
    expected = np.minimum(1e-2, 1 / np.sqrt(steps))
    for length in (100, 1_000_000):
        np.testing.assert_allclose(rates(make_schedule(config, length), steps - 1), expected, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "noam", "wsd"])
@pytest.mark.parametrize(("steps", "warmup"), [(50, 5), (9, 0), (1, 0)])
def test_a_warmup_longer_than_the_run_is_shortened(schedule, steps, warmup):
    rate, shortened = (
        make_schedule(OptimizerConfig(learning_rate=PEAK, schedule=schedule, warmup_steps=n), steps)
        for n in (100, warmup)
    )
    measured = rates(rate, range(steps)).tolist()
    assert measured == rates(shortened, range(steps)).tolist()
    assert max(measured) == PEAK
    assert measured.index(PEAK) <= warmup


def test_schedules_end_where_they_are_told():
    config = OptimizerConfig(learning_rate=PEAK, warmup_steps=0, final_fraction=0.25, decay_fraction=0.5)
    for schedule, middle in (("linear", falling(0.5, 0.25)), ("cosine", 0.625 * PEAK), ("wsd", PEAK)):
        rate = make_schedule(dataclasses.replace(config, schedule=schedule), 40)
        np.testing.assert_allclose(rates(rate, (0, 20, 40)), [PEAK, middle, 0.25 * PEAK], rtol=1e-6)


def gradients_and_parameters():
    random = np.random.default_rng(0)

    def draw():
        return {name: random.standard_normal(d.shape).astype(np.float32) for name, d in DECLARED.items()}

    return draw(), [draw() for _ in range(5)]


def run(optimizer: optax.GradientTransformation):
    params, gradients = gradients_and_parameters()
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params


@pytest.mark.core
def test_adamw_is_the_published_formula():
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=2, weight_decay=0.2, clip_norm=1.5)
    schedule = make_schedule(config, 5)
    ours = run(make_optimizer(config, schedule, DECLARED))

    # Loshchilov and Hutter 2019, algorithm 2, in float64.
    params, gradients = gradients_and_parameters()
    params = {name: value.astype(np.float64) for name, value in params.items()}
    learning_rates = rates(schedule, range(5))
    first, second = ({name: np.zeros(value.shape) for name, value in params.items()} for _ in range(2))
    for t, gradient in enumerate(gradients, start=1):
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        for name, g in gradient.items():
            g = g * min(1, 1.5 / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            direction = first[name] / (1 - 0.9**t) / (np.sqrt(second[name] / (1 - 0.95**t)) + 1e-8)
            decay = 0.2 if DECLARED[name].kind == "matrix" else 0
            params[name] -= learning_rates[t - 1] * (direction + decay * params[name])
    for name, expected in params.items():
        np.testing.assert_allclose(ours[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)


def test_adamw_is_optax_adamw():
    config = OptimizerConfig(learning_rate=0.01, schedule="constant", warmup_steps=0, clip_norm=0)
    mask = {name: name == "layers.attention.query" for name in DECLARED}
    theirs = run(optax.adamw(0.01, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=mask))
    jax.tree.map(np.testing.assert_array_equal, run(make_optimizer(config, lambda n: 0.01, DECLARED)), theirs)


def test_sgd_has_momentum():
    config = OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=0, clip_norm=0)
    ours = run(make_optimizer(config, lambda n: 0.1, DECLARED))
    params, gradients = gradients_and_parameters()
    for name, value in params.items():
        velocity = np.zeros(value.shape)
        for gradient in gradients:
            velocity = 0.9 * velocity + gradient[name]
            value = value - 0.1 * velocity
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6)


def test_lamb_is_the_published_formula():
    config = OptimizerConfig(name="lamb", learning_rate=0.01, weight_decay=0.2, clip_norm=0)
    ours = run(make_optimizer(config, lambda n: 0.01, DECLARED))

    # You et al. 2019, algorithm 2, in float64, with the ratio for matrices and embeddings as in its authors' code.
    params, gradients = gradients_and_parameters()
    for name, declaration in DECLARED.items():
        kind = declaration.kind
        layers = params[name] if declaration.axes[0] == "layers" else params[name][None]
        for layer, x in enumerate(layers.astype(np.float64)):
            first, second = np.zeros_like(x), np.zeros_like(x)
            for t, gradient in enumerate(gradients, start=1):
                g = gradient[name][layer] if declaration.axes[0] == "layers" else gradient[name]
                first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g.astype(np.float64) ** 2
                r = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-6)
                r = r + 0.2 * x if kind == "matrix" else r
                ratio = np.linalg.norm(x) / np.linalg.norm(r) if kind in ("matrix", "embedding") else 1
                x = x - 0.01 * ratio * r
            found = ours[name][layer] if declaration.axes[0] == "layers" else ours[name]
            np.testing.assert_allclose(found, x, rtol=2e-5, atol=1e-6, err_msg=name)


RULES = ["adamw", "sgd", "adafactor", "lion", "muon"]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("decayed", [("matrix",), ("matrix", "embedding"), ()])
def test_decay_follows_the_declared_kind_and_nothing_else(name, decayed):
    config = OptimizerConfig(name=name, weight_decay=0.5, decayed=decayed)
    assert_decayed(config, {name for name, d in DECLARED.items() if d.kind in decayed}, 0.1 * 0.5)


@pytest.mark.parametrize("name", RULES)
def test_decay_goes_with_a_power_of_the_learning_rate(name):
    config = OptimizerConfig(name=name, weight_decay=0.5, weight_decay_power=2.0)
    assert_decayed(config, {"layers.attention.query"}, 0.1**2 * 0.5)


def assert_decayed(config: OptimizerConfig, decayed: set[str], fraction: float):
    """Without a gradient, one step at the learning rate 0.1 takes this fraction of what is decayed, and no more."""
    params: dict[str, Any] = gradients_and_parameters()[0]
    optimizer = make_optimizer(config, lambda n: 0.1, DECLARED)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates: Any = optimizer.update(nothing, optimizer.init(params), params)[0]
    for name, value in params.items():
        np.testing.assert_allclose(updates[name], -fraction * value * (name in decayed), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", [*RULES, "lamb"])
def test_padding_rows_stay_zero(name):
    declared = {"table": Declaration((256, 128), ("vocab", "embed"), "embedding")}
    random = np.random.default_rng(0)
    real = np.arange(256)[:, None] < 130
    table, gradient = ({"table": real * random.standard_normal((256, 128), np.float32)} for _ in range(2))
    optimizer = make_optimizer(OptimizerConfig(name=name, decayed=("embedding",)), lambda n: 0.1, declared)
    updates: Any = optimizer.update(gradient, optimizer.init(table), table)[0]
    assert not np.where(real, 0, updates["table"]).any()
    assert np.where(real, updates["table"], 1).all()


def test_what_is_left_open_is_what_was_published_with_the_rule():
    adamw = OptimizerConfig().resolved()
    assert (adamw.learning_rate, adamw.b1, adamw.b2, adamw.epsilon) == (3e-4, 0.9, 0.95, 1e-8)
    assert (adamw.weight_decay, adamw.clip_norm) == (0.1, 1.0)
    lamb = OptimizerConfig(name="lamb").resolved()
    assert (lamb.learning_rate, lamb.b2, lamb.epsilon, lamb.weight_decay) == (1.76e-3, 0.999, 1e-6, 0.01)
    adafactor = OptimizerConfig(name="adafactor", clip_norm=0.5).resolved()
    assert (adafactor.b1, adafactor.epsilon, adafactor.weight_decay, adafactor.clip_norm) == (0.0, 1e-30, 0.0, 0.5)
    for config in (adamw, lamb, adafactor):
        assert config.resolved() == config
        assert None not in dataclasses.astuple(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("warmup_steps", -1),
        ("b1", 1.0),
        ("b2", -0.1),
        ("momentum", 1.0),
        ("final_fraction", 1.5),
        ("decay_fraction", -0.5),
        ("weight_decay_power", 0.5),
        ("clip_norm", -1.0),
    ],
)
def test_values_that_cannot_train_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"^optimizer\.{field}={value} must be .*[^.]$"):
        OptimizerConfig(**{field: value}).validate()
