"""Products with weights, alone and as feed-forward layers, summed in float32 (float64 for float64 operands)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.kernel import DTYPES, Kernel, Late, Target
from tfc.backends.xla.arrays import real_of, serve
from tfc.backends.xla.few import few, product
from tfc.backends.xla.formula import Reader
from tfc.formula.expr import Expr, Kind, Var
from tfc.ir.ops import FeedForward, Linear
from tfc.ir.program import Eqn

__all__ = ["FFN", "LINEAR", "matmul"]

Array = jax.Array
Call = Callable[..., tuple[Array, ...]]


def matmul(x: Array, weight: Array | Late, bias: Array | None, real: Any, target: Target) -> Array:
    """x weight (+ bias) in `real`.   x: [..., K]   weight: [K, O]   bias: [O]   -> [..., O]

    float32 operands are multiplied exactly: no device's shorter product stands in for IEEE float32.
    """
    if few(x, target):
        y = product(x, weight, real)
        return y if bias is None else y + bias.astype(real)
    if isinstance(weight, Late):
        weight = weight.array()
    exact = "highest" if weight.dtype.itemsize > 2 else None
    y = jax.lax.dot_general(
        x, weight.astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())), precision=exact, preferred_element_type=real
    )
    return y if bias is None else y + bias.astype(real)


def _build_linear(eqn: Eqn, target: Target) -> Call:
    real, out = real_of(eqn), DTYPES[eqn.out.type.dtype]

    def call(x: Array, weight: Array | Late, bias: Array | None = None) -> tuple[Array, ...]:
        return (matmul(x, weight, bias, real, target).astype(out),)

    return call


def _build_ffn(eqn: Eqn, target: Target) -> Call:
    """The hidden layer is rounded to x's type between the products, as the unfused program would."""
    op = eqn.op
    assert isinstance(op, FeedForward)
    real, out = real_of(eqn), DTYPES[eqn.out.type.dtype]

    def call(x: Array, *weights: Any) -> tuple[Array, ...]:
        rest = list(weights)

        def next_product(y: Array) -> Array:
            weight = rest.pop(0)
            bias = rest.pop(0) if op.biased else None
            return matmul(y, weight, bias.array() if isinstance(bias, Late) else bias, real, target).astype(out)

        leaves: dict[Expr, Array] = {Var("u", Kind.REAL): next_product(x).astype(real)}
        if op.gated:
            leaves[Var("g", Kind.REAL)] = next_product(x).astype(real)
        hidden = Reader(real=real, leaves=leaves)(op.activation).astype(x.dtype)
        return (next_product(jnp.broadcast_to(hidden, leaves[Var("u", Kind.REAL)].shape)),)

    return call


LINEAR = Kernel(name="xla", op=Linear, refuse=serve, build=_build_linear, late=frozenset([1]))
FFN = Kernel(name="xla", op=FeedForward, refuse=serve, build=_build_ffn, late=frozenset(range(1, 7)))
