"""A formula and the ranges of its leaves turned into a range that holds all its values: one rule a primitive.

An interval is a pair (lo, hi). The rules are written once, against the small arithmetic `Numbers`, for bounds that
are Python numbers and for traced arrays. They are sound first:

- **Booleans** are intervals over {False, True}: (True, True) is proved true, (False, True) is undecided.
- **Integers** are exact as long as they fit 32 bits. Where a bound may not, the interval becomes the whole line,
  (INT_MIN, INT_MAX), and stays it: the value then may have wrapped around, and nothing is concluded from it.
- **Reals** are computed in float32 by kernels, in float64 by others, by functions of differing accuracy: each rule
  widens its result by more than any reader's error, so that no verdict hangs on a rounding. Bounds of nan mean
  that nothing is known (the value may be nan itself); then no comparison is decided.

The rules are exact (every bound is reached) for one comparison of f(q) + g(k) with a constant, equality of two
keys, min, max, abs, integer powers of a difference, and //; for % within one period. Two occurrences of one
token are independent to a rule: `fields.py` therefore takes everything that one token decides out of the formula.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from tfc.formula.arithmetic import (
    APPROXIMATE,
    COARSE,
    FLAT,
    HOST,
    NOTHING_KNOWN,
    ROUNDED,
    TINY,
    Interval,
    Numbers,
    hull,
    point,
    widened,
)
from tfc.formula.expr import Apply, Const, Expr, FormulaError, Kind, Load, Read, Reduce, Token, Var, children, kind_of
from tfc.formula.scalar import INT_MAX, INT_MIN, Number

__all__ = ["RULES", "Evaluate", "Refine", "compiled", "refined"]

Evaluate = Callable[[Sequence[Interval]], Interval]
"""A compiled formula: the intervals of its leaves, in the order given when it was compiled, to its own."""

Refine = Callable[[Sequence[Interval], Sequence[Interval | None]], tuple[Interval, Interval | None]]
"""As `Evaluate`, of two intervals for each leaf: `refined`."""


def _whole(ns: Numbers, lo: Any, hi: Any, unless: Any = False) -> Interval:
    """The integer interval, or the whole line where an end saturated (or where `unless` says so)."""
    out = (lo <= INT_MIN) | (hi >= INT_MAX) | unless
    return ns.where(out, INT_MIN, lo), ns.where(out, INT_MAX, hi)


def _unknown(ns: Numbers, where: Any, x: Interval) -> Interval:
    return ns.where(where, math.nan, x[0]), ns.where(where, math.nan, x[1])


def _lost(x: Interval) -> Any:
    """Whether nothing is known of an integer."""
    return x[0] <= INT_MIN


Rule = Callable[..., Interval]
"""rule(ns, kind, *intervals): kind is that of the arguments after integers beside reals became reals."""


def _add(ns: Numbers, kind: Kind, x: Interval, y: Interval) -> Interval:
    if kind is Kind.INT:
        return _whole(ns, ns.add(x[0], y[0]), ns.add(x[1], y[1]))
    cancel = ((x[1] == math.inf) & (y[0] == -math.inf)) | ((x[0] == -math.inf) & (y[1] == math.inf))
    return _unknown(ns, cancel, widened(ns, x[0] + y[0], x[1] + y[1]))


def _neg(ns: Numbers, kind: Kind, x: Interval) -> Interval:
    if kind is Kind.INT:
        return _whole(ns, ns.sub(0, x[1]), ns.sub(0, x[0]))
    return -x[1], -x[0]


def _sub(ns: Numbers, kind: Kind, x: Interval, y: Interval) -> Interval:
    return _add(ns, kind, x, _neg(ns, kind, y))


def _corners(ns: Numbers, f: Callable[[Any, Any], Any], x: Interval, y: Interval) -> Interval:
    """The range of a function that is monotone in each argument alone."""
    return hull(ns, [(v, v) for v in (f(a, b) for a in x for b in y)])


def _mul(ns: Numbers, kind: Kind, x: Interval, y: Interval) -> Interval:
    if kind is Kind.INT:
        return _whole(ns, *_corners(ns, ns.mul, x, y))
    lost = (_infinite(x) & _holds_zero(y)) | (_infinite(y) & _holds_zero(x))
    return _unknown(ns, lost, widened(ns, *_corners(ns, lambda a, b: a * b, x, y)))


def _infinite(x: Interval) -> Any:
    return (x[0] == -math.inf) | (x[1] == math.inf) | (x[0] == math.inf) | (x[1] == -math.inf)


def _holds_zero(x: Interval) -> Any:
    return (x[0] <= 0) & (x[1] >= 0)


def _div(ns: Numbers, kind: Kind, x: Interval, y: Interval) -> Interval:
    lost = _holds_zero(y) | (_infinite(x) & _infinite(y))
    safe = (ns.where(lost, 1.0, y[0]), ns.where(lost, 1.0, y[1]))
    return _unknown(ns, lost, widened(ns, *_corners(ns, ns.div, x, safe)))


def _floordiv(ns: Numbers, kind: Kind, x: Interval, y: Interval) -> Interval:
    lo, hi = _corners(ns, ns.floordiv, x, y)
    # a divisor that may be zero, or of either sign: the quotient is no larger than x, or 0
    most = ns.maximum(x[1], ns.sub(0, x[0]))
    mixed = _holds_zero(y) & (y[0] != y[1])
    lo, hi = ns.where(mixed, ns.sub(0, most), lo), ns.where(mixed, most, hi)
    return _whole(ns, lo, hi, _lost(x) | _lost(y))


def _mod(ns: Numbers, kind: Kind, x: Interval, y: Interval) -> Interval:
    lo, hi = ns.minimum(ns.add(y[0], 1), 0), ns.maximum(ns.sub(y[1], 1), 0)
    small = (x[0] >= 0) & (x[1] < y[0])  # x itself
    one_period = (y[0] == y[1]) & (ns.floordiv(x[0], y[0]) == ns.floordiv(x[1], y[0])) & (y[0] != 0)
    lo = ns.where(small, x[0], ns.where(one_period, ns.mod(x[0], y[0]), lo))
    hi = ns.where(small, x[1], ns.where(one_period, ns.mod(x[1], y[0]), hi))
    return _whole(ns, lo, hi, _lost(y))


def _pow(ns: Numbers, kind: Kind, x: Interval, y: Interval, exponent: Number | None = None) -> Interval:
    """exponent: the second argument where it is a literal whole number; then negative bases have a power."""
    if exponent is None:
        pole = (x[0] <= 0) & (y[0] < 0)  # of either sign: -0.0 is in [0, 1]
        lost = (x[0] < 0) | pole | _infinite(x) | _infinite(y)
        safe = (ns.where(lost, 1.0, x[0]), ns.where(lost, 1.0, x[1]))
        return _unknown(ns, lost, widened(ns, *_corners(ns, ns.power, safe, y), APPROXIMATE))
    n = int(exponent)
    if n % 2 == 0 and n != 0:
        x = _abs(ns, kind, x)
    if kind is Kind.INT:
        lo, hi = _int_power(ns, x[0], n), _int_power(ns, x[1], n)
        return _whole(ns, lo, hi, _lost(x) & (n != 0))
    loose = max(ROUNDED, min(abs(n) * 2.0**-21, 0.5))
    positive = widened(ns, ns.power(x[0], float(abs(n))), ns.power(x[1], float(abs(n))), loose)
    if n >= 0:
        return positive
    one = ns.constant(1.0)
    return _div(ns, kind, (one, one), positive)


def _int_power(ns: Numbers, x: Any, n: int) -> Any:
    out, square = 1, x
    while n:
        if n & 1:
            out = ns.mul(out, square)
        square, n = (ns.mul(square, square) if n > 1 else square), n >> 1
    return out


def _eq(ns: Numbers, kind: Kind, x: Interval, y: Interval) -> Interval:
    if kind is Kind.BOOL:
        known = (x[0] == x[1]) & (y[0] == y[1])
        same = x[0] == y[0]
        return known & same, (known & (same ^ True)) ^ True
    same = (x[0] == x[1]) & (y[0] == y[1]) & (x[0] == y[0])
    apart = (x[1] < y[0]) | (y[1] < x[0])
    return same, apart ^ True


def _less(kind: Kind, x: Interval, y: Interval, strict: bool) -> Interval:
    if strict:
        every, some = x[1] < y[0], (x[0] >= y[1]) ^ True
    else:
        every, some = x[1] <= y[0], (x[0] > y[1]) ^ True
    if kind is not Kind.INT:
        return every, some
    lost = _lost(x) | _lost(y)  # what is not known may be beyond the ends, and the other be at one
    return every & (lost ^ True), some | lost


def _not(ns: Numbers, kind: Kind, x: Interval) -> Interval:
    return x[1] ^ True, x[0] ^ True


def _where(ns: Numbers, kind: Kind, c: Interval, x: Interval, y: Interval) -> Interval:
    if kind is Kind.BOOL:
        lo, hi = x[0] & y[0], x[1] | y[1]
    else:
        lo, hi = hull(ns, [x, y])
    lo = ns.where(c[0], x[0], ns.where(c[1] ^ True, y[0], lo))
    hi = ns.where(c[0], x[1], ns.where(c[1] ^ True, y[1], hi))
    return lo, hi


def _abs(ns: Numbers, kind: Kind, x: Interval) -> Interval:
    lo, hi = _neg(ns, kind, x)
    inside = _holds_zero(x)
    least = ns.where(inside, 0 if kind is Kind.INT else 0.0, ns.maximum(x[0], lo))
    most = ns.maximum(x[1], hi)
    return _whole(ns, least, most) if kind is Kind.INT else (least, most)


def _ends(choose: str) -> Rule:
    """The rule of min or max: the smaller (larger) of each end."""

    def rule(ns: Numbers, kind: Kind, x: Interval, y: Interval) -> Interval:
        pick = ns.minimum if choose == "min" else ns.maximum
        lo, hi = pick(x[0], y[0]), pick(x[1], y[1])
        return _whole(ns, lo, hi) if kind is Kind.INT else (lo, hi)

    return rule


def _sign(ns: Numbers, kind: Kind, x: Interval) -> Interval:
    down, up = (-1, 1) if kind is Kind.INT else (-1.0, 1.0)
    return ns.where(x[0] >= 0, up, down), ns.where(x[1] < 0, down, up)


def _floor(ns: Numbers, kind: Kind, x: Interval) -> Interval:
    out = ((x[0] > INT_MIN) & (x[1] < INT_MAX)) ^ True  # true for nan
    return _whole(ns, ns.to_int(ns.where(out, 0.0, x[0])), ns.to_int(ns.where(out, 0.0, x[1])), out)


def _monotone(fn: str, *, relative: float = APPROXIMATE, absolute: float = TINY, falls: bool = False) -> Rule:
    """The rule of a function that only rises (or only falls); outside its domain the function itself gives nan."""

    def rule(ns: Numbers, kind: Kind, x: Interval) -> Interval:
        lo, hi = ns.call(fn, x[1] if falls else x[0]), ns.call(fn, x[0] if falls else x[1])
        return widened(ns, lo, hi, relative, absolute)

    return rule


def _rsqrt(ns: Numbers, kind: Kind, x: Interval) -> Interval:
    """1 / sqrt(x); nothing is known where x may be 0, as readers differ in the sign of 1 / -0.0."""
    return _unknown(ns, x[0] <= 0, _monotone("rsqrt", relative=APPROXIMATE, falls=True)(ns, kind, x))


def _wave(fn: str, peak: float) -> Rule:
    """The rule of sin or cos, which is 1 at `peak` and each 2 pi from it."""
    turn = 2 * math.pi

    def rule(ns: Numbers, kind: Kind, x: Interval) -> Interval:
        lo, hi = x[0] - 2.0**-6, x[1] + 2.0**-6  # the argument's rounding, up to 2^13
        lo = ns.where(lo > -(2.0**13), lo, math.nan)
        hi = ns.where(hi < 2.0**13, hi, math.nan)
        wild = (lo != lo) | (hi != hi) | (hi - lo >= turn)
        lo, hi = ns.where(wild, 0.0, lo), ns.where(wild, 0.0, hi)

        def passes(top: float) -> Any:
            return ns.to_real(ns.to_int((hi - top) * (1 / turn))) >= (lo - top) * (1 / turn)

        a, b = ns.call(fn, lo), ns.call(fn, hi)
        below = ns.where(wild | passes(peak + math.pi), -1.0, ns.minimum(a, b))
        above = ns.where(wild | passes(peak), 1.0, ns.maximum(a, b))
        out = widened(ns, below, above, APPROXIMATE, FLAT)
        return _unknown(ns, (x[0] != x[0]) | _infinite(x), out)

    return rule


RULES: Mapping[str, Rule] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "floordiv": _floordiv,
    "mod": _mod,
    "pow": _pow,
    "neg": _neg,
    "eq": _eq,
    "ne": lambda ns, kind, x, y: _not(ns, kind, _eq(ns, kind, x, y)),
    "lt": lambda ns, kind, x, y: _less(kind, x, y, True),
    "le": lambda ns, kind, x, y: _less(kind, x, y, False),
    "gt": lambda ns, kind, x, y: _less(kind, y, x, True),
    "ge": lambda ns, kind, x, y: _less(kind, y, x, False),
    "and": lambda ns, kind, x, y: (x[0] & y[0], x[1] & y[1]),
    "or": lambda ns, kind, x, y: (x[0] | y[0], x[1] | y[1]),
    "not": _not,
    "where": _where,
    "min": _ends("min"),
    "max": _ends("max"),
    "abs": _abs,
    "sign": _sign,
    "round": lambda ns, kind, x: (ns.call("round", x[0]), ns.call("round", x[1])),
    "floor": _floor,
    "sqrt": _monotone("sqrt", relative=ROUNDED),
    "rsqrt": _rsqrt,
    "exp": _monotone("exp"),
    "exp2": _monotone("exp2"),
    "log": _monotone("log", absolute=FLAT),
    "log1p": _monotone("log1p", absolute=FLAT),
    "tanh": _monotone("tanh", absolute=FLAT),
    "approximate_tanh": _monotone("tanh", absolute=COARSE),
    "sigmoid": _monotone("sigmoid", absolute=FLAT),
    "erf": _monotone("erf", absolute=FLAT),
    "sin": _wave("sin", math.pi / 2),
    "cos": _wave("cos", 0.0),
    "normal_quantile": _monotone("normal_quantile", absolute=FLAT),
    "straight": lambda ns, kind, x, y: x,
    "stop": lambda ns, kind, x: x,
}
"""The rule of each primitive. Arguments and result are intervals of the primitive's kinds."""


