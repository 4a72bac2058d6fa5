"""Dropout as jnp: a key a row by Threefry, then a few integer operations an element, which XLA fuses with the rest."""

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry2x32_p

from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.xla.arrays import real_of, serve
from tfc.ir.dropout import GOLDEN, MURMUR, Dropout, site, threshold
from tfc.ir.program import Eqn

__all__ = ["DROPOUT", "dropped"]

Array = jax.Array
U32 = jnp.uint32


def _threefry(key: tuple[Array, Array], x: Array, y: Array) -> tuple[Array, Array]:
    """Threefry-2x32 of the counters (x, y), as JAX's own generator has it: rolled where that compiles faster."""
    k = (jnp.broadcast_to(word, x.shape) for word in key)
    first, second = threefry2x32_p.bind(*k, x, y)
    return first, second


def _avalanche(h: Array) -> Array:
    """MurmurHash3's finalizer."""
    for shift, factor in zip(MURMUR[::2], (*MURMUR[1::2], None), strict=True):
        h = h ^ lax.shift_right_logical(h, U32(shift))
        h = h if factor is None else h * U32(factor)
    return h


def _keep(rate: float, path: str, shape: tuple[int, ...], seed: Array, turns: tuple[Array, ...]) -> Array:
    words = seed.astype(U32)
    key = (words[0], words[1])
    first, second = site(path)
    counters = [
        (jnp.asarray(first, U32), jnp.asarray(second, U32)),
        *((t.astype(U32), jnp.ones((), U32)) for t in turns),
    ]
    for counter in counters:
        key = _threefry(key, *counter)
    lead = shape[:-1]
    row = jnp.reshape(jnp.arange(prod(lead), dtype=U32), lead)
    a, b = (w[..., None] for w in _threefry(key, row, jnp.zeros(lead, U32)))
    column = lax.broadcasted_iota(U32, shape, len(shape) - 1)
    return _avalanche(_avalanche(a + column * U32(GOLDEN)) ^ b) >= U32(threshold(rate))


def dropped(rate: float, path: str, x: Array, seed: Array, *turns: Array) -> Array:
    """x with the elements that stay divided by 1 - rate, the others 0, in x's type."""
    keep = _keep(rate, path, x.shape, seed, turns)
    return jnp.where(keep, x * jnp.asarray(1 / (1 - rate), x.dtype), 0)


def _build(eqn: Eqn, target: Target) -> Callable[..., tuple[Array, ...]]:
    op = eqn.op
    assert isinstance(op, Dropout)
    out = DTYPES[eqn.out.type.dtype]

    def call(x: Array, *given: Array) -> tuple[Array, ...]:
        if not given:
            return (x,)
        return (dropped(op.rate, op.path, x.astype(real_of(eqn)), *given).astype(out),)

    return call


DROPOUT = Kernel(name="xla", op=Dropout, refuse=serve, build=_build)
