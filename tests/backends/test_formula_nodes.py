"""Fields with axes, reductions and row statistics in formulas of attention: the definition and the jnp form against the
referee, one pair of tokens at a time; gradients against each other; and the named formulas that need them."""

import math
import re
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfc.backends.kernel import DTYPES, Target
from tfc.backends.reference.program import define
from tfc.backends.table import KERNELS, choose, named
from tfc.backends.tilewise import beyond
from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Read, Reduce, Token, Var, apply, rewrite, walk
from tfc.formula.ranges import ranges
from tfc.formula.scalar import Env, evaluate, pair
from tfc.ir.ops import ROW, YES, Attention, Elementwise, Masked, Op, P, Rotate, S, Score, Weigh, reads_row
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, IRError, TensorType
from tfc.targets import resolve

CPU = Target(name="cpu", platform="cpu")
B, I, R = Kind.BOOL, Kind.INT, Kind.REAL  # noqa: E741  # the kinds' own initials
Q, K, H = Token("q"), Token("k"), Var("h", I)
T, D = Var("t", I), Var("d", I)
CAUSAL = apply("le", K, Q)
COUNT, RANK, MEAN, DEVIATION, MOST, LSE = (
    Var(f"row.{name}", ROW[f"row.{name}"]) for name in ("count", "rank", "mean", "deviation", "max", "lse")
)
BATCH, N, M, HEADS = 2, 3, 4, 2


def equation(op: Op, *operands: Any) -> Eqn:
    names = {jnp.dtype(j): d for d, j in DTYPES.items()}
    types = [TensorType(x.shape, names[jnp.asarray(x).dtype]) for x in operands]
    outs = tuple(Value(f"o{i}", t) for i, t in enumerate(op.infer(*types)))
    return Eqn(outs, op, tuple(Value(f"a{i}", t) for i, t in enumerate(types)))


def both(op: Op, *operands: Any) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """(the definition, the jnp form), float64 where operands are."""
    arrays = [jnp.asarray(x) for x in operands]
    real = jnp.float64 if any(x.dtype == jnp.float64 for x in arrays) else jnp.float32
    kernel = named(type(op), "xla")
    assert kernel is not None and kernel.refuse(equation(op, *arrays), CPU) is None
    return define(op, real, *arrays), kernel.build(equation(op, *arrays), CPU)(*arrays)


def slopes(op: Op, cotangent: Any, *operands: Any) -> list[list[jax.Array]]:
    """The gradients of the first result by every real operand, of the definition and of the jnp form."""
    arrays = [jnp.asarray(x) for x in operands]
    places = [i for i, x in enumerate(arrays) if jnp.issubdtype(x.dtype, jnp.floating)]
    kernel = named(type(op), "xla")
    assert kernel is not None
    form = kernel.build(equation(op, *arrays), CPU)
    out = []
    for f in (lambda *x: define(op, arrays[0].dtype, *x), form):

        def total(*reals: jax.Array, f: Callable[..., Any] = f) -> jax.Array:
            full = list(arrays)
            for place, x in zip(places, reals, strict=True):
                full[place] = x
            first = f(*full)[0]
            return jnp.sum(jnp.where(jnp.isneginf(first), 0, first) * cotangent)

        out.append(list(jax.grad(total, argnums=tuple(range(len(places))))(*(arrays[i] for i in places))))
    return out


# ---- the referee, row by row


def statistics(s: np.ndarray) -> list[dict[str, Any]]:
    """Of one row, for each key: brute force over the keys that are not -inf."""
    seen = [j for j in range(len(s)) if s[j] != -math.inf]
    count = len(seen)
    mean = sum(s[j] for j in seen) / count if count else 0.0
    spread = math.sqrt(sum((s[j] - mean) ** 2 for j in seen) / (count - 1)) if count > 1 else 0.0
    shared = {
        "row.count": count,
        "row.mean": mean,
        "row.deviation": spread,
        "row.max": max((s[j] for j in seen), default=0.0),
        "row.lse": math.log(sum(math.exp(s[j]) for j in seen)) if count else 0.0,
    }
    ranks = [sum(s[i] > s[j] or (s[i] == s[j] and i < j) for i in seen) if j in seen else 0 for j in range(len(s))]
    return [{**shared, "row.rank": rank} for rank in ranks]


