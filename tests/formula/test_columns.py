"""A field's values and bounds against the referee, token by token."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.formula.arithmetic import Table
from tfc.formula.columns import Line, Tokens
from tfc.formula.expr import Const, Expr, Kind, Load, Read, Token, apply, kind_of, substitute, walk
from tfc.formula.scalar import INT_MIN, evaluate, nested, pair
from tfc.testing.formulas import fields, integers, masks, reals

K = Token("k")
FIELD, REAL = Load(0, "k", Kind.INT), Load(0, "k", Kind.REAL)


def tokens(count: int, loads: dict | None = None, tables: dict | None = None, first: int = 0, h: int = 0) -> Tokens:
    return Tokens("k", first, count, h, loads or {}, tables or {})


@given(data=st.data())
def test_values_and_bounds_hold_every_token(data):
    """Of drawn formulas of one token; where the column is exact its values are the referee's and bounds are reached."""
    drawn = data.draw(st.one_of(integers(wild=True), reals(wild=True), masks(wild=True)))
    mine = {x: Load(x.slot, "k", x.kind) if isinstance(x, Load) else K for x in walk(drawn) if _of_query(x)}
    expr = substitute(drawn, mine)
    slots = data.draw(fields(expr, n=9, m=9, heads=2, large=True))
    slots |= {x.slot: slots[x.slot][0] for x in walk(expr) if isinstance(x, Load) and nested(slots[x.slot])}
    tables = {r.slot: Table(slots[r.slot], len(r.indices), r.kind) for r in walk(expr) if isinstance(r, Read)}
    column = tokens(9, slots, tables, h=1).column(expr)
    true = [evaluate(expr, pair(j, j, n=9, m=9, h=1, loads=slots, reads=slots)) for j in range(9)]
    if column.exact:
        assert list(column.values) == true
    for start in range(9):
        for end in range(start + 1, 10):
            lo, hi = column.bounds(start, end)
            part = true[start:end]
            if column.exact:
                assert (lo, hi) == (min(part), max(part))
            elif lo == lo and not (kind_of(expr) is Kind.INT and lo <= INT_MIN):
                assert all(lo <= x <= hi for x in part)


def _of_query(x: Expr) -> bool:
    return isinstance(x, Token | Load) and x.side == "q"


@pytest.mark.parametrize(
    "expr, exact",
    [
        (K, True),
        (apply("floordiv", K, Const(3)), True),
        (apply("mod", K, Const(3)), True),
        (apply("mod", K, FIELD), True),
        (apply("lt", FIELD, Const(3)), True),
        (apply("mul", K, Const(2**30)), False),
        (apply("div", K, Const(3)), False),
        (apply("lt", apply("div", K, Const(3)), Const(1.0)), False),
    ],
    ids=str,
)
def test_what_is_exact(expr, exact):
    assert tokens(8, {0: [3, 1, 4, 1, 5, 9, 2, 0]}).column(expr).exact is exact


def test_a_sentinel_at_the_end_of_32_bits_is_unknown():
    column = tokens(3, {0: [INT_MIN, 1, 2]}).column(FIELD)
    assert not column.exact
    assert column.bounds(0, 3)[0] == INT_MIN and column.bounds(0, 3)[1] > 2
    assert column.bounds(1, 3) == (1, 2)


def test_reals_that_float32_holds_are_known():
    assert tokens(3, {0: [0.5, -1.0, 2.0]}).column(REAL).bounds(0, 3) == (-1.0, 2.0)
    lo, hi = tokens(2, {0: [0.1, 0.1]}).column(REAL).bounds(0, 2)
    assert lo < 0.1 < hi
    assert math.isnan(tokens(2, {0: [0.5, math.nan]}).column(REAL).bounds(0, 2)[0])
    assert tokens(2, {0: [0.5, 1e300]}).column(REAL).bounds(0, 2)[1] == math.inf


def test_a_line_goes_on_below_the_first_token():
    line = tokens(4, first=10).line(apply("sub", Const(3), apply("mul", Const(2), K)))
    assert isinstance(line, Line)
    assert line.bounds(0, 4) == (-23, -17)
    assert line.bounds(-5, -4) == (-7, -7)
    steep = tokens(4).line(apply("mul", K, Const(2**20)))
    assert steep.bounds(0, 2) == (0, 2**20)
    assert steep.bounds(4096, 4097)[0] == INT_MIN


def test_an_element_that_the_token_chooses():
    """A field with an axis of its own, read by the head and by the token's position."""
    rows = [[10 * j + c for c in range(3)] for j in range(4)]
    chosen = Load(0, "k", Kind.INT, (apply("mod", K, Const(3)),))
    assert tokens(4, {0: rows}).column(chosen).bounds(0, 4) == (0, 30)
    assert tokens(4, {0: rows}).column(chosen).bounds(1, 2) == (11, 11)
