"""The digest of an array, computed where the array lies."""

from typing import Any

import jax
import jax.numpy as jnp


def hexadecimal(digest: Any) -> str:
    """A digest's two numbers, on the host, as 16 digits."""
    return "".join(f"{int(part):08x}" for part in digest)


@jax.jit
def array_digest(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two uint32 that differ, but for a chance of 2^-64, if any bit of an array differs or elements change places.

    Each is the wrap-around sum over the elements of hash(bits, hash of the index in each dimension): integer addition
    commutes, so every sharding over every mesh gives the same sum, and the bijective hash lets no single change go
    unseen. Indices are hashed per dimension because a flat index would overflow. One reduction carries both sums:
    nothing of the array's size is written, which two reductions do on CPU.
    """
    if array.dtype == jnp.bool_:
        bits = array.astype(jnp.uint32)
    else:
        unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
        bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    hashes = []
    for seed in (0x9E3779B9, 0x85EBCA6B):
        key = jnp.uint32(seed)
        for axis, size in enumerate(bits.shape):
            index = jax.lax.iota(jnp.uint32, size) + jnp.uint32(seed * (2 * axis + 3) % 2**32)
            key += jax.lax.expand_dims(_mix(index), [other for other in range(bits.ndim) if other != axis])
        hashes.append(_mix(bits ^ key))
    zero = jnp.uint32(0)
    first, second = jax.lax.reduce(
        tuple(hashes), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), tuple(range(bits.ndim))
    )
    return first, second


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which each bit depends on each (lowbias32 of Chris Wellons's hash prospector)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
