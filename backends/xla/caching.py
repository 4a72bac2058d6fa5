"""Rows of a stack as updates that XLA does in place: a scatter of the new tokens, a slice put back, a slice read."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from tfc.backends.kernel import Kernel, Target
from tfc.backends.xla.arrays import serve
from tfc.ir.ops import CacheRead, CacheWrite
from tfc.ir.program import Eqn

__all__ = ["READ", "WRITE"]

Array = jax.Array
Call = Callable[..., tuple[Array, ...]]


def _build_write(eqn: Eqn, target: Target) -> Call:
    """Of a token that is not to be kept the place is beyond the end, a place of its own: what scatters drop."""

    def replaced(stack: Array, new: Array, index: Array) -> tuple[Array, ...]:
        return (lax.dynamic_update_index_in_dim(stack, new.astype(stack.dtype), index, 0),)

    def written(stack: Array, new: Array, index: Array, at: Array, count: Array) -> tuple[Array, ...]:
        token = jnp.arange(new.shape[1], dtype=jnp.int32)[None, :]
        place = jnp.where(token < count[:, None], at[:, None] + token, stack.shape[2] + token)
        batch = jnp.arange(new.shape[0], dtype=jnp.int32)[:, None]
        kept = stack.at[index, batch, place].set(
            new.astype(stack.dtype), mode="drop", unique_indices=True, wrap_negative_indices=False
        )
        return (kept,)

    return replaced if len(eqn.args) == 3 else written


def _build_read(eqn: Eqn, target: Target) -> Call:
    return lambda stack, index: (lax.dynamic_index_in_dim(stack, index, 0, keepdims=False),)


WRITE = Kernel(name="xla", op=CacheWrite, refuse=serve, build=_build_write)
READ = Kernel(name="xla", op=CacheRead, refuse=serve, build=_build_read)
