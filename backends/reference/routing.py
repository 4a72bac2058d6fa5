"""Where the largest elements are, and statistics of a call, as their definitions read."""

from typing import Any

import jax
import jax.numpy as jnp

from tfc.ir.ops import Calibrated, Top

__all__ = ["calibrated", "top"]

Array = jax.Array


def top(op: Top, real: Any, x: Array) -> tuple[Array]:
    """Where the `count` largest of each row are, largest first; ties to the lower index, NaN above all.

    x: [..., N] -> int [..., count]
    """
    assert isinstance(op.count, int), "lengths are bound before a kernel is built"
    order = jnp.lexsort((jnp.flip(x, -1), jnp.flip(jnp.isnan(x), -1)), axis=-1)  # ascending, of the flipped row
    return ((x.shape[-1] - 1 - jnp.flip(order, -1))[..., : op.count].astype(jnp.int32),)


def calibrated(op: Calibrated, real: Any, x: Array) -> tuple[Array]:
    """The statistic of this call: what it is until calibration freezes it."""
    return (x,)
