"""What the primitives mean on Python numbers, where mathematics leaves a choice."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.formula.expr import (
    PRIMITIVES,
    Apply,
    Const,
    FormulaError,
    Kind,
    Load,
    Read,
    Reduce,
    Token,
    Var,
    apply,
    kind_of,
)
from tfc.formula.scalar import SCALAR, Env, evaluate, pair
from tfc.testing.formulas import fields, masks, reals

I, R = Kind.INT, Kind.REAL  # noqa: E741
INF, NAN = math.inf, math.nan


def value(fn: str, *args: bool | int | float) -> bool | int | float:
    return evaluate(Apply(fn, tuple(Const(a) for a in args)), Env())


def test_every_primitive_has_a_value():
    assert set(SCALAR) == set(PRIMITIVES)


@pytest.mark.parametrize(
    "fn, args, expected",
    [
        ("floordiv", (-7, 2), -4),
        ("floordiv", (7, -2), -4),
        ("floordiv", (7, 0), 0),
        ("mod", (-7, 4), 1),
        ("mod", (7, -4), -1),
        ("mod", (7, 0), 0),
        ("div", (7, 2), 3.5),
        ("div", (1, 0), INF),
        ("div", (-1.0, 0), -INF),
        ("div", (0, 0), NAN),
        ("pow", (2, 3), 8),
        ("pow", (2, -1), 0.5),
        ("pow", (0, 0), 1),
        ("pow", (0.0, -1), INF),
        ("pow", (-8.0, 0.5), NAN),
        ("pow", (-2.0, 3), -8.0),
        ("pow", (-1e200, 3), -INF),
        ("pow", (-1e200, 2), INF),
        ("sign", (0,), 1),
        ("sign", (-0.0,), 1.0),
        ("sign", (-3,), -1),
        ("round", (0.5,), 0.0),
        ("round", (1.5,), 2.0),
        ("round", (-2.5,), -2.0),
        ("round", (7,), 7.0),
        ("round", (INF,), INF),
        ("floor", (-0.5,), -1),
        ("floor", (7,), 7),
        ("floor", (NAN,), 0),
        ("floor", (1e300,), 2**31 - 1),
        ("floor", (-INF,), -(2**31)),
        ("sqrt", (-1.0,), NAN),
        ("rsqrt", (0.0,), INF),
        ("rsqrt", (4,), 0.5),
        ("exp", (1e6,), INF),
        ("exp", (-1e6,), 0.0),
        ("exp2", (5000,), INF),
        ("log", (0.0,), -INF),
        ("log", (-1.0,), NAN),
        ("log1p", (-1.0,), -INF),
        ("sigmoid", (-1e6,), 0.0),
        ("sigmoid", (1e6,), 1.0),
        ("tanh", (1e6,), 1.0),
        ("sin", (INF,), NAN),
        ("min", (1.0, NAN), NAN),
        ("max", (NAN, 1.0), NAN),
        ("min", (1, 2.5), 1.0),
        ("mul", (1e308, 10.0), INF),
        ("add", (10**400, 1.0), INF),
        ("where", (True, 1, 2.5), 1.0),
        ("where", (False, True, False), False),
        ("eq", (True, True), True),
        ("not", (False,), True),
    ],
)
def test_the_choices(fn, args, expected):
    found = value(fn, *args)
    assert type(found) is type(expected)
    assert found == expected or (math.isnan(found) and math.isnan(expected))


@given(data=st.data())
def test_finite_inputs_never_raise_and_types_are_kinds(data):
    """Whatever is drawn has a value, whose Python type is the formula's kind."""
    formula = data.draw(st.one_of(reals(wild=True), masks(real=True, wild=True)))
    slots = data.draw(fields(formula, n=3, m=3, heads=2, large=True))
    types = {Kind.BOOL: bool, Kind.INT: int, Kind.REAL: float}
    for i in range(3):
        found = evaluate(formula, pair(i, 2 - i, n=3, m=3, h=i % 2, loads=slots, reads=slots))
        assert type(found) is types[kind_of(formula)]


def test_leaves():
    """Positions end together; slots are read by token and row; tables by index, the nearest where it lies outside."""
    env = pair(1, 4, n=3, m=7, b=1, h=2, loads={0: [[1, 2, 3], [4, 5, 6]], 1: [True] * 7}, reads={2: [[1, 2], [3, 4]]})
    assert evaluate(Token("q"), env) == 5
    assert evaluate(Token("k"), env) == 4
    assert evaluate(Load(0, "q", I), env) == 5
    assert evaluate(Load(1, "k", Kind.BOOL), env) is True
    assert evaluate(Read(2, (Const(1), Const(0)), I), env) == 3
    assert evaluate(Read(2, (Var("h", I), Const(-5)), R), env) == 3.0
    assert evaluate(Read(2, (), R), Env(reads=lambda slot, at: 7)) == 7.0
    with pytest.raises(FormulaError, match="`s` has no value"):
        evaluate(Var("s", R), env)
    with pytest.raises(FormulaError, match=r"slot \$0 has no value"):
        evaluate(Load(0, "q", I), Env())


@pytest.mark.parametrize(
    "fn, expected", [("sum", 9), ("mean", 1.5), ("min", 0), ("max", 4), ("any", True), ("all", False)]
)
def test_reductions(fn, expected):
    """Over i < 3 and j < 2 of i * (j + 1) (or of its sign, for truths)."""
    body = apply("mul", Var("i", I), apply("add", Var("j", I), Const(1)))
    if fn in ("any", "all"):
        body = apply("gt", body, Const(0))
    found = evaluate(Reduce(fn, ("i", "j"), body), Env(sizes={"i": 3, "j": 2}))
    assert found == expected
    assert type(found) is type(expected)


def test_empty_reductions():
    for fn, expected in (("sum", 0), ("min", INF), ("max", -INF), ("any", False), ("all", True)):
        body = apply("gt", Var("i", I), Const(0)) if fn in ("any", "all") else Var("i", I)
        assert evaluate(Reduce(fn, ("i",), body), Env(sizes={"i": 0})) == expected
