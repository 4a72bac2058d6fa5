"""Formula trees evaluated on a tile of scores, with the least work each sub-expression allows.

A sub-expression of one token is computed once per row or per column and spread over the tile only where it
meets the other token: `q % 4 == k % 4` costs one comparison per score, not two divisions. This reader is
written for kernels, whose compilers lower a subset of jnp only; the dense definition has its own.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tfc.formula.expr import Apply, Const, Expr, FormulaError, Kind, kind_of, walk

__all__ = ["LOG2E", "MOSAIC_GPU", "Placed", "Tile", "formless", "unlowerable"]

Array = jax.Array
Forms = Mapping[str, Callable[..., Any]]

LOG2E = math.log2(math.e)
DTYPES: Mapping[Kind, Any] = {Kind.BOOL: jnp.bool_, Kind.INT: jnp.int32, Kind.REAL: jnp.float32}


@dataclass(frozen=True, slots=True)
class Placed:
    """A value and the axes of the tile it varies along: () a scalar, (0,) rows, (1,) columns, (0, 1) scores."""

    value: Any
    axes: tuple[int, ...]


def _same(x: Array, y: Array) -> Array:
    return jnp.logical_not(jnp.logical_xor(x, y)) if x.dtype == jnp.bool_ else x == y


def _different(x: Array, y: Array) -> Array:
    return jnp.logical_xor(x, y) if x.dtype == jnp.bool_ else x != y


def _whole(divide: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Integer division in which a divisor of zero gives zero, as the language defines it."""

    def apply(x: Array, y: Array) -> Array:
        safe = divide(x, jnp.where(y == 0, 1, y))
        return jnp.where(y == 0, 0, safe)

    return apply


def _power(x: Array, y: Any) -> Array:
    """x to a constant whole power, by squaring."""
    if y < 0:
        return 1 / _power(x, -y)
    out, square = jnp.ones_like(x), x
    while y:
        if y & 1:
            out = out * square
        square, y = square * square, y >> 1
    return out


def _tanh(x: Array) -> Array:
    """Within 3e-7 of tanh everywhere: one exponential, one reciprocal.

    The hardware's own tanh is off by 5e-4. What this form loses is relative accuracy below 1e-3, where a
    score's own rounding is larger.
    """
    return 1 - 1 / (0.5 + 0.5 * jnp.exp2(x * (2 * LOG2E)))


def _floor(x: Array) -> Array:
    nearest = jnp.round(x)
    return (nearest - jnp.where(nearest > x, 1.0, 0.0)).astype(jnp.int32)


def _log1p(x: Array) -> Array:
    """log(1 + x) within a few ulp: the rounding error of 1 + x is undone by the factor x / ((1 + x) - 1)."""
    one = 1 + x
    return jnp.where(one == 1, x, jnp.log(one) * x / jnp.where(one == 1, 1.0, one - 1))


MOSAIC_GPU: Forms = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "floordiv": _whole(lambda x, y: x // y),
    "mod": _whole(lambda x, y: x % y),
    "pow": _power,
    "neg": lambda x: -x,
    "eq": _same,
    "ne": _different,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "and": jnp.logical_and,
    "or": jnp.logical_or,
    "not": jnp.logical_not,
    "where": jnp.where,
    "min": jnp.minimum,
    "max": jnp.maximum,
    "abs": jnp.abs,
    "sign": lambda x: jnp.where(x < 0, jnp.full_like(x, -1), jnp.full_like(x, 1)),
    "round": jnp.round,
    "floor": _floor,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "exp": lambda x: jnp.exp2(x * LOG2E),
    "exp2": jnp.exp2,
    "log": jnp.log,
    "log1p": _log1p,
    "tanh": _tanh,
    "approximate_tanh": jnp.tanh,  # `tanh.approx.f32`, within 5e-4
    "sigmoid": lambda x: 1 / (1 + jnp.exp2(x * -LOG2E)),
    "sin": jnp.sin,
    "cos": jnp.cos,
}
"""The primitives that Mosaic GPU lowers, each in a form that it lowers; the others stop a kernel by name."""


def formless(node: Expr) -> str | None:
    """The node's primitive as the language writes it, where that has no form in Mosaic GPU."""
    if not isinstance(node, Apply):
        return None
    if node.fn not in MOSAIC_GPU:
        return node.fn
    whole = node.fn != "pow" or _whole_number(node.args[1])
    return None if whole else "^ with an exponent that is no whole number"


def unlowerable(*exprs: Expr) -> str | None:
    """The first primitive in the formulas that has no form in Mosaic GPU, as the language writes it."""
    return next(filter(None, (formless(node) for expr in exprs for node in walk(expr))), None)


def _whole_number(expr: Expr) -> bool:
    return isinstance(expr, Const) and not isinstance(expr.value, bool) and float(expr.value).is_integer()


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of scores: its shape, and the values of the formulas' leaves (`Var`, `Token`, `Load`, `Read`).

    Booleans are bool, integers int32, reals float32. A leaf without a value raises FormulaError.
    """

    shape: tuple[int, int]
    leaves: Mapping[Expr, Placed]
    forms: Forms = field(default_factory=lambda: MOSAIC_GPU)

    def spread(self, x: Placed, axes: tuple[int, ...] = (0, 1)) -> Array:
        """The value along `axes`, which contain its own: for every score of the tile, or every row or column."""
        value: Array = x.value
        if x.axes == axes:
            return value
        at = tuple(axes.index(a) for a in x.axes)
        if value.dtype == jnp.bool_:  # Mosaic GPU's layout inference gives up on spread booleans
            return self.spread(Placed(value.astype(jnp.int32), x.axes), axes) != 0
        out: Array = lax.broadcast_in_dim(value, tuple(self.shape[a] for a in axes), at)
        return out

    def evaluate(self, expr: Expr) -> Placed:
        """The formula's value, placed along the axes that it depends on."""
        if expr in self.leaves:
            return self.leaves[expr]
        match expr:
            case Const(value):
                return Placed(jnp.asarray(value, DTYPES[kind_of(expr)]), ())
            case Apply("pow", (base, Const(exponent))):
                x = self.evaluate(base)
                return Placed(self.forms["pow"](x.value.astype(DTYPES[kind_of(expr)]), int(exponent)), x.axes)
            case Apply("div", (x, Const(divisor))) if divisor and math.isfinite(1 / divisor):
                # a division is ten instructions, the hardware's slow ones among them; this loses half an ulp
                part = self.evaluate(x)
                return Placed(part.value.astype(jnp.float32) * (1 / divisor), part.axes)
            case Apply(fn, args):
                return self._apply(fn, args, kind_of(expr))
        raise FormulaError(f"`{expr}` has no value on a tile")

    def _apply(self, fn: str, args: tuple[Expr, ...], kind: Kind) -> Placed:
        kinds = [kind_of(a) for a in args]
        wide = Kind.REAL if Kind.REAL in (*kinds, kind) or fn == "floor" else Kind.INT
        placed = [self.evaluate(a) for a in args]
        axes = tuple(sorted({a for p in placed for a in p.axes}))
        values = []
        for p, k in zip(placed, kinds, strict=True):
            value = self.spread(p, axes)
            values.append(value if k is Kind.BOOL else value.astype(DTYPES[wide]))
        return Placed(self.forms[fn](*values), axes)
