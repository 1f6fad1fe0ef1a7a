"""Where a token stands: vectors added to its embedding, queries and keys that are rotated, or a bias of the scores."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.layers import look_up
from model.parameters import normal, param


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


def sinusoids(length: int, dim: int) -> np.ndarray:
    """The fixed vectors [length, D] of Vaswani et al. 2017, float32: all sines, then all cosines.

    The paper interleaves them, and its authors' code, as here, does not: a renaming of dimensions.
    """
    half = (dim + 1) // 2
    angle = np.arange(length)[:, None] / 10_000 ** (2 * np.arange(half) / dim)
    return np.concatenate([np.sin(angle), np.cos(angle)[:, : dim - half]], axis=1).astype(np.float32)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians a position for each pair of dimensions, [K / 2], float32 (RoPE, Su et al. 2021)."""
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


@jax.custom_vjp
def rotate(x_BLHK: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """x with each pair (i, i + K/2) of its last axis turned by its position's angle, in float32.

    Its gradient is turned back. Left to itself JAX would exchange halves that are float32 already, and TPUs hold them.
    """
    cos, sin = tables
    swapped = jnp.concatenate(jnp.split(x_BLHK, 2, axis=-1)[::-1], -1)
    return (x_BLHK.astype(jnp.float32) * cos + swapped.astype(jnp.float32) * sin).astype(x_BLHK.dtype)


def _rotate_backward(tables: tuple[jax.Array, jax.Array], g_BLHK: jax.Array):
    cos, sin = tables
    return rotate(g_BLHK, (cos, -sin)), None


rotate.defvjp(lambda x_BLHK, tables: (rotate(x_BLHK, tables), tables), _rotate_backward)


def places_in_segments(segments_BL: jax.Array) -> jax.Array:
    """Each token's place in its own segment, [B, L], counted from 0."""
    place_BL = jnp.broadcast_to(jnp.arange(segments_BL.shape[1])[None], segments_BL.shape)
    opens_BL = jnp.diff(segments_BL, axis=1, prepend=-1) != 0
    return place_BL - jax.lax.cummax(jnp.where(opens_BL, place_BL, 0), axis=1)


def distance_buckets(buckets: int, distance: int) -> np.ndarray:
    """The bucket of each distance up to `distance`, [distance + 1].

    Made by the host: where a bucket begins at a whole distance, as T5's do, a device's logarithm may fall short of it.
    """
    exact, places = buckets // 2, np.arange(distance + 1)
    ratio = np.log(np.maximum(places, exact) / exact) / math.log(distance / exact)
    wide = np.minimum(exact + (ratio * (buckets - exact)).astype(np.int32), buckets - 1)
    return np.where(places < exact, places, wide).astype(np.int32)


class RelativeBias(nnx.Module):
    """A learned bias of the scores by the distance from query to key (T5, Raffel et al. 2020).

    Small distances have a bucket each, larger ones share buckets that widen logarithmically up to `distance`, from
    which on there is one. Where attention is bidirectional, half of the buckets are for keys after the query.
    """

    def __init__(self, num_heads: int, buckets: int, distance: int, std: float, rngs: nnx.Rngs):
        self.buckets, self.distance = buckets, distance
        self.table = param(rngs, (buckets, num_heads), ("buckets", "heads"), normal(std), "embedding")

    def __call__(self, q_index_BL: jax.Array, k_index_BM: jax.Array, *, bidirectional: bool) -> jax.Array:
        """The bias [B, H, L, M] of these places, in the dtype of the weights; B is 1 where the places are for all."""
        ahead_BLM = k_index_BM[:, None, :] - q_index_BL[:, :, None]
        buckets = self.buckets // 2 if bidirectional else self.buckets
        behind_BLM = jnp.abs(ahead_BLM) if bidirectional else jnp.maximum(-ahead_BLM, 0)
        bucket_BLM = jnp.asarray(distance_buckets(buckets, self.distance))[jnp.minimum(behind_BLM, self.distance)]
        if bidirectional:
            bucket_BLM = bucket_BLM + jnp.where(ahead_BLM > 0, buckets, 0)
        return jnp.moveaxis(look_up(self.table[...], bucket_BLM), -1, 1)
