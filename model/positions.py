"""Where a token stands: vectors added to its embedding, or queries and keys that are rotated (RoPE, Su et al. 2021)."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of RoPE to longer texts.

    Wavelengths above `original_max_length / low_frequency_factor` grow by `factor`, those below
    `original_max_length / high_frequency_factor` stay, and those between are interpolated.
    """

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_length: int = 8192


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians a position for each pair of dimensions, [K / 2], float32."""
    frequency = (1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).astype(np.float64)
    if scaling is not None:
        turns = scaling.original_max_length * frequency / (2 * math.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency
    return frequency.astype(np.float32)


def rope_tables(
    positions_BL: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None
) -> tuple[jax.Array, jax.Array]:
    """Cosine and signed sine, each [B, L, 1, K] float32, made once for all layers.

    The sine's first half is negated, so that rotating is x cos + swap(x) sin.
    """
    angle = (
        positions_BL[..., None].astype(jnp.float32)
        * jnp.asarray(rope_frequencies(head_dim, theta, scaling))[None, None]
    )
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([cos, cos], -1)[:, :, None], jnp.concatenate([-sin, sin], -1)[:, :, None]


def rotate(x_BLHK: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """x with each pair (i, i + K/2) of its last axis turned by its position's angle, in float32."""
    cos, sin = tables
    x = x_BLHK.astype(jnp.float32)
    first, second = jnp.split(x, 2, axis=-1)
    return (x * cos + jnp.concatenate([second, first], -1) * sin).astype(x_BLHK.dtype)