def referee(formula: Expr, s: np.ndarray, captured: list[Any], p: np.ndarray | None = None) -> np.ndarray:
    """The formula for every pair that is seen; -inf elsewhere."""
    sizes = ranges(formula, [np.shape(x) for x in captured])
    lists = {slot: np.asarray(x).tolist() for slot, x in enumerate(captured)}
    out = np.full(s.shape, -math.inf)
    for b, h, i in np.ndindex(*s.shape[:3]):
        row = statistics(s[b, h, i])
        for j in range(s.shape[3]):
            if s[b, h, i, j] == -math.inf:
                continue
            env = pair(i, j, n=s.shape[2], m=s.shape[3], b=b, loads=lists, reads=lists)
            names = {"s": float(s[b, h, i, j]), "h": h, **row[j], **({} if p is None else {"p": float(p[b, h, i, j])})}
            out[b, h, i, j] = evaluate(formula, Env(names, env.tokens, env.loads, env.reads, sizes))
    return out


def operands(seed: int) -> list[np.ndarray]:
    """What the drawn formulas' slots hold."""
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((BATCH, N, HEADS, 3)),
        rng.standard_normal((M, 3)),
        rng.integers(-1, 4, (BATCH, N, 2)).astype(np.int32),
        rng.random((BATCH, M, 3)) < 0.5,
        rng.standard_normal((HEADS, 3)),
        rng.standard_normal((BATCH, N)),
    ]


def drawn_scores(seed: int) -> np.ndarray:
    """Scores, some of them equal, some masked, a whole row among them."""
    rng = np.random.default_rng(seed + 1)
    s = np.round(rng.standard_normal((BATCH, HEADS, N, M)), 1)
    s[rng.random(s.shape) < 0.25] = -math.inf
    s[0, 1, 0] = -math.inf
    return s


