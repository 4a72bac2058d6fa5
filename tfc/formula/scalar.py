"""A formula evaluated for one head, one query token and one key token, in plain Python: the referee.

Every other reader (the dense reference, a kernel's tile, intervals, derivatives) is tested against this one,
so it says what the primitives mean where mathematics leaves a choice:

- integers are unbounded, reals are IEEE doubles; `x // 0` and `x % 0` are 0; `sign(0)` is +1; `round` takes halves
  to even;
- nothing raises on numbers: a result too large is inf, `x / 0` is inf or -inf by the sign of `x` and nan for
  `0 / 0`, and a real function outside its domain (`log(-1)`, `sqrt(-1)`, `(-1) ^ 0.5`, `sin(inf)`) is nan;
- `floor` of a value beyond 32 bits gives the nearest 32-bit integer, of nan 0: what conversion gives on accelerators;
- an index outside a table reads the nearest element.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from tfc.formula.expr import Apply, Const, Expr, FormulaError, Kind, Load, Read, Reduce, Side, Token, Var

__all__ = ["INT_MAX", "INT_MIN", "SCALAR", "Env", "Number", "evaluate", "pair"]

Number = bool | int | float

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
"""The ends of the integers that an array holds."""


def real(x: Number) -> float:
    """x as a double; an integer beyond its range is infinite."""
    try:
        return float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf


def _divide(x: Number, y: Number) -> float:
    a, b = real(x), real(y)
    if b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)
    return a / b


def power(x: Number, y: Number) -> float:
    """x ^ y in reals, as IEEE's pow: nan for a negative base with a fractional exponent."""
    a, b = real(x), real(y)
    odd = math.isfinite(b) and b == math.floor(b) and b % 2 == 1
    try:
        return math.pow(a, b)
    except OverflowError:
        return -math.inf if a < 0 and odd else math.inf
    except ValueError:  # 0 to a negative power, or a negative base to a fraction
        if a != 0:
            return math.nan
        return math.copysign(math.inf, a) if odd else math.inf


def _real(function: Callable[[float], float]) -> Callable[[Number], float]:
    """A function of `math` that never raises: inf where the result is too large, nan outside the domain."""

    def apply(x: Number) -> float:
        try:
            return function(real(x))
        except OverflowError:
            return math.inf
        except ValueError:
            return math.nan

    return apply


def _log(x: float) -> float:
    return -math.inf if x == 0 else math.log(x)


def _log1p(x: float) -> float:
    return -math.inf if x == -1 else math.log1p(x)


def _rsqrt(x: float) -> float:
    return math.inf if x == 0 else 1 / math.sqrt(x)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _normal_quantile(y: float) -> float:
    from statistics import NormalDist  # takes as long to import as all of this package

    if y in (0.0, 1.0):
        return math.copysign(math.inf, y - 0.5)
    return NormalDist().inv_cdf(y)  # an error outside 0..1, and nan for nan


def _round(x: float) -> float:
    return math.copysign(float(round(x)), x) if math.isfinite(x) else x


def _floor(x: Number) -> int:
    if isinstance(x, int):
        return x
    if math.isnan(x):
        return 0
    return INT_MAX if x >= INT_MAX else INT_MIN if x <= INT_MIN else math.floor(x)


def _smaller(x: Number, y: Number) -> Number:
    return x if x != x or x < y else y


def _larger(x: Number, y: Number) -> Number:
    return x if x != x or x > y else y


SCALAR: Mapping[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": _divide,
    "floordiv": lambda x, y: 0 if y == 0 else x // y,
    "mod": lambda x, y: 0 if y == 0 else x % y,
    "pow": power,
    "neg": lambda x: -x,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "and": lambda x, y: x and y,
    "or": lambda x, y: x or y,
    "not": lambda x: not x,
    "where": lambda c, x, y: x if c else y,
    "min": _smaller,
    "max": _larger,
    "abs": abs,
    "sign": lambda x: type(x)(-1 if x < 0 else 1),
    "round": _real(_round),
    "floor": _floor,
    "sqrt": _real(math.sqrt),
    "rsqrt": _real(_rsqrt),
    "exp": _real(math.exp),
    "exp2": _real(math.exp2),
    "log": _real(_log),
    "log1p": _real(_log1p),
    "tanh": _real(math.tanh),
    "approximate_tanh": _real(math.tanh),
    "sigmoid": _real(_sigmoid),
    "erf": _real(math.erf),
    "sin": _real(math.sin),
    "cos": _real(math.cos),
    "normal_quantile": _real(_normal_quantile),
    "straight": lambda x, y: x,
    "stop": lambda x: x,
}
"""The primitives on Python numbers. Booleans are bool, integers int, reals float: a value's type is its kind."""


def _missing(slot: int, *_: Any) -> Number:
    raise FormulaError(f"slot ${slot} has no value here")


