"""A residual and the normalization of the sum, in the order and the types of the equations that it stands for.

XLA makes one loop of it, with the product before or after it where it can, as it does of those equations.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.xla.arrays import real_of, serve
from tfc.ir.ops import ResidualNorm
from tfc.ir.program import Eqn

__all__ = ["NORM"]

Array = jax.Array


def _build(eqn: Eqn, target: Target) -> Callable[..., tuple[Array, ...]]:
    op = eqn.op
    assert isinstance(op, ResidualNorm)
    real, reduce = real_of(eqn), DTYPES[op.reduce]

    def stepped(x: Array) -> Array:
        """What an equation in `reduce` gives and the next one reads; nothing, where that is `real` itself."""
        return x.astype(reduce).astype(real)

    def mean(x: Array) -> Array:
        return stepped(jnp.mean(x, axis=-1, keepdims=True))

    def call(x: Array, *others: Array) -> tuple[Array, ...]:
        rest = list(others)
        z = (x.astype(real) + rest.pop(0).astype(real)).astype(x.dtype) if op.residual else x
        d = z.astype(real)
        d = stepped(d - mean(d)) if op.centered else d
        root = stepped(lax.rsqrt(stepped(mean(stepped(d * d)) + stepped(jnp.asarray(op.eps, real)))))
        out = stepped(d * root)
        out = stepped(out * rest.pop(0).astype(real)) if op.scaled else out
        out = stepped(out + rest.pop(0).astype(real)) if op.biased else out
        out = out.astype(DTYPES[op.dtype])
        return (out, z) if op.keeps else (out,)

    return call


NORM = Kernel(name="xla", op=ResidualNorm, refuse=serve, build=_build)
