"""The conditions of a mask turned into runs of key tiles for each query tile, and a look into the tiles left open.

A tile is empty under `and` if it is empty under one of them, full if under all; under `or` the reverse. Partial and
partial may be anything: there each kind that can be decided jointly is one condition (all that the query decides
alone, all that the key does, all that `q - k` does, all equalities), what the query and the key decide apart is
independent, and of what is left a tile is halved until a visible and a hidden pair are found, or none is left.

Each kind of condition has its own way to find its runs: a key's alone has the same for every query tile, a
difference's are moved along with the query tile, equal fields are looked up by value, one comparison with a field
that rises is bisected, and whatever else is searched from groups of tiles down to single ones.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import gcd
from typing import Any

from tfc.formula.arithmetic import HOST, Interval, Table
from tfc.formula.columns import Column, Tokens
from tfc.formula.derive import depends_on_difference_only
from tfc.formula.expr import Apply, Expr, Kind, Side, kind_of, sides
from tfc.formula.fields import FLIPPED, split_fields
from tfc.formula.interval import compiled, refined
from tfc.formula.logic import OPPOSITE, grouped, side_of
from tfc.formula.runs import EMPTY, FULL, OPEN, PARTIAL, Runs, both, cut, either, of_tiles, put, turned

__all__ = ["Condition", "Grid", "Look", "condition"]


@dataclass
class Grid:
    """The tiles of one batch row and head, and what has been spent on them."""

    q: Tokens
    k: Tokens
    block_q: int
    block_k: int
    tables: dict[int, Table]
    evaluations: int = field(default=0)

    @property
    def key_tiles(self) -> int:
        return -(-self.k.count // self.block_k)

    def tokens(self, side: Side) -> Tokens:
        return self.q if side == "q" else self.k

    def queries(self, i: int) -> tuple[int, int]:
        """The first token of query tile i, and the first after it."""
        return i * self.block_q, min((i + 1) * self.block_q, self.q.count)

    def keys(self, j: int) -> tuple[int, int]:
        return j * self.block_k, min((j + 1) * self.block_k, self.k.count)


class Condition:
    """A boolean formula on the tiles. rank: conditions that cost less, or leave more out, are asked first."""

    rank = 0

    def runs(self, i: int, start: int, end: int) -> Runs:
        """What is known of key tiles start..end-1 (at least one) for query tile i."""
        raise NotImplementedError


def _known(x: Interval, exact: bool) -> int:
    return FULL if x[0] else EMPTY if not x[1] else PARTIAL if exact else OPEN


class OfQuery(Condition):
    """What the query decides alone."""

    def __init__(self, grid: Grid, expr: Expr) -> None:
        column = grid.q.column(expr)
        self.known = [_known(x, column.exact) for x in column.tiles(grid.block_q, grid.q.count)]

    def runs(self, i: int, start: int, end: int) -> Runs:
        return [end], [self.known[i]]


class OfKey(Condition):
    """What the key decides alone."""

    rank = 1

    def __init__(self, grid: Grid, expr: Expr) -> None:
        column = grid.k.column(expr)
        self.all: Runs = ([], [])
        for j, x in enumerate(column.tiles(grid.block_k, grid.k.count)):
            put(self.all, j + 1, _known(x, column.exact))

    def runs(self, i: int, start: int, end: int) -> Runs:
        return cut(self.all, start, end)


class Look:
    """A formula on parts of a tile, halved until each is decided or a visible and a hidden pair have been met.

    budget: of evaluations, for all tiles together; `most` for one. A tile for which it does not suffice stays open.
    period: two tiles whose queries are as far apart as their keys, by a multiple of it, are alike. 1: the formula is
    one of `q - k`, and has values at any place.
    """

    most = 4096

    def __init__(self, grid: Grid, expr: Expr, budget: int, period: int | None = None) -> None:
        self.grid, self.budget, self.period = grid, budget, period
        anywhere = period == 1
        formula, derived = split_fields(expr, separate=not anywhere)
        known = sorted(derived, key=lambda d: (d.side is not None, d.side == "k"))
        self.constant = [grid.q.line(d.expr).at(0) for d in known if d.side is None]
        self.of_q, self.of_k = (
            [tokens.line(d.expr) if anywhere else tokens.column(d.expr) for d in known if d.side == tokens.side]
            for tokens in (grid.q, grid.k)
        )
        self.formula = compiled(formula, {d.leaf: i for i, d in enumerate(known)}, HOST, grid.tables)
        self.refined = refined(formula, {d.leaf: i for i, d in enumerate(known)}, grid.tables)
        self.seen: dict[tuple[int, ...], int] = {}

    def query(self, start: int, end: int) -> list[Interval]:
        """The constants' and the query fields' bounds."""
        return self.constant + [c.bounds(start, end) for c in self.of_q]

    def key(self, start: int, end: int) -> list[Interval]:
        """The key fields' bounds."""
        return [c.bounds(start, end) for c in self.of_k]

    def at(self, queries: tuple[int, int], keys: tuple[int, int], kind: int) -> int:
        """The class of the tile of which `kind` is known."""
        if self.period is None or self.budget <= 0:
            return self._at(queries, keys, kind)
        alike = (queries[0] % self.period, keys[0] - queries[0], queries[1] - queries[0], keys[1] - keys[0])
        if alike not in self.seen:
            self.seen[alike] = self._at(queries, keys, kind)
        return self.seen[alike]

    def _at(self, queries: tuple[int, int], keys: tuple[int, int], kind: int) -> int:
        visible, hidden, certain = kind // 3 == 2, kind % 3 == 2, True
        left = min(self.most, self.budget)
        self.budget -= left
        stack = [(queries, self.query(*queries), keys, self.key(*keys))]
        while stack and left > 0 and not (visible and hidden):
            rows, of_rows, columns, of_columns = stack.pop()
            left -= 1
            self.grid.evaluations += 1
            lo, hi = self.formula(of_rows + of_columns)
            if lo:
                visible = True
            elif not hi:
                hidden = True
            elif rows[1] - rows[0] >= max(columns[1] - columns[0], 2):
                stack += [(half, self.query(*half), columns, of_columns) for half in _halves(*rows)]
            elif columns[1] - columns[0] > 1:
                stack += [(rows, of_rows, half, self.key(*half)) for half in _halves(*columns)]
            else:
                certain = False  # reals so near that rounding decides
        self.budget += left
        if visible and hidden:
            return PARTIAL
        if stack or not certain:
            return OPEN
        return FULL if visible else EMPTY


