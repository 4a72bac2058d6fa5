"""The numpy definition against the one of `backends.reference`, and its formulas against plain Python's."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfc.backends.reference.program import define
from tfc.formula import scalar
from tfc.formula.expr import PRIMITIVES, Const, Expr, FormulaError, Kind, Load, Token, Var, apply
from tfc.ir.ops import Attention, P, S
from tfc.testing import float64
from tfc.testing.cases import Array, Case, Sizes, attention_eqn, operands, sizes_of
from tfc.testing.strategies import attention_cases, sizes

SMALL = sizes(most=9, head_dims=(4,))


def agree(got: Any, want: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-9, atol=1e-9)


def reference(op: Attention, arrays: Sequence[Array], dout: Array, dlse: Array) -> tuple[Any, Any, dict[int, Any]]:
    """(out, lse, gradients by operand number) of the other definition, in float64."""
    wide = [jnp.asarray(x, jnp.float64) if x.dtype in float64.ROUNDOFF else jnp.asarray(x) for x in arrays]
    floating = [i for i, x in enumerate(wide) if jnp.issubdtype(x.dtype, jnp.floating)]

    def results(*chosen: Any) -> Any:
        whole = list(wide)
        for i, x in zip(floating, chosen, strict=True):
            whole[i] = x
        return define(op, jnp.float64, *whole)

    @jax.jit
    def both(chosen: Any, dout: Any, dlse: Any) -> Any:
        (out, lse), pull = jax.vjp(results, *chosen)
        return out, lse, pull((dout, dlse))

    out, lse, pulled = both([wide[i] for i in floating], jnp.asarray(dout), jnp.asarray(dlse))
    return out, lse, dict(zip(floating, pulled, strict=True))


@settings(max_examples=settings().max_examples // 4)
@given(case=attention_cases(of=SMALL, flavours=("normal", "documents", "blind", "large")))
def test_two_definitions_agree(case: Case):
    """Written apart, in numpy and in jnp: results and the gradients of every operand, slots included."""
    op = case.eqn.op
    assert isinstance(op, Attention)
    arrays = case.operands()
    rng = np.random.default_rng(case.seed)
    of = sizes_of(case.eqn)
    dout = rng.standard_normal((of.batch, of.n, of.heads, of.head_dim))
    dlse = rng.standard_normal((of.batch, of.heads, of.n))
    with jax.enable_x64(True):
        out, lse, theirs = reference(op, arrays, dout, dlse)
    ours = float64.attention(op, *arrays)
    agree(ours.out, out)
    agree(ours.lse, lse)
    found = float64.gradients(op, arrays, dout, dlse)
    assert sorted(found) == sorted(theirs)
    for i in found:
        agree(found[i].value, theirs[i])
        assert (found[i].unit >= 0).all()


@pytest.mark.parametrize("seed", range(2))
def test_a_weigh_formula_has_gradients(seed: int):
    """A gate on the weights: weigh formulas over s, p and a captured field (arXiv:2306.12929 has such gates)."""
    gate = apply("mul", P, apply("sigmoid", apply("add", S, Load(0, "q", Kind.REAL))))
    op = Attention(scale=0.3, mask=apply("le", Token("k"), Token("q")), weigh=gate)
    arrays = operands(attention_eqn(op, Sizes(2, 5, 7, 4, 2, 8)), seed, "normal")
    rng = np.random.default_rng(seed)
    dout, dlse = rng.standard_normal((2, 5, 4, 8)), rng.standard_normal((2, 4, 5))
    with jax.enable_x64(True):
        out, _, theirs = reference(op, arrays, dout, dlse)
    agree(float64.attention(op, *arrays).out, out)
    for i, found in float64.gradients(op, arrays, dout, dlse).items():
        agree(found.value, theirs[i])


VALUES = {
    Kind.BOOL: st.booleans(),
    Kind.INT: st.integers(-9, 9),
    Kind.REAL: st.floats(-4, 4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3),
}


@pytest.mark.parametrize("fn", PRIMITIVES)
@settings(max_examples=30)
@given(data=st.data())
def test_primitives_are_those_of_plain_python(fn: str, data: st.DataObject):
    """Each row of the closed table, for every kind of argument that it takes."""
    row = PRIMITIVES[fn]
    kinds = {"bool": [Kind.BOOL], "int": [Kind.INT]}.get(row.takes, [Kind.INT, Kind.REAL])
    kind = data.draw(st.sampled_from(kinds))
    args = [Var(f"x{i}", kind) for i in range(row.arity)]
    if fn == "where":
        args[0] = Var("x0", Kind.BOOL)
    values = [data.draw(VALUES[a.kind]) for a in args]
    if fn in ("sqrt", "rsqrt", "log", "log1p", "pow"):
        values[0] = abs(values[0]) + 1
    if fn == "div":
        values[1] = values[1] or 1
    if fn == "normal_quantile":
        values[0] = 1 / (1.5 + abs(values[0]))
        args = [Var("x0", Kind.REAL)]
    expr = apply(fn, *args)
    env = scalar.Env({a.name: v for a, v in zip(args, values, strict=True)})
    want = scalar.evaluate(expr, env)
    got = float64.evaluate(expr, {a: float64.Dense(np.asarray(v)) for a, v in zip(args, values, strict=True)})
    np.testing.assert_allclose(got.value, want, rtol=1e-12, atol=1e-12)


def test_straight_has_the_derivative_of_its_second_argument():
    """By its meaning, which is not that of differences."""
    assert tuple(float64.SLOPES["straight"](np.zeros(1), [])) == (0.0, 1.0)


@pytest.mark.parametrize("fn", sorted(set(float64.SLOPES) - {"straight"}))
def test_derivatives_are_those_of_differences(fn: str):
    """Central differences, at points where each primitive is smooth."""
    rng = np.random.default_rng(0)
    low, high = (0.1, 0.9) if fn == "normal_quantile" else (0.5, 1.5)
    x = [rng.uniform(low, high, 50) for _ in range(PRIMITIVES[fn].arity)]
    args = [Var(f"x{i}", Kind.REAL) for i in range(len(x))]
    shift = 1 if fn == "where" else 0
    expr = apply(fn, *args) if not shift else apply(fn, apply("lt", args[0], args[1]), *args[1:])

    def value(*at: Array) -> float64.Dense:
        leaves: dict[Expr, float64.Dense] = {
            a: float64.Dense(v, 0.0, {a: (1.0, 0.0)}) for a, v in zip(args, at, strict=True)
        }
        return float64.evaluate(expr, leaves)

    step = 1e-6
    for i in range(shift, len(x)):
        up, down = ([y + (d if j == i else 0) for j, y in enumerate(x)] for d in (step, -step))
        slope, error = value(*x).slope(args[i], x[0])
        np.testing.assert_allclose(slope, (value(*up).value - value(*down).value) / (2 * step), rtol=1e-6, atol=1e-6)
        assert (error >= 0).all()


def test_whole_numbers_divide_as_in_python():
    div, mod = (apply(fn, Token("q"), Token("k")) for fn in ("floordiv", "mod"))
    for q in (-7, 0, 7):
        for k in (-3, 0, 3):
            leaves: dict[Expr, float64.Dense] = {
                Token("q"): float64.Dense(np.asarray(q)),
                Token("k"): float64.Dense(np.asarray(k)),
            }
            want = (q // k, q % k) if k else (0, 0)
            assert tuple(int(float64.evaluate(e, leaves).value) for e in (div, mod)) == want


def test_a_leaf_without_a_value_is_named():
    with pytest.raises(FormulaError, match="`u` has no value here"):
        float64.evaluate(apply("exp", Var("u", Kind.REAL)), {})


def test_rows_that_see_nothing():
    """Zeros, -inf, and zero gradients; also where no query sees anything."""
    op = Attention(scale=1.0, mask=Const(False))
    arrays = operands(attention_eqn(op, Sizes(1, 3, 4, 2, 1, 4)), 0, "normal")
    found = float64.attention(op, *arrays)
    assert (found.out == 0).all() and np.isneginf(found.lse).all() and (found.out_unit == 0).all()
    for g in float64.gradients(op, arrays, np.ones((1, 3, 2, 4))).values():
        assert (g.value == 0).all() and (g.unit == 0).all()


def test_no_keys_and_no_queries():
    op = Attention(scale=1.0)
    for n, m in ((0, 3), (3, 0)):
        arrays = operands(attention_eqn(op, Sizes(1, n, m, 2, 1, 4)), 0, "normal")
        found = float64.attention(op, *arrays)
        assert found.out.shape == (1, n, 2, 4) and (found.out == 0).all() and np.isneginf(found.lse).all()


def test_a_gradient_can_be_inverted_by_differences():
    """The gradient of out and lse against differences of the values themselves, formulas and slots included."""
    op = Attention(scale=0.5, score=apply("mul", Const(2.0), apply("tanh", apply("add", S, Load(0, "k", Kind.REAL)))))
    arrays = [x.astype(np.float64) for x in operands(attention_eqn(op, Sizes(1, 3, 4, 2, 1, 4)), 0, "normal")]
    rng = np.random.default_rng(0)
    dout, dlse = rng.standard_normal((1, 3, 2, 4)), rng.standard_normal((1, 2, 3))
    found = float64.gradients(op, arrays, dout, dlse)

    def loss(*at: Array) -> float:
        f = float64.attention(op, *at)
        return float((f.out * dout).sum() + (f.lse * dlse).sum())

    for i, x in enumerate(arrays):
        way = rng.standard_normal(x.shape)
        up, down = ([y + s * way if j == i else y for j, y in enumerate(arrays)] for s in (1e-6, -1e-6))
        assert (found[i].value * way).sum() == pytest.approx((loss(*up) - loss(*down)) / 2e-6, rel=1e-7, abs=1e-7)
