"""The masks of published attentions: every tile classed as a look at all pairs would, whatever lengths and tiles."""

from itertools import product
from typing import Any

import pytest

from tfc.formula import tiles as tiles_
from tfc.formula.expr import Apply, Const, Kind, Token, Var, apply, text
from tfc.formula.logic import conditions
from tfc.formula.tiles import Tiles, visited
from tfc.testing.formulas import both, causal, documents
from tfc.testing.published import PUBLISHED, REACH

Q, K = Token("q"), Token("k")
DIFFERENCE = apply("sub", Q, K)

SIZES = [
    (96, 96, 8, 8),
    (100, 100, 16, 12),
    (97, 97, 7, 13),
    (61, 61, 24, 16),
    (40, 64, 16, 8),
    (64, 37, 12, 8),
    (1, 50, 8, 8),
    (100, 100, 64, 128),
]


def drawn(tiles: Tiles, h: int) -> list[str]:
    return tiles.picture(0, h % len(tiles.rows[0]), limit=10**9).splitlines()


@pytest.mark.parametrize("n, m, block_q, block_k", SIZES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tile_is_classed_exactly(name, n, m, block_q, block_k):
    case = PUBLISHED[name]
    sizes = {"n": n, "m": m, "block_q": block_q, "block_k": block_k}
    tiles = visited(case.mask, **sizes, loads=case.loads(n, m), reads={REACH: [3, 7]}, heads=2)
    for h in range(2):
        true = []
        for i in range(0, n, block_q):
            line = ""
            for j in range(0, m, block_k):
                at = product(range(i + m - n, min(i + block_q, n) + m - n), range(j, min(j + block_k, m)))
                tile = {case.seen(q, k, h) for q, k in at}
                line += "." if tile == {False} else "#" if tile == {True} and j + block_k <= m else "+"
            true.append(line)
        assert drawn(tiles, h) == true


def test_a_difference_without_remainder_is_a_partition():
    """Both ways to write dilation are one, alone and within a mask, and whichever token comes first."""
    for difference in (DIFFERENCE, apply("sub", K, Q)):
        assert text(conditions(apply("eq", apply("mod", difference, Const(4)), Const(0)))) in (
            "q % 4 == k % 4",
            "k % 4 == q % 4",
        )
    whole = both(causal(), apply("eq", apply("mod", DIFFERENCE, Const(4)), Const(0)), documents())
    assert text(conditions(whole)) == "q >= k and q % 4 == k % 4 and $0.q == $0.k"


def test_what_is_decided_is_not_looked_into():
    """Only tiles on which two conditions hang are: none of a causal mask of packed documents but those on the
    diagonal where a document ends, and one for all query tiles of a mask of positions."""
    ends = [i // 100 for i in range(4096)]
    sizes: dict[str, Any] = {"n": 4096, "m": 4096, "block_q": 64, "block_k": 64}
    packed = visited(both(causal(), documents()), **sizes, loads={0: ends})
    assert packed.evaluations < 40 * 41 + 100
    strided = PUBLISHED["strided (arXiv:1904.10509)"].mask
    assert visited(strided, **sizes).evaluations < 300


def test_the_budget_of_looks_is_kept(monkeypatch):
    """A tile that nothing more is spent on stays partial: still right."""
    disc = PUBLISHED["disc"]
    sizes: dict[str, Any] = {"n": 100, "m": 100, "block_q": 16, "block_k": 16, "loads": disc.loads(100, 100)}
    best = visited(disc.mask, **sizes)
    monkeypatch.setattr(tiles_, "LOOKS", 0)
    monkeypatch.setattr(tiles_, "LOOKS_A_ROW", 0)
    least = visited(disc.mask, **sizes)
    assert least.evaluations < best.evaluations
    assert least.partial > best.partial and least.full <= best.full and least.empty <= best.empty


def test_unknown_variables_leave_every_tile():
    """Of a score nothing is known, nor of a sum over it."""
    mask = both(causal(), Apply("gt", (Var("s", Kind.REAL), Const(0.0))))
    tiles = visited(mask, n=32, m=32, block_q=8, block_k=8)
    assert drawn(tiles, 0) == ["+...", "++..", "+++.", "++++"]


def _faults() -> dict[str, tuple[Any, str, Any]]:
    """Slips of the pen in what conditions are found and put together with: where, what, and by what replaced."""
    from tfc.formula import logic, runs, search

    def off(of: Any, start: int, end: int, moved: int = 0) -> Any:
        return runs.cut(of, start, end, moved + 1)

    def never_full(self: Any, values: Any) -> Any:
        return runs.of_tiles(sorted({j for v in values for j in self.tiles.get(v, [])}), frozenset(), self.count)

    def always_full(self: Any, values: Any) -> Any:
        tiles = sorted({j for v in values for j in self.tiles.get(v, [])})
        return runs.of_tiles(tiles, frozenset(tiles), self.count)

    def first_half(start: int, end: int) -> Any:
        return ((start, (start + end) // 2),)

    return {
        "and: one pair for both": (search, "both", (runs.both[1], runs.both[1])),
        "or: one pair for both": (search, "either", (runs.either[1], runs.either[1])),
        "and for or": (search, "either", runs.both),
        "a tile too far": (search, "cut", off),
        "equal fields are never full": (search.Same, "_all", never_full),
        "equal fields are always full": (search.Same, "_all", always_full),
        "half a look": (search, "_halves", first_half),
        "lt for ge": (logic, "OPPOSITE", {**logic.OPPOSITE, "lt": "gt", "ge": "le"}),
        "the left end for the right": (search, "bisect_right", search.bisect_left),
        "every period is 1": (search.Look, "period", property(lambda self: 1, lambda self, value: None)),
    }


@pytest.mark.parametrize("name", sorted(_faults()))
def test_a_planted_fault_is_caught(name, monkeypatch):
    where, what, fault = _faults()[name]
    monkeypatch.setattr(where, what, fault, raising=False)
    caught = 0
    for case, size in product(PUBLISHED, SIZES[:3]):
        try:
            test_every_tile_is_classed_exactly(case, *size)
        except (AssertionError, IndexError):
            caught += 1
    assert caught
