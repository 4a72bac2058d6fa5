"""Fields with axes of their own, reductions and the three primitives about gradients: kinds, values, bounds, tiles."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.formula.arithmetic import NOTHING_KNOWN
from tfc.formula.derive import depends_on_difference_only, derivative, linear_in_s
from tfc.formula.expr import (
    Apply,
    Const,
    Expr,
    Field,
    FormulaError,
    Kind,
    Load,
    Read,
    Reduce,
    Token,
    Var,
    apply,
    kind_of,
    rewrite,
    sides,
    slots,
    substitute,
    text,
    walk,
)
from tfc.formula.fields import split_fields
from tfc.formula.interval import compiled, refined
from tfc.formula.ranges import ranges
from tfc.formula.scalar import Env, evaluate, pair
from tfc.formula.tiles import visited

B, I, R = Kind.BOOL, Kind.INT, Kind.REAL  # noqa: E741  # the kinds' own initials
Q, K, H, S, D = Token("q"), Token("k"), Var("h", I), Var("s", R), Var("d", I)
LAG = Load(0, "q", R, (H, apply("sub", Q, K)))
DOT = Reduce("sum", ("d",), apply("mul", Load(1, "q", R, (D,)), Load(2, "k", R, (H, D))))
CAUSAL = apply("le", K, Q)


def test_kinds_and_text():
    assert kind_of(LAG) is R and kind_of(DOT) is R and kind_of(Load(0, "k", B, (H,))) is B
    assert text(LAG) == "$0.q[h, q - k]" and text(DOT) == "sum[d]($1.q[d] * $2.k[h, d])"
    assert text(Field("q", "lag", (H, D))) == "q.lag[h, d]" and text(Field("k", "a")) == "k.a"
    assert kind_of(apply("straight", Const(1), S)) is R and kind_of(apply("stop", Q)) is I
    assert kind_of(apply("normal_quantile", Const(1))) is R
    with pytest.raises(FormulaError, match="takes numbers"):
        apply("stop", Const(True))


def test_walking_and_rewriting_reach_the_indices():
    assert set(walk(LAG)) >= {H, Q, K} and sides(LAG) == {"q", "k"} and sides(Load(0, "q", R, (H,))) == {"q"}
    assert slots(LAG, DOT) == (0, 1, 2)
    assert substitute(LAG, {H: Const(1)}) == Load(0, "q", R, (Const(1), apply("sub", Q, K)))
    assert substitute(Field("q", "a", (Field("k", "b"),)), {Field("k", "b"): Q}) == Field("q", "a", (Q,))
    moved = rewrite(LAG, lambda n: Load(n.slot + 1, n.side, n.kind, n.indices) if isinstance(n, Load) else None)
    assert moved == Load(1, "q", R, LAG.indices)


def test_ranges_are_the_axes_that_indices_read_alone():
    shapes = {0: (2, 3, 4, 9), 1: (2, 3, 5), 2: (7, 4, 5)}
    assert ranges(apply("add", LAG, DOT), shapes) == {"d": 5}
    assert ranges(Reduce("sum", ("i", "d"), Read(1, (Const(0), Var("i", I), D), R)), shapes) == {"i": 3, "d": 5}
    with pytest.raises(FormulaError, match=r"`d` ranges over 5 in `\$1.q\[d\]` and over 9"):
        ranges(Reduce("sum", ("d",), apply("mul", Load(1, "q", R, (D,)), Load(0, "q", R, (H, D)))), shapes)
    with pytest.raises(FormulaError, match="nothing tells how far the index `d` goes"):
        ranges(Reduce("sum", ("d",), Load(1, "q", R, (apply("add", D, Const(1)),))), shapes)
    with pytest.raises(FormulaError, match="two reductions run over the index `d`"):
        ranges(apply("add", DOT, DOT), shapes)


LOADS = {0: [[10, 11, 12], [20, 21, 22]], 1: [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]}


@pytest.mark.parametrize(
    ("expr", "b", "i", "j", "value"),
    [
        (Load(0, "k", I, (K,)), 1, 0, 0, 10),  # one row of tokens [2, 3] for both batch rows
        (Load(0, "k", I, (Const(9),)), 0, 0, 1, 22),  # an index beyond the end
        (Load(0, "q", I, (apply("sub", Q, K),)), 0, 1, 0, 21),
        (Load(1, "q", R, (Const(-4),)), 1, 1, 0, 7.0),  # [2, 2, 2]: a sequence a batch row
        (Reduce("sum", ("d",), apply("mul", Load(1, "q", R, (D,)), Load(1, "k", R, (D,)))), 0, 0, 1, 11.0),
    ],
)
def test_the_referee_reads_elements_of_fields(expr: Expr, b: int, i: int, j: int, value: float):
    env = pair(i, j, n=2, m=2, b=b, loads=LOADS)
    assert evaluate(expr, Env(env.variables, env.tokens, env.loads, env.reads, {"d": 2})) == value


def test_straight_and_stop_have_the_first_arguments_value():
    assert evaluate(apply("straight", Const(3), Const(0.5)), Env()) == 3.0
    assert evaluate(apply("stop", Const(3)), Env()) == 3


@given(st.floats(1e-12, 1 - 1e-12))
def test_normal_quantile_inverts_the_distribution(y: float):
    x = evaluate(apply("normal_quantile", Const(y)), Env())
    assert NormalDist().cdf(float(x)) == pytest.approx(y, rel=1e-9, abs=1e-15)
    nearby = (evaluate(apply("normal_quantile", Const(y * f)), Env()) for f in (1 - 1e-6, 1 + 1e-6))
    below, above = (float(v) for v in nearby)
    if y < 0.99:
        slope = evaluate(derivative(apply("normal_quantile", S)), Env({"s": y}))
        assert (above - below) / (2e-6 * y) == pytest.approx(slope, rel=1e-4)


def test_the_ends_of_normal_quantile():
    values = [evaluate(apply("normal_quantile", Const(y)), Env()) for y in (0.0, 1.0, -0.1, 1.5, math.nan, math.inf)]
    assert values[:2] == [-math.inf, math.inf] and all(math.isnan(v) for v in values[2:])


def test_derivatives():
    square = apply("mul", S, S)
    assert derivative(apply("straight", apply("round", S), square)) == derivative(square)
    assert derivative(apply("straight", square, Const(1.0))) == Const(0.0)
    assert derivative(apply("stop", square)) == Const(0.0)
    assert derivative(apply("mul", S, apply("stop", S))) == apply("stop", S)
    assert linear_in_s(apply("add", S, LAG)) and not linear_in_s(apply("straight", S, S))
    assert linear_in_s(apply("add", S, apply("stop", LAG)))
    for expr in (LAG, DOT, Load(0, "q", R, (H,))):
        assert not depends_on_difference_only(apply("add", S, expr))


@given(lo=st.floats(-0.5, 1.2), width=st.floats(0, 1), at=st.floats(0, 1))
def test_intervals_hold_every_value(lo: float, width: float, at: float):
    """Of the three primitives; an interval that leaves 0..1 says nothing of the quantile."""
    x, hi = lo + at * width, lo + width
    for expr in (apply("normal_quantile", S), apply("straight", S, Const(9.0)), apply("stop", S)):
        low, high = compiled(expr, {S: 0})([(lo, hi)])
        value = evaluate(expr, Env({"s": x}))
        assert math.isnan(low) or low <= value <= high, (expr, low, value, high)
        if 0 < lo and hi < 1:
            assert not math.isnan(low)


@pytest.mark.parametrize(
    "expr", [LAG, DOT, Load(0, "q", B, (K,)), Reduce("any", ("d",), Load(0, "q", B, (D,)))], ids=str
)
def test_nothing_is_known_of_what_the_other_token_chooses(expr: Expr):
    assert compiled(expr, {})(()) == NOTHING_KNOWN[kind_of(expr)] or math.isnan(compiled(expr, {})(())[0])
    outer, inner = refined(expr, {})((), ())
    assert (outer == inner == NOTHING_KNOWN[kind_of(expr)]) or math.isnan(outer[0])


def test_an_element_of_one_token_is_a_derived_field():
    formula, fields = split_fields(apply("eq", Load(0, "q", I, (H,)), Load(1, "k", I, (apply("mod", K, Const(2)),))))
    assert [f.side for f in fields] == ["q", "k"] and isinstance(formula, Apply)
    assert all(isinstance(a, Var) for a in formula.args)


def truth(mask: Expr, n: int, m: int, b: int, h: int, loads: dict[int, list[object]]) -> list[list[bool]]:
    return [[bool(evaluate(mask, pair(i, j, n=n, m=m, b=b, loads=loads, h=h))) for j in range(m)] for i in range(n)]


N, M = 8, 12
FIELDS: dict[int, list[object]] = {
    0: [[(3 * i) % 4, i // 4] for i in range(N)],  # [N, 2]
    1: [[[(j + b) % 3, j // 6] for j in range(M)] for b in range(2)],  # [B, M, 2]
    2: [[j % 2 == t for t in range(3)] for j in range(M)],  # [M, 3], boolean
    3: [[(i + j) % 5 < 3 for j in range(M)] for i in range(N)],  # [N, M], boolean
}
MASKS = {
    "constant index": apply("eq", Load(0, "q", I, (Const(1),)), Load(1, "k", I, (Const(1),))),
    "head": apply("eq", Load(0, "q", I, (H,)), Load(1, "k", I, (H,))),
    "own token": apply("le", Load(1, "k", I, (apply("mod", K, Const(2)),)), Const(0)),
    "a field of a field": Load(2, "k", B, (Load(1, "k", I, (Const(0),)),)),
    "beyond the end": apply("and", Load(2, "k", B, (Const(7),)), CAUSAL),
    "the other token": Load(3, "q", B, (K,)),
    "some": apply("and", CAUSAL, Reduce("any", ("t",), Load(2, "k", B, (Var("t", I),)))),
}


@pytest.mark.parametrize("name", MASKS)
def test_tiles_of_masks_that_read_elements(name: str):
    """Never wrong; exact where each element is one token's, known while the tiles are made."""
    mask = MASKS[name]
    tiles = visited(mask, n=N, m=M, block_q=2, block_k=3, loads=FIELDS, heads=2)
    sized = "some" in name
    for b, by_head in enumerate(tiles.rows):
        for h, rows in enumerate(by_head):
            if sized:
                seen = [[j <= i + M - N for j in range(M)] for i in range(N)]  # each key has one flag at least
            else:
                seen = truth(mask, N, M, b, h, FIELDS)
            for t, row in enumerate(rows):
                for u in range(M // 3):
                    part = [seen[i][j] for i in (2 * t, 2 * t + 1) for j in range(3 * u, 3 * u + 3)]
                    verdict = next((r.full for r in row if r.start <= u < r.end), None)
                    if verdict is None:
                        assert not any(part)
                    elif verdict:
                        assert all(part)
                    elif name in ("constant index", "own token", "a field of a field"):
                        assert any(part) and not all(part)
    if name == "the other token":
        assert tiles.partial == tiles.total
    if name in ("constant index", "own token", "some"):
        assert tiles.partial < tiles.total


def test_an_index_that_rounding_decides_is_unknown():
    """`floor(k * 0.1)` differs between float32 and float64 at 30: no verdict rests on it."""
    index = apply("floor", apply("mul", apply("add", K, Const(0.0)), Const(0.1)))
    mask = Load(0, "k", B, (index,))
    loads = {0: [[True, True, True, False, False] for _ in range(40)]}
    tiles = visited(mask, n=1, m=40, block_q=1, block_k=10, loads=loads)
    (row,) = tiles.rows[0][0]
    at = {u: next((r.full for r in row if r.start <= u < r.end), None) for u in range(4)}
    assert at[3] is False and at[0] is True
