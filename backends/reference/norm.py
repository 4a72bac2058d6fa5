"""A residual and the normalization of the sum, step by step."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tfc.ir.ops import ResidualNorm

__all__ = ["norm"]

Array = jax.Array


def norm(op: ResidualNorm, real: Any, x: Array, *others: Array) -> tuple[Array, ...]:
    """z = x + y, then (z - mean(z)) / sqrt(variance + eps) * scale + bias along the last axis, as far as asked for.

    x, y: [..., C]   scale, bias: [C]   -> [..., C], then z
    """
    rest = list(others)
    z = x + rest.pop(0) if op.residual else x
    d = z - jnp.mean(z, axis=-1, keepdims=True) if op.centered else z
    out = d * lax.rsqrt(jnp.mean(d * d, axis=-1, keepdims=True) + jnp.asarray(op.eps, real))
    out = out * rest.pop(0) if op.scaled else out
    out = out + rest.pop(0) if op.biased else out
    return (out, z) if op.keeps else (out,)
