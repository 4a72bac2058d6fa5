"""Index equations and rows of tables, as their definitions read."""

from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.reference.dense import Dense
from tfc.ir.ops import Index, Take

__all__ = ["index", "take"]

Array = jax.Array


def index(op: Index, real: Any, *operands: Array) -> tuple[Array]:
    """Every element of the result by the equation, on the grid of all indices, those reduced over last."""
    grid = [(name, n) for name, n in (*op.axes, *op.reduced) if isinstance(n, int)]
    rank = len(grid)
    axes = {name: axis for axis, (name, _) in enumerate(grid)}
    sizes = dict(grid)
    reader = Dense(
        real=real,
        operands=operands,
        vars={
            name: jnp.reshape(jnp.arange(n, dtype=jnp.int32), [n if i == axis else 1 for i in range(rank)])
            for axis, (name, n) in enumerate(grid)
        },
        axes=axes,
        sizes=sizes,
    )
    shape = [n for _, n in grid[: len(op.axes)]]
    values = jnp.broadcast_to(reader(op.expr), shape + [1] * len(op.reduced))
    return (jnp.reshape(values, shape),)


def take(op: Take, real: Any, table: Array, ids: Array) -> tuple[Array]:
    """Rows of a table.   table: [V, ...C]   ids: int [...]   -> [..., ...C]

    An id outside 0..V-1 is an error of the caller; in a float table its row reads as NaN, never as another row.
    """
    rows = table[jnp.clip(ids, 0, table.shape[0] - 1)]
    if not jnp.issubdtype(table.dtype, jnp.floating):
        return (rows,)
    known = (ids >= 0) & (ids < table.shape[0])
    return (jnp.where(jnp.reshape(known, known.shape + (1,) * (table.ndim - 1)), rows, jnp.nan),)
