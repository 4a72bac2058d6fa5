"""What belongs to one token is taken out of a formula, and the values stay the same."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.formula.expr import Const, Expr, Kind, Load, Read, Token, Var, apply, kind_of, sides, substitute, text, walk
from tfc.formula.fields import direction, normalized, split_fields
from tfc.formula.scalar import evaluate, pair
from tfc.testing.formulas import NAMED_MASKS, both, causal, fields, integers, masks, reals, scores

Q, K, H, S = Token("q"), Token("k"), Var("h", Kind.INT), Var("s", Kind.REAL)


def field(slot: int, side: str) -> Load:
    return Load(slot, side, Kind.INT)  # type: ignore[arg-type]  # "q" or "k"


def mod(x: Expr, n: int) -> Expr:
    return apply("mod", x, Const(n))


@pytest.mark.parametrize(
    "formula, remains, expected",
    [
        (NAMED_MASKS["dilated"](0), "q.0 >= k.1 and q.2 == k.3", ["q", "k", "q % 4", "k % 4"]),
        (NAMED_MASKS["documents"](0), "q.0 == k.1", ["$0.q", "$0.k"]),
        (NAMED_MASKS["by_head"](0), "q.0 >= k.1 and q.0 < k.2", ["q", "k", "k + $0[h]"]),
        (NAMED_MASKS["padding"](0), "k.0", ["$0.k"]),
        (NAMED_MASKS["shifted"](0), "q.0 == k.1", ["($0.q - 2) // 4", "($0.k - 2) // 4"]),
        (Const(True), "yes", []),
        (
            apply("lt", apply("add", Q, field(0, "k")), apply("add", field(1, "k"), field(2, "q"))),
            "q.0 < k.1",
            ["q - $2.q", "$1.k - $0.k"],
        ),
        (apply("eq", mod(apply("sub", Q, K), 3), Const(0)), "q.0 == k.1", ["q % 3", "k % 3"]),
        (apply("eq", mod(apply("sub", K, Q), 3), Const(0)), "k.0 == q.1", ["k % 3", "q % 3"]),
        (apply("lt", apply("neg", Q), apply("neg", K)), "q.0 > k.1", ["q", "k"]),
        (apply("add", S, Read(0, (H,), Kind.REAL)), "s + h.0", ["$0[h]"]),
    ],
    ids=str,
)
def test_what_is_taken_out(formula, remains, expected):
    found, derived = split_fields(formula)
    assert text(found) == remains
    assert [text(d.expr) for d in derived] == expected


def test_a_difference_stays_together_where_asked():
    """Without `separate` the remainder of a difference is a function of it still."""
    found, _ = split_fields(apply("eq", mod(apply("sub", Q, K), 3), Const(0)), separate=False)
    assert text(found) == "(q.0 - k.1) % 3 == 0"


@given(data=st.data())
def test_the_values_stay(data):
    """Of the normalized formula, and of the remaining one with the fields put back; no field sees two tokens."""
    formula = data.draw(st.one_of(masks(real=True, wild=True), integers(), reals(), scores()))
    slots = data.draw(fields(formula, n=3, m=3, heads=2))
    remains, derived = split_fields(formula)
    back = substitute(remains, {d.leaf: d.expr for d in derived})
    left = {node for node in walk(remains) if isinstance(node, Token | Load)}
    assert not left
    for d in derived:
        assert sides(d.expr) <= {d.side}
        assert kind_of(d.leaf) is kind_of(d.expr)
    for i in range(3):
        env = pair(i, 2 - i, n=3, m=3, h=i % 2, s=0.75, loads=slots, reads=slots)
        true = evaluate(formula, env)
        for other in (normalized(formula), back):
            found = evaluate(other, env)
            assert found == true or (found != found and true != true)


@given(data=st.data())
def test_a_direction_is_kept(data):
    """A formula that rises never falls, whatever the head and the tables are."""
    drawn = data.draw(st.one_of(integers(), masks()))
    formula = substitute(drawn, {K: Q})
    slots = data.draw(fields(formula, n=12, m=12, heads=2))
    found = direction(formula)
    values = [evaluate(formula, pair(i, i, n=12, m=12, h=1, loads=slots, reads=slots)) for i in range(12)]
    steps = {(b > a) - (b < a) for a, b in itertools.pairwise(values)}
    if found is not None:
        assert steps <= {0, found}


@pytest.mark.parametrize(
    "formula, expected",
    [
        (Q, 1),
        (apply("sub", Const(3), Q), -1),
        (apply("mul", Q, Const(-2)), -1),
        (apply("mul", Const(2), Q), 1),
        (apply("floordiv", Q, Const(4)), 1),
        (apply("floordiv", apply("neg", Q), Const(-4)), 1),
        (apply("lt", Q, Const(4)), -1),
        (apply("ge", Q, Const(4)), 1),
        (apply("not", apply("le", Q, Const(4))), 1),
        (apply("min", Q, Const(4)), 1),
        (apply("sub", Q, Q), None),
        (mod(Q, 4), None),
        (field(0, "q"), None),
        (Read(0, (H,), Kind.INT), 0),
        (Read(0, (Q,), Kind.INT), None),
        (apply("mul", Q, Const(0.1)), None),
        (both(apply("ge", Q, Const(2)), apply("lt", Q, Const(4))), None),
    ],
    ids=str,
)
def test_directions(formula, expected):
    assert direction(formula) == expected


def test_a_field_that_occurs_twice_is_one():
    _, derived = split_fields(both(causal(), causal(), causal()))
    assert len(derived) == 2
