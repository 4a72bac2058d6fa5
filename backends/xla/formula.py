"""A formula turned into jnp operations on arrays that keep size 1 along every axis they do not vary along.

A sub-expression of one token costs one row or column; XLA fuses what is left into its reader. Integer powers
are products, literals fold, and a read by plain indices is a transposed view instead of a gather.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtri

from tfc.formula.expr import Apply, Const, Expr, FormulaError, Kind, Load, Read, Reduce, Token, Var, kind_of

__all__ = ["Reader", "apply", "product"]

Array = jax.Array


def _whole(divide: Callable[[Any, Any], Array]) -> Callable[[Any, Any], Array]:
    """Integer division in which a divisor of zero gives zero, as the language defines it."""

    def call(x: Any, y: Any) -> Array:
        if isinstance(y, int) and y != 0:
            return divide(x, y)
        return jnp.where(y == 0, 0, divide(x, jnp.where(y == 0, 1, y)))

    return call


def _sign(x: Array) -> Array:
    return jnp.where(x < 0, -1, jnp.where(x >= 0, 1, x)).astype(x.dtype)


@jax.custom_jvp
def _straight(x: Array, y: Array) -> Array:
    return jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, y.shape))


@_straight.defjvp
def _straight_slope(at: tuple[Array, Array], along: tuple[Array, Array]) -> tuple[Array, Array]:
    value = _straight(*at)
    return value, jnp.broadcast_to(along[1], value.shape)


@jax.custom_jvp
def _normal_quantile(y: Array) -> Array:
    return ndtri(y)


@_normal_quantile.defjvp
def _normal_quantile_slope(at: tuple[Array], along: tuple[Array]) -> tuple[Array, Array]:
    x = _normal_quantile(*at)
    return x, along[0] * (math.sqrt(2 * math.pi) * jnp.exp(0.5 * x * x))


FORMS: Mapping[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "floordiv": _whole(lambda x, y: x // y),
    "mod": _whole(lambda x, y: x % y),
    "pow": lambda x, y: x**y,
    "neg": lambda x: -x,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
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
    "sign": _sign,
    "round": jnp.round,
    "floor": lambda x: jnp.floor(x).astype(jnp.int32),
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "tanh": jnp.tanh,
    "approximate_tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "erf": lax.erf,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "normal_quantile": _normal_quantile,
    "straight": lambda x, y: _straight(x, y) if jnp.issubdtype(x.dtype, jnp.floating) else x + 0 * y,
    "stop": lax.stop_gradient,
}


REDUCTIONS: Mapping[str, Callable[..., Array]] = {
    "sum": jnp.sum,
    "mean": jnp.mean,
    "max": jnp.max,
    "min": jnp.min,
    "any": jnp.any,
    "all": jnp.all,
}


def apply(fn: str, args: Sequence[Any], kinds: Sequence[Kind], gives: Kind, real: Any) -> Array:
    """A primitive on arrays of the given kinds, integers made real where the result or another argument is."""
    takes_reals = gives is Kind.REAL or Kind.REAL in kinds or fn == "floor"
    values = []
    for i, (x, kind) in enumerate(zip(args, kinds, strict=True)):
        exponent = fn == "pow" and i == 1 and isinstance(x, int)
        if kind is Kind.BOOL or exponent:
            values.append(x)
        else:
            values.append(jnp.asarray(x, real if takes_reals else jnp.int32))
    return jnp.asarray(FORMS[fn](*values))


@dataclass(frozen=True, slots=True)
class Reader:
    """What the leaves of a formula stand for: arrays of one rank (or scalars) that broadcast against each other.

    real: the float type to compute in. leaves: values of `Var` and `Token` nodes. operands: arrays of the slots.
    axes: the axis and the length of each index of an index equation, or of a formula of tokens. tokens: the axis of
    each side's tokens, whose fields are read with axis 0 as the batch.
    """

    real: Any
    leaves: Mapping[Expr, Array] = field(default_factory=dict)
    operands: Sequence[Array] = ()
    axes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, expr: Expr) -> Array:
        """The formula's values. Raises FormulaError for a leaf that means nothing here."""
        if expr in self.leaves:
            return self.leaves[expr]
        match expr:
            case Const(value):
                return jnp.asarray(value, self._dtype(kind_of(expr)))
            case Var(name, _) if name in self.axes:
                axis, size = self.axes[name]
                return lax.broadcasted_iota(jnp.int32, [size if i == axis else 1 for i in range(len(self.axes))], axis)
            case Read(_, _, kind):
                return self._elements(expr).astype(self._dtype(kind))
            case Load(_, side, kind, _) if side in self.tokens:
                return self._elements(expr).astype(self._dtype(kind))
            case Reduce(fn, names, body):
                return self._reduce(fn, names, body)
            case Apply(fn, args):
                kinds = [kind_of(a) for a in args]
                # an integer literal stays a Python number: exact beside reals, a static exponent, a folded divisor
                values = [a.value if isinstance(a, Const) and kind_of(a) is Kind.INT else self(a) for a in args]
                return apply(fn, values, kinds, kind_of(expr), self.real)
            case Token() | Load():
                raise FormulaError(f"`{expr}` has no value outside attention")
        raise FormulaError(f"`{expr}` has no value here")

    def _dtype(self, kind: Kind) -> Any:
        return {Kind.BOOL: jnp.bool_, Kind.INT: jnp.int32, Kind.REAL: self.real}[kind]

    def spread(self, x: Array, axes: Sequence[int]) -> Array:
        """x as a view whose axis i lies along `axes[i]`, of size 1 along the others."""
        order = sorted(range(len(axes)), key=lambda i: axes[i])
        shape = [1] * len(self.axes)
        for axis, size in zip(axes, x.shape, strict=True):
            shape[axis] = size
        return jnp.reshape(jnp.transpose(x, order), shape)

    def plain(self, node: Read | Load) -> tuple[Array, tuple[int, ...]] | None:
        """An operand and the axis that each of its axes lies along, where each index is one that spans its axis."""
        x = self.operands[node.slot]
        axes = [self.axes[i.name] for i in node.indices if isinstance(i, Var) and i.name in self.axes]
        sizes = x.shape[x.ndim - len(node.indices) :]
        if len(axes) < len(node.indices) or any(n != size for (_, n), size in zip(axes, sizes, strict=True)):
            return None
        own = (0, self.tokens[node.side])[len(axes) + 2 - x.ndim :] if isinstance(node, Load) else ()
        along = (*own, *(axis for axis, _ in axes))
        return (x, along) if len(set(along)) == len(along) else None

    def _elements(self, node: Read | Load) -> Array:
        """What an operand holds at the indices; an index beyond an end reads the element at that end."""
        found = self.plain(node)
        if found is not None:
            return self.spread(*found)
        x = self.operands[node.slot]
        own = x.ndim - len(node.indices)
        where = [jnp.clip(self(i), 0, n - 1) for i, n in zip(node.indices, x.shape[own:], strict=True)]
        if isinstance(node, Load):
            token_axes = (0, self.tokens[node.side])[2 - own :]
            where = [*(self.spread(jnp.arange(x.shape[i]), [a]) for i, a in enumerate(token_axes)), *where]
        return x.at[tuple(where)].get(mode="promise_in_bounds") if where else x

    def _reduce(self, fn: str, names: Sequence[str], body: Expr) -> Array:
        if fn in ("sum", "mean"):
            total = product(self, names, body)
            if total is not None:
                return total / math.prod(self.axes[n][1] for n in names) if fn == "mean" else total
        values = self(body)
        shape = list(values.shape) or [1] * len(self.axes)
        where = tuple(self.axes[n][0] for n in names)
        for name in names:
            axis, size = self.axes[name]
            shape[axis] = size
        values = jnp.broadcast_to(values, shape)
        kind = kind_of(Reduce(fn, tuple(names), body))
        if kind is not Kind.BOOL:
            values = values.astype(jnp.int32 if kind is Kind.INT else self.real)
        out: Array = REDUCTIONS[fn](values, axis=where, keepdims=True)
        return out if kind is Kind.BOOL else out.astype(values.dtype)


