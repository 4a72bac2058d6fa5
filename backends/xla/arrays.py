"""Constants, elementwise primitives, reductions, casts and changes of shape as jnp calls.

Each result is computed in float32 (float64 beside float64) and rounded once to its declared type; XLA fuses
the conversions away where they meet.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.xla.formula import apply
from tfc.ir.ops import Cast, Concat, Constant, Elementwise, Op, Reduction, Reshape, Slice
from tfc.ir.program import Eqn
from tfc.ir.types import DType

__all__ = ["KERNELS", "real_of", "serve"]

Array = jax.Array
Call = Callable[..., tuple[Array, ...]]


def serve(eqn: Eqn, target: Target) -> str | None:
    """jnp serves every target; float64 must be switched on in JAX."""
    wide = any(v.type.dtype is DType.F64 for v in (*eqn.args, *eqn.outs))
    return "float64 needs jax_enable_x64" if wide and not jax.config.jax_enable_x64 else None


def real_of(eqn: Eqn) -> Any:
    """The float type to compute in: float64 where a value is, else float32."""
    wide = any(v.type.dtype is DType.F64 for v in (*eqn.args, *eqn.outs))
    return jnp.float64 if wide else jnp.float32


def constant(eqn: Eqn, op: Constant) -> Call:
    value = jnp.asarray(op.value, DTYPES[op.dtype])
    return lambda: (value,)


def elementwise(eqn: Eqn, op: Elementwise) -> Call:
    out = eqn.out.type.dtype
    kinds = [a.type.dtype.kind for a in eqn.args]

    def call(*operands: Array) -> tuple[Array, ...]:
        return (apply(op.fn, operands, kinds, out.kind, real_of(eqn)).astype(DTYPES[out]),)

    return call


def reduction(eqn: Eqn, op: Reduction) -> Call:
    how: Any = {"sum": jnp.sum, "mean": jnp.mean, "max": jnp.max, "min": jnp.min}[op.fn]
    out = eqn.out.type.dtype

    def call(x: Array) -> tuple[Array, ...]:
        wide = x.astype(real_of(eqn)) if out.floating else x
        return (how(wide, axis=-1, keepdims=True).astype(DTYPES[out]),)

    return call


def reshape(eqn: Eqn, op: Reshape) -> Call:
    shape = eqn.out.type.ints
    return lambda x: (jnp.reshape(x, shape),)


def slice_(eqn: Eqn, op: Slice) -> Call:
    assert isinstance(op.start, int) and isinstance(op.size, int), "lengths are bound before a kernel is built"
    start, stop, axis = op.start, op.start + op.size, op.axis
    return lambda x: (jax.lax.slice_in_dim(x, start, stop, axis=axis),)


def concat(eqn: Eqn, op: Concat) -> Call:
    return lambda *operands: (jnp.concatenate(operands, axis=op.axis),)


def cast(eqn: Eqn, op: Cast) -> Call:
    if op.dtype is DType.BOOL:
        return lambda x: (x != 0,)
    return lambda x: (x.astype(DTYPES[op.dtype]),)


_FORMS: Mapping[type[Op], Callable[[Eqn, Any], Call]] = {
    Constant: constant,
    Elementwise: elementwise,
    Reduction: reduction,
    Reshape: reshape,
    Slice: slice_,
    Concat: concat,
    Cast: cast,
}


def _build(eqn: Eqn, target: Target) -> Call:
    return _FORMS[type(eqn.op)](eqn, eqn.op)


KERNELS: Mapping[type[Op], Kernel] = {op: Kernel(name="xla", op=op, refuse=serve, build=_build) for op in _FORMS}
