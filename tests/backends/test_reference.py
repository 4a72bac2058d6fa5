"""The definitions: against JAX's own attention, against loops in plain Python, and at their degenerate cases."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.reference.program import DEFINITIONS, define, evaluate
from tfc.formula.expr import PRIMITIVES, Apply, Const, Expr, Kind, Load, Read, Reduce, Token, Var, apply
from tfc.ir import ops
from tfc.ir.ops import (
    OPS,
    Attention,
    Elementwise,
    FeedForward,
    Index,
    Linear,
    P,
    Reduction,
    Repeat,
    ResidualNorm,
    Rotate,
    Route,
    S,
    Take,
)
from tfc.ir.text import parse

Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)
CAUSAL = apply("le", K, Q)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def test_every_operation_is_defined():
    assert set(DEFINITIONS) == set(OPS.values()) - {Repeat, Route}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("b", "n", "m", "g", "r"), [(2, 3, 3, 2, 1), (1, 2, 5, 1, 3), (2, 5, 3, 2, 2), (1, 1, 1, 1, 1)]
)
def test_attention_is_that_of_jax(b: int, n: int, m: int, g: int, r: int, causal: bool):
    """Values and gradients, grouped heads, N != M; JAX's causal mask is aligned at the start, so it is given as one."""
    q, k, v, dout = draw(n, (b, n, g * r, 4), (b, m, g, 4), (b, m, g, 4), (b, n, g * r, 4))
    op = Attention(scale=0.3, mask=CAUSAL if causal else Const(True))
    seen = jnp.arange(m)[None] <= jnp.arange(n)[:, None] + (m - n)
    seen = seen if causal else jnp.ones((n, m), bool)
    # JAX averages all values where a row sees nothing: such rows are left out here, and tested below
    some = jnp.any(seen, axis=1)[None, :, None, None]

    def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.where(some, define(op, jnp.float32, q, k, v)[0], 0)

    def theirs(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return jnp.where(some, jax.nn.dot_product_attention(q, k, v, mask=seen[None, None], scale=0.3), 0)

    @jax.jit
    def both(*operands: jax.Array) -> Any:
        return [(out, pull(dout)) for out, pull in (jax.vjp(f, *operands) for f in (ours, theirs))]

    (a, grads), (e, expected) = both(q, k, v)
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=2e-6)
    for x, y in zip(grads, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=5e-6)


def test_lse_is_the_log_of_the_sum():
    with jax.enable_x64(True):
        q, k, v = (x.astype(jnp.float64) for x in draw(0, (1, 3, 2, 4), (1, 5, 1, 4), (1, 5, 1, 4)))
        _, lse = define(Attention(scale=0.5), jnp.float64, q, k, v)
        s = 0.5 * jnp.einsum("bnhd,bmd->bhnm", q, k[:, :, 0])
        np.testing.assert_allclose(lse, jnp.log(jnp.exp(s).sum(-1)), rtol=1e-13)
        assert lse.dtype == jnp.float64


def test_a_row_that_sees_nothing_is_zero_and_so_are_its_gradients():
    """Row 0 sees no key: zeros, lse -inf, finite gradients, none of them its own."""
    q, k, v = draw(1, (1, 3, 2, 4), (1, 3, 2, 4), (1, 3, 2, 4))
    op = Attention(scale=1.0, mask=apply("lt", K, Q))
    out, lse = define(op, jnp.float32, q, k, v)
    assert not np.any(out[:, 0]) and np.all(np.isneginf(lse[:, :, 0]))
    assert np.all(np.isfinite(lse[:, :, 1:]))

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out, lse = define(op, jnp.float32, q, k, v)
        return jnp.sum(out) + jnp.sum(jnp.where(jnp.isfinite(lse), lse, 0))

    grads = jax.grad(total, argnums=(0, 1, 2))(q, k, v)
    assert all(np.all(np.isfinite(g)) for g in grads)
    assert not np.any(grads[0][:, 0]) and np.any(grads[0][:, 1])
    assert not np.any(grads[1][:, 2]) and not np.any(grads[2][:, 2])  # key 2 is seen by nobody