def _halves(start: int, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
    middle = (start + end) // 2
    return (middle, end), (start, middle)


class Search(Condition):
    """Any condition, by its intervals on groups of key tiles, halved until each is decided."""

    rank = 4

    def __init__(self, grid: Grid, expr: Expr, one_comparison: bool = False) -> None:
        self.grid, self.look = grid, Look(grid, expr, 0)
        columns = self.look.of_k
        exact = one_comparison and all(c.exact for c in (*self.look.of_q, *columns))
        self.undecided = PARTIAL if exact else OPEN
        count = grid.key_tiles
        base = [list(row) for row in zip(*(c.tiles(grid.block_k, grid.k.count) for c in columns), strict=True)]
        base = base or [[] for _ in range(count)]
        self.outer: list[list[list[Interval]]] = _pyramid(base, _around)
        self.inner: list[list[list[Interval | None]]] = _pyramid([[*row] for row in base], _within)
        self.kept: tuple[list[Interval], int, int, Runs] | None = None

    def runs(self, i: int, start: int, end: int) -> Runs:
        query = self.look.query(*self.grid.queries(i))
        if self.kept is None or self.kept[:3] != (query, start, end):
            self.kept = (query, start, end, self._runs(query, start, end))
        return self.kept[3]

    def _runs(self, query: list[Interval], start: int, end: int) -> Runs:
        out: Runs = ([], [])
        stack = [(len(self.outer) - 1, 0)]
        while stack:
            level, index = stack.pop()
            first, last = max(index << level, start), min((index + 1) << level, end)
            if first >= last:
                continue
            env = [*query, *self.outer[level][index]]
            self.grid.evaluations += 1
            lo, hi = self.look.formula(env)
            if lo or not hi:
                put(out, last, FULL if lo else EMPTY)
            elif not level or self._settled(query, env, self.inner[level][index]):
                put(out, last, self.undecided)
            else:
                stack += [(level - 1, 2 * index + 1), (level - 1, 2 * index)]
        return out

    def _settled(self, query: list[Interval], env: Sequence[Interval], inner: Sequence[Interval | None]) -> bool:
        """Whether every tile of the group is known to be undecided."""
        self.grid.evaluations += 1
        found = self.look.refined(env, [*query, *inner])[1]
        return found is not None and not found[0] and bool(found[1])


def _around(a: Interval, b: Interval) -> Interval:
    return HOST.minimum(a[0], b[0]), HOST.maximum(a[1], b[1])


def _within(a: Interval | None, b: Interval | None) -> Interval | None:
    """What two intervals share."""
    if a is None or b is None:
        return None
    lo, hi = HOST.maximum(a[0], b[0]), HOST.minimum(a[1], b[1])
    return (lo, hi) if lo <= hi else None


def _pyramid(base: list[Any], join: Callable[[Any, Any], Any]) -> list[list[Any]]:
    """The rows of `base`, and of every group of 2, 4, 8, ... of them, joined entry by entry."""
    levels = [base]
    while len(levels[-1]) > 1:
        below = levels[-1]
        pairs = [(below[i], below[min(i + 1, len(below) - 1)]) for i in range(0, len(below), 2)]
        levels.append([[join(a, b) for a, b in zip(x, y, strict=True)] for x, y in pairs])
    return levels


class Difference(Condition):
    """What `q - k` decides: one search for each way that query and key tiles can be aligned, moved along the keys.

    Whole tiles are searched on keys that go on below 0, where the first query tiles' do not.
    """

    rank = 2
    budget = 1 << 16

    def __init__(self, grid: Grid, expr: Expr) -> None:
        self.grid, self.look = grid, Look(grid, expr, self.budget, period=1)
        common = gcd(grid.block_q, grid.block_k)
        self.period, self.step = grid.block_k // common, grid.block_q // common
        self.whole_queries, self.whole_keys = grid.q.count // grid.block_q, grid.k.count // grid.block_k
        self.searches: dict[int, tuple[int, Runs]] = {}

    def runs(self, i: int, start: int, end: int) -> Runs:
        whole = min(end, self.whole_keys)
        if i < self.whole_queries:
            turn, alike = divmod(i, self.period)
            if alike not in self.searches:
                lowest = -((self.whole_queries - 1 - alike) // self.period) * self.step
                self.searches[alike] = lowest, self._search(alike, lowest)
            lowest, found = self.searches[alike]
            moved = lowest + turn * self.step
        else:
            if i not in self.searches:
                self.searches[i] = 0, self._search(i, 0)
            moved, found = self.searches[i]
        out = cut(found, start, whole, moved) if start < whole else ([], [])
        if end > self.whole_keys:  # the last tile lacks keys
            put(out, end, self._tile(i, self.grid.keys(self.whole_keys)))
        return out

    def _search(self, i: int, first: int) -> Runs:
        """The runs of key tiles first, first + 1, ...; their ends count from `first`."""
        query = self.look.query(*self.grid.queries(i))
        count, block = self.whole_keys - first, self.grid.block_k
        out: Runs = ([], [])
        stack = [(max(count - 1, 0).bit_length(), 0)] if count else []
        while stack:
            level, index = stack.pop()
            start, end = index << level, min((index + 1) << level, count)
            if start >= end:
                continue
            self.grid.evaluations += 1
            lo, hi = self.look.formula(query + self.look.key((first + start) * block, (first + end) * block))
            if lo or not hi:
                put(out, end, FULL if lo else EMPTY)
            elif level:
                stack += [(level - 1, 2 * index + 1), (level - 1, 2 * index)]
            else:
                put(out, end, self._tile(i, ((first + start) * block, (first + end) * block)))
        return out

    def _tile(self, i: int, keys: tuple[int, int]) -> int:
        return self.look.at(self.grid.queries(i), keys, OPEN)


class Same(Condition):
    """Fields of the query that all equal fields of the key: tiles are looked up by the values that occur in them.

    A tile has a visible pair exactly if the two tokens' sets of values share one, and a hidden one unless both are
    the same single value. With two fields or more, pairs (triples, ..) of values are one value.
    """

    rank = 3

    def __init__(self, grid: Grid, pairs: Sequence[tuple[Column, Column]]) -> None:
        queries, keys = (
            side[0].values if len(side) == 1 else list(zip(*(c.values for c in side), strict=True))
            for side in zip(*pairs, strict=True)
        )
        self.sets = [frozenset(queries[a : a + grid.block_q]) for a in range(0, grid.q.count, grid.block_q)]
        self.count = grid.key_tiles
        self.tiles: dict[Any, list[int]] = {}
        self.alone: dict[Any, list[int]] = {}
        for j in range(self.count):
            found = set(keys[j * grid.block_k : (j + 1) * grid.block_k])
            for where in (self.tiles, self.alone) if len(found) == 1 else (self.tiles,):
                for value in found:
                    where.setdefault(value, []).append(j)
        self.masks: dict[Any, int] = {}
        self.kept: dict[frozenset[Any], Runs] = {}

    def runs(self, i: int, start: int, end: int) -> Runs:
        found = self.kept.get(self.sets[i])
        if found is None:
            found = self.kept[self.sets[i]] = self._all(self.sets[i])
        return cut(found, start, end)

    def _all(self, values: frozenset[Any]) -> Runs:
        holding = [v for v in values if v in self.tiles]
        if len(values) == 1:
            (value,) = values
            return of_tiles(self.tiles.get(value, []), frozenset(self.alone.get(value, [])), self.count)
        if sum(len(self.tiles[v]) for v in holding) <= self.count:
            return of_tiles(sorted({j for v in holding for j in self.tiles[v]}), frozenset(), self.count)
        union = 0  # a bit a tile: many values in many tiles
        for v in holding:
            if v not in self.masks:
                self.masks[v] = sum(1 << j for j in self.tiles[v])
            union |= self.masks[v]
        return of_tiles([j for j, bit in enumerate(reversed(f"{union:b}")) if bit == "1"], frozenset(), self.count)


class Compare(Condition):
    """One comparison of a query's field with a key's field that never falls from tile to tile."""

    rank = 3

    def __init__(self, fn: str, queries: list[Interval], keys: list[Interval]) -> None:
        self.fn, self.queries = fn, queries
        self.lows, self.highs = [lo for lo, _ in keys], [hi for _, hi in keys]

    @staticmethod
    def rises(keys: list[Interval]) -> bool:
        return all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(keys))

    def runs(self, i: int, start: int, end: int) -> Runs:
        lo, hi = self.queries[i]
        match self.fn:
            case "ge":  # hidden pairs from x on, visible ones up to y
                x, y = bisect_right(self.highs, lo), bisect_right(self.lows, hi)
            case "gt":
                x, y = bisect_left(self.highs, lo), bisect_left(self.lows, hi)
            case "le":  # visible pairs from x on, hidden ones up to y
                x, y = bisect_left(self.highs, lo), bisect_left(self.lows, hi)
            case _:
                x, y = bisect_right(self.highs, lo), bisect_right(self.lows, hi)
        first, last = (FULL, EMPTY) if self.fn in ("ge", "gt") else (EMPTY, FULL)
        out: Runs = ([], [])
        for at, kind in ((x, first), (y, PARTIAL), (len(self.lows), last)):
            if (at := min(at, end)) > start:
                put(out, at, kind)
                start = at
        return out


class Turned(Condition):
    """The opposite of a condition."""

    rank = 3

    def __init__(self, of: Condition) -> None:
        self.of = of

    def runs(self, i: int, start: int, end: int) -> Runs:
        ends, kinds = self.of.runs(i, start, end)
        return ends, [turned[kind] for kind in kinds]


class Junction(Condition):
    """`and` or `or` of conditions; each is asked only where those before it leave something to decide."""

    rank = 3

    def __init__(self, fn: str, parts: Sequence[Condition]) -> None:
        self.tables, self.decided = (both, EMPTY) if fn == "and" else (either, FULL)
        self.parts = sorted(parts, key=lambda c: c.rank)

    def runs(self, i: int, start: int, end: int) -> Runs:
        first, *rest = self.parts
        found = first.runs(i, start, end)
        for part in rest:
            table = self.tables[isinstance(first, OfQuery) and isinstance(part, OfKey)]
            out: Runs = ([], [])
            at = start
            for stop, kind in zip(*found, strict=True):
                if kind == self.decided:
                    put(out, stop, kind)
                else:
                    row = table[kind]
                    for until, other in zip(*part.runs(i, at, stop), strict=True):
                        put(out, until, row[other])
                at = stop
            found, first = out, part
        return found


def condition(grid: Grid, mask: Expr) -> Condition:
    """What finds the runs of a mask in the form of `logic.conditions`."""
    match side_of(mask):
        case "q":
            return OfQuery(grid, mask)
        case "k":
            return OfKey(grid, mask)
        case "difference":
            return Difference(grid, mask)
    match mask:
        case Apply("and" | "or" as fn, _):
            parts = grouped(mask, fn)
            alike = "eq" if fn == "and" else "ne"
            pairs = [pair for part in parts if (pair := _equality(grid, part, alike)) is not None]
            others = [condition(grid, part) for part in parts if _equality(grid, part, alike) is None]
            if pairs:
                others.append(Same(grid, pairs) if fn == "and" else Turned(Same(grid, pairs)))
            return Junction(fn, others) if len(others) > 1 else others[0]
        case Apply("not", (x,)):
            return Turned(condition(grid, x))
        case Apply("eq" | "ne" as fn, _) if (pair := _equality(grid, mask, fn)) is not None:
            return Same(grid, [pair]) if fn == "eq" else Turned(Same(grid, [pair]))
        case Apply(fn, (x, y)) if fn in OPPOSITE and _of_each(x, y) and kind_of(x) is kind_of(y) is Kind.INT:
            return _comparison(grid, mask)
    return Search(grid, mask)


def _of_each(x: Expr, y: Expr) -> bool:
    return {side_of(x), side_of(y)} == {"q", "k"} and bool(sides(x)) and bool(sides(y))


def _equality(grid: Grid, part: Expr, fn: str) -> tuple[Column, Column] | None:
    """The columns of a query's and a key's field that `part` compares by `fn`, where their values are known."""
    if not (isinstance(part, Apply) and part.fn == fn and _of_each(*part.args)):
        return None
    if depends_on_difference_only(part):
        return None
    x, y = part.args if side_of(part.args[0]) == "q" else reversed(part.args)
    if Kind.REAL in (kind_of(x), kind_of(y)):
        return None
    pair = grid.q.column(x), grid.k.column(y)
    return pair if pair[0].exact and pair[1].exact else None


def _comparison(grid: Grid, mask: Apply) -> Condition:
    """`x < y` and the like of a query's and a key's integer."""
    (x, y), fn = mask.args, mask.fn
    if side_of(x) == "k":
        x, y, fn = y, x, FLIPPED[fn]
    queries, keys = grid.q.column(x), grid.k.column(y)
    ends = keys.tiles(grid.block_k, grid.k.count)
    if fn in ("eq", "ne") or not (queries.exact and keys.exact and Compare.rises(ends)):
        return Search(grid, mask, one_comparison=True)
    return Compare(fn, queries.tiles(grid.block_q, grid.q.count), ends)
