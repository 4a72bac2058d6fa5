"""Rotary position (arXiv:2104.09864): one table of cosines and sines a call, two products and a sum a channel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.xla.arrays import real_of, serve
from tfc.backends.xla.formula import Reader
from tfc.formula.expr import Expr, Kind, Var, slots
from tfc.ir.ops import Rotate
from tfc.ir.program import Eqn

__all__ = ["KERNEL"]

Array = jax.Array


def _build(eqn: Eqn, target: Target) -> Callable[..., tuple[Array, ...]]:
    op = eqn.op
    assert isinstance(op, Rotate)
    half, offset = op.dims // 2, op.offset
    real, out = real_of(eqn), DTYPES[eqn.out.type.dtype]
    assert isinstance(offset, int), "lengths are bound before a kernel is built"

    reads = bool(slots(op.angle))

    def call(x: Array, *operands: Array) -> tuple[Array, ...]:
        given = operands and not reads
        pos = operands[0] if given else jnp.arange(x.shape[1], dtype=jnp.int32)[None] + offset
        leaves: dict[Expr, Array] = {
            Var("pos", Kind.INT): pos[:, :, None, None],
            Var("c", Kind.INT): jnp.arange(half, dtype=jnp.int32),
        }
        axes = {"#b": (0, x.shape[0]), "#n": (1, x.shape[1]), "#h": (2, 1), "c": (3, half)}
        angle = Reader(real=real, leaves=leaves, operands=operands, axes=axes, tokens={"q": 1})(op.angle).astype(real)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        turned = x[..., : op.dims].astype(real)
        pairs = jnp.reshape(turned, (*x.shape[:3], 2, half) if op.pairing == "half" else (*x.shape[:3], half, 2))
        axis = -2 if op.pairing == "half" else -1
        a, b = (jnp.take(pairs, i, axis=axis) for i in (0, 1))
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=axis)
        turned = jnp.reshape(turned, (*x.shape[:3], op.dims)).astype(out)
        return (turned if op.dims == x.shape[-1] else jnp.concatenate([turned, x[..., op.dims :]], axis=-1),)

    return call


KERNEL = Kernel(name="xla", op=Rotate, refuse=serve, build=_build)