def test_a_nan_reaches_the_rows_that_see_it_and_nothing_beyond_a_length():
    q, k, v = draw(2, (1, 4, 1, 4), (1, 4, 1, 4), (1, 4, 1, 4))
    bad = k.at[0, 2].set(jnp.nan)
    out, lse = define(Attention(scale=1.0, mask=CAUSAL), jnp.float32, q, bad, v)
    assert np.all(np.isnan(out[:, 2:])) and np.all(np.isnan(lse[:, :, 2:]))
    assert np.all(np.isfinite(lse[:, :, :2]))
    # the same key beyond the length that a field tells reaches no result and no gradient
    real = jnp.array([[True, True, False, True]])
    op = Attention(scale=1.0, mask=Load(0, "k", Kind.BOOL))
    pulled: Any
    (out, lse), pulled = jax.vjp(lambda *x: define(op, jnp.float32, *x, real), q, bad, v.at[0, 2].set(jnp.inf))
    assert np.all(np.isfinite(out)) and np.all(np.isfinite(lse))
    assert all(np.all(np.isfinite(g)) for g in pulled((jnp.ones_like(out), jnp.ones_like(lse))))


def test_the_weigh_formula_leaves_unseen_keys_out():
    """HSTU's weights silu(s) / n (arXiv:2402.17152): what is hidden weighs nothing, although silu(-inf) is NaN."""
    q, k, v = draw(3, (1, 3, 1, 4), (1, 3, 1, 4), (1, 3, 1, 4))
    silu = apply("div", apply("mul", S, apply("sigmoid", S)), Const(3))
    out, _ = define(Attention(scale=1.0, mask=CAUSAL, weigh=silu), jnp.float32, q, k, v)
    s = np.einsum("bnhd,bmhd->bhnm", q, k)
    w = np.tril(s / (1 + np.exp(-s)) / 3)
    np.testing.assert_allclose(out, np.einsum("bhnm,bmhd->bnhd", w, v), rtol=1e-5, atol=1e-6)


def test_positions_heads_and_tables_in_formulas():
    """slope[h] * (q - k) + row.q + t[k % 2], with N != M: every leaf by a plain loop."""
    b, n, m, heads = 2, 2, 3, 2
    q, k, v, slope, row, t = draw(4, (b, n, heads, 4), (b, m, 1, 4), (b, m, 1, 4), (heads,), (b, n), (2,))
    score = apply("add", S, apply("mul", Read(0, (H,), Kind.REAL), apply("sub", Q, K)))
    score = apply("add", score, Load(1, "q", Kind.REAL))
    score = apply("add", score, Read(2, (apply("mod", K, Const(2)),), Kind.REAL))
    _, lse = define(Attention(scale=0.5, score=score), jnp.float32, q, k, v, slope, row, t)
    for i, h, a in itertools.product(range(b), range(heads), range(n)):
        s = [
            0.5 * float(np.dot(q[i, a, h], k[i, j, 0]))
            + float(slope[h]) * (a + m - n - j)
            + float(row[i, a] + t[j % 2])
            for j in range(m)
        ]
        assert lse[i, h, a] == pytest.approx(math.log(sum(map(math.exp, s))), rel=1e-5, abs=1e-5)


