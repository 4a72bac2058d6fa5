"""Products of few rows with a weight on a GPU, which read the weight where it lies, once, and copy nothing of it.

Few rows take as long as reading the weight takes. Two things would have XLA write a copy of it before: a cast that it
does beforehand, and a single row, for which it makes a sum of a product of the weight's size instead of a dot.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tfc.backends.kernel import Late, Target

__all__ = ["few", "product"]

Array = jax.Array

FEW = 64
"""Rows; of more, a weight cast beforehand is read often enough to be worth it."""

ROUNDED = {
    (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)): lax.DotAlgorithmPreset.BF16_BF16_F32,
    (jnp.dtype(jnp.float32), jnp.dtype(jnp.float16)): lax.DotAlgorithmPreset.F16_F16_F32,
}
"""What the weight is kept in and the type it is cast to -> the product that casts while it reads."""


def few(x: Array, target: Target) -> bool:
    """Whether x [..., K] is worth it.   target: where the product runs"""
    here = target.platform == "gpu" and target.capability >= 8 and not target.interpret
    return here and 0 < x.size <= FEW * x.shape[-1]


def product(x: Array, weight: Array | Late, real: Any) -> Array:
    """x weight in `real`.   x: [..., K]   weight: [K, O]   -> [..., O]"""
    rows = jnp.reshape(x, (-1, x.shape[-1]))
    count = len(rows)
    if count == 1:
        rows = jnp.concatenate([rows, jnp.zeros_like(rows)])
    over = (((1,), (0,)), ((), ()))
    if isinstance(weight, Late) and (algorithm := _casting(x, weight)) is not None:
        wide = rows.astype(weight.x.dtype)
        y = lax.dot_general(wide, weight.x, over, precision=algorithm, preferred_element_type=jnp.float32).astype(real)
    else:
        made = weight.array() if isinstance(weight, Late) else weight
        exact = "highest" if made.dtype.itemsize > 2 else None
        y = lax.dot_general(rows, made.astype(x.dtype), over, precision=exact, preferred_element_type=real)
    return jnp.reshape(y[:count], (*x.shape[:-1], y.shape[-1]))


def _casting(x: Array, weight: Late) -> lax.DotAlgorithmPreset | None:
    """The product that casts the weight while it reads; its other operand it must find in the same type."""
    if weight.index is not None or weight.dtype != x.dtype:
        return None
    return ROUNDED.get((jnp.dtype(weight.x.dtype), jnp.dtype(x.dtype)))
