"""Optimizers and schedules, by Optax.

What is decayed follows from each parameter's declared kind, never from its number of dimensions. Rules of whole tensors
(norms, factored moments, orthogonalisation) see each weight as the tensors that it is published as: one a layer of a
stack, matrices with all heads in one axis, a gate apart from what it gates. All of this follows from the declared axes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from model.parameters import Declaration, Kind

_DEFAULTS = {  # those of GPT-3 and Llama by AdamW
    "learning_rate": 3e-4,
    "b1": 0.9,
    "b2": 0.95,
    "epsilon": 1e-8,
    "momentum": 0.9,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
}
# What was published with each rule, where it differs.
_PUBLISHED: dict[str, dict[str, float]] = {
    "adamw": {},
    "sgd": {},
    # Shazeer & Stern 2018; the rate of T5 and PaLM, which is relative to the size of each weight.
    "adafactor": {"learning_rate": 1e-2, "b1": 0.0, "epsilon": 1e-30, "weight_decay": 0.0, "clip_norm": 0.0},
    # You et al. 2019; the rate of ALBERT, at 4,096 rows a batch.
    "lamb": {"learning_rate": 1.76e-3, "b2": 0.999, "epsilon": 1e-6, "weight_decay": 0.01},
    # Chen et al. 2023: rates 3 to 10 times smaller than AdamW's, and decay larger by as much.
    "lion": {"learning_rate": 1e-4, "b2": 0.99, "weight_decay": 0.3},
    # Liu et al. 2025: updates as large as AdamW's, so that its rate and decay stay.
    "muon": {"momentum": 0.95},
}


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule and its schedule. `learning_rate` is the peak.

    Fields that are None take what was published with the rule; `resolved` fills them in.
    """

    name: Literal["adamw", "sgd", "adafactor", "lamb", "lion", "muon"] = "adamw"
    learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant", "noam", "wsd", "rsqrt"] = "cosine"
    warmup_steps: int = 100  # in which the rate rises to the peak; rsqrt stays at the peak for them
    final_fraction: float = 0.1  # of the peak, at the end of cosine, linear and wsd
    decay_fraction: float = 0.2  # of all steps, the falling end of wsd (warm-up, stable, decay)
    b1: float | None = None  # adafactor has this momentum only if it is not 0
    b2: float | None = None  # adafactor's is 1 - step^-0.8
    epsilon: float | None = None
    momentum: float | None = None  # of sgd and muon
    factored: bool = True  # adafactor keeps the squares of a matrix's gradient as means of its rows and columns
    parameter_scaling: bool = True  # adafactor's rate is relative to each tensor's root mean square
    weight_decay: float | None = None  # what a step takes of a weight: this, times a power of the learning rate
    weight_decay_power: float = 1.0  # that power; PaLM's is 2
    decayed: tuple[Kind, ...] = ("matrix",)
    clip_norm: float | None = None  # 0: no clipping

    def value(self, field: str) -> float:
        """A field's value, or where it is None what was published with the rule."""
        given = getattr(self, field)
        return {**_DEFAULTS, **_PUBLISHED[self.name]}[field] if given is None else given

    def resolved(self) -> "OptimizerConfig":
        """The same configuration with nothing left to follow from other fields."""
        return replace(self, **{field: self.value(field) for field in _DEFAULTS})

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for values that cannot train."""
        values = vars(self.resolved())
        for name in ("learning_rate", "weight_decay", "clip_norm", "epsilon", "warmup_steps"):
            if not values[name] >= 0:
                raise ValueError(f"optimizer.{name}={values[name]} must be at least 0")
        for name in ("b1", "b2", "momentum"):
            if not 0 <= values[name] < 1:
                raise ValueError(f"optimizer.{name}={values[name]} must be at least 0 and less than 1")
        for name in ("final_fraction", "decay_fraction"):
            if not 0 <= values[name] <= 1:
                raise ValueError(f"optimizer.{name}={values[name]} must be between 0 and 1")
        if not self.weight_decay_power >= 1:
            raise ValueError(f"optimizer.weight_decay_power={self.weight_decay_power} must be at least 1")


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate after n updates, for n = 0 .. steps - 1.

    A warm-up longer than the run is shortened to a tenth of it.
    """
    peak = config.value("learning_rate")
    final = peak * config.final_fraction
    warmup = config.warmup_steps if config.warmup_steps < steps else steps // 10
    rest = max(1, steps - warmup)

    def warm(n):
        return peak * (n + 1) / warmup  # the first update already moves

    if config.schedule == "noam":  # Vaswani et al. 2017, with the peak given rather than derived from the width
        turn = max(1, warmup)
        return lambda n: peak * jnp.minimum((n + 1) / turn, (turn / (n + 1)) ** 0.5)
    if config.schedule == "rsqrt":  # T5 and PaLM: 0.01 for 10,000 steps, then 1 / sqrt(step); no warm-up to shorten
        return lambda n: peak * jnp.minimum(1.0, (max(1, config.warmup_steps) / (n + 1)) ** 0.5)
    after: optax.Schedule
    match config.schedule:
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, final, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest, config.final_fraction)
        case "wsd":
            decay = max(1, round(steps * config.decay_fraction))
            after = optax.linear_schedule(peak, final, decay, transition_begin=max(0, rest - decay))
    return optax.join_schedules([warm, after], [warmup]) if warmup else after


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, declared: Mapping[str, Declaration]
) -> optax.GradientTransformation:
    """Clipping by global norm, then the update rule, with decoupled weight decay on the kinds in `config.decayed`."""
    fields = ("b1", "b2", "epsilon", "momentum", "weight_decay", "clip_norm")
    b1, b2, epsilon, momentum, weight_decay, clip_norm = map(config.value, fields)
    decayed = {name: d.kind in config.decayed for name, d in declared.items()}
    forms = {name: _Form.of(d) for name, d in declared.items()}

    def decay(power: float) -> optax.GradientTransformation:
        scheduled = weight_decay > 0 and power > 0
        factor = (lambda n: weight_decay * schedule(n) ** power) if scheduled else weight_decay
        return optax.add_decayed_weights(factor, decayed)

    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    adam = optax.scale_by_adam(b1, b2, epsilon)
    decay_before_rate = decay(config.weight_decay_power - 1)
    rate = optax.scale_by_learning_rate(schedule)
    match config.name:
        case "adamw":
            return optax.chain(clip, adam, decay_before_rate, rate)
        case "sgd":
            return optax.chain(clip, optax.trace(momentum), decay_before_rate, rate)
        case "lion":
            return optax.chain(clip, optax.scale_by_lion(b1, b2), decay_before_rate, rate)
        case "muon":
            hidden = {name: form for name, form in forms.items() if _is_hidden_matrix(declared[name], form)}
            others = {name: name not in hidden for name in declared}
            rules = _per_tensor(_muon(momentum), hidden), optax.masked(adam, others)
            return optax.chain(clip, *rules, decay_before_rate, rate)
        case "lamb":
            # Not biases and norms, as in its authors' code: born as zeros and ones, they have no scale of their own.
            adapted = {name: form for name, form in forms.items() if declared[name].kind in ("matrix", "embedding")}
            ratio = _per_tensor(optax.scale_by_trust_ratio(), adapted)
            return optax.chain(clip, adam, decay_before_rate, ratio, rate)
        case "adafactor":
            # Its momentum is of whole steps, learning rate and all, and its decay outside of that (T5X, Optax).
            rule = _per_tensor(_adafactor(config, epsilon), forms)
            rate = optax.scale_by_learning_rate(schedule, flip_sign=False)
            average = optax.ema(b1, debias=False) if b1 else optax.identity()
            return optax.chain(clip, rule, rate, average, decay(config.weight_decay_power), optax.scale(-1.0))


