"""The visited key tiles against a look at every pair of tokens, and their counts for the masks that matter."""

from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.formula import interval
from tfc.formula import tiles as tiles_
from tfc.formula.expr import Const, Expr, FormulaError, Kind, Load, Read, Token, Var, apply, rewrite, walk
from tfc.formula.scalar import evaluate, pair
from tfc.formula.search import Search
from tfc.formula.tiles import Range, Tiles, visited
from tfc.testing.formulas import (
    NAMED_MASKS,
    both,
    causal,
    dilated,
    disc,
    documents,
    fields,
    globals_,
    masks,
    prefix,
    shifted,
    sliding,
    window,
)

Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)


def classes(tiles: Tiles, b: int = 0, h: int = 0) -> list[str]:
    """A line a query tile, once its ranges are sorted, disjoint, and one where they could be."""
    for row in tiles:
        assert all(0 <= start < end <= tiles.key_tiles for start, end, _ in row)
        for one, next_ in pairwise(row):
            assert one.end < next_.start or (one.end == next_.start and one.full != next_.full)
    return tiles.picture(b, h, limit=10**9).splitlines()


def brute(mask: Expr, n: int, m: int, block_q: int, block_k: int, *, b: int = 0, h: int = 0, **slots) -> list[str]:
    """What an all-knowing analysis would say: `#` full, `+` partial, `.` empty."""
    seen = [[bool(evaluate(mask, pair(i, j, n=n, m=m, b=b, h=h, **slots))) for j in range(m)] for i in range(n)]
    out = []
    for i in range(0, n, block_q):
        line = ""
        for j in range(0, m, block_k):
            tile = [x for row in seen[i : i + block_q] for x in row[j : j + block_k]]
            whole = all(tile) and j + block_k <= m
            line += "#" if whole else "+" if any(tile) else "."
        out.append(line)
    return out


def wrong(found: list[str], true: list[str]) -> list[tuple[int, int]]:
    """Tiles left out that have a visible pair, or called full that have an invisible one."""
    return [
        (i, j)
        for i, (row, truth) in enumerate(zip(found, true, strict=True))
        for j, (x, t) in enumerate(zip(row, truth, strict=True))
        if x != t and x != "+"
    ]


def split(mask: Expr, values: dict) -> dict:
    reads = {node.slot for node in walk(mask) if isinstance(node, Read)}
    return {
        "loads": {slot: v for slot, v in values.items() if slot not in reads},
        "reads": {slot: v for slot, v in values.items() if slot in reads},
    }


@st.composite
def cases(draw, wild: bool = False):
    square = draw(st.booleans())
    n = draw(st.integers(1, 20))
    m = n if square else draw(st.integers(1, 20))
    mask = draw(masks(shared=square, real=True, wild=wild))
    values = draw(fields(mask, n=n, m=m, batch=2, heads=2, large=wild))
    return mask, n, m, draw(st.integers(1, 7)), draw(st.integers(1, 7)), split(mask, values)


@pytest.mark.parametrize("wild", (False, True))
@given(data=st.data())
def test_no_tile_is_ever_wrong(wild, data):
    """An empty tile has no visible pair, a full one only visible pairs, for every batch row and head."""
    mask, n, m, block_q, block_k, slots = data.draw(cases(wild=wild))
    tiles = visited(mask, n=n, m=m, block_q=block_q, block_k=block_k, heads=2, **slots)
    for b, h in product(range(2), range(2)):
        found = classes(tiles, b % len(tiles.rows), h % len(tiles.rows[0]))
        assert wrong(found, brute(mask, n, m, block_q, block_k, b=b, h=h, **slots)) == []


SIZES = [
    (5, 1, 1, 2),
    (64, 64, 8, 8),
    (61, 61, 8, 16),
    (40, 64, 16, 8),
    (64, 37, 12, 8),
    (1, 64, 8, 8),
    (64, 1, 8, 8),
    (7, 7, 8, 8),
]


