"""Rows of a stack, written token by token and read, as the definitions read."""

from typing import Any

import jax
import jax.numpy as jnp

from tfc.ir.ops import CacheRead, CacheWrite

__all__ = ["cache_read", "cache_write"]

Array = jax.Array


def cache_write(
    op: CacheWrite,
    real: Any,
    stack: Array,
    new: Array,
    index: Array,
    at: Array | None = None,
    count: Array | None = None,
) -> tuple[Array]:
    """Row `index` with new[b, i] at at[b] + i for i < count[b], or with `new` in its place.

    stack: [S, B, L, ...]   new: [B, N, ...]   at, count: int [B]   -> stack's shape
    """
    row = stack[index]
    if at is None or count is None:
        made = new.astype(row.dtype)
    else:
        token = jnp.arange(row.shape[1])[None, :] - at[:, None]  # which new token each place takes
        taken = (token >= 0) & (token < jnp.minimum(count[:, None], new.shape[1]))
        where = jnp.reshape(jnp.clip(token, 0, new.shape[1] - 1), (*token.shape, *[1] * (new.ndim - 2)))
        picked = jnp.take_along_axis(new.astype(row.dtype), where, axis=1) if new.shape[1] else row
        made = jnp.where(jnp.reshape(taken, where.shape), picked, row)
    rows = jnp.reshape(jnp.arange(stack.shape[0]) == index, (-1, *[1] * row.ndim))
    return (jnp.where(rows, made[None], stack),)


def cache_read(op: CacheRead, real: Any, stack: Array, index: Array) -> tuple[Array]:
    """Row `index`.   stack: [S, ...] -> [...]"""
    return (stack[index],)
