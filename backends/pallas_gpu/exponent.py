"""A score formula turned into the exponent of its weight in base 2: constants folded, functions opened, and its range.

A softcap's `cap * tanh(scale * x / cap)` is three multiplications by constants, the base's a fourth and tanh's own two
more; folded they are two. And what a softcap gives is bounded: its softmax needs no running maximum.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from tfc.backends.formula import LOG2E
from tfc.formula.arithmetic import NOTHING_KNOWN
from tfc.formula.expr import (
    Apply,
    Const,
    Expr,
    FormulaError,
    Kind,
    Load,
    Read,
    Token,
    Var,
    apply,
    kind_of,
    rewrite,
    substitute,
    walk,
)
from tfc.formula.interval import compiled
from tfc.ir.ops import S

__all__ = ["RAW", "SPAN", "Exponent", "exponent", "span_of"]

RAW = Var("raw", Kind.REAL)
"""The product of a query and a key, without the scale."""
SPAN = 64.0
"""Weights of a fixed base are at least 2^-64 and at most 2^32: far from the ends of float32 and bfloat16, also times
values and summed."""
NEAR = 128.0
"""Up to here a constant term leaves a sum: what it is added to then loses less than 2^-16 of a weight."""
EXACT = 2**24
"""Whole numbers up to this are exact in float32."""

ONE, HALF = Const(1.0), Const(0.5)
Opened = Mapping[str, Callable[[Expr], Expr]]


def _exp2(factor: float, x: Expr) -> Expr:
    return apply("exp2", apply("mul", Const(factor), x))


def _share(factor: float, x: Expr) -> Expr:
    """1 / (1 + 2^(factor x))."""
    return apply("div", ONE, apply("add", ONE, _exp2(factor, x)))


OPENED: Opened = {
    "tanh": lambda x: apply("sub", ONE, apply("mul", Const(2.0), _share(2 * LOG2E, x))),
    "sigmoid": lambda x: _share(-LOG2E, x),
    "exp": lambda x: _exp2(LOG2E, x),
}
"""Functions whose form in the kernel is a formula: its constants fold with those around it."""


@dataclass(frozen=True, slots=True)
class Exponent:
    """log2 of a weight that nothing has divided yet: factor * core + shift.

    core: over `RAW`, tokens, fields, tables. span: the least and largest exponent there can be, None where one of them
    is not known.
    """

    core: Expr
    factor: float
    shift: float
    span: tuple[float, float] | None

    @property
    def base(self) -> float | None:
        """The exponent that others can be compared with in place of a row's largest; None where they are too wide.

        The constant term, where it will do: nothing is then added to a multiple of the core.
        """
        if self.span is None or self.span[1] - self.span[0] > SPAN:
            return None
        near = self.span[0] <= self.shift and self.span[1] - self.shift <= SPAN / 2
        return self.shift if near else (self.span[0] + self.span[1]) / 2


@lru_cache(maxsize=256)
def exponent(score: Expr, scale: float, tokens: int) -> Exponent:
    """The exponent of a score formula over `s`, the scaled product. tokens: no position is beyond it, nor a query's
    before its negative."""
    scaled = substitute(score, {S: apply("mul", Const(scale), RAW)})

    def opened(node: Expr) -> Expr | None:
        return OPENED[node.fn](*node.args) if isinstance(node, Apply) and node.fn in OPENED else None

    factor, core, shift = _affine(_reals(rewrite(scaled, opened), tokens))
    return Exponent(core, factor * LOG2E, shift * LOG2E, span_of(score, tokens))


def span_of(score: Expr, tokens: int) -> tuple[float, float] | None:
    """The score's range in base 2 whatever the product is, by the rules of intervals; None where it has no end."""
    low, high = _range(score, tokens)
    ends = low * LOG2E, high * LOG2E
    return ends if all(map(math.isfinite, ends)) else None


def _range(expr: Expr, tokens: int) -> tuple[float, float]:
    known: dict[Expr, tuple[float, float]] = {
        S: (-math.inf, math.inf),
        Token("q"): (-tokens, tokens),
        Token("k"): (0, tokens),
    }
    leaves = list(dict.fromkeys(n for n in walk(expr) if isinstance(n, Var | Token | Load | Read)))
    bounds = [known.get(leaf, NOTHING_KNOWN[kind_of(leaf)]) for leaf in leaves]
    try:
        low, high = compiled(expr, {leaf: i for i, leaf in enumerate(leaves)})(bounds)
    except FormulaError:  # a node without a range
        return -math.inf, math.inf
    return float(low), float(high)


