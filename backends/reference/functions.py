"""The registered array functions, as their definitions read."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tfc.ir.ops import ArrayFunction

__all__ = ["DEFINED", "function"]

Array = jax.Array


def function(op: ArrayFunction, real: Any, *operands: Array) -> tuple[Array]:
    """The function of that name."""
    return (DEFINED[op.fn](*operands, **dict(op.settings)),)


@partial(jax.jit, static_argnames="total")
def _apportion(norms: Array, total: int) -> Array:
    """`total` shared out in proportion to norms: rounded half to even, then one at a time taken from the largest
    share or given to the smallest, the first of equals, until the sum is right. Where norms have no proportion (all
    zero, or one not finite) each counts the same.   norms: [G], not negative -> int [G]
    """
    norms = jax.lax.stop_gradient(norms)
    proportion = jnp.all(jnp.isfinite(total * norms)) & jnp.any(norms > 0)
    parts = jnp.where(proportion, norms, jnp.ones_like(norms))
    shares = jnp.round(total * parts / jnp.sum(parts)).astype(jnp.int32)
    shares = jax.lax.while_loop(lambda a: jnp.sum(a) > total, lambda a: a.at[jnp.argmax(a)].add(-1), shares)
    return jax.lax.while_loop(lambda a: jnp.sum(a) < total, lambda a: a.at[jnp.argmin(a)].add(1), shares)


DEFINED: Mapping[str, Callable[..., Array]] = {"apportion": _apportion}
"""The definition of each registered function; a test compares the names with `tfc.ir.functions`."""
