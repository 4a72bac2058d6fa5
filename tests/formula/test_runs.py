"""Runs of tiles: the tables against every pair of sets of tokens, the operations against lists."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.formula.runs import EMPTY, FULL, OPEN, PARTIAL, Runs, both, cut, either, of_tiles, put, turned


def said(pairs: tuple[bool, ...]) -> int:
    return EMPTY if not any(pairs) else FULL if all(pairs) else PARTIAL


def holds(kind: int, pairs: tuple[bool, ...]) -> bool:
    """Whether what the class says of a tile is so."""
    visible, hidden = divmod(kind, 3)
    return all(known == 1 or (known == 2) is true for known, true in ((visible, any(pairs)), (hidden, not all(pairs))))


@pytest.mark.parametrize("table, joined", [(both, all), (either, any)], ids=("and", "or"))
def test_the_tables_hold_for_every_tile(table, joined):
    """Of three pairs of tokens, whatever the two conditions say of each; what is certain is said."""
    tiles = list(product((False, True), repeat=3))
    found: dict[tuple[int, int], set[int]] = {}
    for x, y in product(tiles, repeat=2):
        joint = tuple(map(joined, zip(x, y, strict=True)))
        assert holds(table[0][said(x)][said(y)], joint)
        assert holds(table[0][OPEN][said(y)], joint) and holds(table[0][said(x)][OPEN], joint)
        found.setdefault((said(x), said(y)), set()).add(said(joint))
    for (a, b), kinds in found.items():
        assert (table[0][a][b] in (EMPTY, FULL, PARTIAL)) == (len(kinds) == 1)


@pytest.mark.parametrize("table, joined", [(both, all), (either, any)], ids=("and", "or"))
def test_independent_conditions_make_every_pair(table, joined):
    """One of the query and one of the key: the class of the tile follows always."""
    for q, k in product(product((False, True), repeat=2), repeat=2):
        joint = tuple(joined(pair) for pair in product(q, k))
        assert table[1][said(q)][said(k)] == said(joint)


def test_negation():
    assert [turned[x] for x in (EMPTY, FULL, PARTIAL, OPEN)] == [FULL, EMPTY, PARTIAL, OPEN]


def runs(kinds: list[int]) -> Runs:
    out: Runs = ([], [])
    for end, kind in enumerate(kinds, 1):
        put(out, end, kind)
    return out


def spelled(found: Runs, start: int) -> list[int]:
    out: list[int] = []
    for end, kind in zip(*found, strict=True):
        out += [kind] * (end - start)
        start = end
    return out


KINDS = st.lists(st.sampled_from((EMPTY, FULL, PARTIAL)), min_size=1, max_size=12)


@given(kinds=KINDS, ends=st.tuples(st.integers(0, 11), st.integers(1, 12)), moved=st.integers(-20, 20))
def test_a_cut_is_a_slice(kinds, ends, moved):
    start, end = min(ends[0], len(kinds) - 1), min(ends[1], len(kinds))
    if start < end:
        assert spelled(cut(runs(kinds), start + moved, end + moved, moved), start + moved) == kinds[start:end]
        assert all(a < b for a, b in zip(*[cut(runs(kinds), start, end)[0][i:] for i in (0, 1)], strict=False))


@given(kinds=KINDS)
def test_tiles_as_runs(kinds):
    tiles = [j for j, kind in enumerate(kinds) if kind != EMPTY]
    full = frozenset(j for j, kind in enumerate(kinds) if kind == FULL)
    assert spelled(of_tiles(tiles, full, len(kinds)), 0) == kinds
