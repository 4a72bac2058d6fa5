"""A sub-expression of one token turned into its values for every token, and their bounds over any run of tokens.

Positions are evaluated where they are asked for, integers a whole list at a time; only what may round, or leave
32 bits, is evaluated token by token with the interval rules.
"""

import operator
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import repeat
from typing import Any

from tfc.formula.arithmetic import HOST, NOTHING_KNOWN, Interval, Table, hull, point
from tfc.formula.derive import shift
from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Read, Side, Token, Var, children, kind_of, walk
from tfc.formula.fields import direction
from tfc.formula.interval import compiled
from tfc.formula.scalar import INT_MIN, SCALAR, Number, element

__all__ = ["Column", "Line", "Tokens"]

H = Var("h", Kind.INT)

FAST: Mapping[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "and": operator.and_,
    "or": operator.or_,
    "not": operator.not_,
    "floordiv": operator.floordiv,  # by a literal other than 0
    "mod": operator.mod,
    "pow": operator.pow,
}


FAR = 1 << 28
"""No token is farther from the first. What a line is computed from lies between its values there, if those are known.
"""


class Column:
    """A field of the tokens 0..count-1 of one sequence.

    exact: every value is one known integer or boolean, so that each bound is reached by a token.
    """

    exact = False

    def bounds(self, start: int, end: int) -> Interval:
        """Over the tokens start..end-1, at least one."""
        raise NotImplementedError

    @property
    def values(self) -> Sequence[Number]:
        """A number a token, where `exact`."""
        raise NotImplementedError

    def tiles(self, block: int, count: int) -> list[Interval]:
        """The bounds of each tile of `block` tokens; the last of `count` may lack some."""
        return [self.bounds(i, min(i + block, count)) for i in range(0, count, block)]


class Line(Column):
    """A field that moves one way with the position: its ends bound it. It has a value at any place, also below 0."""

    def __init__(self, at: Callable[[int], Interval], values: Callable[[], Sequence[Number]], exact: bool) -> None:
        self.at, self.list, self.exact = at, cache(values), exact

    def bounds(self, start: int, end: int) -> Interval:
        (a, b), (c, d) = self.at(start), self.at(end - 1)
        return (a if a < c else c), (d if d > b else b)

    @property
    def values(self) -> Sequence[Number]:
        return self.list()


class _Listed(Column):
    """A field of known integers, booleans, or reals that float32 holds."""

    def __init__(self, values: Sequence[Number], exact: bool) -> None:
        self.listed, self.exact = values, exact

    def bounds(self, start: int, end: int) -> Interval:
        part = self.listed[start:end]
        return min(part), max(part)

    @property
    def values(self) -> Sequence[Number]:
        return self.listed


class _Loose(Column):
    """A field of which each token's value is known within an interval."""

    def __init__(self, values: Sequence[Interval]) -> None:
        self.intervals = values

    def bounds(self, start: int, end: int) -> Interval:
        return hull(HOST, self.intervals[start:end])


