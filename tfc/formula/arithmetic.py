"""The arithmetic that interval rules are written against, and its form on Python numbers.

The rules of `interval.py` see only `Numbers`: bounds are Python numbers here (`HOST`), traced arrays in
`backends/bounds.py`, and the rules are the same.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tfc.formula.expr import Kind
from tfc.formula.scalar import INT_MAX, INT_MIN, SCALAR, Number, element, power, real

__all__ = [
    "APPROXIMATE",
    "COARSE",
    "FLAT",
    "HOST",
    "NOTHING_KNOWN",
    "ROUNDED",
    "TINY",
    "Host",
    "Interval",
    "Numbers",
    "Table",
    "fits",
    "hull",
    "point",
    "widened",
]

Interval = tuple[Any, Any]
"""(lo, hi), both ends included. The ends are Python numbers or arrays that broadcast against each other."""

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

COARSE = 2.0**-10
"""Absolute width for what is asked for approximately, to 2^-11 of itself and no value beyond 1."""

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
        ...

    def add(self, x: Any, y: Any) -> Any: ...
    def sub(self, x: Any, y: Any) -> Any: ...
    def mul(self, x: Any, y: Any) -> Any: ...
    def floordiv(self, x: Any, y: Any) -> Any:
        """Integers; 0 where y is 0."""
        ...

    def mod(self, x: Any, y: Any) -> Any:
        """Integers; 0 where y is 0."""
        ...

    def div(self, x: Any, y: Any) -> Any:
        """Reals; anything where y is 0."""
        ...

    def power(self, x: Any, y: Any) -> Any:
        """Reals, as IEEE's pow."""
        ...

    def call(self, fn: str, x: Any) -> Any:
        """A real function of the table of primitives; nan outside its domain."""
        ...

    def read(self, table: Any, indices: Sequence[Interval], kind: Kind) -> Interval:
        """The range of a table's elements at any of the indices; an index outside reads the nearest element."""
        ...


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
        self.whole = hull(HOST, ends) if ends else NOTHING_KNOWN[kind]

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
        return hull(HOST, [point(HOST, element(self.values, a), self.kind) for a in at])


def hull(ns: Numbers, parts: Sequence[Interval]) -> Interval:
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