def compiled(
    expr: Expr, leaves: Mapping[Expr, int], ns: Numbers = HOST, tables: Mapping[int, Any] | None = None
) -> Evaluate:
    """The formula as a function of its leaves' intervals.

    leaves: the place of each leaf (`Token`, `Load`, `Var`, or any other node) in the sequence that the function
    takes. tables: by slot, what `ns.read` reads. A `Var` that is no leaf has any value. Raises FormulaError for
    a node without a meaning here.
    """
    if expr in leaves:
        return itemgetter(leaves[expr])
    match expr:
        case Const(value):
            known = point(ns, value, kind_of(expr))
            return lambda env: known
        case Var(_, kind):
            nothing = NOTHING_KNOWN[kind]
            return lambda env: nothing
        case Read(slot, indices, kind):
            if tables is None or slot not in tables:
                raise FormulaError(f"slot ${slot} has no table here")
            table, at = tables[slot], [compiled(i, leaves, ns, tables) for i in indices]
            return lambda env: ns.read(table, [i(env) for i in at], kind)
        case Apply(fn, args):
            return _compiled(expr, fn, [compiled(a, leaves, ns, tables) for a in args], ns)
        case Reduce() | Load(_, _, _, (_, *_)):  # a sum, or an element that the other token chooses
            nothing = NOTHING_KNOWN[kind_of(expr)]
            return lambda env: nothing
        case Token() | Load():
            raise FormulaError(f"`{expr}` has no range here")
    raise FormulaError(f"{type(expr).__name__} in a formula of tokens")