EDGES: list[tuple[str, tuple[float | int, ...], float | int]] = [
    ("sign", (0.0,), 1.0), ("sign", (-2.0,), -1.0), ("sign", (0,), 1), ("round", (0.5,), 0.0), ("round", (1.5,), 2.0),
    ("floor", (-0.5,), -1), ("floordiv", (-7, 2), -4), ("floordiv", (7, 0), 0), ("mod", (-7, 3), 2),
    ("mod", (7, -3), -2), ("mod", (7, 0), 0), ("div", (1, 2), 0.5), ("exp2", (3,), 8.0), ("log1p", (0,), 0.0),
    ("rsqrt", (4,), 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("fn", "args", "expected"), EDGES)
def test_edges_of_the_table(fn: str, args: tuple[Any, ...], expected: Any):
    (got,) = define(Elementwise(fn=fn), jnp.float32, *map(jnp.asarray, args))
    assert got == expected
    assert jnp.issubdtype(got.dtype, jnp.integer) == isinstance(expected, int)


_PYTHON: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "div": lambda x, y: x / y,
    "pow": lambda x, y: x**y, "neg": lambda x: -x, "eq": lambda x, y: x == y, "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y, "le": lambda x, y: x <= y, "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y,
    "min": min, "max": max, "abs": abs, "sign": lambda x: 1.0 if x >= 0 else -1.0, "round": round, "floor": math.floor,
    "sqrt": math.sqrt, "rsqrt": lambda x: 1 / math.sqrt(x), "exp": math.exp, "exp2": lambda x: 2**x, "log": math.log,
    "log1p": math.log1p, "tanh": math.tanh, "approximate_tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)), "erf": math.erf,
    "sin": math.sin, "cos": math.cos,
}  # fmt: skip


@pytest.mark.parametrize("fn", sorted(_PYTHON))
def test_primitives_mean_what_python_means(fn: str):
    rng = np.random.default_rng(7)
    with jax.enable_x64(True):
        args = rng.uniform(0.1, 2.5, (PRIMITIVES[fn].arity, 20))
        (got,) = define(Elementwise(fn=fn), jnp.float64, *map(jnp.asarray, args))
        np.testing.assert_allclose(got, [_PYTHON[fn](*map(float, x)) for x in args.T], rtol=1e-14)


def test_primitives_left_out_above_are_tested_elsewhere():
    kept = {"normal_quantile", "straight", "stop"}  # test_formula_nodes.py
    assert set(PRIMITIVES) - set(_PYTHON) == {"floordiv", "mod", "and", "or", "not", "where", *kept}
    a, b = jnp.array([True, True, False, False]), jnp.array([True, False, True, False])
    assert define(Elementwise(fn="and"), jnp.float32, a, b)[0].tolist() == [True, False, False, False]
    assert define(Elementwise(fn="or"), jnp.float32, a, b)[0].tolist() == [True, True, True, False]
    assert define(Elementwise(fn="not"), jnp.float32, a)[0].tolist() == [False, False, True, True]
    picked = define(Elementwise(fn="where"), jnp.float32, a, jnp.arange(4), jnp.full(4, 0.5))[0]
    assert picked.tolist() == [0.0, 1.0, 0.5, 0.5]


def index(fn: Expr, axes: dict[str, int], reduced: dict[str, int], *operands: jax.Array) -> jax.Array:
    op = Index(axes=tuple(axes.items()), reduced=tuple(reduced.items()), expr=fn)
    return define(op, jnp.float32, *operands)[0]


def var(name: str) -> Var:
    return Var(name, Kind.INT)


def test_index_equations_by_loops():
    x, w = draw(5, (2, 3), (3, 4))
    read_x, read_w = Read(0, (var("i"), var("c")), Kind.REAL), Read(1, (var("c"), var("o")), Kind.REAL)
    product = Reduce("sum", ("c",), apply("mul", read_x, read_w))
    np.testing.assert_allclose(index(product, {"i": 2, "o": 4}, {"c": 3}, x, w), x @ w, rtol=1e-5)
    # a body that does not vary along the reduced index counts as often as the index runs
    assert index(Reduce("sum", ("c",), var("i")), {"i": 3}, {"c": 4}).tolist() == [0, 4, 8]
    assert index(Reduce("mean", ("c",), var("i")), {"i": 3}, {"c": 4}).tolist() == [0.0, 1.0, 2.0]
    # booleans sum as integers; any and all
    even = apply("eq", apply("mod", var("c"), Const(2)), Const(0))
    assert index(Reduce("sum", ("c",), even), {"i": 2}, {"c": 5}).tolist() == [3, 3]
    assert index(Reduce("any", ("c",), even), {"i": 1}, {"c": 1}).tolist() == [True]
    assert index(Reduce("all", ("c",), even), {"i": 1}, {"c": 2}).tolist() == [False]
    # a causal shift: reads before the first element read the first
    shift = Read(0, (apply("sub", var("t"), Const(2)),), Kind.REAL)
    assert index(shift, {"t": 4}, {}, jnp.arange(4.0)).tolist() == [0.0, 0.0, 0.0, 1.0]


