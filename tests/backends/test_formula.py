"""The kernels' reader of formulas, primitive by primitive, beside the plain-Python referee."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.formula import MOSAIC_GPU, Placed, Tile, unlowerable
from tfc.formula.expr import PRIMITIVES, Apply, Const, Expr, FormulaError, Kind, Load, Token, Var, apply, kind_of
from tfc.formula.scalar import Env, evaluate

S, Q, K = Var("s", Kind.REAL), Token("q"), Token("k")
X, ON = Load(0, "k", Kind.REAL), Load(1, "q", Kind.BOOL)
ROWS, COLUMNS = 5, 7
VALUES = {
    "s": np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32) * 3,
    "q": np.arange(-2, ROWS - 2, dtype=np.int32),
    "k": np.arange(-3, COLUMNS - 3, dtype=np.int32),
    "x": np.linspace(0.1, 4, COLUMNS).astype(np.float32),
    "on": np.arange(ROWS) % 2 == 0,
}
LEAVES = {
    S: Placed(jnp.asarray(VALUES["s"]), (0, 1)),
    Q: Placed(jnp.asarray(VALUES["q"]), (0,)),
    K: Placed(jnp.asarray(VALUES["k"]), (1,)),
    X: Placed(jnp.asarray(VALUES["x"]), (1,)),
    ON: Placed(jnp.asarray(VALUES["on"]), (0,)),
}
TILE = Tile((ROWS, COLUMNS), LEAVES)

ARGUMENTS: dict[str, tuple[tuple[Expr, ...], ...]] = {
    "bool": ((ON, apply("le", K, Q)), (apply("lt", S, Const(0.0)), ON)),
    "int": ((Q, K), (apply("add", Q, K), Const(3)), (K, Const(-2)), (Q, Const(0))),
    "number": ((S, X), (Q, K), (S, K), (apply("mul", S, X), Const(2.5))),
    "any": ((Q, K), (S, Q), (ON, apply("le", K, Q))),
    "where": ((ON, S, X), (apply("le", K, Q), Q, S), (ON, K, Const(2)), (ON, apply("eq", Q, K), ON)),
}
POSITIVE = {"sqrt", "rsqrt", "log", "log1p"}  # elsewhere not defined


def formulas(fn: str) -> list[Expr]:
    row = PRIMITIVES[fn]
    if fn == "pow":
        return [Apply(fn, (S, Const(3))), Apply(fn, (Q, Const(2))), Apply(fn, (X, Const(-2))), Apply(fn, (K, Const(0)))]
    if fn in POSITIVE:
        return [Apply(fn, (X,)), Apply(fn, (apply("mul", X, X),))]
    return [Apply(fn, args[: row.arity]) for args in ARGUMENTS[row.takes]]


def referee(expr: Expr) -> Any:
    """Every element by plain Python."""
    out = np.empty((ROWS, COLUMNS), object)
    for i, j in np.ndindex(out.shape):
        q, k = int(VALUES["q"][i]), int(VALUES["k"][j])
        loads = {(0, "k"): float(VALUES["x"][j]), (1, "q"): bool(VALUES["on"][i])}
        env = Env(
            tokens={"q": q, "k": k},
            variables={"s": float(VALUES["s"][i, j])},
            loads=lambda slot, side, loads=loads: loads[slot, side],
            reads=lambda slot, indices: math.nan,
        )
        out[i, j] = evaluate(expr, env)
    return out


@pytest.mark.parametrize("fn", MOSAIC_GPU)
def test_primitives(fn: str) -> None:
    """Booleans and integers exactly, reals within a few float32 roundings of values of order one."""
    for expr in formulas(fn):
        found, right = np.asarray(TILE.spread(TILE.evaluate(expr))), referee(expr)
        assert found.dtype == {Kind.BOOL: np.bool_, Kind.INT: np.int32, Kind.REAL: np.float32}[kind_of(expr)]
        if kind_of(expr) is Kind.REAL:
            np.testing.assert_allclose(found, right.astype(np.float64), rtol=3e-6, atol=1e-6, err_msg=str(expr))
        else:
            np.testing.assert_array_equal(found, right.astype(found.dtype), err_msg=str(expr))


def test_what_no_kernel_lowers_is_named() -> None:
    assert set(PRIMITIVES) - set(MOSAIC_GPU) == {"erf", "normal_quantile", "stop", "straight"}
    assert unlowerable(S, apply("add", S, apply("erf", S))) == "erf"
    assert unlowerable(apply("pow", S, Const(0.5))) == "^ with an exponent that is no whole number"
    assert unlowerable(apply("pow", S, Const(2)), apply("tanh", S)) is None


def test_one_token_is_evaluated_once_a_row_or_column() -> None:
    """`q % 4 == k % 4` divides once a token, not once a score."""
    for token, axes in ((Q, (0,)), (K, (1,))):
        found = TILE.evaluate(apply("mod", token, Const(4)))
        assert (found.axes, found.value.ndim) == (axes, 1)
    assert TILE.evaluate(apply("mul", Const(2), Const(3))).axes == ()


def test_a_leaf_without_a_value() -> None:
    with pytest.raises(FormulaError, match="has no value on a tile"):
        TILE.evaluate(apply("add", S, Load(7, "q", Kind.REAL)))