def _reals(expr: Expr, tokens: int) -> Expr:
    """Differences of positions beside reals are computed as reals where those are exact: a position becomes one once a
    row or column, not once a score."""
    return rewrite(expr, lambda node: _real_sides(node, tokens))


def _real_sides(node: Expr, tokens: int) -> Expr | None:
    if not (isinstance(node, Apply) and node.fn in ("add", "sub", "mul", "div", "min", "max")):
        return None
    kinds = [kind_of(a) for a in node.args]
    if Kind.REAL not in (*kinds, kind_of(node)) or Kind.INT not in kinds:
        return None
    sides = (_as_real(a, tokens) if k is Kind.INT else a for a, k in zip(node.args, kinds, strict=True))
    return apply(node.fn, *sides)


def _as_real(expr: Expr, tokens: int) -> Expr:
    """The integer formula with its leaves made reals, where every step of it is exact; else the formula."""
    nodes = list(walk(expr))
    plain = all(isinstance(n, Token | Const) or (isinstance(n, Apply) and n.fn in EXACTLY) for n in nodes)
    if isinstance(expr, Const) or not plain or any(max(map(abs, _range(n, tokens))) > EXACT for n in nodes):
        return expr
    leaves = {n: Const(float(n.value)) if isinstance(n, Const) else apply("mul", ONE, n) for n in nodes if _leaf(n)}
    return substitute(expr, leaves)


EXACTLY = ("add", "sub", "neg", "abs", "min", "max")


def _leaf(node: Expr) -> bool:
    return isinstance(node, Token | Const)


def _number(expr: Expr) -> float | None:
    """A constant's value where it is a finite number."""
    if isinstance(expr, Const) and not isinstance(expr.value, bool) and math.isfinite(expr.value):
        return float(expr.value)
    return None


def _affine(expr: Expr) -> tuple[float, Expr, float]:
    """(factor, core, shift) with factor * core + shift = expr, a real formula."""
    if kind_of(expr) is Kind.REAL and isinstance(expr, Apply) and expr.fn in ("add", "sub"):
        x, y = expr.args
        sign = -1.0 if expr.fn == "sub" else 1.0
        for part, whole, number in ((x, 1.0, _number(y)), (y, sign, _number(x))):
            if number is None or kind_of(part) is not Kind.REAL:
                continue
            factor, core, shift = _affine(part)
            shift = whole * shift + (sign * number if part is x else number)
            if abs(shift) <= NEAR:
                return whole * factor, core, shift
    factor, rest = _scaled(expr)
    if factor != 1.0:
        inner, core, shift = _affine(rest)
        if abs(factor * shift) <= NEAR and _sound(factor * inner):
            return factor * inner, core, factor * shift
        return factor, _folded(rest), 0.0
    return 1.0, _folded(expr), 0.0


def _sound(factor: float) -> bool:
    """Whether float32 has the number."""
    return factor == 0 or 2.0**-100 < abs(factor) < 2.0**100


def _scaled(expr: Expr) -> tuple[float, Expr]:
    """(factor, rest) with factor * rest = expr; factors of constants alone leave it, through products and quotients."""
    if not isinstance(expr, Apply) or kind_of(expr) is not Kind.REAL:
        return 1.0, expr
    match expr:
        case Apply("neg", (x,)):
            found = -1.0, x
        case Apply("mul", (x, y)) if (number := _number(x)) is not None:
            found = number, y
        case Apply("mul", (x, y)) if (number := _number(y)) is not None:
            found = number, x
        case Apply("div", (x, y)) if (number := _number(y)) and math.isfinite(1 / number):
            found = 1 / number, x
        case Apply("div", (x, y)) if (number := _number(x)) is not None and number != 1.0:
            found = number, apply("div", ONE, y)
        case _:
            return 1.0, expr
    factor, rest = found
    if kind_of(rest) is not Kind.REAL:  # the factor is what makes it a real
        return 1.0, expr
    inner, rest = _scaled(rest)
    return (factor * inner, rest) if _sound(factor * inner) else (1.0, expr)


def _folded(expr: Expr) -> Expr:
    """The formula with each chain of factors inside it made one."""
    factor, rest = _scaled(expr)
    if isinstance(rest, Apply):
        rest = Apply(rest.fn, tuple(_folded(a) for a in rest.args))
    return rest if factor == 1.0 else apply("mul", Const(factor), rest)
