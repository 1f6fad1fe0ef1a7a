"""Optimizers and schedules, by Optax.

What is decayed follows from each parameter's declared kind, never from its number of dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import optax

from model.parameters import Declaration, Kind


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule and its schedule. `learning_rate` is the peak, reached after `warmup_steps`."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 3e-4
    schedule: Literal["cosine", "linear", "constant", "noam", "wsd"] = "cosine"
    warmup_steps: int = 100
    final_fraction: float = 0.1  # of the peak, at the end of cosine, linear and wsd
    decay_fraction: float = 0.2  # of all steps, the falling end of wsd (warm-up, stable, decay)
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.1
    decayed: tuple[Kind, ...] = ("matrix",)
    clip_norm: float = 1.0  # 0: no clipping

    def validate(self) -> None:
        """Raise ValueError, in one sentence, for values that cannot train."""
        for name in ("learning_rate", "weight_decay", "clip_norm", "epsilon", "warmup_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be at least 0")
        for name in ("b1", "b2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be at least 0 and less than 1")
        for name in ("final_fraction", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be between 0 and 1")


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate after n updates, for n = 0 .. steps - 1.

    A warm-up longer than the run is shortened to a tenth of it.
    """
    peak = config.learning_rate
    final = peak * config.final_fraction
    warmup = config.warmup_steps if config.warmup_steps < steps else steps // 10
    rest = max(1, steps - warmup)

    def warm(n):
        return peak * (n + 1) / warmup  # the first update already moves

    if config.schedule == "noam":  # Vaswani et al. 2017, with the peak given rather than derived from the width
        turn = max(1, warmup)
        return lambda n: peak * jnp.minimum((n + 1) / turn, (turn / (n + 1)) ** 0.5)
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
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    decay = {name: d.kind in config.decayed for name, d in declared.items()}
    match config.name:
        case "adamw":
            rule = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
        case "sgd":
            rule = optax.trace(config.momentum)
    return optax.chain(
        clip, rule, optax.add_decayed_weights(config.weight_decay, decay), optax.scale_by_learning_rate(schedule)
    )
