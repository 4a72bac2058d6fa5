"""Index equations and rows of tables: products as einsum, everything else as broadcasting that XLA fuses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.xla.arrays import real_of, serve
from tfc.backends.xla.formula import Reader
from tfc.ir.ops import Index, Take
from tfc.ir.program import Eqn

__all__ = ["INDEX", "TAKE"]

Array = jax.Array
Call = Callable[..., tuple[Array, ...]]


def _build_index(eqn: Eqn, target: Target) -> Call:
    op = eqn.op
    assert isinstance(op, Index)
    shape = eqn.out.type.ints
    grid = [(name, n) for name, n in (*op.axes, *op.reduced) if isinstance(n, int)]
    axes = {name: (axis, n) for axis, (name, n) in enumerate(grid)}

    def call(*operands: Array) -> tuple[Array, ...]:
        values = Reader(real=real_of(eqn), operands=operands, axes=axes)(op.expr)
        values = jnp.broadcast_to(values, (*shape, *(1 for _ in op.reduced)))
        return (jnp.reshape(values, shape).astype(DTYPES[eqn.out.type.dtype]),)

    return call


def _build_take(eqn: Eqn, target: Target) -> Call:
    """A float table gives NaN for an id that it lacks, rather than another row."""
    floating = eqn.out.type.dtype.floating

    def call(table: Array, ids: Array) -> tuple[Array, ...]:
        if floating:
            return (table.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False),)
        return (table.at[jnp.clip(ids, 0, table.shape[0] - 1)].get(mode="promise_in_bounds"),)

    return call


INDEX = Kernel(name="xla", op=Index, refuse=serve, build=_build_index)
TAKE = Kernel(name="xla", op=Take, refuse=serve, build=_build_take)