def test_rows_of_tables():
    table = jnp.arange(6.0).reshape(3, 2)
    (rows,) = define(Take(), jnp.float32, table, jnp.array([[2, 0]]))
    assert rows.tolist() == [[[4.0, 5.0], [0.0, 1.0]]]
    (rows,) = define(Take(), jnp.float32, table, jnp.array([3, -1, 1]))
    assert np.all(np.isnan(rows[:2])) and rows[2].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_rotation_keeps_norms_and_depends_on_distances_only(pairing: str):
    angle = apply("mul", Var("pos", Kind.INT), apply("pow", Const(100.0), apply("div", var("c"), Const(-2))))
    x, y = draw(6, (1, 5, 2, 6), (1, 5, 2, 6))
    with jax.enable_x64(True):
        x, y = x.astype(jnp.float64), y.astype(jnp.float64)

        def scores(offset: int) -> jax.Array:
            op = Rotate(angle=angle, dims=4, pairing=pairing, offset=offset)
            a, b = define(op, jnp.float64, x)[0], define(op, jnp.float64, y)[0]
            np.testing.assert_allclose(jnp.linalg.norm(a, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-12)
            np.testing.assert_array_equal(a[..., 4:], x[..., 4:])
            return jnp.einsum("bnhd,bmhd->bhnm", a, b)

        np.testing.assert_allclose(scores(0), scores(7), rtol=1e-10, atol=1e-12)
        at = jnp.arange(5, dtype=jnp.int32)[None] + 3
        op = Rotate(angle=angle, dims=4, pairing=pairing, offset=3)
        np.testing.assert_array_equal(define(op, jnp.float64, x)[0], define(op, jnp.float64, x, at)[0])


def test_rotation_by_hand():
    """One channel pair turned by a right angle: (a, b) -> (-b, a), in both pairings."""
    quarter = Const(math.pi / 2)
    x = jnp.arange(1.0, 5.0).reshape(1, 1, 1, 4)
    (half,) = define(Rotate(angle=quarter, dims=4, pairing="half"), jnp.float32, x)
    (turns,) = define(Rotate(angle=quarter, dims=4, pairing="interleaved"), jnp.float32, x)
    np.testing.assert_allclose(half.ravel(), [-3, -4, 1, 2], atol=1e-6)
    np.testing.assert_allclose(turns.ravel(), [-2, 1, -4, 3], atol=1e-6)


def test_feed_forward_is_its_products():
    x, up, a, gate, b, down, c = draw(8, (2, 3), (3, 5), (5,), (3, 5), (5,), (5, 2), (2,))
    u, g = Var("u", Kind.REAL), Var("g", Kind.REAL)
    swiglu = apply("mul", apply("mul", u, apply("sigmoid", u)), g)
    (got,) = define(FeedForward(activation=swiglu, gated=True, biased=True), jnp.float32, x, up, a, gate, b, down, c)
    hidden = jax.nn.silu(x @ up + a) * (x @ gate + b)
    np.testing.assert_allclose(got, hidden @ down + c, rtol=1e-5, atol=1e-6)
    (got,) = define(FeedForward(activation=apply("tanh", u), gated=False, biased=False), jnp.float32, x, up, down)
    np.testing.assert_allclose(got, jnp.tanh(x @ up) @ down, rtol=1e-5, atol=1e-6)
    (got,) = define(Linear(), jnp.float32, x, up, a)
    np.testing.assert_allclose(got, x @ up + a, rtol=1e-5, atol=1e-6)


def test_a_norm_is_the_sum_by_its_own_spread():
    x, y, scale, bias = (np.asarray(v, np.float64) for v in draw(10, (2, 3), (2, 3), (3,), (3,)))
    z = x + y
    full = ResidualNorm(centered=True, eps=0.1, residual=True, scaled=True, biased=True, keeps=True)
    out, total = define(full, jnp.float32, *map(jnp.asarray, (x, y, scale, bias)))
    wanted = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 0.1) * scale + bias
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, z, rtol=1e-6)
    (out,) = define(ResidualNorm(centered=False, eps=0.1), jnp.float32, jnp.asarray(x))
    np.testing.assert_allclose(out, x / np.sqrt((x * x).mean(-1, keepdims=True) + 0.1), rtol=1e-5)


