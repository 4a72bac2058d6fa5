"""Constants, elementwise primitives, reductions, casts and changes of shape, as their definitions read."""

from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.reference.dense import primitive
from tfc.ir.ops import Cast, Concat, Constant, Elementwise, Reduction, Reshape, Slice
from tfc.ir.types import DType, Size

__all__ = ["cast", "concat", "constant", "elementwise", "reduction", "reshape", "slice_"]

Array = jax.Array


def _ints(sizes: tuple[Size, ...]) -> tuple[int, ...]:
    return tuple(n for n in sizes if isinstance(n, int))  # lengths are bound before a kernel is built


def constant(op: Constant, real: Any) -> tuple[Array]:
    """The number, without axes."""
    dtype = {DType.BOOL: jnp.bool_, DType.I32: jnp.int32}.get(op.dtype, real)
    return (jnp.asarray(op.value, dtype),)


def elementwise(op: Elementwise, real: Any, *operands: Array) -> tuple[Array]:
    """The primitive, element by element; operands broadcast, aligned at the last axis."""
    return (primitive(op.fn, operands, real),)


def reduction(op: Reduction, real: Any, x: Array) -> tuple[Array]:
    """sum, mean, max or min over the last axis, kept with size 1.   x: [..., C] -> [..., 1]"""
    how: Any = {"sum": jnp.sum, "mean": jnp.mean, "max": jnp.max, "min": jnp.min}[op.fn]
    return (how(x, axis=-1, keepdims=True),)


def reshape(op: Reshape, real: Any, x: Array) -> tuple[Array]:
    """The same elements in another shape, row-major."""
    return (jnp.reshape(x, _ints(op.shape)),)


def slice_(op: Slice, real: Any, x: Array) -> tuple[Array]:
    """Elements start..start+size-1 of the last axis, or of the tokens, axis 1."""
    start, size = _ints((op.start, op.size))
    return (x[:, start : start + size] if op.axis == 1 else x[..., start : start + size],)


def concat(op: Concat, real: Any, *operands: Array) -> tuple[Array]:
    """Operands side by side along the last axis, or one after another along the tokens, axis 1."""
    return (jnp.concatenate(operands, axis=op.axis),)


def cast(op: Cast, real: Any, x: Array) -> tuple[Array]:
    """The same values: the definition rounds nowhere, so a float stays as exact as it is.

    What a program rounds to is a property of its kernels, which give the declared type. To an integer, the
    part after the point is dropped; to a boolean, whether it is not zero.
    """
    if op.dtype is DType.BOOL:
        return (x != 0,)
    return (x.astype(jnp.int32 if op.dtype is DType.I32 else real),)