def tokens(kind: Kind, count: int) -> list:
    """A field in runs of unequal length."""
    runs = [i * i // 90 for i in range(count)]
    return [x % 3 == 1 for x in runs] if kind is Kind.BOOL else runs


@pytest.mark.parametrize("n, m, block_q, block_k", SIZES)
@pytest.mark.parametrize("name", sorted(set(NAMED_MASKS) - {"disc", "dilated"}))
def test_named_masks_are_exact(name, n, m, block_q, block_k):
    """The named masks of one dimension: every tile classed as a look at all pairs would."""
    mask = NAMED_MASKS[name](0)
    loads = {node: tokens(node.kind, n if node.side == "q" else m) for node in walk(mask) if isinstance(node, Load)}
    mask, values = apart(mask, loads)
    reads = {node.slot: [3, 11] for node in walk(mask) if isinstance(node, Read)}
    tiles = visited(mask, n=n, m=m, block_q=block_q, block_k=block_k, loads=values, reads=reads, heads=2)
    for h in range(2):
        found = classes(tiles, 0, h % len(tiles.rows[0]))
        assert found == brute(mask, n, m, block_q, block_k, h=h, loads=values, reads=reads)


def apart(mask: Expr, loads: dict) -> tuple[Expr, dict]:
    """The mask with a slot of its own for each side of a field, and the values of the slots."""
    moved = {node: Load(10 * node.slot + (node.side == "k"), node.side, node.kind) for node in loads}
    return rewrite(mask, moved.get), {moved[node].slot: x for node, x in loads.items()}


def counts(tiles: Tiles) -> tuple[int, int, int]:
    return tiles.empty, tiles.full, tiles.partial


def grid(i: int) -> tuple[int, int]:
    """Row and column of token i on a map of 32 x 32."""
    return i // 32, i % 32


def patch(i: int) -> tuple[int, int]:
    """The same map, its tokens in patches of 8 x 8."""
    return i // 256 * 8 + i % 64 // 8, i % 256 // 64 * 8 + i % 8


def columns(place) -> dict[int, list[int]]:
    return {axis: [place(i)[axis] for i in range(1024)] for axis in range(2)}


def near(place, radius: int):
    def seen(q: int, k: int) -> bool:
        (y, x), (v, u) = place(q), place(k)
        return (y - v) ** 2 + (x - u) ** 2 < radius**2

    return seen


def same_window(place):
    where = [tuple((c - 4) // 8 for c in place(i)) for i in range(1024)]
    return lambda q, k: where[q] == where[k]


SEGMENT = [0] * 200 + [1] * 300 + [2] * 12 + [3] * 512
KEY = Load(0, "q", Kind.INT), Load(0, "k", Kind.INT)
WINDOWS = both(shifted(0, 8, 4), shifted(1, 8, 4))
FIXED = apply("eq", *(apply("floordiv", t, Const(128)) for t in (Q, K)))
MASKS_1024 = {
    # name: (mask, fields, what it says of two tokens, (empty, full, partial) of 256 tiles)
    "causal": (causal(), {}, lambda q, k: k <= q, (120, 120, 16)),
    "window": (window(size=129), {}, lambda q, k: abs(q - k) < 129, (182, 46, 28)),
    "sliding": (sliding(size=256), {}, lambda q, k: 0 <= q - k < 256, (186, 42, 28)),
    "documents": (documents(), {0: SEGMENT}, lambda q, k: SEGMENT[q] == SEGMENT[k], (152, 82, 22)),
    "prefix": (prefix(size=192), {}, lambda q, k: k <= q or k < 192, (117, 126, 13)),
    "globals": (
        globals_(size=65),
        {0: [i < 3 for i in range(1024)]},
        lambda q, k: abs(q - k) < 65 or q < 3 or k < 3,
        (182, 16, 58),
    ),
    "fixed": (FIXED, {}, lambda q, k: q // 128 == k // 128, (224, 32, 0)),
    "dilated": (dilated(), {}, lambda q, k: k <= q and (q - k) % 4 == 0, (120, 0, 136)),
    "dilated, sorted": (
        apply("eq", *KEY),
        {0: [i // 256 for i in range(1024)]},
        lambda q, k: q // 256 == k // 256,
        (192, 64, 0),
    ),
    "disc": (disc(radius=9), columns(grid), near(grid, 9), (132, 0, 124)),
    "disc in patches": (disc(radius=9), columns(patch), near(patch, 9), (156, 0, 100)),
    "shifted windows": (WINDOWS, columns(grid), same_window(grid), (200, 0, 56)),
    "shifted in patches": (WINDOWS, columns(patch), same_window(patch), (156, 0, 100)),
}


@pytest.mark.parametrize("name", MASKS_1024)
def test_counts_on_1024_tokens(name):
    """Exact numbers of empty, full and partial tiles of 64 x 64, as a look at every pair counts them."""
    mask, loads, seen, counts = MASKS_1024[name]
    tiles = visited(mask, n=1024, m=1024, block_q=64, block_k=64, loads=loads)
    true = ""
    for i, j in product(range(0, 1024, 64), repeat=2):
        tile = [seen(q, k) for q in range(i, i + 64) for k in range(j, j + 64)]
        true += "#" if all(tile) else "+" if any(tile) else "."
    assert "".join(classes(tiles)) == true
    assert (tiles.empty, tiles.full, tiles.partial) == counts
    assert tiles.total == 256


def cost(mask: Expr, n: int, loads: dict | None = None) -> int:
    return visited(mask, n=n, m=n, block_q=64, block_k=64, loads=loads).evaluations


def segments(n: int) -> dict[int, list[int]]:
    return {0: [i // 3000 for i in range(n)]}


@pytest.mark.parametrize(
    "mask, loads, share",
    [
        (sliding(size=4096), None, 0.1),
        (causal(), None, 0.1),
        (both(causal(), documents()), segments, 60),
        (dilated(), None, 60),
        (prefix(size=5000), None, 60),
    ],
    ids=("sliding", "causal", "packed", "dilated", "prefix"),
)
def test_the_cost_is_linear_in_query_tiles(mask, loads, share):
    """Four times the tokens, about four times the evaluations; none but the searches where `q - k` decides alone."""
    small, large = 16384, 65536
    few, many = (cost(mask, n, loads(n) if loads else None) for n in (small, large))
    assert many <= 5 * few
    assert many <= share * (large // 64)


def test_a_mask_of_the_difference_is_searched_once_an_alignment():
    """131072 tokens: 2048 query tiles, and no evaluation for any single one of them."""
    tiles = visited(sliding(size=4096), n=131072, m=131072, block_q=64, block_k=64)
    assert tiles.evaluations < 100
    assert tiles.most_ranges == 3
    assert tiles.rows[0][0][1000] == (Range(936, 937, False), Range(937, 1000, True), Range(1000, 1001, False))
    uneven = visited(sliding(size=4096), n=131072, m=131072, block_q=96, block_k=64)
    assert uneven.evaluations < 300


def test_positions_are_aligned_at_the_end():
    """3 queries of 10 keys are the last three; 10 queries of 3 keys begin at -7 and see nothing before 0."""
    few = visited(causal(), n=3, m=10, block_q=1, block_k=5)
    assert classes(few) == ["#+", "#+", "##"]
    many = visited(causal(), n=10, m=3, block_q=1, block_k=1)
    assert classes(many)[:8] == ["..."] * 7 + ["#.."]


def test_a_static_table_is_read_tile_by_tile():
    """BigBird's random blocks (arXiv:2007.14062): one element of a table decides each pair of tiles."""
    blocks = [[(i * 7 + j * 3) % 5 == 0 for j in range(6)] for i in range(6)]
    table = Read(0, (apply("floordiv", Q, Const(8)), apply("floordiv", K, Const(8))), Kind.BOOL)
    tiles = visited(table, n=48, m=48, block_q=8, block_k=8, reads={0: blocks})
    assert classes(tiles) == ["".join(".#"[x] for x in row) for row in blocks]


def test_axes_on_which_nothing_depends_are_one():
    by_head = NAMED_MASKS["by_head"](0)
    padded = Load(0, "k", Kind.BOOL)
    one = visited(causal(), n=8, m=8, block_q=4, block_k=4, heads=3)
    heads = visited(by_head, n=8, m=8, block_q=4, block_k=4, heads=3, reads={0: [1, 2, 3]})
    rows = visited(padded, n=8, m=8, block_q=4, block_k=4, heads=3, loads={0: [[True] * 8, [False] * 8]})
    shared = visited(padded, n=8, m=8, block_q=4, block_k=4, heads=3, loads={0: [True] * 8})
    assert [(len(t.rows), len(t.rows[0])) for t in (one, heads, rows, shared)] == [(1, 1), (1, 3), (2, 1), (1, 1)]
    assert rows.rows[0][0] == ((Range(0, 2, True),),) * 2
    assert rows.rows[1][0] == ((), ())


@pytest.mark.parametrize("n, m", [(0, 4), (4, 0), (0, 0)])
def test_lengths_of_zero(n, m):
    """No query: no row. No key: rows that visit nothing."""
    for mask in (causal(), Const(True), prefix()):
        tiles = visited(mask, n=n, m=m, block_q=2, block_k=2)
        assert tiles.rows == ((((),) * -(-n // 2),),)


def test_the_summary_counts_and_the_picture_shows():
    tiles = visited(causal(), n=10, m=10, block_q=4, block_k=4)
    assert tiles.summary() == "visits 6 of 9 tiles (66.7%): 3 full, 3 partial"
    assert tiles.picture() == "+..\n#+.\n##+"
    assert tiles.picture(limit=2) == "+.\n#+"
    heads = visited(NAMED_MASKS["by_head"](0), n=4, m=4, block_q=4, block_k=4, heads=2, reads={0: [1, 9]})
    assert heads.summary() == "visits 2 of 2 tiles (100.0%): 0 full, 2 partial, over 2 heads"


def test_refusals_say_what_is_wrong():
    at: dict[str, Any] = {"n": 4, "m": 4, "block_q": 2, "block_k": 2}
    with pytest.raises(FormulaError, match="a mask is a boolean"):
        visited(Q, **at)
    with pytest.raises(FormulaError, match=r"slot \$0 has no values"):
        visited(Load(0, "k", Kind.BOOL), **at)
    with pytest.raises(FormulaError, match="3 values for 4 tokens"):
        visited(Load(0, "k", Kind.BOOL), **at, loads={0: [True] * 3})
    with pytest.raises(FormulaError, match="2 batch rows, another field 3"):
        both_ = both(Load(0, "k", Kind.BOOL), Load(1, "q", Kind.BOOL))
        visited(both_, **at, loads={0: [[True] * 4] * 3, 1: [[True] * 4] * 2})


def _mutants():
    """Rules of intervals that a slip of the pen could leave: too bold in one way each."""
    rules = interval.RULES

    def one_off(ns, kind, x, y):
        return x[0] <= y[1], x[1] <= y[1]

    return {
        "le: partial called full": {"le": one_off},
        "lt: as le": {"lt": rules["le"]},
        "ge: the lower end for the upper": {"ge": lambda ns, kind, x, y: (x[1] >= y[1], x[1] >= y[0])},
        "eq: never different": {"eq": lambda ns, kind, x, y: (x[0] == y[0], True)},
        "eq: overlap is equality": {"eq": lambda ns, kind, x, y: ((x[0] <= y[1]) & (y[0] <= x[1]), True)},
        "and: as or": {"and": rules["or"]},
        "not: forgets to turn": {"not": lambda ns, kind, x: x},
        "abs: of the ends alone": {"abs": lambda ns, kind, x: tuple(sorted((abs(x[0]), abs(x[1]))))},
        "sub: ends not crossed": {"sub": lambda ns, kind, x, y: (x[0] - y[0], x[1] - y[1])},
        "mod: of the ends": {"mod": lambda ns, kind, x, y: (x[0] % y[0], x[1] % y[0]) if y[0] else (0, 0)},
        "pow: of the ends": {"pow": lambda ns, kind, x, y, n=2: tuple(sorted((x[0] ** 2, x[1] ** 2)))},
    }


@pytest.fixture(scope="module")
def truths() -> list:
    """Masks, their slots, and the classes of their tiles of 8 x 8 for 64 tokens, before any rule is bent."""
    extra = [
        apply("not", causal()),
        apply("lt", Q, K),
        apply("lt", K, Const(7)),
        apply("le", Const(9), apply("abs", apply("sub", Q, K))),
        apply("eq", apply("mod", apply("sub", Q, K), Const(3)), Const(0)),
        apply("lt", apply("mod", apply("sub", Q, K), Const(16)), Const(3)),
    ]
    out = []
    for mask in [make(0) for make in NAMED_MASKS.values()] + extra:
        loads = {x.slot: tokens(x.kind, 64) for x in walk(mask) if isinstance(x, Load)}
        reads = {x.slot: [3, 11] for x in walk(mask) if isinstance(x, Read)}
        slots = {"loads": loads, "reads": reads}
        out.append((mask, slots, brute(mask, 64, 64, 8, 8, **slots)))
    return out


@pytest.mark.parametrize("name", sorted(_mutants()))
def test_a_bold_rule_is_caught(name, truths, monkeypatch):
    """The look at every pair finds each planted fault, where intervals alone decide. A rule that is only less exact
    ("eq: never different") makes no tile wrong: the exact counts catch it."""
    monkeypatch.setattr(interval, "RULES", {**interval.RULES, **_mutants()[name]})
    monkeypatch.setattr(tiles_, "condition", Search)
    monkeypatch.setattr(tiles_, "conditions", lambda mask: mask)
    caught = []
    for mask, slots, true in truths:
        found = classes(visited(mask, n=64, m=64, block_q=8, block_k=8, **slots))
        if wrong(found, true) or (name == "eq: never different" and found != true):
            caught.append(mask)
    assert caught
