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
    "sigmoid": jax.nn.sigmoid,
    "erf": lax.erf,
    "sin": jnp.sin,
    "cos": jnp.cos,
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

    real: the float type to compute in. leaves: values of `Var`, `Token` and `Load` nodes.
    operands: arrays of the slots, for `Read`s. axes: the axis and the length of each index of an index equation.
    """

    real: Any
    leaves: Mapping[Expr, Array] = field(default_factory=dict)
    operands: Sequence[Array] = ()
    axes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __call__(self, expr: Expr) -> Array:
        """The formula's values. Raises FormulaError for a leaf that means nothing here."""
        if expr in self.leaves:
            return self.leaves[expr]
        match expr:
            case Const(value):
                dtype = {Kind.BOOL: jnp.bool_, Kind.INT: jnp.int32, Kind.REAL: self.real}[kind_of(expr)]
                return jnp.asarray(value, dtype)
            case Var(name, _) if name in self.axes:
                axis, size = self.axes[name]
                return lax.broadcasted_iota(jnp.int32, [size if i == axis else 1 for i in range(len(self.axes))], axis)
            case Read(slot, indices, kind):
                dtype = {Kind.BOOL: jnp.bool_, Kind.INT: jnp.int32, Kind.REAL: self.real}[kind]
                return self.read(self.operands[slot], indices).astype(dtype)
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

    def plain(self, shape: Sequence[int], indices: Sequence[Expr]) -> tuple[str, ...] | None:
        """The names of the indices where each is a different index of the equation that spans its whole axis."""
        names = tuple(i.name for i in indices if isinstance(i, Var) and i.name in self.axes)
        if len(names) < len(indices) or len(set(names)) < len(names):
            return None
        return names if all(self.axes[n][1] == size for n, size in zip(names, shape, strict=True)) else None

    def read(self, table: Array, indices: Sequence[Expr]) -> Array:
        """Elements of a table by formulas; an index beyond an end reads the element at that end."""
        names = self.plain(table.shape, indices)
        if names is not None:
            order = sorted(range(len(names)), key=lambda i: self.axes[names[i]][0])
            shape = [1] * len(self.axes)
            for name, size in zip(names, table.shape, strict=True):
                shape[self.axes[name][0]] = size
            return jnp.reshape(jnp.transpose(table, order), shape)
        where = tuple(jnp.clip(self(i), 0, n - 1) for i, n in zip(indices, table.shape, strict=True))
        return table.at[where].get(mode="promise_in_bounds") if where else table

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
    reads = [f for f in factors if isinstance(f, Read) and f.kind is Kind.REAL]
    others = [f for f in factors if f not in reads]
    if len(reads) < 2 or not all(isinstance(f, Const) for f in others):
        return None
    letters = {name: chr(ord("a") + axis) for name, (axis, _) in reader.axes.items()}
    spelled, arrays = [], []
    for read in reads:
        table = reader.operands[read.slot]
        used = reader.plain(table.shape, read.indices)
        if used is None:
            return None
        spelled.append("".join(letters[n] for n in used))
        arrays.append(table)
    seen = {c for word in spelled for c in word}
    if any(letters[n] not in seen for n in names):
        return None  # an index that nothing varies along multiplies the sum; the general form does that
    kept = "".join(sorted(seen - {letters[n] for n in names}))
    exact = "highest" if any(x.dtype.itemsize > 2 for x in arrays) else None
    out = jnp.einsum(f"{','.join(spelled)}->{kept}", *arrays, precision=exact, preferred_element_type=reader.real)
    for f in others:
        out = out * jnp.asarray(f.value, reader.real)  # type: ignore[attr-defined]  # only Consts are left
    shape = [1] * len(reader.axes)
    for c, size in zip(kept, out.shape, strict=True):
        shape[ord(c) - ord("a")] = size
    return jnp.reshape(out, shape)


def _factors(expr: Expr) -> list[Expr]:
    if isinstance(expr, Apply) and expr.fn == "mul":
        return _factors(expr.args[0]) + _factors(expr.args[1])
    return [expr]
