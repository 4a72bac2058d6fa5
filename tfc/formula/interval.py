"""A formula and the ranges of its leaves turned into a range that holds all its values: one rule a primitive.

An interval is a pair (lo, hi). The rules are written once, against the small arithmetic `Numbers`: on Python
numbers here (`HOST`), on traced arrays in `backends/bounds.py`. They are sound first:

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
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tfc.formula.expr import Apply, Const, Expr, FormulaError, Kind, Load, Read, Token, Var, kind_of
from tfc.formula.scalar import INT_MAX, INT_MIN, SCALAR, Number, element, power, real

__all__ = [
    "HOST",
    "NOTHING_KNOWN",
    "RULES",
    "Evaluate",
    "Host",
    "Interval",
    "Numbers",
    "Table",
    "compiled",
    "fits",
    "point",
]

Interval = tuple[Any, Any]
"""(lo, hi), both ends included. The ends are Python numbers or arrays that broadcast against each other."""

Evaluate = Callable[[Sequence[Interval]], Interval]
"""A compiled formula: the intervals of its leaves, in the order given when it was compiled, to its own."""

NOTHING_KNOWN: Mapping[Kind, Interval] = {
    Kind.BOOL: (False, True),
    Kind.INT: (INT_MIN, INT_MAX),
    Kind.REAL: (math.nan, math.nan),
}

TINY = 2.0**-125
"""Added to every real bound: accelerators flush what is smaller than 2^-126 to zero."""

ROUNDED = 2.0**-20
"""Relative width for + - * / and square roots: eight times float32's spacing."""

APPROXIMATE = 2.0**-14
"""Relative width for transcendental functions: `exp(x)` as `exp2(x * log2(e))` loses |x| * 2^-23, |x| < 90."""

FLAT = 2.0**-16
"""Absolute width for functions whose relative accuracy is lost near a zero: log, tanh, erf, sin, cos."""

LARGEST = (2 - 2**-23) * 2.0**127


class Numbers(Protocol):
    """The arithmetic of bounds. Comparisons and `& | ^` (on booleans), `+ - *` (on reals) are the operators.

    The integer functions saturate at INT_MIN and INT_MAX. minimum and maximum give nan if either is nan.
    """

    def where(self, condition: Any, x: Any, y: Any) -> Any: ...
    def minimum(self, x: Any, y: Any) -> Any: ...
    def maximum(self, x: Any, y: Any) -> Any: ...
    def constant(self, value: Number) -> Any: ...
    def to_real(self, x: Any) -> Any: ...
    def to_int(self, x: Any) -> Any:
        """Floor of a real; nan and what 32 bits cannot hold may give anything."""

    def add(self, x: Any, y: Any) -> Any: ...
    def sub(self, x: Any, y: Any) -> Any: ...
    def mul(self, x: Any, y: Any) -> Any: ...
    def floordiv(self, x: Any, y: Any) -> Any:
        """Integers; 0 where y is 0."""

    def mod(self, x: Any, y: Any) -> Any:
        """Integers; 0 where y is 0."""

    def div(self, x: Any, y: Any) -> Any:
        """Reals; anything where y is 0."""

    def power(self, x: Any, y: Any) -> Any:
        """Reals, as IEEE's pow."""

    def call(self, fn: str, x: Any) -> Any:
        """A real function of the table of primitives; nan outside its domain."""

    def read(self, table: Any, indices: Sequence[Interval], kind: Kind) -> Interval:
        """The range of a table's elements at any of the indices; an index outside reads the nearest element."""


def _clip(x: int) -> int:
    return INT_MIN if x < INT_MIN else INT_MAX if x > INT_MAX else x