@dataclass(frozen=True, slots=True)
class Env:
    """The values of a formula's leaves.

    variables: by name. tokens: the two positions. loads(slot, side), with a tuple of indices where there are any, and
    reads(slot, indices): what the slots hold. sizes: the length of each index that a `Reduce` runs over.
    """

    variables: Mapping[str, Number] = field(default_factory=dict)
    tokens: Mapping[Side, int] = field(default_factory=dict)
    loads: Callable[..., Number] = _missing
    reads: Callable[[int, tuple[int, ...]], Number] = _missing
    sizes: Mapping[str, int] = field(default_factory=dict)


def element(table: Any, indices: Sequence[int]) -> Number:
    """One element of nested sequences, an index outside an axis taken to its nearest end."""
    for i in indices:
        table = table[min(max(i, 0), len(table) - 1)]
    return table  # type: ignore[no-any-return]  # nested to any depth: the type of an element cannot be written


def pair(
    i: int,
    j: int,
    *,
    n: int,
    m: int,
    b: int = 0,
    loads: Mapping[int, Any] | None = None,
    reads: Mapping[int, Any] | None = None,
    **variables: Number,
) -> Env:
    """The environment of query i of n and key j of m in batch row b: positions `i + (m - n)` and `j`.

    loads: slot -> values of the tokens, each a number or nested sequences of them, or one such sequence a batch row.
    reads: slot -> nested sequences.
    """

    def load(slot: int, side: Side, indices: tuple[int, ...] = ()) -> Number:
        values = (loads or {})[slot]
        row = values[b] if nested(values, len(indices)) else values
        return element(row[i if side == "q" else j], indices)

    def read(slot: int, indices: tuple[int, ...]) -> Number:
        return element((reads or {})[slot], indices)

    return Env(variables, {"q": i + (m - n), "k": j}, load, read)


def nested(values: Sequence[Any], axes: int = 0) -> bool:
    """Whether there is one sequence a batch row, of tokens that have `axes` axes of their own."""
    for _ in range(axes + 1):
        if not (len(values) > 0 and isinstance(values[0], Sequence)):
            return False
        values = values[0]
    return True


def evaluate(expr: Expr, env: Env) -> Number:
    """The formula's value: a bool, an int or a float, as its kind is. Raises FormulaError for an unbound leaf."""
    match expr:
        case Const(value):
            return value
        case Var(name, kind):
            if name not in env.variables:
                raise FormulaError(f"`{name}` has no value here")
            return _typed(env.variables[name], kind)
        case Token(side):
            return env.tokens[side]
        case Load(slot, side, kind, ()):
            return _typed(env.loads(slot, side), kind)
        case Load(slot, side, kind, indices):
            return _typed(env.loads(slot, side, tuple(int(evaluate(i, env)) for i in indices)), kind)
        case Read(slot, indices, kind):
            return _typed(env.reads(slot, tuple(int(evaluate(i, env)) for i in indices)), kind)
        case Reduce():
            return _reduce(expr, env)
        case Apply(fn, args):
            return _apply(fn, args, [evaluate(a, env) for a in args])
    raise FormulaError(f"`{expr}` has no value before its fields are bound")


def _typed(value: Number, kind: Kind) -> Number:
    return bool(value) if kind is Kind.BOOL else int(value) if kind is Kind.INT else real(value)


def _apply(fn: str, args: tuple[Expr, ...], values: list[Number]) -> Number:
    if fn == "pow":
        exponent = args[1].value if isinstance(args[1], Const) else None
        if type(exponent) is int and exponent >= 0 and type(values[0]) is int:
            return int(values[0] ** exponent)
    if any(type(v) is float for v in values):  # an integer beside a real is a real
        values = [real(v) if type(v) is int else v for v in values]
    return SCALAR[fn](*values)  # type: ignore[no-any-return]  # the table's functions give numbers


def _reduce(expr: Reduce, env: Env) -> Number:
    """`fn[indices](body)`; an empty sum is 0, an empty min inf, an empty max -inf, an empty mean nan."""
    values = []
    for at in product(*(range(env.sizes[name]) for name in expr.indices)):
        inner = {**env.variables, **dict(zip(expr.indices, at, strict=True))}
        values.append(evaluate(expr.body, Env(inner, env.tokens, env.loads, env.reads, env.sizes)))
    match expr.fn:
        case "any":
            return any(values)
        case "all":
            return all(values)
        case "sum":
            return sum(values)
        case "mean":
            return _divide(sum(values), len(values))
        case "min" | "max":
            best: Number = math.inf if expr.fn == "min" else -math.inf
            for v in values:
                best = SCALAR[expr.fn](best, v)
            return best
    raise FormulaError(f"no reduction `{expr.fn}`")
