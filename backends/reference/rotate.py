"""Rotary position: pairs of channels turned by an angle that a formula gives (arXiv:2104.09864)."""

from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.reference.dense import Dense, of_tokens
from tfc.formula.expr import slots
from tfc.ir.ops import Rotate

__all__ = ["rotate"]

Array = jax.Array


def rotate(op: Rotate, real: Any, x: Array, *operands: Array) -> tuple[Array]:
    """(a, b) -> (a cos t - b sin t, b cos t + a sin t) with t = angle(pos, c) for the pair c.

    x: [B, N, H, D]   operands: what the angle's slots hold, else positions int [B, N], else offset + 0..N-1
    -> x's shape
    Pair c is (c, c + dims/2) for "half", (2c, 2c+1) for "interleaved"; channels from `dims` on stay as they are.
    """
    half = op.dims // 2
    offset = op.offset if isinstance(op.offset, int) else 0  # bound before a kernel is built
    captured = operands if slots(op.angle) else ()
    pos = operands[0] if operands and not captured else jnp.arange(x.shape[1], dtype=jnp.int32)[None] + offset
    names = {"pos": pos[:, :, None, None], "c": jnp.arange(half, dtype=jnp.int32)[None, None, None, :]}
    reader = Dense(real=real, operands=captured, vars=names, load=lambda f, side, at: of_tokens(f, 1, at, 4))
    angle = reader(op.angle).astype(real)
    first = jnp.arange(half) if op.pairing == "half" else 2 * jnp.arange(half)
    second = first + half if op.pairing == "half" else first + 1
    a, b = x[..., first], x[..., second]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (x.at[..., first].set(a * cos - b * sin).at[..., second].set(b * cos + a * sin),)
