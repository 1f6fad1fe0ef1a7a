"""The order of the rows: a permutation for each epoch that is computed, not stored, for many rows at once.

Grain's index_shuffle does the same a row at a time and brings JAX along (1.9 s of import, 2.6 us a row, measured);
this is numpy alone. It is the generalized Feistel cipher with cycle walking of Black and Rogaway 2002, "Ciphers with
Arbitrary Finite Domains".
"""

import numpy as np

_ROUNDS = 8


def mix(*values: np.ndarray | int) -> np.ndarray:
    """A well-mixed uint64 of integers, element by element: equal values give equal results everywhere."""
    state = np.zeros(np.broadcast_shapes(*(np.shape(value) for value in values)), np.uint64)
    for value in values:
        state = _absorb(state, np.asarray(value).astype(np.uint64))
    return state


def permute(indices: np.ndarray, size: int, keys: np.ndarray | np.uint64) -> np.ndarray:
    """Where a permutation of 0..size-1 takes each index (int64 [n]), in constant memory.

    `keys` (uint64, [n] or scalar) names the permutation of each index: one of pseudorandom ones.
    """
    indices = np.asarray(indices, np.int64)
    # The indices are places in a rectangle just large enough: rows and columns are shifted in turns, by amounts that
    # depend on the other coordinate, which is a bijection of the rectangle.
    height = int(np.ceil(np.sqrt(size)))
    width = -(-size // height)
    keys = np.broadcast_to(np.asarray(keys, np.uint64), indices.shape)
    result = _encipher(indices, height, width, keys)
    # A place beyond the size walks on along its cycle until it is back inside.
    while (outside := np.flatnonzero(result >= size)).size:
        result[outside] = _encipher(result[outside], height, width, keys[outside])
    return result


def _encipher(indices: np.ndarray, height: int, width: int, keys: np.ndarray) -> np.ndarray:
    row, column = (part.astype(np.uint64) for part in np.divmod(indices, width))
    round_keys = mix(keys, np.arange(_ROUNDS)[:, None])
    for even, odd in round_keys.reshape(_ROUNDS // 2, 2, len(indices)):
        row = (row + _absorb(even, column) % np.uint64(height)) % np.uint64(height)
        column = (column + _absorb(odd, row) % np.uint64(width)) % np.uint64(width)
    return (row * np.uint64(width) + column).astype(np.int64)


def _absorb(state: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The state mixed with one more value."""
    with np.errstate(over="ignore"):  # wrapping around is the arithmetic meant here
        return _scramble((state + np.uint64(0x9E3779B97F4A7C15)) ^ value)


def _scramble(state: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
