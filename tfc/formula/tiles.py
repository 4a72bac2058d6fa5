"""A mask, lengths and a tile size turned into the key tiles that each query tile visits, each full or partial.

For every query tile the key tiles are searched from large aligned groups down to single ones, with the interval
rules on the groups' bounds: a group in which no pair is visible is left out, one in which all are is one range,
others are halved. The cost is linear in query tiles for masks whose ranges have few ends. A mask of `q - k` alone
is searched once for each way that query and key tiles can be aligned, and shifted to every query tile.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd
from typing import Any, NamedTuple

from tfc.formula.arithmetic import HOST, Interval, Table, point
from tfc.formula.derive import depends_on_difference_only
from tfc.formula.expr import Expr, FormulaError, Kind, Load, Read, Side, Token, Var, kind_of, walk
from tfc.formula.fields import DerivedField, direction, split_fields
from tfc.formula.interval import Evaluate, compiled, refined
from tfc.formula.scalar import nested

__all__ = ["Range", "Tiles", "visited"]


class Range(NamedTuple):
    """Key tiles start..end-1. full: every pair of tokens in them is visible, and no token is beyond a length."""

    start: int
    end: int
    full: bool


Row = tuple[Range, ...]
"""What one query tile visits: sorted, disjoint; neighbours that touch differ in `full`."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """The visited key tiles of each query tile.

    rows: [Br][Hr][Tq], Br 1 where nothing depends on the batch row, Hr 1 where nothing depends on the head.
    evaluations: how often the mask was evaluated on intervals to find them.
    """

    n: int
    m: int
    block_q: int
    block_k: int
    rows: tuple[tuple[tuple[Row, ...], ...], ...]
    evaluations: int = field(default=0, compare=False)

    @property
    def query_tiles(self) -> int:
        return -(-self.n // self.block_q)

    @property
    def key_tiles(self) -> int:
        return -(-self.m // self.block_k)

    @property
    def most_ranges(self) -> int:
        """The largest number of ranges that a query tile has."""
        return max((len(row) for row in self), default=0)

    def __iter__(self) -> Iterator[Row]:
        return (row for heads in self.rows for tiles in heads for row in tiles)

    @property
    def full(self) -> int:
        return sum(r.end - r.start for row in self for r in row if r.full)

    @property
    def partial(self) -> int:
        return sum(r.end - r.start for row in self for r in row if not r.full)

    @property
    def total(self) -> int:
        return sum(1 for _ in self) * self.key_tiles

    @property
    def empty(self) -> int:
        return self.total - self.full - self.partial

    @property
    def fraction(self) -> float:
        """Visited tiles of all; 0 where there are none."""
        return (self.full + self.partial) / self.total if self.total else 0.0

    def summary(self) -> str:
        """One line: `visits 136 of 256 tiles (53.1%): 120 full, 16 partial`."""
        seen = self.full + self.partial
        line = f"visits {seen} of {self.total} tiles ({self.fraction:.1%}): {self.full} full, {self.partial} partial"
        kinds = [f"{len(self.rows)} batch rows" if len(self.rows) > 1 else ""]
        kinds += [f"{len(self.rows[0])} heads" if self.rows and len(self.rows[0]) > 1 else ""]
        over = " x ".join(k for k in kinds if k)
        return f"{line}, over {over}" if over else line

    def picture(self, b: int = 0, h: int = 0, limit: int = 64) -> str:
        """A line a query tile, a character a key tile: `#` full, `+` partial, `.` empty; at most `limit` of each."""
        lines = []
        for row in self.rows[b][h][:limit]:
            cells = ["."] * self.key_tiles
            for start, end, full in row:
                cells[start:end] = ("#" if full else "+") * (end - start)
            lines.append("".join(cells[:limit]))
        return "\n".join(lines)


def visited(
    mask: Expr,
    *,
    n: int,
    m: int,
    block_q: int,
    block_k: int,
    loads: Mapping[int, Sequence[Any]] | None = None,
    reads: Mapping[int, Any] | None = None,
    heads: int = 1,
) -> Tiles:
    """The key tiles that each query tile visits under a boolean formula.

    n, m: queries and keys; query i has position i + (m - n), key j position j. loads: slot -> a number a token
    ([N] or [M]), or one such sequence a batch row. reads: slot -> nested sequences, an axis a level. Reals are
    taken as float32 would hold them. A tile is left out only if no pair in it is visible and full only if all are;
    it may be partial where a finer analysis knew better. Raises FormulaError where the formula is no boolean, a
    slot has no values, or a field has not one value a token.
    """
    if kind_of(mask) is not Kind.BOOL:
        raise FormulaError(f"`{mask}` is {kind_of(mask)}: a mask is a boolean")
    case = _Case(mask, n, m, block_q, block_k, loads or {}, reads or {})
    batch = case.check()
    by_head = any(node == Var("h", Kind.INT) for node in walk(mask))
    rows, evaluations = [], 0
    for b in range(batch):
        found = [_Search(case, b, h) for h in range(heads if by_head else 1)]
        rows.append(tuple(search.rows() for search in found))
        evaluations += sum(search.evaluations for search in found)
    return Tiles(n, m, block_q, block_k, tuple(rows), evaluations)


@dataclass(frozen=True)
class _Case:
    """The arguments of `visited`, and what all heads and batch rows share."""

    mask: Expr
    n: int
    m: int
    block_q: int
    block_k: int
    loads: Mapping[int, Sequence[Any]]
    reads: Mapping[int, Any]

    def check(self) -> int:
        """The number of batch rows to look at."""
        batch = 1
        for node in walk(self.mask):
            if isinstance(node, Load):
                if node.slot not in self.loads:
                    raise FormulaError(f"`{node}`: slot ${node.slot} has no values")
                values = self.loads[node.slot]
                rows = values if nested(values) else [values]
                tokens = self.length(node.side)
                if any(len(row) != tokens for row in rows):
                    raise FormulaError(f"`{node}` has {len(rows[0])} values for {tokens} tokens")
                if len(rows) > 1:
                    if batch not in (1, len(rows)):
                        raise FormulaError(f"`{node}` has {len(rows)} batch rows, another field {batch}")
                    batch = len(rows)
            elif isinstance(node, Read) and node.slot not in self.reads:
                raise FormulaError(f"`{node}`: slot ${node.slot} has no values")
        return batch

    def length(self, side: Side) -> int:
        return self.n if side == "q" else self.m

    def block(self, side: Side) -> int:
        return self.block_q if side == "q" else self.block_k

    def first(self, side: Side) -> int:
        """The position of the first token."""
        return self.m - self.n if side == "q" else 0

    @cached_property
    def by_difference(self) -> bool:
        return depends_on_difference_only(self.mask)

    @cached_property
    def tables(self) -> dict[int, Table]:
        reads = [node for node in walk(self.mask) if isinstance(node, Read)]
        return {r.slot: Table(self.reads[r.slot], len(r.indices), r.kind) for r in reads}


class _Field:
    """One derived field for one batch row and head: its value for a token, its bounds over tokens."""

    def __init__(self, case: _Case, derived: DerivedField, b: int, h: int) -> None:
        self.side = derived.side
        self.rises = direction(derived.expr) is not None
        self.first = 0 if derived.side is None else case.first(derived.side)
        leaves: dict[Expr, int] = {Var("h", Kind.INT): 0}
        self.sources: list[Callable[[int], Interval]] = [lambda i: (h, h)]
        for node in walk(derived.expr):
            if isinstance(node, Token | Load) and node not in leaves:
                leaves[node] = len(self.sources)
                self.sources.append(self._source(case, node, b))
        self.formula: Evaluate = compiled(derived.expr, leaves, HOST, case.tables)

    def _source(self, case: _Case, node: Token | Load, b: int) -> Callable[[int], Interval]:
        if isinstance(node, Token):
            return lambda i: (self.first + i, self.first + i)
        values, kind = case.loads[node.slot], node.kind
        row = values[b if len(values) > 1 else 0] if nested(values) else values
        return lambda i: point(HOST, row[i], kind)

    def at(self, i: int) -> Interval:
        return self.formula([source(i) for source in self.sources])

    def bounds(self, start: int, end: int) -> Interval:
        """Over the tokens start..end-1, at least one."""
        tokens = (start, end - 1) if self.rises else range(start, end)
        lo, hi = self.at(start)
        for i in tokens:
            a, b = self.at(i)
            lo, hi = HOST.minimum(lo, a), HOST.maximum(hi, b)
        return lo, hi


class _Keys:
    """The key side of a search: key tiles in groups of 2^level, and the bounds of each key field over a group.

    Tiles may be stored (bounds of every group, from the tokens' values) or imagined (`_Lattice`).
    """

    def __init__(self, case: _Case, fields: Sequence[_Field], count: int) -> None:
        self.count = count
        tiles = [range(j * case.block_k, min((j + 1) * case.block_k, case.m)) for j in range(count)]
        outer = [[f.bounds(t.start, t.stop) for f in fields] for t in tiles]
        self.outer_of: list[list[list[Interval]]] = _pyramid(outer, _around)
        self.inner_of: list[list[list[Interval | None]]] = _pyramid([list(row) for row in outer], _within)

    @property
    def top(self) -> int:
        return max(self.count - 1, 0).bit_length()

    def outer(self, level: int, index: int) -> Sequence[Interval]:
        return self.outer_of[level][index]

    def inner(self, level: int, index: int) -> Sequence[Interval | None]:
        return self.inner_of[level][index]


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


class _Lattice(_Keys):
    """Key tiles `first`, `first + 1`, ... of an unlimited sequence of keys: the fields depend on positions alone."""

    def __init__(self, case: _Case, fields: Sequence[_Field], first: int, count: int) -> None:
        self.case, self.fields, self.first, self.count = case, fields, first, count

    def outer(self, level: int, index: int) -> Sequence[Interval]:
        start = self.first + (index << level)
        end = min(start + (1 << level), self.first + self.count)
        return [f.bounds(start * self.case.block_k, end * self.case.block_k) for f in self.fields]

    def inner(self, level: int, index: int) -> Sequence[Interval | None]:
        return [None] * len(self.fields)


class _Search:
    """The ranges of one batch row and head."""

    def __init__(self, case: _Case, b: int, h: int) -> None:
        self.case, self.evaluations = case, 0
        # the language's own recognition of a partition would tear a difference apart
        formula, derived = split_fields(case.mask, separate=not case.by_difference)
        fields = [_Field(case, d, b, h) for d in derived]
        self.constant = [f.at(0) for f in fields if f.side is None]
        self.of_q = [f for f in fields if f.side == "q"]
        self.of_k = [f for f in fields if f.side == "k"]
        order = sorted(range(len(derived)), key=lambda i: (derived[i].side is not None, derived[i].side == "k"))
        leaves: dict[Expr, int] = {derived[i].leaf: place for place, i in enumerate(order)}
        self.formula = compiled(formula, leaves, HOST, case.tables)
        self.refined = refined(formula, leaves, case.tables)
        self.whole_keys = case.m // case.block_k

    def rows(self) -> tuple[Row, ...]:
        case = self.case
        tiles = -(-case.n // case.block_q)
        if not case.m:
            return ((),) * tiles
        if case.by_difference:
            return tuple(self.shifted(tiles))
        keys = _Keys(case, self.of_k, -(-case.m // case.block_k))
        return tuple(self.finished(self.ranges(self.query(i), keys)) for i in range(tiles))

    def query(self, i: int, ragged: bool = True) -> list[Interval]:
        """The constants' and the query fields' bounds on query tile i; not ragged: as if no query were missing."""
        start, end = i * self.case.block_q, (i + 1) * self.case.block_q
        return self.constant + [f.bounds(start, min(end, self.case.n) if ragged else end) for f in self.of_q]

    def ranges(self, query: list[Interval], keys: _Keys) -> list[Range]:
        """The key tiles that a query tile visits, by halving groups until each is decided."""
        out: list[Range] = []
        stack = [(keys.top, 0)] if keys.count else []
        while stack:
            level, index = stack.pop()
            start, end = index << level, min((index + 1) << level, keys.count)
            env = [*query, *keys.outer(level, index)]
            self.evaluations += 1
            lo, hi = self.formula(env)
            if not hi:
                continue
            if lo or not level or self.settled(query, env, keys.inner(level, index)):
                _append(out, Range(start, end, bool(lo)))
                continue
            below = [(level - 1, 2 * index + 1), (level - 1, 2 * index)]
            stack += [(up, at) for up, at in below if at << up < keys.count]
        return out

    def settled(self, query: list[Interval], env: Sequence[Interval], inner: Sequence[Interval | None]) -> bool:
        """Whether every tile of the group is known to be undecided."""
        self.evaluations += 1
        found = self.refined(env, [*query, *inner])[1]
        return found is not None and not found[0] and bool(found[1])

    def finished(self, ranges: list[Range]) -> Row:
        """The last key tile, where keys are missing from it, is never full."""
        out: list[Range] = []
        for start, end, full in ranges:
            if full and end > self.whole_keys:
                if start < self.whole_keys:
                    _append(out, Range(start, self.whole_keys, True))
                _append(out, Range(self.whole_keys, end, False))
            else:
                _append(out, Range(start, end, full))
        return tuple(out)

    def shifted(self, tiles: int) -> Iterator[Row]:
        """The rows of a mask of `q - k`: one search for each alignment of query tiles, moved along the keys."""
        case = self.case
        common = gcd(case.block_q, case.block_k)
        period, step = case.block_k // common, case.block_q // common
        whole_queries = case.n // case.block_q
        searches: list[tuple[int, list[Range]]] = []
        for i in range(min(period, whole_queries)):
            first = -((whole_queries - 1 - i) // period) * step
            keys = _Lattice(case, self.of_k, first, self.whole_keys - first)
            searches.append((first, self.ranges(self.query(i, ragged=False), keys)))
        last = self.whole_keys * case.block_k
        tail = [f.bounds(last, case.m) for f in self.of_k] if last < case.m else None
        for i in range(tiles):
            query = self.query(i)
            if i < whole_queries:
                first, found = searches[i % period]
                moved = first + (i // period) * step
                row = _cut(found, moved, self.whole_keys)
            else:
                row = self.ranges(query, _Lattice(case, self.of_k, 0, self.whole_keys))
            if tail is not None:
                self.evaluations += 1
                if self.formula([*query, *tail])[1]:
                    _append(row, Range(self.whole_keys, self.whole_keys + 1, False))
            yield tuple(row)


def _append(out: list[Range], new: Range) -> None:
    """`new` after the others, as one range with the last where they touch and are of one kind."""
    if out and out[-1].end == new.start and out[-1].full == new.full:
        new = Range(out.pop().start, new.end, new.full)
    out.append(new)


def _cut(found: list[Range], moved: int, count: int) -> list[Range]:
    """The ranges, moved by `moved` tiles, as far as they lie in 0..count-1."""
    out = []
    for at in range(bisect_right(found, -moved, key=lambda r: r.end), len(found)):
        start, end, full = found[at]
        start = max(start + moved, 0)
        if start >= count:
            break
        out.append(Range(start, min(end + moved, count), full))
    return out
