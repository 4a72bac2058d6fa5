"""Maps on arrays: each expression as numpy has it, stacks like their parts, gradients, the way back, complaints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.diagnostics import TfcError
from tfc.ir.param_map import (
    IDENTITY,
    Add,
    Concat,
    Expr,
    MatVec,
    NonZero,
    ParamMap,
    Part,
    ScaleRows,
    Source,
    Sub,
    UnscaleRows,
)
from tfc.params.apply import evaluate, failing_guards, pack, unpack

W, V, S, BIAS = map(Source, ["w", "v", "s", "b"])


def tree(*stack: int, dtype: str = "float32") -> dict[str, jax.Array]:
    """w [K, O], v [K, P], s [K], b [O], with leading axes."""
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 4), "v": (3, 2), "s": (3,), "b": (4,)}
    return {n: jnp.asarray(rng.uniform(0.5, 2.0, (*stack, *shape)), dtype) for n, shape in shapes.items()}


EXPRESSIONS: dict[str, tuple[Expr, object]] = {
    "source": (W, lambda t: t["w"]),
    "concat": (Concat((W, V)), lambda t: np.concatenate([t["w"], t["v"]], axis=1)),
    "concat rows": (Concat((W, W), -2), lambda t: np.concatenate([t["w"], t["w"]], axis=0)),
    "part": (Part(W, 1, 2), lambda t: t["w"][:, 1:3]),
    "part of rows": (Part(W, 1, 2, -2), lambda t: t["w"][1:3]),
    "scale rows": (ScaleRows(W, S), lambda t: np.diag(t["s"]) @ t["w"]),
    "unscale rows": (UnscaleRows(W, S), lambda t: np.diag(1 / t["s"]) @ t["w"]),
    "matvec": (MatVec(S, W), lambda t: t["s"] @ t["w"]),
    "add": (Add(BIAS, MatVec(S, W)), lambda t: t["b"] + t["s"] @ t["w"]),
    "sub": (Sub(BIAS, MatVec(S, W)), lambda t: t["b"] - t["s"] @ t["w"]),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_are_those_of_numpy(name: str):
    expr, expected = EXPRESSIONS[name]
    wide = {n: np.asarray(x, np.float64) for n, x in tree().items()}
    np.testing.assert_allclose(evaluate(expr, tree()), expected(wide), rtol=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("stack", [(2,), (2, 3)])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_stack_is_its_parts(name: str, stack: tuple[int, ...]):
    """Parameters of one loop, and of a loop in a loop."""
    whole = tree(*stack)
    found = evaluate(EXPRESSIONS[name][0], whole)
    for at in np.ndindex(stack):
        own = evaluate(EXPRESSIONS[name][0], {n: x[at] for n, x in whole.items()})
        np.testing.assert_allclose(found[at], own, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_the_element_type_stays(name: str, dtype: str):
    assert evaluate(EXPRESSIONS[name][0], tree(dtype=dtype)).dtype == dtype


def test_a_long_sum_is_kept_in_float32():
    """In bfloat16 the sum of 1000 ones would stick at 256."""
    ones = {"s": jnp.ones(1000, jnp.bfloat16), "w": jnp.ones((1000, 1), jnp.bfloat16)}
    assert evaluate(MatVec(S, W), ones)[0] == 1000


FOLD = ParamMap(
    {"s": S, "w": ScaleRows(W, S), "b": Add(BIAS, MatVec(S, W))},
    {"s": S, "w": UnscaleRows(W, S), "b": Sub(BIAS, MatVec(S, UnscaleRows(W, S)))},
    kept=frozenset(["s"]),
    guards=(NonZero("s", "fold-norms:s"),),
)
MERGE = ParamMap(
    {"wv": Concat((W, V))},
    {"w": Part(Source("wv"), 0, 4), "v": Part(Source("wv"), 4, 2)},
    removed=frozenset(["w", "v"]),
)


def test_there_and_back():
    params = tree(2)
    packed = pack(FOLD.then(MERGE), params)
    assert list(packed) == ["s", "b", "wv"]
    assert packed["wv"].shape == (2, 3, 6)
    back = unpack(FOLD.then(MERGE), packed)
    np.testing.assert_array_equal(back["v"], params["v"])
    np.testing.assert_array_equal(back["s"], params["s"])
    np.testing.assert_allclose(back["w"], params["w"], rtol=1e-6)
    np.testing.assert_allclose(back["b"], params["b"], rtol=1e-5)


def test_what_a_map_does_not_name_is_carried_over():
    params = {**tree(), "other": jnp.ones(5)}
    assert pack(MERGE, params)["other"] is params["other"]
    assert unpack(MERGE, pack(MERGE, params))["other"] is params["other"]
    assert pack(IDENTITY, params) == params


def test_gradients_run_through():
    """d sum((s * w) x) / d w and / d s, by hand."""
    x = jnp.arange(3.0)
    params = tree()

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        return jnp.sum(x @ pack(FOLD, params)["w"])

    found = jax.jit(jax.grad(loss))(params)
    np.testing.assert_allclose(found["w"], np.outer(params["s"] * x, np.ones(4)), rtol=1e-6)
    np.testing.assert_allclose(found["s"], x * jnp.sum(params["w"], axis=1), rtol=1e-6)


def test_a_guard_fails_where_an_element_is_zero():
    params = tree(2)
    assert failing_guards(FOLD, params) == ()
    for zero in (0.0, -0.0):
        assert failing_guards(FOLD, {**params, "s": params["s"].at[1, 2].set(zero)}) == FOLD.guards


def test_a_guard_is_not_for_traced_values():
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(lambda p: failing_guards(FOLD, p))(tree())


def test_missing_parameters_are_named_all_of_them():
    with pytest.raises(TfcError) as e:
        pack(MERGE, {"b": jnp.ones(4)})
    assert str(e.value) == (
        "error[E601]: the parameter `v` is missing\nhelp: give the parameters before the passes\n\n"
        "error[E601]: the parameter `w` is missing\nhelp: give the parameters before the passes"
    )
    with pytest.raises(TfcError) as e:
        unpack(MERGE, tree())
    assert str(e.value) == (
        "error[E601]: the parameter `wv` is missing\nhelp: give the parameters after the passes (from `pack`)"
    )


def test_an_unknown_expression_is_refused():
    class Other(Expr):
        pass

    with pytest.raises(TypeError, match="Other is no expression over parameters"):
        evaluate(Other(), {})
