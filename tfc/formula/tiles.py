"""A mask, lengths and a tile size turned into the key tiles that each query tile visits, each full or partial.

The mask is taken apart into conditions (`logic.py`), each of which gives the runs of key tiles for every query tile
(`search.py`), and these are put together (`runs.py`). The cost is linear in query tiles for masks whose ranges have
few ends. A tile on which two conditions hang is looked into, so that masks of integers are classed exactly as far as
the budget for it goes: 64 Ki evaluations and 16 more a query tile.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tfc.formula.arithmetic import Table
from tfc.formula.columns import Tokens
from tfc.formula.derive import period
from tfc.formula.expr import Expr, FormulaError, Kind, Load, Read, Side, Var, kind_of, walk
from tfc.formula.logic import conditions, specialized
from tfc.formula.runs import EMPTY, FULL, PARTIAL
from tfc.formula.scalar import nested
from tfc.formula.search import Grid, Look, condition

__all__ = ["Range", "Tiles", "visited"]


class Range(NamedTuple):
    """Key tiles start..end-1. full: every pair of tokens in them is visible, and no token is beyond a length."""

    start: int
    end: int
    full: bool


LOOKS, LOOKS_A_ROW = 1 << 16, 16
"""Evaluations for looking into tiles: for a batch row and head, and more for each of its query tiles."""

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
    ([N] or [M]), nested sequences of them where the formula indexes it, or one such sequence a batch row. reads:
    slot -> nested sequences, an axis a level. Reals are taken as float32 would hold them. A tile is left out only if
    no pair in it is visible and full only if all are; it may be partial where a finer analysis knew better. Raises
    FormulaError where the formula is no boolean, a slot has no values, or a field has not one value a token.
    """
    if kind_of(mask) is not Kind.BOOL:
        raise FormulaError(f"`{mask}` is {kind_of(mask)}: a mask is a boolean")
    case = _Case(mask, n, m, block_q, block_k, loads or {}, reads or {})
    batch = case.check()
    by_head = any(node == Var("h", Kind.INT) for node in walk(mask))
    rows, evaluations = [], 0
    for b in range(batch):
        found = [case.rows(b, h) for h in range(heads if by_head else 1)]
        rows.append(tuple(row for row, _ in found))
        evaluations += sum(count for _, count in found)
    return Tiles(n, m, block_q, block_k, tuple(rows), evaluations)


@dataclass(frozen=True)
class _Case:
    """The arguments of `visited`."""

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
                rows = values if nested(values, len(node.indices)) else [values]
                tokens = self.n if node.side == "q" else self.m
                if any(len(row) != tokens for row in rows):
                    raise FormulaError(f"`{node}` has {len(rows[0])} values for {tokens} tokens")
                if len(rows) > 1:
                    if batch not in (1, len(rows)):
                        raise FormulaError(f"`{node}` has {len(rows)} batch rows, another field {batch}")
                    batch = len(rows)
            elif isinstance(node, Read) and node.slot not in self.reads:
                raise FormulaError(f"`{node}`: slot ${node.slot} has no values")
        return batch

    def rows(self, b: int, h: int) -> tuple[tuple[Row, ...], int]:
        """What each query tile visits in one batch row and head, and how many evaluations that took."""
        tiles = -(-self.n // self.block_q)
        if not (self.m and tiles):
            return ((),) * tiles, 0
        reads = [node for node in walk(self.mask) if isinstance(node, Read)]
        tables = {r.slot: Table(self.reads[r.slot], len(r.indices), r.kind) for r in reads}
        grid = Grid(self.tokens("q", b, h, tables), self.tokens("k", b, h, tables), self.block_q, self.block_k, tables)
        mask = conditions(specialized(self.mask, h, tables))
        found = condition(grid, mask)
        look = Look(grid, mask, LOOKS + LOOKS_A_ROW * tiles, period(mask))
        whole = self.m // self.block_k
        rows = []
        for i in range(tiles):
            row: list[Range] = []
            start = 0
            for end, kind in zip(*found.runs(i, 0, grid.key_tiles), strict=True):
                if kind in (FULL, PARTIAL):
                    _append(row, start, end, kind == FULL, whole)
                elif kind != EMPTY:
                    for j in range(start, end):
                        if (seen := look.at(grid.queries(i), grid.keys(j), kind)) != EMPTY:
                            _append(row, j, j + 1, seen == FULL, whole)
                start = end
            rows.append(tuple(row))
        return tuple(rows), grid.evaluations

    def tokens(self, side: Side, b: int, h: int, tables: Mapping[int, Table]) -> Tokens:
        loads: dict[int, Sequence[Any]] = {}
        for node in walk(self.mask):
            if isinstance(node, Load) and node.side == side:
                values = self.loads[node.slot]
                loads[node.slot] = values[b if len(values) > 1 else 0] if nested(values, len(node.indices)) else values
        first, count = (self.m - self.n, self.n) if side == "q" else (0, self.m)
        return Tokens(side, first, count, h, loads, tables)


def _append(row: list[Range], start: int, end: int, full: bool, whole: int) -> None:
    """Key tiles more, as one range with the last where they touch and are of one kind; none from `whole` on is full."""
    if full and start < whole < end:
        _append(row, start, whole, True, whole)
        start = whole
    full = full and end <= whole
    if row and row[-1].end == start and row[-1].full == full:
        start = row.pop().start
    row.append(Range(start, end, full))
