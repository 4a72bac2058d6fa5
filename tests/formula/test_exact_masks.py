"""The masks of published attentions: every tile classed as a look at all pairs would, whatever lengths and tiles."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Read, Token, Var, apply, text
from tfc.formula.logic import conditions
from tfc.formula.tiles import Tiles, visited
from tfc.testing.formulas import both, causal, dilated, documents, prefix, sliding, window

Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)
B, I = Kind.BOOL, Kind.INT  # noqa: E741
DIFFERENCE = apply("sub", Q, K)
STEP, STRIDE, SIDE = 3, 8, 4

Seen = Callable[[int, int, int], bool]
"""Whether a query sees a key: (position of the query, position of the key, head)."""


def any_of(*parts: Expr) -> Expr:
    first, *rest = parts
    for part in rest:
        first = apply("or", first, part)
    return first


def mod(x: Expr, n: int) -> Expr:
    return apply("mod", x, Const(n))


def part(x: Expr, n: int) -> Expr:
    return apply("floordiv", x, Const(n))


def field(slot: int, kind: Kind = I) -> tuple[Load, Load]:
    """A field of the queries in slot 2 * slot and of the keys in the next."""
    return Load(2 * slot, "q", kind), Load(2 * slot + 1, "k", kind)


def same(fn: Callable[[Expr], Expr], slot: int) -> Expr:
    q, k = field(slot)
    return apply("eq", fn(q), fn(k))


def close(slot: int) -> Expr:
    return apply("pow", apply("sub", *field(slot)), Const(2))


# each a number for a position; positions of queries may lie below 0
SEGMENT = [0] * 9 + [1] * 14 + [2] * 1 + [3] * 30 + [4] * 46
MIXED = [x * 7 % 5 for x in range(100)]


def segment(t: int) -> int:
    return SEGMENT[t % 100]


def mixed(t: int) -> int:
    return MIXED[t % 100]


def row(t: int) -> int:
    return t // 10


def column(t: int) -> int:
    return t % 10


def row8(t: int) -> int:
    """Of a map 16 wide, its tokens in patches of 4 x 4."""
    return t // 64 * 4 + t % 16 // 4


def column8(t: int) -> int:
    return t // 16 % 4 * 4 + t % 4


def rare(t: int) -> bool:
    return t % 29 in (3, 4)


def template(t: int) -> bool:
    return t < 21


def history(t: int) -> int:
    return 37


def grid_same(fn: Callable[[int], Any]) -> Seen:
    return lambda q, k, h: (fn(row(q)), fn(column(q))) == (fn(row(k)), fn(column(k)))


CASES: dict[str, tuple[Expr, list[Callable[[int], Any]], Seen]] = {
    "causal": (causal(), [], lambda q, k, h: k <= q),
    "window": (window(size=7), [], lambda q, k, h: abs(q - k) < 7),
    "window of 1": (window(size=1), [], lambda q, k, h: q == k),
    "one-sided window": (sliding(size=11), [], lambda q, k, h: 0 <= q - k < 11),
    "causal and window": (both(causal(), window(size=20)), [], lambda q, k, h: 0 <= q - k < 20),
    "documents": (apply("eq", *field(0)), [segment], lambda q, k, h: segment(q) == segment(k)),
    "documents, mixed": (apply("eq", *field(0)), [mixed], lambda q, k, h: mixed(q) == mixed(k)),
    "packed": (
        both(causal(), apply("eq", *field(0))),
        [segment],
        lambda q, k, h: k <= q and segment(q) == segment(k),
    ),
    "packed, mixed": (both(causal(), apply("eq", *field(0))), [mixed], lambda q, k, h: k <= q and mixed(q) == mixed(k)),
    "packed and window": (
        both(causal(), apply("eq", *field(0)), window(size=9)),
        [segment],
        lambda q, k, h: 0 <= q - k < 9 and segment(q) == segment(k),
    ),
    "prefix (arXiv:1910.10683)": (prefix(size=19), [], lambda q, k, h: k <= q or k < 19),
    "globals (arXiv:2004.05150)": (
        any_of(window(size=6), *field(0, B)),
        [rare],
        lambda q, k, h: abs(q - k) < 6 or rare(q) or rare(k),
    ),
    "causal, but whole images": (
        any_of(causal(), apply("eq", *field(0))),
        [segment],
        lambda q, k, h: k <= q or segment(q) == segment(k),
    ),
    "other documents": (
        apply("not", any_of(apply("lt", Q, K), apply("eq", *field(0)))),
        [segment],
        lambda q, k, h: k <= q and segment(q) != segment(k),
    ),
    "all but a window": (apply("not", window(size=9)), [], lambda q, k, h: abs(q - k) >= 9),
    "dilated": (apply("eq", mod(Q, STEP), mod(K, STEP)), [], lambda q, k, h: q % STEP == k % STEP),
    "dilated, of the difference": (
        apply("eq", mod(DIFFERENCE, STEP), Const(0)),
        [],
        lambda q, k, h: (q - k) % STEP == 0,
    ),
    "dilated, causal": (dilated(step=5), [], lambda q, k, h: k <= q and (q - k) % 5 == 0),
    "dilated window": (
        both(window(size=13), apply("eq", mod(DIFFERENCE, 4), Const(0))),
        [],
        lambda q, k, h: abs(q - k) < 13 and (q - k) % 4 == 0,
    ),
    "dilated by head": (
        both(
            apply("le", apply("abs", DIFFERENCE), apply("mul", Const(4), Read(20, (H,), I))),
            apply("eq", apply("mod", DIFFERENCE, Read(20, (H,), I)), Const(0)),
        ),
        [],
        lambda q, k, h: abs(q - k) <= 4 * (3, 7)[h] and (q - k) % (3, 7)[h] == 0,
    ),
    "fixed (arXiv:1904.10509)": (
        both(causal(), any_of(apply("eq", part(Q, STRIDE), part(K, STRIDE)), apply("ge", mod(K, STRIDE), Const(6)))),
        [],
        lambda q, k, h: k <= q and (q // STRIDE == k // STRIDE or k % STRIDE >= 6),
    ),
    "strided (arXiv:1904.10509)": (
        both(causal(), any_of(apply("lt", DIFFERENCE, Const(STRIDE)), apply("eq", mod(DIFFERENCE, STRIDE), Const(0)))),
        [],
        lambda q, k, h: k <= q and (q - k < STRIDE or (q - k) % STRIDE == 0),
    ),
    "disc": (
        apply("lt", apply("add", close(0), close(1)), Const(10)),
        [row, column],
        lambda q, k, h: (row(q) - row(k)) ** 2 + (column(q) - column(k)) ** 2 < 10,
    ),
    "disc in patches": (
        apply("lt", apply("add", close(0), close(1)), Const(10)),
        [row8, column8],
        lambda q, k, h: (row8(q) - row8(k)) ** 2 + (column8(q) - column8(k)) ** 2 < 10,
    ),
    "disc and text (CLEAR)": (
        any_of(*field(2, B), apply("lt", apply("add", close(0), close(1)), Const(10))),
        [row, column, template],
        lambda q, k, h: template(q) or template(k) or (row(q) - row(k)) ** 2 + (column(q) - column(k)) ** 2 < 10,
    ),
    "square": (
        both(*(apply("le", apply("abs", apply("sub", *field(i))), Const(2)) for i in range(2))),
        [row, column],
        lambda q, k, h: max(abs(row(q) - row(k)), abs(column(q) - column(k))) <= 2,
    ),
    "shifted windows (arXiv:2103.14030)": (
        both(*(same(lambda t: part(apply("sub", t, Const(2)), SIDE), i) for i in range(2))),
        [row, column],
        grid_same(lambda c: (c - 2) // SIDE),
    ),
    "long distance (CrossFormer, arXiv:2108.00154)": (
        both(*(same(fn, i) for i in range(2) for fn in (lambda t: part(t, 6), lambda t: mod(t, 2)))),
        [row, column],
        grid_same(lambda c: (c // 6, c % 2)),
    ),
    "sides (LS-attention)": (
        both(causal(), any_of(apply("ge", H, Const(1)), apply("lt", DIFFERENCE, Const(10)))),
        [],
        lambda q, k, h: k <= q and (h >= 1 or q - k < 10),
    ),
    "asymmetric (MixFormer, arXiv:2203.11082)": (
        any_of(apply("not", field(0, B)[0]), field(0, B)[1]),
        [template],
        lambda q, k, h: not template(q) or template(k),
    ),
    "targets (HSTU, arXiv:2402.17152)": (
        any_of(
            apply("eq", Q, K),
            apply("gt", apply("min", Q, field(0)[0]), apply("min", K, field(0)[1])),
        ),
        [history],
        lambda q, k, h: q == k or min(q, 37) > min(k, 37),
    ),
    "block-causal": (apply("ge", part(Q, 6), part(K, 6)), [], lambda q, k, h: q // 6 >= k // 6),
    "two blocks back (MASFormer)": (
        both(causal(), apply("le", apply("sub", part(Q, 12), part(K, 12)), Const(1))),
        [],
        lambda q, k, h: k <= q and q // 12 - k // 12 <= 1,
    ),
}

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
@pytest.mark.parametrize("name", CASES)
def test_every_tile_is_classed_exactly(name, n, m, block_q, block_k):
    mask, of_tokens, seen = CASES[name]
    loads: dict[int, list[Any]] = {}
    for slot, value in enumerate(of_tokens):
        loads[2 * slot] = [value(i + m - n) for i in range(n)]
        loads[2 * slot + 1] = [value(j) for j in range(m)]
    tiles = visited(mask, n=n, m=m, block_q=block_q, block_k=block_k, loads=loads, reads={20: [3, 7]}, heads=2)
    for h in range(2):
        true = []
        for i in range(0, n, block_q):
            line = ""
            for j in range(0, m, block_k):
                at = product(range(i + m - n, min(i + block_q, n) + m - n), range(j, min(j + block_k, m)))
                tile = {seen(q, k, h) for q, k in at}
                line += "." if tile == {False} else "#" if tile == {True} and j + block_k <= m else "+"
            true.append(line)
        assert drawn(tiles, h) == true


def test_a_difference_without_remainder_is_a_partition():
    """Both ways to write dilation are one, alone and within a mask, and whichever token comes first."""
    for difference in (DIFFERENCE, apply("sub", K, Q)):
        assert text(conditions(apply("eq", mod(difference, 4), Const(0)))) in (
            "q % 4 == k % 4",
            "k % 4 == q % 4",
        )
    whole = both(causal(), apply("eq", mod(DIFFERENCE, 4), Const(0)), documents())
    assert text(conditions(whole)) == "q >= k and q % 4 == k % 4 and $0.q == $0.k"


def test_what_is_decided_is_not_looked_into():
    """Only tiles on which two conditions hang are: none of a causal mask of packed documents but those on the
    diagonal where a document ends, and one for all query tiles of a mask of positions."""
    ends = [i // 100 for i in range(4096)]
    sizes: dict[str, Any] = {"n": 4096, "m": 4096, "block_q": 64, "block_k": 64}
    packed = visited(both(causal(), documents()), **sizes, loads={0: ends})
    assert packed.evaluations < 40 * 41 + 100
    strided = CASES["strided (arXiv:1904.10509)"][0]
    assert visited(strided, **sizes).evaluations < 300


def test_the_budget_of_looks_is_kept(monkeypatch):
    """A tile that nothing more is spent on stays partial: still right."""
    from tfc.formula import tiles as tiles_

    mask, of_tokens, _ = CASES["disc"]
    loads = {2 * i + j: [value(t) for t in range(100)] for i, value in enumerate(of_tokens) for j in range(2)}
    sizes: dict[str, Any] = {"n": 100, "m": 100, "block_q": 16, "block_k": 16, "loads": loads}
    best = visited(mask, **sizes)
    monkeypatch.setattr(tiles_, "LOOKS", 0)
    monkeypatch.setattr(tiles_, "LOOKS_A_ROW", 0)
    least = visited(mask, **sizes)
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
    for case, size in product(CASES, SIZES[:3]):
        try:
            test_every_tile_is_classed_exactly(case, *size)
        except (AssertionError, IndexError):
            caught += 1
    assert caught