def _adafactor(config: OptimizerConfig, epsilon: float) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018) for one tensor, before the learning rate."""
    return optax.chain(
        optax.scale_by_factored_rms(config.factored, epsilon=epsilon),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms() if config.parameter_scaling else optax.identity(),
    )


def _muon(momentum: float) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for one matrix, with updates as large as AdamW's (Liu et al. 2025)."""
    return optax.chain(
        contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=contrib.MuonDimensionNumbers()),
        optax.stateless_with_tree_map(lambda update, _: 0.2 * math.sqrt(max(jnp.shape(update))) * update),
    )


def _is_hidden_matrix(declared: Declaration, form: "_Form") -> bool:
    """Whether a weight is a matrix that leads neither to tokens nor to labels."""
    return declared.kind == "matrix" and bool(form.inputs) and not {"vocab", "classes"} & {*declared.axes}


@dataclass(frozen=True)
class _Form:
    """A weight as the tensors that it is published as, by the indices of its axes.

    Along the `separate` axes lie tensors of their own; each is a matrix [inputs, outputs], or without inputs a vector.
    The padding rows of a vocabulary are rows like others, of zeros.
    """

    shape: tuple[int, ...]
    separate: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, declared: Declaration) -> "_Form":
        """The form of a weight: its output is its last axis, with the heads before that where it is their inside."""
        axes = declared.axes
        separate = tuple(i for i, axis in enumerate(axes) if axis in ("layers", "gate"))
        rest = tuple(i for i in range(len(axes)) if i not in separate)
        outputs = 2 if axes[-1] == "head_dim" else 1
        return cls(declared.shape, separate, rest[:-outputs], rest[-outputs:])

    def tensors(self, weight: jax.Array) -> jax.Array:
        """The weight as [*separate, inputs, outputs] or [*separate, outputs]."""
        joined = [math.prod(self.shape[i] for i in axes) for axes in (self.inputs, self.outputs) if axes]
        moved = jnp.moveaxis(weight, self.separate, range(len(self.separate)))
        return moved.reshape([self.shape[i] for i in self.separate] + joined)

    def weight(self, tensors: jax.Array) -> jax.Array:
        """The weight whose `tensors` these are."""
        moved = tensors.reshape([self.shape[i] for i in self.separate + self.inputs + self.outputs])
        return jnp.moveaxis(moved, range(len(self.separate)), self.separate)

    def each(self, function: Callable) -> Callable:
        """`function` of single tensors, as one of all that a weight holds."""
        for _ in self.separate:
            function = jax.vmap(function)
        return function


def _per_tensor(rule: optax.GradientTransformation, forms: Mapping[str, _Form]) -> optax.GradientTransformation:
    """`rule` applied to every tensor alone, for the weights that have a form; others pass unchanged."""

    def init(params):
        return {name: form.each(rule.init)(form.tensors(params[name])) for name, form in forms.items()}

    def update(updates, state, params=None):
        assert params is not None
        done = {
            name: form.each(rule.update)(form.tensors(updates[name]), state[name], form.tensors(params[name]))
            for name, form in forms.items()
        }
        changed = {name: forms[name].weight(tensors) for name, (tensors, _) in done.items()}
        return {**updates, **changed}, {name: new for name, (_, new) in done.items()}

    return optax.GradientTransformation(init, update)