def _apply(fn: str, *args: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.tuples(*args).map(lambda found: Apply(fn, found))


def integers(statistics: bool) -> st.SearchStrategy[Expr]:
    leaves = st.sampled_from((Q, K, H, apply("sub", Q, K), Const(1), *((COUNT, RANK) if statistics else ())))
    return st.recursive(
        leaves,
        lambda of: st.one_of(
            of.map(lambda i: Load(2, "q", I, (i,))),
            _apply("add", of, of),
            _apply("floordiv", of, st.just(Const(2))),
            _apply("stop", of),
            st.just(Reduce("max", ("t",), Load(2, "q", I, (T,)))),
        ),
        max_leaves=3,
    )


def vectors() -> st.SearchStrategy[Expr]:
    """What is reduced over d, of size 3."""
    parts = (Load(0, "q", R, (H, D)), Load(1, "k", R, (D,)), Read(4, (H, D), R), Const(0.5))
    part = st.sampled_from(parts)
    product = _apply("mul", part, part)
    apart = _apply("sub", part, part).map(lambda e: apply("abs", e))
    chosen = st.just(apply("where", Load(3, "k", B, (D,)), Load(0, "q", R, (H, D)), Const(0.0)))
    anchored = st.one_of(product, apart, chosen).map(lambda e: apply("mul", Load(1, "k", R, (D,)), e))
    return st.builds(lambda fn, e: Reduce(fn, ("d",), e), st.sampled_from(("sum", "mean", "max", "min")), anchored)


def formulas(role: str) -> st.SearchStrategy[Expr]:
    """Real formulas of a role, with every new node."""
    whole = integers(True)
    known = [S, MEAN, DEVIATION, MOST, *([P, LSE] if role == "weigh" else [])]
    leaves = st.one_of(
        st.sampled_from(known),
        st.sampled_from((Load(5, "q", R), Const(0.25))),
        whole.map(lambda i: Load(0, "q", R, (H, i))),
        whole.map(lambda i: Load(1, "k", R, (i,))),
        vectors(),
    )

    def larger(of: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        inside = of.map(lambda e: apply("add", Const(0.01), apply("mul", Const(0.98), apply("sigmoid", e))))
        flagged = st.sampled_from(
            (Reduce("any", ("t",), Load(3, "k", B, (T,))), Reduce("all", ("t",), Load(3, "k", B, (T,))), CAUSAL)
        )
        compared = st.one_of(flagged, _apply("lt", whole, whole), st.just(apply("ge", S, MEAN)))
        return st.one_of(
            st.sampled_from(("add", "sub", "mul", "max", "straight")).flatmap(lambda fn: _apply(fn, of, of)),
            st.sampled_from(("neg", "stop", "tanh")).flatmap(lambda fn: _apply(fn, of)),
            inside.map(lambda e: apply("normal_quantile", e)),
            _apply("where", compared, of, of),
        )

    return st.recursive(leaves, larger, max_leaves=5).map(lambda e: apart(apply("add", e, Const(0.0))))


def apart(expr: Expr) -> Expr:
    """Each reduction with an index of its own."""
    count = 0

    def rename(node: Expr) -> Expr | None:
        nonlocal count
        if not isinstance(node, Reduce):
            return None
        count += 1
        (name,) = node.indices
        return Reduce(
            node.fn, (f"i{count}",), rewrite(node.body, lambda n: Var(f"i{count}", I) if n == Var(name, I) else None)
        )

    return rewrite(expr, rename)


@settings(max_examples=settings().max_examples // 3)  # a compilation for most of their operations
@given(formula=formulas("score"), seed=st.integers(0, 99))
def test_score_formulas(formula: Expr, seed: int):
    with jax.enable_x64(True):
        s, captured = drawn_scores(seed), operands(seed)
        want = referee(formula, s, captured)
        for (got,) in both(Score(formula=formula), s, *captured):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9, err_msg=str(formula))


@settings(max_examples=settings().max_examples // 3)  # a compilation for most of their operations
@given(formula=formulas("weigh"), seed=st.integers(0, 99))
def test_weigh_formulas(formula: Expr, seed: int):
    with jax.enable_x64(True):
        s, captured = drawn_scores(seed), operands(seed)
        p = np.exp(s) / np.maximum(np.exp(s).sum(-1, keepdims=True), 1e-300)
        want = referee(formula, s, captured, p)
        want[s == -math.inf] = 0
        for got, lse in both(Weigh(formula=formula), s, *captured):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9, err_msg=str(formula))
            np.testing.assert_allclose(np.exp(lse), np.exp(s).sum(-1), rtol=1e-12)


@settings(max_examples=settings().max_examples // 6)
@given(formula=formulas("weigh"), seed=st.integers(0, 99))
def test_gradients_agree_and_are_finite(formula: Expr, seed: int):
    """Also in a row that sees no key."""
    with jax.enable_x64(True):
        s, captured = drawn_scores(seed), operands(seed)
        cotangent = np.random.default_rng(seed).standard_normal(s.shape)
        ours, theirs = slopes(Weigh(formula=formula), cotangent, s, *captured)
        for x, y in zip(ours, theirs, strict=True):
            assert np.isfinite(x).all()
            np.testing.assert_allclose(y, x, rtol=1e-8, atol=1e-8, err_msg=str(formula))


def test_the_property_is_not_vacuous():
    """Every node that is new occurs among the drawn formulas."""
    found: set[Any] = set()

    @settings(max_examples=200)
    @given(formula=formulas("weigh"))
    def collect(formula: Expr) -> None:
        for node in walk(formula):
            match node:
                case Load(slot, _, _, (_, *_)):
                    found.add(slot)
                case Reduce(fn, _, _):
                    found.add(fn)
                case Var(name, _):
                    found.add(name)
                case Apply(fn, _):
                    found.add(fn)

    collect()
    assert found >= {0, 1, 2, 3, "sum", "mean", "max", "min", "any", "all", *ROW, "straight", "stop", "normal_quantile"}


# ---- the three primitives, of tensors too


def test_values_are_kept_to_the_bit_and_gradients_replaced():
    x, y = (jnp.asarray(np.random.default_rng(i).standard_normal(50), jnp.float32) for i in (0, 1))
    for got in both(Elementwise(fn="straight"), x, y):
        assert (got[0] == x).all()
    for got in both(Elementwise(fn="stop"), x):
        assert (got[0] == x).all()
    c = np.arange(50, dtype=np.float32)
    for of_x, of_y in slopes(Elementwise(fn="straight"), c, x, y):
        assert not of_x.any() and (of_y == c).all()
    for (of_x,) in slopes(Elementwise(fn="stop"), c, x):
        assert not of_x.any()


def test_straight_broadcasts_and_takes_integers():
    x, y = jnp.arange(3, dtype=jnp.int32), jnp.ones((2, 1), jnp.int32)
    for (got,) in both(Elementwise(fn="straight"), x, y):
        assert got.dtype == jnp.int32 and got.tolist() == [[0, 1, 2]] * 2
    real = jnp.ones((2, 1), jnp.float32)
    for (got,) in both(Elementwise(fn="straight"), x, real):
        assert got.dtype == jnp.float32 and got.tolist() == [[0, 1, 2]] * 2
    for of_real in slopes(Elementwise(fn="straight"), np.ones((2, 3), np.float32), real, jnp.ones(3, jnp.float32)):
        assert of_real[0].tolist() == [[0], [0]] and of_real[1].tolist() == [2, 2, 2]


def test_normal_quantile_of_tensors(x64: None):
    y = np.asarray([1e-9, 0.01, 0.3, 0.5, 0.7, 0.999])
    want = [NormalDist().inv_cdf(v) for v in y]
    for (got,) in both(Elementwise(fn="normal_quantile"), y):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    for (slope,) in slopes(Elementwise(fn="normal_quantile"), np.ones(6), y):
        np.testing.assert_allclose(slope, [1 / NormalDist().pdf(v) for v in want], rtol=1e-7)
    ends = np.asarray([0.0, 1.0, -1.0, 2.0, math.nan])
    for (got,) in both(Elementwise(fn="normal_quantile"), ends):
        assert got[0] == -math.inf and got[1] == math.inf and np.isnan(got[2:]).all()


# ---- attention


def attended(
    op: Attention, captured: tuple[Any, ...], seed: int = 0, shape: tuple[int, ...] = (2, 5, 7, 4)
) -> list[Any]:
    """q, k, v drawn, and (out, lse) of the definition and of the jnp form, which agree."""
    b, n, m, h = shape
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((b, t, g, 8)) for t, g in ((n, h), (m, h // 2), (m, h // 2)))
    (ours, lse), (theirs, lse2) = both(op, q, k, v, *captured)
    np.testing.assert_allclose(theirs, ours, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(lse2, lse, rtol=1e-9, atol=1e-9)
    cotangent = rng.standard_normal(ours.shape)
    for x, y in zip(*slopes(op, cotangent, q, k, v, *captured), strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(y, x, rtol=1e-7, atol=1e-8)
    return [q, k, v, ours, lse]


def by_hand(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    weigh_row: Callable[..., list[float]],
    causal: bool = True,
) -> np.ndarray:
    """Attention as a loop: weigh_row(b, h, i, s) gives one row's weights, s its scaled products, -inf where unseen."""
    n, m, h, g = q.shape[1], k.shape[1], q.shape[2], k.shape[2]
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b, head, i in np.ndindex(q.shape[0], h, n):
        near = head // (h // g)
        s = [scale * float(q[b, i, head] @ k[b, j, near]) for j in range(m)]
        s = [x if not causal or j <= i + m - n else -math.inf for j, x in enumerate(s)]
        w = weigh_row(b, head, i, s)
        out[b, i, head] = sum(w[j] * v[b, j, near] for j in range(m))
    return out


def softmax(s: list[float]) -> list[float]:
    e = [math.exp(x) for x in s]
    return [x / sum(e) if sum(e) else 0.0 for x in e]


def hard(n: int) -> Expr:
    return apply("where", apply("lt", RANK, Const(n)), S, Const(-math.inf))


def survivors(n: int) -> Expr:
    most = apply("sub", Const(1), apply("div", Const(n), COUNT))
    limit = apply("add", MEAN, apply("mul", DEVIATION, apply("normal_quantile", most)))
    return apply("where", apply("or", apply("le", COUNT, Const(n)), apply("ge", S, limit)), S, Const(-math.inf))


def test_only_the_best_keys_of_those_that_are_seen(x64: None):
    """Ranks are counted after the mask, else the keys of the future would push out those of the past."""
    q, k, v, out, _ = attended(Attention(scale=0.3, score=hard(2), mask=CAUSAL), ())

    def row(b: int, h: int, i: int, s: list[float]) -> list[float]:
        best = sorted(s, reverse=True)[:2]
        return softmax([x if x in best else -math.inf for x in s])

    np.testing.assert_allclose(out, by_hand(q, k, v, 0.3, row), rtol=1e-9, atol=1e-12)


def test_survivors_of_a_threshold(x64: None):
    """Statistical top-k: the mean and deviation of what is seen decide (Spark, arXiv:2506.06644)."""
    q, k, v, out, _ = attended(Attention(scale=0.3, score=survivors(2), mask=CAUSAL), ())

    def row(b: int, h: int, i: int, s: list[float]) -> list[float]:
        seen = [x for x in s if x > -math.inf]
        if len(seen) <= 2:
            return softmax(s)
        limit = np.mean(seen) + np.std(seen, ddof=1) * NormalDist().inv_cdf(1 - 2 / len(seen))
        return softmax([x if x >= limit else -math.inf for x in s])

    np.testing.assert_allclose(out, by_hand(q, k, v, 0.3, row), rtol=1e-9, atol=1e-12)


def test_a_sink_takes_its_share(x64: None):
    """p * sigmoid(lse - logit[h]): softmax over the row and one key more, of that logit and no value."""
    logit = [0.5, -1.0, 2.0, 0.0]
    weigh = apply("mul", P, apply("sigmoid", apply("sub", LSE, Read(0, (H,), R))))
    q, k, v, out, _ = attended(Attention(scale=0.3, mask=CAUSAL, weigh=weigh), (np.asarray(logit),))
    want = by_hand(q, k, v, 0.3, lambda b, h, i, s: softmax([*s, logit[h]])[:-1])
    np.testing.assert_allclose(out, want, rtol=1e-9, atol=1e-12)


def test_a_row_that_sees_nothing_has_zeros_and_no_gradient(x64: None):
    """Whatever its statistics are used for: the first two of five queries see none of three keys."""
    weigh = apply(
        "mul", apply("exp", apply("neg", LSE)), apply("add", P, apply("div", MEAN, apply("add", DEVIATION, Const(1.0))))
    )
    *_, out, lse = attended(Attention(scale=0.3, score=survivors(1), mask=CAUSAL, weigh=weigh), (), shape=(1, 5, 3, 2))
    assert not out[:, :2].any() and np.isneginf(lse[:, :, :2]).all()


def test_relative_vectors_of_the_query(x64: None):
    """s + q.lag[h, q - k] (GTrXL, arXiv:1910.06764)."""
    lag = np.random.default_rng(3).standard_normal((2, 5, 4, 6))
    score = apply("add", S, Load(0, "q", R, (H, apply("sub", Q, K))))
    q, k, v, out, _ = attended(Attention(scale=0.3, score=score, mask=CAUSAL), (lag,))
    away = 2  # M - N
    want = by_hand(
        q, k, v, 0.3,
        lambda b, h, i, s: softmax([x + lag[b, i, h, min(max(i + away - j, 0), 5)] for j, x in enumerate(s)]),
    )  # fmt: skip
    np.testing.assert_allclose(out, want, rtol=1e-9, atol=1e-12)


def test_a_second_product_weighs(x64: None):
    """p * softplus(dot(q.rest, k.rest) / sqrt(128)), the keys' vectors shared by two heads each (Spark)."""
    rng = np.random.default_rng(4)
    a, c = rng.standard_normal((2, 5, 4, 3)), rng.standard_normal((2, 7, 2, 3))
    index = (apply("floordiv", H, Const(2)), D)
    product = Reduce("sum", ("d",), apply("mul", Load(0, "q", R, (H, D)), Load(1, "k", R, index)))
    bent = apply("log1p", apply("exp", apply("div", product, Const(math.sqrt(128)))))
    q, k, v, out, _ = attended(Attention(scale=0.3, mask=CAUSAL, weigh=apply("mul", P, bent)), (a, c))

    def row(b: int, h: int, i: int, s: list[float]) -> list[float]:
        softplus = [math.log1p(math.exp(float(a[b, i, h] @ c[b, j, h // 2]) / math.sqrt(128))) for j in range(7)]
        return [x * y for x, y in zip(softmax(s), softplus, strict=True)]

    np.testing.assert_allclose(out, by_hand(q, k, v, 0.3, row), rtol=1e-9, atol=1e-12)


def test_keys_that_a_query_chose(x64: None):
    """A mask that reads a boolean of the query by the key's block."""
    kept = np.random.default_rng(5).random((2, 5, 4)) < 0.5
    mask = apply("and", CAUSAL, Load(0, "q", B, (apply("floordiv", K, Const(2)),)))
    q, k, v, out, _ = attended(Attention(scale=0.3, mask=mask), (kept,))
    want = by_hand(
        q, k, v, 0.3, lambda b, h, i, s: softmax([x if kept[b, i, j // 2] else -math.inf for j, x in enumerate(s)])
    )
    np.testing.assert_allclose(out, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_steps_in_turn_are_attention(implementation: str, x64: None):
    """Masked first, then the score that reads its row, then the weights: what the language lowers to."""
    rng = np.random.default_rng(6)
    q, k, v = (rng.standard_normal((2, 4, 2, 8)) for _ in range(3))
    s = 0.3 * np.einsum("bnhd,bmhd->bhnm", q, k)

    def run(op: Op, *x: Any) -> tuple[jax.Array, ...]:
        return both(op, *x)[implementation == "xla"]

    (masked,) = run(Masked(formula=CAUSAL), s)
    (scored,) = run(Score(formula=hard(2)), masked)
    assert np.isneginf(scored[:, :, 0, 1:]).all() and (jnp.sum(~jnp.isneginf(scored), -1) <= 2).all()
    w, lse = run(Weigh(), scored)
    out, lse2 = run(Attention(scale=0.3, score=hard(2), mask=CAUSAL), q, k, v)
    np.testing.assert_allclose(np.einsum("bhnm,bmhd->bnhd", w, v), out, rtol=1e-9)
    np.testing.assert_allclose(lse, lse2, rtol=1e-12)


# ---- rotation


def test_angles_of_places_and_of_tables(x64: None):
    """Half of the pairs turn by the row, half by the column of a token; or by a table of frequencies."""
    rng = np.random.default_rng(7)
    x, y, f = rng.standard_normal((2, 5, 3, 8)), rng.integers(0, 9, (2, 5)).astype(np.int32), rng.standard_normal(4)
    pos, c = Var("pos", I), Var("c", I)
    place = apply("where", apply("lt", c, Const(2)), Load(0, "q", I), pos)
    op = Rotate(angle=apply("mul", place, Read(1, (c,), R)), dims=8, offset=3)
    plain = Rotate(angle=apply("mul", Load(0, "q", I), Read(1, (c,), R)), dims=8)
    for got in both(op, x, y, f):
        angle = np.where(np.arange(4) < 2, y[..., None], np.arange(5)[:, None] + 3) * f
        a, b = x[..., :4], x[..., 4:]
        cos, sin = np.cos(angle)[:, :, None], np.sin(angle)[:, :, None]
        np.testing.assert_allclose(got[0], np.concatenate([a * cos - b * sin, b * cos + a * sin], -1), rtol=1e-9)
    for one, two in zip(both(plain, x, y, f), both(plain, x, y[0], f), strict=True):
        np.testing.assert_allclose(one[0][0], two[0][0], rtol=1e-12)  # a field without a batch axis
    for ours, theirs in zip(*slopes(op, rng.standard_normal(x.shape), x, y, f), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-9)


# ---- what does not fit, and who refuses

TOKENS = TensorType((2, 3, 4, 8), DType.BF16)
WIDE = TensorType((2, 3, 4, 9), DType.F32)


def op(score: Expr = S, mask: Expr = YES, weigh: Expr = P) -> Attention:
    return Attention(scale=1.0, score=apply("add", score, Const(0.0)), mask=mask, weigh=weigh)


FAULTS: Mapping[str, tuple[Attention, tuple[TensorType, ...], str]] = {
    "axes": (op(Load(0, "q", R, (H,))), (WIDE,), r"reads f32\[2, 3, 4, 9\], the tokens are"),
    "tokens": (op(Load(0, "q", R, (H, H))), (TensorType((2, 5, 4, 9), DType.F32),), "the tokens are"),
    "kind": (op(Load(0, "q", I, (H, H))), (WIDE,), "is integer, its operand"),
    "index": (op(Load(0, "q", R, (H, S))), (WIDE,), "an index that is no integer"),
    "range": (op(Reduce("sum", ("d",), Load(0, "q", R, (H, apply("neg", D))))), (WIDE,), "nothing tells how far"),
    "variable": (op(Load(0, "q", R, (H, D))), (WIDE,), "`d` means nothing here"),
    "row": (op(mask=apply("lt", COUNT, Const(2))), (), r"`row.count` means nothing here"),
    "lse": (op(LSE), (), r"`row.lse` means nothing here"),
    "name": (op(Reduce("sum", ("h",), Load(0, "q", R, (H, Const(0))))), (WIDE,), "`h` is no name for an index"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_refused(name: str):
    attention, captured, message = FAULTS[name]
    with pytest.raises(IRError, match=message):
        attention.infer(TOKENS, TOKENS, TOKENS, *captured)


def test_rotation_takes_what_its_angle_reads():
    pos = TensorType((2, 3), DType.I32)
    angle = apply("mul", Load(0, "q", I), Const(0.5))
    assert Rotate(angle=angle, dims=4).infer(TOKENS, pos) == (TOKENS,)
    for wrong, operands in (
        (angle, ()),
        (angle, (pos, pos)),
        (apply("mul", Load(0, "k", I), Const(0.5)), (pos,)),
        (apply("mul", apply("add", Load(0, "q", I), Q), Const(0.5)), (pos,)),
        (apply("mul", apply("add", Load(0, "q", I), H), Const(0.5)), (pos,)),
        (apply("mul", Var("pos", I), Const(0.5)), (pos, pos)),
    ):
        with pytest.raises(IRError, match="rotate"):
            Rotate(angle=wrong, dims=4).infer(TOKENS, *operands)


BEYOND: Mapping[str, tuple[Attention, tuple[TensorType, ...], str]] = {
    "element": (op(apply("add", S, Load(0, "q", R, (H, H)))), (WIDE,), r"`\$0.q\[h, h\]` is one of several"),
    "mask": (op(mask=Load(0, "q", B, (H,))), (TensorType((2, 3, 4), DType.BOOL),), "is one of several"),
    "sum": (op(Reduce("sum", ("d",), Read(0, (D,), R))), (TensorType((3,), DType.F32),), "neither"),
    "nothing but a sum": (op(Reduce("sum", ("d",), Read(0, (H, D), R))), (TensorType((4, 3), DType.F32),), "neither"),
    "statistic": (op(hard(2)), (), "`row.rank` is a statistic of the whole row"),
    "weight": (op(weigh=apply("mul", P, Var("row.mean", R))), (), "`row.mean` is a statistic of the whole row"),
    "straight": (op(apply("straight", S, S)), (), "`straight` has no form"),
    "stop": (op(apply("stop", S)), (), "`stop` has no form"),
    "quantile": (op(apply("normal_quantile", apply("sigmoid", S))), (), "`normal_quantile` has no form"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_kernels_on_tiles_refuse_in_words(name: str):
    """And the jnp form serves."""
    attention, captured, message = BEYOND[name]
    q = TensorType((2, 64, 4, 64), DType.BF16)
    types = [TensorType((2, 64, *t.shape[2:]), t.dtype) if t.shape[:2] == (2, 3) else t for t in captured]
    outs = tuple(Value(f"o{i}", t) for i, t in enumerate(attention.infer(q, q, q, *types)))
    eqn = Eqn(outs, attention, tuple(Value(f"a{i}", t) for i, t in enumerate((q, q, q, *types))))
    target = resolve("h200")
    choice = choose(eqn, target)
    assert choice.kernel.name == "xla"
    reasons = dict(choice.refusals)
    assert set(reasons) == {"pallas_gpu", "cudnn"}
    assert re.search(message, reasons["pallas_gpu"]), reasons


def test_what_a_tile_gives_is_not_refused():
    assert not list(beyond(S, CAUSAL, apply("mul", P, Load(0, "q", R))))
    ((_, found),) = beyond(Reduce("sum", ("d",), Read(0, (D,), R)))
    assert "sum[d]" in found.text
    assert [k.name for k in KERNELS[Attention]] == ["pallas_gpu", "cudnn", "xla", "reference"]
    assert reads_row(hard(2)) and not reads_row(CAUSAL)
