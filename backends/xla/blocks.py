"""A row of a cache, read block by block of its tokens, so that no copy of the row is made: products with keys, values.

What stands between the two products of an attention sees all keys, as it would otherwise. XLA would turn a cache, or
the row handed to a product, into the order of axes that the product likes best; so each block's order is pinned.

B batch, M keys, G key/value heads, D head size, R query rows of a group: its heads times the queries.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from tfc.backends.kernel import Late

__all__ = ["Blocks"]

Array = jax.Array

LEAST = 64
"""Tokens of a block at least; else a sixteenth of them, so that a block is small beside the row."""


@dataclass(frozen=True)
class Blocks:
    """row: [B, M, G, D].   seen: bool [B, M], what is not seen counts as 0; None for all."""

    row: Late
    seen: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.row.shape

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.row.dtype)

    @property
    def size(self) -> int:
        m = self.shape[1]
        return min(m, max(LEAST, -(-m // 16)))

    @property
    def count(self) -> int:
        return -(-self.shape[1] // self.size)

    def scores(self, rows: Array, real: Any) -> Array:
        """rows keys^T.   rows: [B, G, R, D]   -> [B, G, R, M]"""

        def block(n: Array, made: Array) -> Array:
            first = jnp.minimum(n * self.size, self.shape[1] - self.size)
            k = self._block(first)
            exact = "highest" if k.dtype.itemsize > 2 else None
            over = (((3,), (3,)), ((0, 1), (0, 2)))
            s = lax.dot_general(rows, k, over, precision=exact, preferred_element_type=real)
            return lax.dynamic_update_slice_in_dim(made, s, first, 3)

        made: Array = lax.fori_loop(0, self.count, block, jnp.zeros((*rows.shape[:3], self.shape[1]), real))
        return made

    def sums(self, weights: Array, real: Any) -> Array:
        """weights values.   weights: [B, G, R, M], rounded to the values' type   -> [B, G, R, D]"""

        def block(n: Array, total: Array) -> Array:
            first = jnp.minimum(n * self.size, self.shape[1] - self.size)
            v = self._block(first)
            w = lax.dynamic_slice_in_dim(weights, first, self.size, 3).astype(v.dtype)
            # the last block may begin early, with tokens of the one before
            w = jnp.where(first + jnp.arange(self.size) >= n * self.size, w, 0)
            exact = "highest" if v.dtype.itemsize > 2 else None
            over = (((3,), (1,)), ((0, 1), (0, 2)))
            return total + lax.dot_general(w, v, over, precision=exact, preferred_element_type=real)

        made: Array = lax.fori_loop(0, self.count, block, jnp.zeros((*weights.shape[:3], self.shape[3]), real))
        return made

    def _block(self, first: Array) -> Array:
        """[B, size, G, D], from the token `first` on."""
        x, index = (self.row.x[None], 0) if self.row.index is None else (self.row.x, self.row.index)
        _, b, _, g, d = x.shape
        at = [jnp.asarray(i, jnp.int32) for i in (index, 0, first, 0, 0)]
        cut = lax.dynamic_slice(x, at, (1, b, self.size, g, d))
        block: Array = with_layout_constraint(cut, Layout(major_to_minor=(0, 1, 2, 3, 4)))[0].astype(self.row.dtype)
        if self.seen is None:
            return block
        return jnp.where(lax.dynamic_slice_in_dim(self.seen, first, self.size, 1)[..., None, None], block, 0)
