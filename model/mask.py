"""Which query may attend to which key, as data rather than a matrix, so that every kernel can use it in its own way."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

MASKED = -1e30  # a score or logit of probability zero: finite, so that a row with nothing else in it has no NaN


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["window", "q_index_BL", "k_index_BM", "q_segments_BL", "k_segments_BM", "seen_BLM"],
    meta_fields=["causal"],
)
@dataclass(frozen=True)
class Mask:
    """Query l may attend to key m where all that is given agrees.

    causal: k_index <= q_index. window: also q_index - k_index < window. Indices default to 0, 1, ... . Segments: equal
    numbers only; two documents in one row have different numbers, and padding has 0, which attends to nothing but
    padding. seen: only where true.
    """

    causal: bool = True
    window: jax.Array | int | None = None
    q_index_BL: jax.Array | None = None
    k_index_BM: jax.Array | None = None
    q_segments_BL: jax.Array | None = None
    k_segments_BM: jax.Array | None = None
    seen_BLM: jax.Array | None = None

    @property
    def counts_from_start(self) -> bool:
        """Whether indices are places in the row."""
        return self.q_index_BL is None and self.k_index_BM is None

    @property
    def is_plainly_causal(self) -> bool:
        """Whether query l never sees a key after l, by its place in the row alone."""
        return self.causal and self.counts_from_start

    @property
    def segments(self) -> tuple[jax.Array, jax.Array] | None:
        """The segments of queries and of keys, where they count."""
        if self.q_segments_BL is None or self.k_segments_BM is None:
            return None
        return self.q_segments_BL, self.k_segments_BM

    def allowed(self, length: int, memory: int) -> jax.Array:
        """The matrix: bool, [B or 1, L, M]."""
        q = jnp.arange(length)[None] if self.q_index_BL is None else self.q_index_BL
        k = jnp.arange(memory)[None] if self.k_index_BM is None else self.k_index_BM
        allowed = jnp.ones((1, length, memory), bool)
        if self.causal:
            allowed &= k[:, None, :] <= q[:, :, None]
        if self.window is not None:
            allowed &= q[:, :, None] - k[:, None, :] < self.window
        if self.segments is not None:
            q_segments_BL, k_segments_BM = self.segments
            allowed = allowed & (q_segments_BL[:, :, None] == k_segments_BM[:, None, :])
        return allowed if self.seen_BLM is None else allowed & self.seen_BLM
