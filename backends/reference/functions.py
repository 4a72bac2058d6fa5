"""The registered array functions, as their definitions read."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


def _legendre(order: int, window: float, steps: int) -> Array:
    """The impulse response of the Legendre memory m' = A m + B u, held over steps of one: real [steps, order].

    A[i, j] = (2 i + 1) / window * (-1 where i < j, else (-1) ^ (i - j + 1)), B[i] = (2 i + 1) / window * (-1) ^ i;
    in float64, since A is far from normal (arXiv:2402.04882, after Voelker et al., 2019).
    """
    i, j = np.arange(order)[:, None], np.arange(order)[None, :]
    both = np.zeros((order + 1, order + 1))
    both[:order, :order] = (2 * i + 1) / window * np.where(i < j, -1.0, (-1.0) ** (i - j + 1))
    both[:order, order] = ((2 * i + 1) / window * (-1.0) ** i)[:, 0]
    held = _exponential(both)
    response = [held[:order, order]]
    for _ in range(steps - 1):
        response.append(held[:order, :order] @ response[-1])
    return jnp.asarray(np.stack(response), jnp.float32)


def _exponential(a: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """e ^ a of a square matrix: the series of a / 2 ^ n, whose norm is below 1/2, squared n times."""
    halvings = max(0, int(np.ceil(np.log2(max(np.abs(a).sum(axis=0).max(), 1e-300)))) + 1)
    small = a / 2.0**halvings
    total, term = np.eye(len(a)), np.eye(len(a))
    for n in range(1, 20):
        term = term @ small / n
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total


DEFINED: Mapping[str, Callable[..., Array]] = {"apportion": _apportion, "legendre": _legendre}
"""The definition of each registered function; a test compares the names with `tfc.ir.functions`."""