def product(reader: Reader, names: Sequence[str], body: Expr) -> Array | None:
    """The sum over `names` as a matrix product, or None where the body is no product of plain reads.

    Operands stay in their own types; sums are float32 or wider, and exact products for float32 operands.
    """
    factors = _factors(body)
    reads = [f for f in factors if isinstance(f, Read | Load) and f.kind is Kind.REAL]
    others = [f for f in factors if f not in reads]
    if len(reads) < 2 or not all(isinstance(f, Const) for f in others):
        return None
    found = [reader.plain(read) for read in reads]
    operands = [x for x in found if x is not None]
    if len(operands) < len(found):
        return None
    seen = {axis for _, axes in operands for axis in axes}
    reduced = {reader.axes[n][0] for n in names}
    if not reduced <= seen:
        return None  # an index that nothing varies along multiplies the sum; the general form does that
    kept = sorted(seen - reduced)
    exact = "highest" if any(x.dtype.itemsize > 2 for x, _ in operands) else None
    spelled = ",".join(_letters(axes) for _, axes in operands) + "->" + _letters(kept)
    out = jnp.einsum(spelled, *(x for x, _ in operands), precision=exact, preferred_element_type=reader.real)
    for f in others:
        out = out * jnp.asarray(f.value, reader.real)  # type: ignore[attr-defined]  # only Consts are left
    return reader.spread(out, kept)


def _letters(axes: Sequence[int]) -> str:
    return "".join(chr(ord("a") + axis) for axis in axes)


def _factors(expr: Expr) -> list[Expr]:
    if isinstance(expr, Apply) and expr.fn == "mul":
        return _factors(expr.args[0]) + _factors(expr.args[1])
    return [expr]