class Host:
    """Bounds that are Python numbers."""

    def where(self, condition: bool, x: Any, y: Any) -> Any:
        return x if condition else y

    def minimum(self, x: Any, y: Any) -> Any:
        return x if x != x or x < y else y

    def maximum(self, x: Any, y: Any) -> Any:
        return x if x != x or x > y else y

    def constant(self, value: Number) -> Number:
        return value

    def to_real(self, x: int) -> float:
        return real(x)

    def to_int(self, x: float) -> int:
        return int(SCALAR["floor"](x))

    def add(self, x: int, y: int) -> int:
        return _clip(x + y)

    def sub(self, x: int, y: int) -> int:
        return _clip(x - y)

    def mul(self, x: int, y: int) -> int:
        return _clip(x * y)

    def floordiv(self, x: int, y: int) -> int:
        return _clip(x // y) if y else 0

    def mod(self, x: int, y: int) -> int:
        return x % y if y else 0

    def div(self, x: float, y: float) -> float:
        return x / y if y else math.nan

    def power(self, x: float, y: float) -> float:
        return power(x, y)

    def call(self, fn: str, x: float) -> float:
        return float(SCALAR[fn](x))

    def read(self, table: "Table", indices: Sequence[Interval], kind: Kind) -> Interval:
        return table.range([(lo, hi) for lo, hi in indices])


HOST = Host()


class Table:
    """A table of Python numbers, nested one level an axis, and the ranges of its parts.

    Parts of at most `SCAN` elements are looked through; a larger part has the range of the whole table.
    """

    SCAN = 256

    def __init__(self, values: Any, rank: int, kind: Kind) -> None:
        self.kind = kind
        self.shape: list[int] = []
        flat = values if rank else [values]
        self.values = values
        for axis in range(rank):
            self.shape.append(len(flat))
            flat = [x for row in flat for x in row] if axis + 1 < rank else flat
        ends = [point(HOST, v, kind) for v in flat]
        self.whole = _hull(HOST, ends) if ends else NOTHING_KNOWN[kind]

    def range(self, indices: Sequence[Interval]) -> Interval:
        if 0 in self.shape:
            return NOTHING_KNOWN[self.kind]
        spans = []
        for (lo, hi), size in zip(indices, self.shape, strict=True):
            spans.append(range(min(max(lo, 0), size - 1), min(max(hi, 0), size - 1) + 1))
        if math.prod(len(s) for s in spans) > self.SCAN:
            return self.whole
        at: list[tuple[int, ...]] = [()]
        for span in spans:
            at = [(*a, i) for a in at for i in span]
        return _hull(HOST, [point(HOST, element(self.values, a), self.kind) for a in at])


def _hull(ns: Numbers, parts: Sequence[Interval]) -> Interval:
    lo, hi = parts[0]
    for a, b in parts[1:]:
        lo, hi = ns.minimum(lo, a), ns.maximum(hi, b)
    return lo, hi


def fits(value: float) -> bool:
    """Whether float32 holds the value: then every reader sees the same number."""
    try:
        return bool(struct.unpack("f", struct.pack("f", value))[0] == value)
    except OverflowError:
        return False


def point(ns: Numbers, value: Number, kind: Kind) -> Interval:
    """The interval of one known Python number, widened where float32 cannot hold it."""
    if kind is Kind.BOOL:
        return ns.constant(bool(value)), ns.constant(bool(value))
    if kind is Kind.INT:
        inside = INT_MIN < value < INT_MAX
        lo, hi = (value, value) if inside else NOTHING_KNOWN[Kind.INT]
        return ns.constant(int(lo)), ns.constant(int(hi))
    x = real(value)
    lo, hi = (x, x) if x != x or fits(x) else widened(HOST, x, x)
    return ns.constant(lo), ns.constant(hi)


def widened(ns: Numbers, lo: Any, hi: Any, relative: float = ROUNDED, absolute: float = TINY) -> Interval:
    """The bounds moved apart by a reader's error. A sign that only rounding could change is kept (absolute = TINY)."""
    below = lo - (ns.maximum(lo, -lo) * relative + absolute)
    above = hi + (ns.maximum(hi, -hi) * relative + absolute)
    if absolute == TINY:
        below = ns.where((lo >= 0) & (below < 0), 0.0, below)
        above = ns.where((hi <= 0) & (above > 0), 0.0, above)
    below = ns.where(below < -LARGEST, -math.inf, below)  # float32 overflows where a double does not
    above = ns.where(above > LARGEST, math.inf, above)
    unknown = (below != below) | (above != above)
    return ns.where(unknown, math.nan, below), ns.where(unknown, math.nan, above)


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
    return _hull(ns, [(v, v) for v in (f(a, b) for a in x for b in y)])


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
        lost = (x[0] < 0) | _infinite(x) | _infinite(y)
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


def _less(x: Interval, y: Interval, strict: bool) -> Interval:
    if strict:
        return x[1] < y[0], (x[0] >= y[1]) ^ True
    return x[1] <= y[0], (x[0] > y[1]) ^ True


def _not(ns: Numbers, kind: Kind, x: Interval) -> Interval:
    return x[1] ^ True, x[0] ^ True


def _where(ns: Numbers, kind: Kind, c: Interval, x: Interval, y: Interval) -> Interval:
    if kind is Kind.BOOL:
        lo, hi = x[0] & y[0], x[1] | y[1]
    else:
        lo, hi = _hull(ns, [x, y])
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
    "lt": lambda ns, kind, x, y: _less(x, y, True),
    "le": lambda ns, kind, x, y: _less(x, y, False),
    "gt": lambda ns, kind, x, y: _less(y, x, True),
    "ge": lambda ns, kind, x, y: _less(y, x, False),
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
    "rsqrt": _monotone("rsqrt", falls=True),
    "exp": _monotone("exp"),
    "exp2": _monotone("exp2"),
    "log": _monotone("log", absolute=FLAT),
    "log1p": _monotone("log1p", absolute=FLAT),
    "tanh": _monotone("tanh", absolute=FLAT),
    "sigmoid": _monotone("sigmoid", absolute=FLAT),
    "erf": _monotone("erf", absolute=FLAT),
    "sin": _wave("sin", math.pi / 2),
    "cos": _wave("cos", 0.0),
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
        place = leaves[expr]
        return lambda env: env[place]
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