def test_reductions_keep_the_axis():
    x = jnp.array([[1.0, 5.0, 3.0]])
    got = {fn: define(Reduction(fn=fn), jnp.float32, x)[0].tolist() for fn in ("sum", "mean", "max", "min")}
    assert got == {"sum": [[9.0]], "mean": [[3.0]], "max": [[5.0]], "min": [[1.0]]}


def test_a_program_is_computed_in_one_float_type_from_end_to_end():
    """Casts round nowhere: 1/3 as bf16 would be off by 1e-3."""
    program = parse("""
    program p(%x: f32[2]) {
      %three: f32[] = constant(value=3.0, dtype=f32)
      %y: f32[2] = div %x, %three
      %low: bf16[2] = cast(dtype=bf16) %y
      %back: f32[2] = cast(dtype=f32) %low
      return %back
    }""")
    with jax.enable_x64(True):
        (got,) = evaluate(program, {}, {"x": jnp.ones(2)}, jnp.float64)
        np.testing.assert_allclose(got, np.full(2, 1 / 3), rtol=1e-15)


def test_a_repeat_sees_its_turn_and_its_own_parameters():
    program = parse("""
    program p(%x: f32[2]) {
      %y: f32[2] = repeat(count=3, label=layer, carries=1) %x
      program layer(%i: int[], %c: f32[2]) {
        %w: f32[2] = param layer.w ones
        %f: f32[2] = mul %c, %w
        %g: f32[2] = add %f, %i
        return %g
      }
      return %y
    }""")
    w = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    (got,) = evaluate(program, {"layer.w": w}, {"x": jnp.ones(2)}, jnp.float32)
    x = np.ones(2)
    for i in range(3):
        x = x * np.asarray(w[i]) + i
    assert got.tolist() == x.tolist()


def test_softmax_of_steps_is_attention():
    """attention = mix(weigh(masked(score(scores)))), step by step through the separate operations."""
    q, k, v = draw(9, (2, 3, 4, 8), (2, 5, 2, 8), (2, 5, 2, 3))
    cap = apply("mul", Const(2.0), apply("tanh", apply("div", S, Const(2.0))))
    square = Apply("pow", (P, Const(2)))
    whole = define(Attention(scale=0.5, score=cap, mask=CAUSAL, weigh=square), jnp.float32, q, k, v)
    (s,) = define(ops.Scores(scale=0.5), jnp.float32, q, k)
    (s,) = define(ops.Score(formula=cap), jnp.float32, s)
    (s,) = define(ops.Masked(formula=CAUSAL), jnp.float32, s)
    w, lse = define(ops.Weigh(formula=square), jnp.float32, s)
    (out,) = define(ops.Mix(), jnp.float32, w, v)
    np.testing.assert_array_equal(whole[0], out)
    np.testing.assert_array_equal(whole[1], lse)
