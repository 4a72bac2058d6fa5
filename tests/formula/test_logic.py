"""A mask taken apart: the same values, negations at the leaves, and one condition for what one token decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.formula.arithmetic import Table
from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Read, Token, Var, apply, conjuncts, text, walk
from tfc.formula.logic import chain, conditions, grouped, side_of, specialized
from tfc.formula.scalar import evaluate, pair
from tfc.testing.formulas import both, causal, documents, fields, masks, window

Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)
D = apply("sub", Q, K)
F, G = Load(0, "q", Kind.INT), Load(1, "k", Kind.INT)
A, C = Load(2, "q", Kind.BOOL), Load(3, "k", Kind.BOOL)


def no(x: Expr) -> Expr:
    return apply("not", x)


@pytest.mark.parametrize(
    "mask, expected",
    [
        (no(causal()), "q < k"),
        (no(no(documents())), "$0.q == $0.k"),
        (no(both(causal(), documents())), "q < k or $0.q != $0.k"),
        (no(apply("or", A, no(C))), "not $2.q and $3.k"),
        (window(size=4), "q < k + 4 and q > k - 4"),
        (no(window(size=4)), "q >= k + 4 or q <= k - 4"),
        (apply("lt", Const(3), apply("abs", D)), "q > k + 3 or q < k - 3"),
        (apply("le", apply("min", F, G), Const(3)), "$0.q <= 3 or $1.k <= 3"),
        (apply("le", apply("max", F, G), Const(3)), "$0.q <= 3 and $1.k <= 3"),
        (apply("lt", apply("abs", Q), K), "abs(q) < k"),
        (both(causal(), Const(True), causal()), "q >= k"),
        (apply("or", causal(), Const(True)), "yes"),
        (apply("or", causal(), no(Const(True))), "q >= k"),
        (both(causal(), apply("eq", apply("mod", D, Const(3)), Const(0))), "q >= k and q % 3 == k % 3"),
        (no(apply("lt", Load(4, "q", Kind.REAL), Const(0.5))), "not $4.q < 0.5"),  # neither holds of nan
    ],
    ids=str,
)
def test_the_form(mask, expected):
    assert text(conditions(mask)) == expected


@given(data=st.data())
def test_the_values_stay(data):
    """Of drawn masks, as they are and specialized to a head."""
    mask = data.draw(masks(real=True, wild=True))
    slots = data.draw(fields(mask, n=3, m=3, heads=2))
    tables = {r.slot: Table(slots[r.slot], len(r.indices), r.kind) for r in walk(mask) if isinstance(r, Read)}
    for i in range(3):
        for h in range(2):
            env = pair(i, 2 - i, n=3, m=3, h=h, loads=slots, reads=slots)
            true = evaluate(mask, env)
            assert evaluate(conditions(mask), env) == true
            assert evaluate(conditions(mask, negative=True), env) != true
            assert evaluate(conditions(specialized(mask, h, tables)), env) == true


def test_groups():
    """One operand for the query, one for the key, one for the difference; the others as they are."""
    mask = conditions(both(A, causal(), documents(), C, apply("lt", F, Const(3)), window(size=9)))
    assert [text(part) for part in grouped(mask, "and")] == [
        "$2.q and $0.q < 3",
        "q >= k and q < k + 9 and q > k - 9",
        "$3.k",
        "$0.q == $0.k",
    ]
    assert len(chain(mask, "and")) == len(conjuncts(mask)) == 7
    assert grouped(mask, "or") == (mask,)


@pytest.mark.parametrize(
    "formula, side",
    [
        (A, "q"),
        (C, "k"),
        (Const(True), "q"),
        (H, "q"),
        (causal(), "difference"),
        (documents(), "both"),
        (Apply("gt", (Var("s", Kind.REAL), Const(0.0))), "both"),
    ],
    ids=str,
)
def test_sides(formula, side):
    assert side_of(formula) == side


def test_a_head_is_a_number():
    """What a head decides becomes a literal, where it is an integer or a boolean; a real keeps its name."""
    reach = Read(0, (H,), Kind.INT)
    mask = both(apply("or", apply("ge", H, Const(1)), apply("lt", D, reach)), apply("gt", Read(1, (H,), Kind.REAL), D))
    tables = {0: Table([4, 9], 1, Kind.INT), 1: Table([0.5, 2.0], 1, Kind.REAL)}
    assert text(specialized(mask, 0, tables)) == "(no or q - k < 4) and $1[h] > q - k"
    assert text(conditions(specialized(mask, 1, tables))) == "$1[h] > q - k"


def test_what_is_deep_is_not_taken_apart_without_end():
    deep: Expr = D
    for i in range(12):
        deep = apply("abs", apply("sub", deep, Const(i)))
    assert sum(1 for _ in walk(conditions(apply("lt", deep, Const(3))))) < 100
