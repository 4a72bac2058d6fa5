"""Derivatives against differences, and the questions that kernels ask of a formula's shape."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tfc.formula.derive import depends_on_difference_only, derivative, linear_in_s, shift, simplify
from tfc.formula.expr import (
    Apply,
    Const,
    Expr,
    FormulaError,
    Kind,
    Load,
    Read,
    Reduce,
    Token,
    Var,
    apply,
    kind_of,
    text,
    walk,
)
from tfc.formula.scalar import Env, evaluate, pair
from tfc.testing.formulas import NAMED_MASKS, NAMED_SCORES, alibi, dilated, fields, masks, own, reals, scores, softcap

Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)
S, T = Var("s", Kind.REAL), Var("t", Kind.REAL)
BIAS = Read(0, (H,), Kind.REAL)


def at(expr: Expr, s: float, t: float = 0.6) -> float:
    return float(evaluate(expr, Env({"s": s, "t": t, "h": 1}, {"q": 7, "k": 3}, lambda *_: 0.5, lambda *_: 0.25)))


def slope(expr: Expr, s: float, h: float) -> float:
    return (at(expr, s + h) - at(expr, s - h)) / (2 * h)


SMOOTH = (
    "neg", "abs", "sqrt", "rsqrt", "exp", "exp2", "log", "log1p", "tanh", "approximate_tanh", "sigmoid", "erf", "sin",
    "cos",
)  # fmt: skip


@pytest.mark.parametrize("s", (0.3, 1.7, 4.2))
@pytest.mark.parametrize(
    "formula",
    [
        *(Apply(fn, (S,)) for fn in SMOOTH),
        *(Apply(fn, pair_) for fn in ("add", "sub", "mul", "div", "pow", "min", "max") for pair_ in ((S, T), (T, S))),
        apply("pow", S, Const(3)),
        apply("pow", S, Const(-2)),
        apply("pow", S, Const(0.5)),
        apply("pow", S, S),
        apply("mul", S, S),
        apply("div", S, apply("add", S, Const(1.0))),
        apply("where", apply("lt", S, Const(1.0)), apply("exp", S), apply("sin", S)),
        apply("tanh", apply("mul", apply("exp", apply("neg", S)), S)),
        apply("round", S),
        apply("mul", apply("sign", S), S),
        apply("add", apply("floor", S), apply("mul", S, T)),
        softcap(),
        own(),
    ],
    ids=str,
)
def test_derivatives_are_limits_of_differences(formula, s):
    """To the accuracy of a central difference in float64."""
    assert at(derivative(formula), s) == pytest.approx(slope(formula, s, 1e-5), rel=1e-7, abs=1e-8)


@given(data=st.data(), s=st.floats(-3, 3))
def test_drawn_formulas(data, s):
    """Compositions too, away from kinks and poles: where two differences agree, they agree with the derivative."""
    inner = data.draw(st.one_of(scores(), reals().map(lambda e: apply("mul", e, S))))
    fn = data.draw(st.sampled_from((*SMOOTH, "square")))
    formula = apply("mul", inner, inner) if fn == "square" else apply(fn, inner)
    slots = data.draw(fields(formula, n=4, m=4, heads=2))

    def value(expr: Expr, x: float) -> float:
        return float(evaluate(expr, pair(3, 1, n=4, m=4, h=1, s=x, loads=slots, reads=slots)))

    wide, narrow = ((value(formula, s + h) - value(formula, s - h)) / (2 * h) for h in (1e-4, 1e-5))
    assume(math.isfinite(wide) and abs(wide) < 1e6 and abs(value(formula, s)) < 1e6)
    assume(abs(wide - narrow) <= 1e-5 * (1 + abs(wide)))
    left, right = ((value(formula, s + h) - value(formula, s)) / h for h in (-1e-5, 1e-5))
    assume(abs(left - right) <= 1e-2 * (1 + abs(wide)))
    found = derivative(formula)
    assume(all(math.isfinite(value(node, s)) for node in walk(found)))  # sqrt(0 * s) has the slope 0 * inf at 0
    assert value(found, s) == pytest.approx(narrow, rel=1e-3, abs=1e-3)


def test_captured_parameters_and_sub_expressions():
    """With respect to a table's element, a token's value, and a whole sub-expression."""
    tilt = alibi()
    table = Read(0, (H,), Kind.REAL)
    assert text(derivative(tilt, table)) == "-(1.0 * abs(q - k))"  # the factor keeps it real
    assert derivative(tilt) == Const(1.0)
    bonus = Load(1, "q", Kind.REAL)
    assert text(derivative(own(), bonus)) == "if(q - k < 4, 1.0, 0.0)"
    whole = apply("div", S, Const(5.0))
    assert text(derivative(softcap(), whole)) == "5.0 * (1.0 - tanh(s / 5.0) * tanh(s / 5.0))"
    assert derivative(softcap(), Var("u", Kind.REAL)) == Const(0.0)


def test_softcap_reads_well():
    assert text(derivative(softcap())) == "5.0 * ((1.0 - tanh(s / 5.0) * tanh(s / 5.0)) * 0.2)"
    assert text(derivative(S)) == "1.0"
    assert text(derivative(apply("mul", apply("add", S, BIAS), Const(2.0)))) == "2.0"


def test_only_reals_have_derivatives():
    for what, wrt in ((dilated(), S), (apply("abs", Q), S), (S, H)):
        with pytest.raises(FormulaError, match="only reals have derivatives"):
            derivative(what, wrt)
    with pytest.raises(FormulaError, match="a reduction has no derivative"):
        derivative(Reduce("sum", ("i",), apply("mul", S, Var("i", Kind.REAL))))


@given(data=st.data())
def test_simplification_keeps_values_and_kinds(data):
    """Where no zero meets an infinity: x * 0 is 0 here for every x."""
    formula = data.draw(st.one_of(scores(), reals(), masks(real=True)))
    slots = data.draw(fields(formula, n=4, m=4, heads=2))
    simple = simplify(formula)
    assert kind_of(simple) is kind_of(formula)
    assert sum(1 for _ in walk(simple)) <= sum(1 for _ in walk(formula))
    for i in range(4):
        env = pair(i, 3 - i, n=4, m=4, h=1, s=0.7, loads=slots, reads=slots)
        parts = [evaluate(node, env) for node in walk(formula)]
        if all(math.isfinite(x) for x in parts):
            assert evaluate(simple, env) == pytest.approx(evaluate(formula, env), rel=1e-12)


@pytest.mark.parametrize(
    "formula, expected",
    [
        (apply("add", S, Const(0.0)), "s"),
        (apply("sub", Const(0.0), S), "-s"),
        (apply("mul", S, Const(-1.0)), "-s"),
        (apply("mul", Const(0.0), S), "0.0"),
        (apply("div", S, Const(1.0)), "s"),
        (apply("pow", S, Const(1)), "s"),
        (apply("pow", S, Const(0)), "1.0"),
        (apply("neg", apply("neg", S)), "s"),
        (apply("where", Const(True), S, T), "s"),
        (apply("where", apply("lt", S, T), T, T), "t"),
        (apply("not", apply("not", apply("lt", S, T))), "s < t"),
        (apply("and", Const(True), apply("lt", S, T)), "s < t"),
        (apply("and", apply("lt", S, T), Const(False)), "no"),
        (apply("or", Const(True), apply("lt", S, T)), "yes"),
        (apply("or", apply("lt", S, T), Const(False)), "s < t"),
        (apply("mul", Q, Const(1.0)), "q * 1.0"),
        (apply("add", Const(2), Const(3)), "5"),
        (apply("log", Const(0.0)), "log(0.0)"),
        (apply("pow", Const(2), Const(10**9)), "2 ^ 1000000000"),
    ],
    ids=str,
)
def test_simplified_forms(formula, expected):
    assert text(simplify(formula)) == expected


@pytest.mark.parametrize(
    "formula, expected",
    [
        (S, True),
        (alibi(), True),
        (apply("sub", Const(1.0), S), True),
        (apply("div", S, BIAS), True),
        (apply("where", apply("lt", Q, K), S, Const(0.0)), True),
        (Const(1.0), True),
        (softcap(), False),
        (apply("mul", S, S), False),
        (apply("div", BIAS, S), False),
        (apply("where", apply("lt", S, T), S, T), False),
        (apply("round", S), False),
        (apply("floor", S), False),
        (apply("max", S, T), False),
    ],
    ids=str,
)
def test_linear_in_s(formula, expected):
    assert linear_in_s(formula) is expected


@given(data=st.data())
def test_linear_means_linear(data):
    formula = data.draw(st.one_of(scores(), reals().map(lambda e: apply("mul", e, S))))
    slots = data.draw(fields(formula, n=4, m=4, heads=2))
    if linear_in_s(formula):
        a, b, c = (evaluate(formula, pair(3, 1, n=4, m=4, h=1, s=s, loads=slots, reads=slots)) for s in (0.0, 1.0, 2.0))
        assume(all(math.isfinite(x) for x in (a, b, c)))
        assert c - b == pytest.approx(b - a, rel=1e-6, abs=1e-6 * (1 + abs(a)))


@pytest.mark.parametrize(
    "formula, expected",
    [
        (apply("sub", Q, K), 0),
        (apply("sub", K, Q), 0),
        (apply("sub", apply("mul", Const(2), Q), apply("add", K, K)), 0),
        (apply("add", Q, K), 2),
        (apply("neg", Q), -1),
        (apply("min", Q, K), 1),
        (apply("where", apply("lt", Q, K), Q, K), 1),
        (apply("mod", Q, Const(4)), None),
        (apply("mod", apply("sub", Q, K), Const(4)), 0),
        (apply("eq", apply("add", Q, Const(1)), K), 0),
        (apply("mul", Q, K), None),
        (Load(0, "q", Kind.INT), None),
        (Read(0, (apply("sub", Q, K), H), Kind.REAL), 0),
        (Read(0, (Q,), Kind.REAL), None),
        (apply("mul", Q, Const(0.5)), None),
        (apply("lt", Q, Const(3)), None),
        (S, None),
    ],
    ids=str,
)
def test_shift(formula, expected):
    assert shift(formula) == expected


@pytest.mark.parametrize("name", NAMED_MASKS)
def test_which_masks_depend_on_the_difference_alone(name):
    alone = name in ("yes", "causal", "window", "sliding", "by_head")
    assert depends_on_difference_only(NAMED_MASKS[name](0)) is alone


@given(data=st.data())
def test_a_function_of_the_difference_is_the_same_along_a_diagonal(data):
    formula = data.draw(st.one_of(masks(), reals()))
    slots = data.draw(fields(formula, n=4, m=4, heads=2))
    if depends_on_difference_only(formula):
        values = [evaluate(formula, pair(i + 1, i, n=4, m=4, h=1, loads=slots, reads=slots)) for i in range(3)]
        assert all(v == values[0] or v != v for v in values)


def test_named_scores_are_reals():
    for make in NAMED_SCORES.values():
        assert kind_of(make(0)) is Kind.REAL
