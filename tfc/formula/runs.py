"""Runs of tiles, each with what is known of it: whether it has a visible pair, and whether a hidden one.

Conditions are combined run by run. A tile on which two conditions both hang is `OPEN` after `and`: each has a pair,
which need not be the same. Who asks then has to look into the tile.
"""

from bisect import bisect_right
from collections.abc import Sequence

__all__ = ["EMPTY", "FULL", "OPEN", "PARTIAL", "Runs", "Table", "both", "cut", "either", "of_tiles", "put", "turned"]

# 3 * (visible pair) + (hidden pair), each 0 no, 1 perhaps, 2 yes
EMPTY, OPEN, FULL, PARTIAL = 2, 4, 6, 8

Runs = tuple[list[int], list[int]]
"""(ends, classes) of neighbouring runs; the first starts where the caller knows, neighbours differ in class."""

Table = tuple[tuple[int, ...], ...]


def _table(independent: bool) -> Table:
    """The class of `x and y` by the classes of x and y.

    independent: one condition is the query's alone and the other the key's, so two pairs make a third.
    """

    def conjunction(x: int, y: int) -> int:
        (seen, hidden), (visible, out) = divmod(x, 3), divmod(y, 3)
        if not (seen and visible):
            return EMPTY
        some = (seen == 2 and not out) or (visible == 2 and not hidden) or (independent and seen == visible == 2)
        missed = max(hidden, out)
        return 3 * (2 if some or not missed else 1) + missed

    return tuple(tuple(conjunction(x, y) for y in range(9)) for x in range(9))


turned = tuple(3 * (x % 3) + x // 3 for x in range(9))
"""The class of `not x`."""

both: tuple[Table, Table] = (_table(False), _table(True))
either: tuple[Table, Table] = tuple(  # type: ignore[assignment]  # two of them
    tuple(tuple(turned[table[turned[x]][turned[y]]] for y in range(9)) for x in range(9)) for table in both
)
"""The class of `x or y`; as `both`, for conditions that have tokens in common and for independent ones."""


def put(runs: Runs, end: int, kind: int) -> None:
    """One run more; joined to the last where they are of one class."""
    ends, kinds = runs
    if kinds and kinds[-1] == kind:
        ends[-1] = end
    else:
        ends.append(end)
        kinds.append(kind)


def cut(runs: Runs, start: int, end: int, moved: int = 0) -> Runs:
    """The runs, moved by `moved` tiles, as far as they cover start..end-1."""
    ends, kinds = runs
    first = bisect_right(ends, start - moved)
    last = bisect_right(ends, end - moved - 1, first)
    if first == last:
        return [end], [kinds[first]]
    return [e + moved for e in ends[first:last]] + [end], kinds[first : last + 1]


def of_tiles(tiles: Sequence[int], full: frozenset[int], count: int) -> Runs:
    """The runs of 0..count-1 in which the given tiles, sorted, are partial, those of `full` full, others empty."""
    runs: Runs = ([], [])
    at = 0
    for j in tiles:
        if j > at:
            put(runs, j, EMPTY)
        at = j + 1
        put(runs, at, FULL if j in full else PARTIAL)
    if at < count:
        put(runs, count, EMPTY)
    return runs
