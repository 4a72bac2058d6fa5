"""Where the largest elements are, by one stable sort; statistics of a call as they are."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from tfc.backends.kernel import Kernel, Target
from tfc.backends.xla.arrays import serve
from tfc.ir.ops import Calibrated, Top
from tfc.ir.program import Eqn

__all__ = ["CALIBRATED", "TOP"]

Array = jax.Array
Call = Callable[..., tuple[Array, ...]]


def _build_top(eqn: Eqn, target: Target) -> Call:
    """`lax.top_k` keeps the order of equal elements on some devices only, and does not say where a NaN goes."""
    count = eqn.out.type.ints[-1]

    def call(x: Array) -> tuple[Array, ...]:
        places = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
        if jnp.issubdtype(x.dtype, jnp.integer):
            keys = [~x]  # descending, without the overflow that -x has
        else:
            keys = [(~jnp.isnan(x)).astype(jnp.int32), -x]
        *_, order = lax.sort((*map(lax.stop_gradient, keys), places), num_keys=len(keys), is_stable=True)
        return (order[..., :count],)

    return call


def _build_calibrated(eqn: Eqn, target: Target) -> Call:
    return lambda x: (x,)


TOP = Kernel(name="xla", op=Top, refuse=serve, build=_build_top)
CALIBRATED = Kernel(name="xla", op=Calibrated, refuse=serve, build=_build_calibrated)
