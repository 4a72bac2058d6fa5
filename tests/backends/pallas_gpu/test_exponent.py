"""Exponents of weights: as near to the formula as float32 is, and bounded only where the score is."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.backends.formula import LOG2E, MOSAIC_GPU, Placed, Tile
from tfc.backends.pallas_gpu.exponent import EXACT, RAW, exponent
from tfc.formula.expr import Apply, Const, Expr, Kind, Read, Token, Var, apply, kind_of, walk
from tfc.formula.scalar import Env, evaluate
from tfc.ir.ops import S

Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)
NUMBER = st.sampled_from([-20.0, -1.0, -0.5, 0.25, 1.0, 3, 30.0])


def formulas() -> st.SearchStrategy[Expr]:
    """Over s, real, with constants in chains and functions between them."""

    def further(x: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        number = NUMBER.map(Const)
        return st.one_of(
            st.builds(lambda f, a, b: apply(f, a, b), st.sampled_from(["add", "sub", "mul"]), x, number),
            st.builds(lambda f, a, b: apply(f, b, a), st.sampled_from(["add", "sub", "mul"]), x, number),
            st.builds(lambda a, b: apply("div", a, b), x, number),
            st.builds(
                lambda f, a: apply(f, a), st.sampled_from(["neg", "tanh", "approximate_tanh", "sigmoid", "abs"]), x
            ),
            st.builds(lambda f, a, b: apply(f, a, b), st.sampled_from(["add", "sub", "min"]), x, x),
        )

    return st.recursive(st.just(S), further, max_leaves=6)


def softcap(cap: float, tanh: str = "tanh") -> Expr:
    return apply("mul", Const(cap), apply(tanh, apply("div", S, Const(cap))))


def of_tile(score: Expr, scale: float, raw: np.ndarray) -> np.ndarray:
    """The exponent as the kernel computes it, in float32."""
    made = exponent(score, scale, 4096)
    tile = Tile(raw.shape, {RAW: Placed(jnp.asarray(raw, jnp.float32), (0, 1))}, MOSAIC_GPU)
    core = tile.spread(tile.evaluate(made.core)).astype(jnp.float32)
    return np.asarray(core, np.float64) * made.factor + made.shift


@given(score=formulas(), scale=st.sampled_from([0.125, -0.5, 1.0, 0.0]))
def test_folded_formulas_agree(score: Expr, scale: float) -> None:
    """To rounding: of what is added on the way, in float32, and of each function."""
    raw = np.linspace(-40, 40, 64).reshape(8, 8)
    made = of_tile(score, scale, raw)
    right = np.array([float(evaluate(score, Env({"s": x * scale}))) for x in raw.ravel()]).reshape(8, 8) * LOG2E
    steps = [n for n in walk(score) if isinstance(n, Apply)]
    grown = [abs(float(n.value)) for n in walk(score) if isinstance(n, Const)]
    size = math.prod(max(1.0, 2 * g, 4 * (n == 0)) for n, g in enumerate(grown or [1.0])) * 40
    assert np.abs(made - right).max() <= 2.0**-21 * (1 + len(steps)) * size


@pytest.mark.parametrize("tanh", ["tanh", "approximate_tanh"])
def test_a_softcap_is_two_multiplications_beside_its_functions(tanh: str) -> None:
    """The scale, the cap, its reciprocal, the base of the exponential and tanh's own factors: all constants."""
    made = exponent(softcap(20.0, tanh), 0.125, 4096)
    products = [n for n in walk(made.core) if isinstance(n, Apply) and n.fn in ("mul", "neg")]
    assert len(products) == 1 and RAW in products[0].args
    assert sum(isinstance(n, Apply) for n in walk(made.core)) == (4 if tanh == "tanh" else 2)
    wanted = -2 if tanh == "tanh" else 1
    assert made.factor == pytest.approx(wanted * 20 * LOG2E)


def test_plain_scores_cost_nothing() -> None:
    made = exponent(S, 0.125, 4096)
    assert (made.core, made.shift, made.base) == (RAW, 0.0, None)
    assert made.factor == pytest.approx(0.125 * LOG2E)


@given(
    cap=st.sampled_from([1.0, 5.0, 20.0, 22.0]),
    by=st.sampled_from([0.0, -10.0, 10.0]),
    tanh=st.sampled_from(["tanh", "approximate_tanh"]),
)
def test_a_bound_holds_and_its_base_keeps_weights_in_range(cap: float, by: float, tanh: str) -> None:
    score = apply("add", softcap(cap, tanh), Const(by))
    made = exponent(score, 1.0, 4096)
    assert made.span is not None and made.base is not None
    found = of_tile(score, 1.0, np.array([[-1e30, -100.0, -1.0, 0.0, 1.0, 100.0, 1e30, 3.0]]))
    assert made.span[0] <= found.min() and found.max() <= made.span[1]
    assert found.min() - made.base >= -64 and found.max() - made.base <= 32


@pytest.mark.parametrize(
    "score",
    [
        S,
        softcap(50.0),
        apply("add", S, softcap(5.0)),
        apply("max", S, Const(0.0)),
        apply("mul", softcap(5.0), Read(0, (H,), Kind.REAL)),
    ],
    ids=["the product", "a wide cap", "a sum", "one end", "a table"],
)
def test_what_is_not_bounded_has_no_base(score: Expr) -> None:
    assert exponent(score, 1.0, 4096).base is None


def test_a_bound_may_depend_on_positions() -> None:
    score = apply("sub", softcap(5.0), apply("div", apply("abs", apply("sub", Q, K)), Const(1024)))
    assert exponent(score, 1.0, 4096).base is not None
    assert exponent(score, 1.0, 2**20).base is None


def test_distances_are_reals_where_those_are_exact() -> None:
    """A position becomes a real once a row or column: no integer is left that varies over the tile."""
    alibi = apply("sub", S, apply("mul", Read(0, (H,), Kind.REAL), apply("abs", apply("sub", Q, K))))
    core = exponent(alibi, 1.0, 4096).core
    assert all(kind_of(n) is Kind.REAL for n in walk(core) if isinstance(n, Apply))
    assert any(n == apply("sub", Q, K) for n in walk(exponent(alibi, 1.0, EXACT + 1).core))
    places = {
        Q: Placed(jnp.arange(8, dtype=jnp.int32) + 4000, (0,)),
        K: Placed(jnp.arange(8, dtype=jnp.int32) * 500, (1,)),
        Read(0, (H,), Kind.REAL): Placed(jnp.float32(0.5), ()),
    }
    raw = np.linspace(-3, 3, 64).reshape(8, 8)
    tile = Tile((8, 8), {RAW: Placed(jnp.asarray(raw, jnp.float32), (0, 1)), **places}, MOSAIC_GPU)
    wanted = raw - 0.5 * np.abs(np.arange(8)[:, None] + 4000 - np.arange(8)[None] * 500)
    assert np.abs(np.asarray(tile.evaluate(core).value) - wanted).max() < 1e-3
