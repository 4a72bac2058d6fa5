"""Weigh formulas taken apart: what stays in the inner loop, and that nothing is lost."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.backends.pallas_gpu.weighing import LSE, ONE, weighing
from tfc.formula.expr import Const, Expr, Kind, Load, Read, Token, Var, apply
from tfc.formula.scalar import Env, evaluate
from tfc.ir.ops import P, S

H, Q, K = Var("h", Kind.INT), Token("q"), Token("k")
LOGIT, OWN, OTHER = Read(0, (H,), Kind.REAL), Load(1, "q", Kind.REAL), Load(2, "k", Kind.REAL)
SINK = apply("sigmoid", apply("sub", LSE, LOGIT))
SILU = apply("mul", S, apply("sigmoid", S))

TAKEN: dict[str, tuple[Expr, bool, Expr, Expr, bool]] = {
    # formula: softmax?, what is left for each weight, what a row shares, must the log-sum-exp be known before?
    "softmax": (P, True, ONE, ONE, False),
    "sink": (apply("mul", P, SINK), True, ONE, SINK, False),
    "constant": (apply("div", apply("mul", P, Const(3)), Const(2.0)), True, ONE, Const(1.5), False),
    "of each key": (apply("mul", OTHER, P), True, OTHER, ONE, False),
    "of the query": (apply("div", P, OWN), True, ONE, apply("div", ONE, OWN), False),
    "hstu": (apply("div", SILU, Const(4)), False, SILU, Const(0.25), False),
    "squared": (
        apply("pow", apply("div", apply("max", S, Const(0.0)), Const(4)), Const(2)),
        False,
        apply("pow", apply("max", S, Const(0.0)), Const(2)),
        Const(0.0625),
        False,
    ),
    "p twice": (apply("mul", P, P), False, apply("mul", P, P), ONE, True),
    "a sink per key": (
        apply("mul", P, apply("sigmoid", apply("sub", LSE, OTHER))),
        False,
        apply("mul", P, apply("sigmoid", apply("sub", LSE, OTHER))),
        ONE,
        True,
    ),
    "negative": (apply("neg", P), True, ONE, Const(-1.0), False),
}


@pytest.mark.parametrize("name", TAKEN)
def test_taken_apart(name: str) -> None:
    formula, softmax, tile, row, before = TAKEN[name]
    found = weighing(formula)
    assert (found.softmax, found.tile, found.row, found.reads_lse) == (softmax, tile, row, before)


@pytest.mark.parametrize(
    ("formula", "silent"),
    [
        (apply("div", SILU, Const(4)), True),
        (apply("pow", apply("max", S, Const(0.0)), Const(2)), True),
        (apply("sigmoid", S), False),
        (apply("max", apply("sub", P, Const(0.1)), Const(0.0)), False),
        (apply("mul", S, OTHER), False),
        (P, False),
    ],
    ids=str,
)
def test_which_weights_are_zero_at_zero(formula: Expr, silent: bool) -> None:
    assert weighing(formula).silent_at_zero is silent


LEAVES = st.sampled_from([P, S, LSE, OWN, OTHER, Const(2), Const(0.5), Const(-3.0)])
FORMULAS = st.recursive(
    LEAVES,
    lambda x: st.one_of(
        st.builds(lambda fn, a, b: apply(fn, a, b), st.sampled_from(["mul", "div", "max", "add"]), x, x),
        st.builds(lambda a, n: apply("pow", apply("mul", a, Const(1.5)), Const(n)), x, st.integers(1, 3)),
        st.builds(lambda a: apply("neg", a), x),
    ),
    max_leaves=6,
)


@given(FORMULAS, st.sampled_from([0.25, 0.5]), st.sampled_from([-1.5, 0.75]))
def test_nothing_is_lost(formula: Expr, p: float, s: float) -> None:
    """The parts multiplied are the formula."""
    found = weighing(formula)
    env = Env({"p": p, "s": s, "row.lse": 1.25}, loads=lambda slot, side: 0.75 if side == "q" else -0.5)

    def value(expr: Expr) -> float:
        return float(evaluate(expr, env))

    right = value(formula)
    together = (p if found.softmax else 1.0) * value(found.tile) * value(found.row)
    assert math.isclose(together, right, rel_tol=1e-9, abs_tol=1e-12) or not math.isfinite(right)