def argument_kind(expr: Apply) -> Kind:
    """The kind that the arguments take before the primitive is applied: integers beside a real are reals."""
    kinds = [kind_of(a) for a in expr.args]
    if Kind.REAL in (*kinds, kind_of(expr)) or expr.fn == "floor":
        return Kind.REAL
    return kinds[-1]


def _compiled(expr: Apply, fn: str, args: list[Evaluate], ns: Numbers) -> Evaluate:
    rule, kind = RULES[fn], argument_kind(expr)
    if fn == "floor" and kind_of(expr.args[0]) is Kind.INT:
        return args[0]
    if kind is Kind.REAL:
        args = [_as_real(a, ns) if kind_of(e) is Kind.INT else a for a, e in zip(args, expr.args, strict=True)]
    if fn == "pow" and isinstance(expr.args[1], Const) and float(expr.args[1].value).is_integer():
        x, y = args
        exponent = expr.args[1].value
        return lambda env: rule(ns, kind, x(env), y(env), exponent)
    match args:
        case [x]:
            return lambda env: rule(ns, kind, x(env))
        case [x, y]:
            return lambda env: rule(ns, kind, x(env), y(env))
    return lambda env: rule(ns, kind, *(a(env) for a in args))


def _as_real(evaluate: Evaluate, ns: Numbers) -> Evaluate:
    """An integer as a real: float32 rounds beyond 2^24, and nothing stays known of one that may have wrapped."""

    def apply(env: Sequence[Interval]) -> Interval:
        x = evaluate(env)
        lo, hi = ns.to_real(x[0]), ns.to_real(x[1])
        large = (lo < -(2.0**24)) | (hi > 2.0**24)
        a, b = widened(ns, lo, hi)
        return _unknown(ns, _lost(x), (ns.where(large, a, lo), ns.where(large, b, hi)))

    return apply