@dataclass(frozen=True)
class Tokens:
    """The tokens of one side of a mask, in one batch row.

    first: the position of the first. loads: slot -> a number a token, or nested sequences where a formula indexes it.
    """

    side: Side
    first: int
    count: int
    h: int
    loads: Mapping[int, Sequence[Any]]
    tables: Mapping[int, Table]
    kept: dict[Expr, Column] = field(default_factory=dict)

    def column(self, expr: Expr) -> Column:
        """The field that `expr`, a formula of this side's token alone, is."""
        if expr not in self.kept:
            self.kept[expr] = self._column(expr)
        return self.kept[expr]

    def line(self, expr: Expr) -> "Line":
        """The same where the position moves it one way: then it has a value at any place, also below 0."""
        at = self._at(expr)
        exact = kind_of(expr) is not Kind.REAL and all(lo == hi for lo, hi in (at(0), at(self.count - 1)))
        step = shift(expr)
        if kind_of(expr) is Kind.INT and step is not None and not any(_lost(at(i), expr) for i in (-FAR, FAR)):
            start, _ = at(0)
            return Line(lambda i: (start + step * i, start + step * i), lambda: self._values(expr), exact)
        return Line(at, lambda: self._values(expr), exact)

    def _values(self, expr: Expr) -> Sequence[Number]:
        """Of an exact column."""
        if self._columnar(expr):
            return self._list(expr)
        at = self._at(expr)
        return [at(i)[0] for i in range(self.count)]

    def _column(self, expr: Expr) -> Column:
        if direction(expr) is not None:
            return self.line(expr)
        if self.count and self._columnar(expr):
            return _Listed(self._list(expr), True)
        match expr:
            case Load(slot, _, Kind.REAL, ()) if _float32(self.loads[slot]):
                return _Listed(self.loads[slot], False)
        at = self._at(expr)
        return _Loose([at(i) for i in range(self.count)])

    def _at(self, expr: Expr) -> Callable[[int], Interval]:
        """The interval of the field's value at one token."""
        leaves: dict[Expr, int] = {H: 0}
        sources: list[Callable[[int], Interval]] = [lambda i: (self.h, self.h)]
        for node in _outermost(expr):
            if node not in leaves:
                leaves[node] = len(sources)
                sources.append(self._source(node))
        formula = compiled(expr, leaves, HOST, self.tables)
        return lambda i: formula([source(i) for source in sources])

    def _source(self, node: Token | Load) -> Callable[[int], Interval]:
        if isinstance(node, Token):
            return lambda i: (self.first + i, self.first + i)
        row, kind = self.loads[node.slot], node.kind
        if not node.indices:
            return lambda i: point(HOST, row[i], kind)
        chosen_by = [self._at(index) for index in node.indices]

        def chosen(i: int) -> Interval:
            at = [index(i) for index in chosen_by]
            if any(lo != hi for lo, hi in at):  # which element it is hangs on a rounding
                return NOTHING_KNOWN[kind]
            return point(HOST, element(row[i], [lo for lo, _ in at]), kind)

        return chosen

    def _columnar(self, expr: Expr) -> bool:
        """Whether the field and all that it is computed from are integers and booleans that 32 bits hold."""
        leaves: dict[Expr, int] = {}
        ranges: list[Interval] = []
        for node in walk(expr):
            match node:
                case Token():
                    found = (self.first, self.first + self.count - 1)
                case Load(slot, _, Kind.INT, ()):
                    row = self.loads[slot]
                    if type(sum(row)) is not int:
                        return False
                    found = (min(row), max(row))
                case Load(_, _, Kind.BOOL, ()):
                    found = (False, True)
                case Const():
                    continue
                case Apply(_, args) if not all(isinstance(a, Const) for a in args):
                    continue
                case Read(slot) if slot in self.tables and self.tables[slot].kind is not Kind.REAL:
                    continue
                case _:
                    return False
            leaves[node] = len(ranges)
            ranges.append(found)
        if any(kind_of(node) is Kind.REAL for node in walk(expr)):
            return False
        return not any(_lost(compiled(node, leaves, HOST, self.tables)(ranges), node) for node in walk(expr))

    def _list(self, expr: Expr) -> Sequence[Number]:
        """The values of a `_columnar` field."""
        match expr:
            case Token():
                return range(self.first, self.first + self.count)
            case Load(slot, _, kind):
                return self.loads[slot] if kind is Kind.INT else list(map(bool, self.loads[slot]))
            case Const(value):
                return [value] * self.count
            case Read(slot, indices):
                table = self.tables[slot].values
                return [element(table, at) for at in zip(*map(self._list, indices), strict=True)]
            case Apply(fn, args):
                by_zero = fn in ("floordiv", "mod") and not (isinstance(args[1], Const) and args[1].value)
                function = SCALAR[fn] if by_zero else FAST.get(fn, SCALAR[fn])
                return list(map(function, *[repeat(a.value) if isinstance(a, Const) else self._list(a) for a in args]))
        raise AssertionError(f"{type(expr).__name__} in a column")


def _lost(x: Interval, expr: Expr) -> bool:
    """Whether nothing is known of an integer, or of where it is computed from one."""
    return kind_of(expr) is Kind.INT and bool(x[0] <= INT_MIN)


def _outermost(expr: Expr) -> list[Token | Load]:
    """The tokens and loads of a formula, but not those that an index of a load is made of."""
    if isinstance(expr, Token | Load):
        return [expr]
    return [leaf for child in children(expr) for leaf in _outermost(child)]


def _float32(row: Sequence[Any]) -> bool:
    """Whether float32 holds all of the numbers; not for nan."""
    try:
        return array("f", row).tolist() == list(row)
    except (OverflowError, TypeError):
        return False
