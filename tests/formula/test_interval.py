"""The interval rules against every value in small boxes: never wrong, exact where they promise to be."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.formula.arithmetic import HOST, NOTHING_KNOWN, Interval, Table, fits, point
from tfc.formula.derive import DERIVATIVES
from tfc.formula.expr import (
    PRIMITIVES,
    Apply,
    Const,
    Expr,
    FormulaError,
    Kind,
    Load,
    Read,
    Token,
    Var,
    apply,
    kind_of,
    rewrite,
)
from tfc.formula.interval import RULES, compiled, refined
from tfc.formula.scalar import INT_MAX, INT_MIN, SCALAR, Env, evaluate
from tfc.testing.formulas import integers, reals

B, I, R = Kind.BOOL, Kind.INT, Kind.REAL  # noqa: E741
NAMES = ("x", "y", "z")


def kinds(fn: str) -> list[tuple[Kind, ...]]:
    """The kinds that a primitive takes."""
    row = PRIMITIVES[fn]
    if row.takes == "where":
        return [(B, I, I), (B, R, R), (B, I, R), (B, B, B)]
    one = {"number": (I, R), "int": (I,), "bool": (B,), "any": (B, I, R)}[row.takes]
    return [p for p in product(one, repeat=row.arity) if row.takes != "any" or (B in p) == (set(p) == {B})]


def spread(kind: Kind) -> st.SearchStrategy[list[bool | int | float]]:
    """Some values: the interval is from the least to the largest of them."""
    value = {
        B: st.booleans(),
        I: st.one_of(st.integers(-6, 6), st.integers(INT_MIN + 1, INT_MAX - 1)),
        R: st.one_of(st.floats(-6, 6, width=32), st.floats(width=32, allow_nan=False, allow_infinity=False)),
    }[kind]
    return st.lists(value, min_size=1, max_size=4)


def holds(interval: Interval, value: bool | int | float) -> bool:
    lo, hi = interval
    if lo != lo or (type(value) is int and lo == INT_MIN):  # nothing known
        return True
    return bool(lo <= value <= hi)


def test_every_primitive_has_a_rule_a_value_and_a_derivative():
    assert set(RULES) == set(SCALAR) == set(DERIVATIVES) == set(PRIMITIVES)


@pytest.mark.parametrize("fn", PRIMITIVES)
@given(data=st.data())
def test_a_rule_holds_every_value(fn, data):
    """Whatever the arguments are in their intervals, the value is in the result."""
    for of in kinds(fn):
        variables = [Var(name, kind) for name, kind in zip(NAMES, of, strict=False)]
        args: list[Expr] = [*variables]
        if fn == "pow" and data.draw(st.booleans()):
            args[1] = Const(data.draw(st.sampled_from((0, 1, 2, 3, 5, -1, -2, 2.0, -3.0, 0.5))))
        values = [data.draw(spread(kind)) for kind in of]
        formula = apply(fn, *args)
        rule = compiled(formula, {v: i for i, v in enumerate(variables)})
        found = rule([(min(v), max(v)) for v in values])
        for at in product(*values):
            env = Env(dict(zip(NAMES, at, strict=False)))
            assert holds(found, evaluate(formula, env)), (formula, at)


def box(expr: Expr, ranges: dict[Expr, Interval]) -> tuple[Interval, Interval]:
    """(the rule's interval, the least and largest value over all integers in the ranges)."""
    found = compiled(expr, {v: i for i, v in enumerate(ranges)})(list(ranges.values()))
    names = [v.name for v in ranges if isinstance(v, Var)]
    values = [
        evaluate(expr, Env(dict(zip(names, at, strict=True))))
        for at in product(*(range(lo, hi + 1) for lo, hi in ranges.values()))
    ]
    return found, (min(values), max(values))


X, Y = Var("x", I), Var("y", I)
DIFFERENCE = apply("sub", X, Y)
EXACT = {
    "x + y": apply("add", X, Y),
    "x - y": DIFFERENCE,
    "x * y": apply("mul", X, Y),
    "min": apply("min", X, Y),
    "max": apply("max", X, Y),
    "abs": apply("abs", DIFFERENCE),
    "square": apply("pow", DIFFERENCE, Const(2)),
    "cube": apply("pow", DIFFERENCE, Const(3)),
    "sign": apply("sign", DIFFERENCE),
    "neg": apply("neg", X),
    "x // 3": apply("floordiv", X, Const(3)),
    "x // -3": apply("floordiv", X, Const(-3)),
    "x // 0": apply("floordiv", X, Const(0)),
    "x - y < 3": apply("lt", DIFFERENCE, Const(3)),
    "abs(x - y) <= 2": apply("le", apply("abs", DIFFERENCE), Const(2)),
    "x >= y": apply("ge", X, Y),
    "x == y": apply("eq", X, Y),
    "x != y": apply("ne", X, Y),
    "x // 4 == y // 4": apply("eq", apply("floordiv", X, Const(4)), apply("floordiv", Y, Const(4))),
    "full and": apply("and", apply("ge", X, Const(-1)), apply("le", Y, Const(2))),
}
ENDS = st.lists(st.integers(-9, 9), min_size=2, max_size=2).map(sorted).map(tuple)


@pytest.mark.parametrize("name", EXACT)
@given(x=ENDS, y=ENDS)
def test_exact_rules(name, x, y):
    """Every bound is reached."""
    found, true = box(EXACT[name], {X: x, Y: y})
    assert found == true


@given(x=ENDS, n=st.sampled_from((1, 2, 4, 7, -3)))
def test_remainders_are_exact_within_a_period(x, n):
    formula = apply("mod", X, Const(n))
    found, true = box(formula, {X: x})
    if x[0] // n == x[1] // n or x[1] - x[0] + 1 >= abs(n):
        assert found == true
    assert found[0] <= true[0] and true[1] <= found[1]


@given(x=ENDS, y=ENDS)
def test_a_conjunction_is_exact_where_it_is_full_a_disjunction_where_it_is_empty(x, y):
    inside = apply("and", apply("ge", DIFFERENCE, Const(0)), apply("lt", DIFFERENCE, Const(4)))
    found, true = box(inside, {X: x, Y: y})
    assert found[0] == true[0]
    outside = apply("not", inside)
    found, true = box(apply("or", outside, apply("lt", X, Const(0))), {X: x, Y: y})
    assert found[1] == true[1] or found[1]


def test_what_may_have_wrapped_stays_unknown():
    """A product beyond 32 bits, divided back into them, decides nothing; nor does its remainder's comparison."""
    large = apply("mul", apply("mul", X, Const(2**20)), Const(2**20))
    rule = compiled(large, {X: 0})
    assert rule([(1, 2)]) == NOTHING_KNOWN[I]
    assert rule([(0, 0)]) == (0, 0)
    for more in (
        apply("floordiv", large, Const(2**30)),
        apply("add", large, Const(5)),
        apply("sub", large, large),
        apply("neg", large),
        apply("abs", large),
        apply("min", large, Const(3)),
        apply("max", large, Const(3)),
        apply("pow", large, Const(3)),
        apply("mul", large, Const(-1)),
        apply("where", apply("gt", X, Const(1)), large, Const(0)),
    ):
        assert compiled(more, {X: 0})([(1, 2)]) == NOTHING_KNOWN[I], more
        for fn in ("lt", "le", "gt", "ge", "eq", "ne"):
            for other in (0, INT_MAX, INT_MIN, 2**40, -(2**40)):
                decided = compiled(apply(fn, more, Const(other)), {X: 0})([(1, 2)])
                assert decided == (False, True), (fn, more, other)
    assert compiled(apply("mod", large, Const(7)), {X: 0})([(1, 2)]) == (0, 6)
    assert compiled(apply("lt", apply("mul", large, Const(1.0)), Const(0.0)), {X: 0})([(1, 2)]) == (False, True)


def test_reals_are_decided_only_beyond_rounding():
    """0.1 + 0.2 against 0.3: no verdict. 0.5 + 0.25 against 1: a verdict. 3.0 == 3: exact, as nothing is rounded."""

    def verdict(fn: str, x: Expr, y: Expr) -> Interval:
        return compiled(apply(fn, x, y), {})(())

    third = apply("add", Const(0.1), Const(0.2))
    assert verdict("le", third, Const(0.3)) == (False, True)
    assert verdict("eq", third, Const(0.3)) == (False, True)
    assert verdict("lt", apply("add", Const(0.5), Const(0.25)), Const(1.0)) == (True, True)
    assert verdict("eq", Const(3.0), Const(3)) == (True, True)
    assert verdict("eq", Const(0.1), Const(0.1)) == (False, True)  # float32 and float64 hold other numbers
    assert verdict("ge", apply("sqrt", Const(2.0)), Const(0.0)) == (True, True)  # a sign is no rounding
    assert verdict("lt", Const(2**24 + 1), Const(2.0**24 + 2)) == (False, True)  # float32 has no 2^24 + 1
    assert fits(0.5) and not fits(0.1) and not fits(1e300)


@pytest.mark.parametrize(
    "outside",
    [
        apply("sqrt", Var("r", R)),
        apply("log", Var("r", R)),
        apply("rsqrt", Var("r", R)),
        apply("pow", Var("r", R), Const(0.5)),
        apply("div", Const(1.0), Var("r", R)),
        apply("pow", Var("r", R), Const(-1)),
        apply("sub", apply("exp", Const(1e9)), apply("exp", apply("mul", Var("r", R), Const(1e9)))),
        apply("mul", apply("exp", Const(1e9)), Var("r", R)),
        apply("min", Const(1.0), apply("log", Var("r", R))),
        Var("s", R),
    ],
    ids=str,
)
def test_what_may_be_nan_decides_nothing(outside):
    """Over an interval that leaves the function's domain no comparison has a verdict, nor has its negation."""
    leaves: dict[Expr, int] = {Var("r", R): 0}
    for fn in ("lt", "le", "gt", "ge", "eq", "ne"):
        for bound in (0.0, 1.0, math.inf, -math.inf):
            formula = apply(fn, outside, Const(bound))
            assert compiled(formula, leaves)([(-1.0, 1.0)]) == (False, True), formula
            assert compiled(apply("not", formula), leaves)([(-1.0, 1.0)]) == (False, True)
    assert compiled(apply("floor", outside), leaves)([(-1.0, 1.0)]) == NOTHING_KNOWN[I]


def test_tables_are_read_over_the_range_of_the_indices():
    table = Read(0, (X, Y), I)
    tables = {0: Table([[10 * i + j for j in range(40)] for i in range(40)], 2, I)}
    rule = compiled(table, {X: 0, Y: 1}, HOST, tables)
    assert rule([(3, 3), (4, 4)]) == (34, 34)
    assert rule([(1, 2), (0, 5)]) == (10, 25)
    assert rule([(-9, 0), (50, 60)]) == (39, 39)  # the nearest element
    assert rule([(0, 39), (0, 9)]) == (0, 429)  # more than is looked through: the whole table
    assert Table([], 1, R).range([(0, 0)]) is NOTHING_KNOWN[R]
    assert compiled(Read(0, (), R), {}, HOST, {0: Table(2.5, 0, R)})(()) == (2.5, 2.5)


def test_leaves_without_a_range_are_refused_in_words():
    for leaf in (Token("q"), Load(0, "k", I)):
        with pytest.raises(FormulaError, match="has no range here"):
            compiled(leaf, {})
    with pytest.raises(FormulaError, match=r"slot \$3 has no table"):
        compiled(Read(3, (), I), {})
    assert compiled(Var("p", R), {})(())[0] != 0  # a weight may be anything
    assert point(HOST, INT_MAX, I) == NOTHING_KNOWN[I]


@given(data=st.data())
def test_what_is_undecided_everywhere_is_undecided_in_each_part(data):
    """`refined` on the union and the intersection of parts: (False, True) means that every part says so."""
    fields = [Var(name, I) for name in NAMES]
    leaves: dict[Expr, int] = {v: i for i, v in enumerate(fields)}
    number = st.one_of(integers(), reals())
    drawn = data.draw(number.map(lambda e: _over(e, fields)))
    other = data.draw(number.map(lambda e: _over(e, fields)))
    fn = data.draw(st.sampled_from(("lt", "le", "eq", "ne", "ge")))
    formula = apply("and", apply(fn, drawn, other), apply("le", fields[0], fields[1]))
    parts = [[data.draw(ENDS) for _ in fields] for _ in range(2)]
    outer = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(*parts, strict=True)]
    common = [(max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(*parts, strict=True)]
    inner = [c if c[0] <= c[1] else None for c in common]
    whole, each = refined(formula, leaves)(outer, inner)
    assert whole == compiled(formula, leaves)(outer)
    for part in parts:
        found = compiled(formula, leaves)(part)
        assert whole[0] <= found[0] and found[1] <= whole[1]
        if each is not None:
            assert found[0] <= each[0] and each[1] <= found[1]


def _over(expr: Expr, fields: list[Var]) -> Expr:
    """The formula with each leaf of a token or table replaced by one of the fields, of the same kind."""

    def rule(node: Expr) -> Expr | None:
        match node:
            case Token(side):
                return fields[0] if side == "q" else fields[1]
            case Load(_, _, kind) | Read(_, _, kind) | Var(_, kind):
                if kind is I:
                    return fields[2]
                return apply("gt", fields[2], Const(0)) if kind is B else apply("div", fields[2], Const(2))
        return None

    out = rewrite(expr, rule)
    assert kind_of(out) is kind_of(expr) and isinstance(out, Apply | Const | Var)
    return out