def _over(expr: Expr, args: tuple[Expr, ...]) -> Expr:
    """The node over other arguments."""
    match expr:
        case Apply(fn, _):
            return Apply(fn, args)
        case Read(slot, _, kind):
            return Read(slot, args, kind)
    raise FormulaError(f"{type(expr).__name__} in a formula of tokens")


def refined(expr: Expr, leaves: Mapping[Expr, int], tables: Mapping[int, Any] | None = None) -> Refine:
    """The formula on two intervals a leaf: one that holds the leaf's interval in every part of a whole, and one
    that each part's interval holds (None: there is none). Gives the same two of the formula, on Python numbers.

    If the second is (False, True), the formula is undecided in every part: no use to look at the parts one by one.
    """
    if expr in leaves:
        place = leaves[expr]
        return lambda outer, inner: (outer[place], inner[place])
    args = () if isinstance(expr, Load | Reduce) else children(expr)
    if not args:
        known = compiled(expr, {}, HOST, tables)(())
        return lambda outer, inner: (known, known)
    holes: dict[Expr, int] = {Var(f"#{i}", kind_of(a)): i for i, a in enumerate(args)}
    filled = tuple(a if isinstance(a, Const) else hole for a, hole in zip(args, holes, strict=True))
    step = compiled(_over(expr, filled), holes, HOST, tables)
    parts = [refined(a, leaves, tables) for a in args]

    def apply(outer: Sequence[Interval], inner: Sequence[Interval | None]) -> tuple[Interval, Interval | None]:
        pairs = [part(outer, inner) for part in parts]
        out = step([o for o, _ in pairs])
        if out[0] == out[1]:
            return out, out
        within = [i for _, i in pairs if i is not None]
        return out, step(within) if len(within) == len(pairs) else None

    return apply
