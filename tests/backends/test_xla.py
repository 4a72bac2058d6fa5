"""The jnp forms against the definitions, values and gradients; what cuDNN is asked for, and why it refuses."""

from dataclasses import replace
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.reference.program import define
from tfc.backends.table import KERNELS, named
from tfc.backends.xla import cudnn
from tfc.formula.expr import PRIMITIVES, Apply, Const, Expr, Kind, Load, Read, Reduce, Token, Var, apply
from tfc.ir import ops
from tfc.ir.ops import (
    Attention,
    Elementwise,
    FeedForward,
    Index,
    Linear,
    Op,
    P,
    Reduction,
    ResidualNorm,
    Rotate,
    S,
    Take,
)
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType
from tfc.targets import resolve

CPU = Target(name="cpu", platform="cpu")
Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)
CAUSAL = apply("le", K, Q)
WINDOW = apply("and", CAUSAL, apply("lt", apply("sub", Q, K), Const(2)))
U, G = Var("u", Kind.REAL), Var("g", Kind.REAL)
CAP = apply("mul", Const(2.0), apply("tanh", apply("div", S, Const(2.0))))
TILT = apply("add", S, apply("mul", Read(0, (H,), Kind.REAL), apply("abs", apply("sub", Q, K))))
SAME = apply("eq", Load(0, "q", Kind.INT), Load(0, "k", Kind.INT))
PADDED = Load(0, "k", Kind.BOOL)
BUCKETS = apply("add", S, Read(0, (apply("abs", apply("sub", Q, K)), H), Kind.REAL))
SILU = apply("mul", S, apply("sigmoid", S))


def equation(op: Op, *types: TensorType) -> Eqn:
    outs = tuple(Value(f"o{i}", t) for i, t in enumerate(op.infer(*types)))
    return Eqn(outs, op, tuple(Value(f"a{i}", t) for i, t in enumerate(types)))


def typed(x: jax.Array) -> TensorType:
    (dtype,) = (d for d, j in DTYPES.items() if j == x.dtype)
    return TensorType(x.shape, dtype)


def kernel(op: Op) -> Kernel:
    found = named(type(op), "xla")
    assert found is not None
    return found


def check(op: Op, *operands: Any, tolerance: float = 3e-6) -> tuple[jax.Array, ...]:
    """The xla form against the definition, and their gradients for a drawn cotangent of the real results."""
    arrays = [jnp.asarray(x) for x in operands]
    eqn = equation(op, *map(typed, arrays))
    assert kernel(op).refuse(eqn, CPU) is None
    form = kernel(op).build(eqn, CPU)
    real = [i for i, x in enumerate(arrays) if jnp.issubdtype(x.dtype, jnp.floating)]
    rng = np.random.default_rng(0)
    pulled = [jnp.asarray(rng.standard_normal(v.type.ints), jnp.float32) for v in eqn.outs if v.type.dtype.floating]

    @jax.jit
    def run(*arrays: jax.Array) -> Any:
        both = []
        for f in (form, lambda *x: define(op, jnp.float32, *x)):

            def floats(*x: jax.Array, f: Any = f) -> tuple[Any, Any]:
                full = list(arrays)
                for i, y in zip(real, x, strict=True):
                    full[i] = y
                outs = f(*full)
                return tuple(o for o in outs if jnp.issubdtype(o.dtype, jnp.floating)), outs

            _, pull, outs = jax.vjp(floats, *(arrays[i] for i in real), has_aux=True)
            grads = pull(tuple(c.astype(o.dtype) for c, o in zip(pulled, _, strict=True)))
            both.append((outs, grads))
        return both

    (got, grads), (want, slopes) = run(*arrays)
    for x, y, v in zip(got, want, eqn.outs, strict=True):
        assert x.dtype == DTYPES[v.type.dtype] and x.shape == v.type.shape
        np.testing.assert_allclose(np.float64(x), np.float64(y), rtol=tolerance, atol=tolerance)
    for x, y in zip(grads, slopes, strict=True):
        np.testing.assert_allclose(np.float64(x), np.float64(y), rtol=4 * tolerance, atol=4 * tolerance)
    return tuple(got)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def qkv(b: int, n: int, m: int, h: int, g: int, d: int = 4, dv: int = 3) -> list[jax.Array]:
    return draw(n + m, (b, n, h, d), (b, m, g, d), (b, m, g, dv))


ATTENTION: dict[str, tuple[Attention, tuple[int, ...], list[Any]]] = {
    # formula, (b, n, m, h, g), captured
    "plain": (Attention(scale=0.5), (2, 3, 5, 4, 2), []),
    "causal": (Attention(scale=0.5, mask=CAUSAL), (1, 5, 3, 2, 1), []),  # rows 0 and 1 see nothing
    "window": (Attention(scale=0.5, mask=WINDOW), (2, 4, 6, 2, 2), []),
    "softcap": (Attention(scale=2.0, score=CAP, mask=CAUSAL), (1, 4, 4, 2, 1), []),
    "tilt": (Attention(scale=0.5, score=TILT), (1, 3, 4, 2, 1), [np.array([0.5, -0.25], np.float32)]),
    "documents": (Attention(scale=0.5, mask=SAME), (2, 4, 4, 2, 1), [np.array([[0, 0, 1, 1], [2, 2, 2, 3]], np.int32)]),
    "switched off": (Attention(scale=0.5, mask=Read(0, (), Kind.BOOL)), (2, 3, 4, 2, 1), [np.array(False)]),
    "padded": (Attention(scale=0.5, mask=PADDED), (2, 3, 4, 2, 1), [np.array([[1, 1, 1, 0], [0] * 4], bool)]),
    "buckets": (Attention(scale=0.5, score=BUCKETS), (2, 3, 3, 2, 2), [np.ones((3, 2), np.float32)]),
    "own field": (
        Attention(scale=0.5, score=apply("add", S, Load(0, "k", Kind.REAL))),
        (2, 3, 4, 2, 1),
        [np.linspace(-1, 1, 4).astype(np.float32)],
    ),
    "weighed": (Attention(scale=0.5, mask=CAUSAL, weigh=SILU), (1, 4, 4, 2, 1), []),
    "no keys": (Attention(scale=0.5), (1, 3, 0, 2, 1), []),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str):
    op, sizes, captured = ATTENTION[name]
    out, lse = check(op, *qkv(*sizes), *captured)
    assert not np.any(np.isnan(out)) and not np.any(np.isnan(lse))


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_has_the_same_values_for_an_accelerator(name: str):
    """There exponentials take comparisons, which XLA for a GPU needs."""
    op, sizes, captured = ATTENTION[name]
    operands = (*qkv(*sizes), *map(jnp.asarray, captured))
    eqn = equation(op, *map(typed, operands))
    forms = [kernel(op).build(eqn, target) for target in (CPU, Target(name="h200", platform="gpu", capability=9.0))]
    one, other = (jax.vjp(lambda *x, form=form: form(*x, *operands[3:]), *operands[:3]) for form in forms)
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    along = jax.tree.map(jnp.cos, (one[0][0], jnp.nan_to_num(one[0][1], neginf=0.0)))
    for a, b in zip(one[1](along), other[1](along), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_attention_in_bf16_is_off_by_no_more_than_its_roundings():
    q, k, v = (x.astype(jnp.bfloat16) for x in qkv(2, 3, 5, 4, 2))
    check(Attention(scale=0.5, mask=CAUSAL), q, k, v, tolerance=2**-7)


def test_what_lies_beyond_a_length_reaches_nothing():
    q, k, v = qkv(1, 3, 4, 2, 1)
    op = Attention(scale=0.5, mask=PADDED)
    eqn = equation(op, *map(typed, (q, k, v)), TensorType((1, 4), DType.BOOL))
    form, real = kernel(op).build(eqn, CPU), jnp.array([[True, True, False, True]])
    clean = form(q, k, v, real)
    dirty, pull = jax.vjp(lambda *x: form(*x, real), q, k.at[0, 2].set(jnp.nan), v.at[0, 2].set(jnp.nan))
    np.testing.assert_array_equal(clean[0], dirty[0])
    assert all(np.all(np.isfinite(g)) for g in pull((jnp.ones_like(clean[0]), jnp.ones_like(clean[1]))))


def test_the_steps_of_attention():
    q, k, v = qkv(2, 3, 4, 4, 2)
    (s,) = check(ops.Scores(scale=0.5), q, k)
    check(ops.Score(formula=TILT), s, np.linspace(-1, 1, 4).astype(np.float32))
    (z,) = check(ops.Masked(formula=CAUSAL), s)
    check(ops.Weigh(), s)
    eqn = equation(ops.Weigh(), typed(z))
    for got, want in zip(kernel(ops.Weigh()).build(eqn, CPU)(z), define(ops.Weigh(), jnp.float32, z), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    check(ops.Weigh(formula=Apply("pow", (P, Const(2)))), s)
    check(ops.Mix(), jax.nn.softmax(s), v)


@pytest.mark.parametrize("fn", sorted(PRIMITIVES))
def test_primitives(fn: str):
    """Every primitive, on the kinds it takes, away from its kinks; integers also beside a zero divisor."""
    row = PRIMITIVES[fn]
    rng = np.random.default_rng(3)
    reals = [rng.uniform(0.2, 2.2, (3, 4)).astype(np.float32) for _ in range(row.arity)]
    whole = [np.arange(-4, 8, dtype=np.int32).reshape(3, 4), np.array([[3], [0], [-2]], np.int32)][: row.arity]
    truth = [reals[0] > 1, np.eye(3, 4, dtype=bool)][: row.arity]
    match row.takes:
        case "bool":
            check(Elementwise(fn=fn), *truth)
        case "int":
            check(Elementwise(fn=fn), *whole)
        case "where":
            check(Elementwise(fn=fn), truth[0], reals[1], reals[2])
            check(Elementwise(fn=fn), truth[0], whole[0], whole[0] + 1)
        case _:
            check(Elementwise(fn=fn), *reals)
            if fn not in ("log", "log1p", "sqrt", "rsqrt", "pow", "div", "exp", "exp2"):
                check(Elementwise(fn=fn), *whole)
            if row.takes == "any":
                check(Elementwise(fn=fn), truth[0], truth[1])


def test_elementwise_broadcasts_and_promotes():
    x, y = draw(1, (2, 1, 3), (4, 1))
    check(Elementwise(fn="mul"), x, y)
    check(Elementwise(fn="add"), x, np.arange(3, dtype=np.int32))
    check(Elementwise(fn="add"), x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), tolerance=2**-8)
    check(Elementwise(fn="div"), np.arange(3, dtype=np.int32), np.full(3, 2, np.int32))


@pytest.mark.parametrize("fn", ["sum", "mean", "max", "min"])
def test_reductions(fn: str):
    (x,) = draw(2, (3, 5))
    check(Reduction(fn=fn), x)
    low = x.astype(jnp.bfloat16)
    check(Reduction(fn=fn), low, tolerance=2**-8)


def test_shapes():
    x, y = draw(4, (2, 6), (2, 3))
    check(ops.Reshape(shape=(2, 2, 3)), x)
    check(ops.Slice(start=2, size=3), x)
    check(ops.Concat(), x, y)
    check(ops.Cast(dtype=DType.BF16), x, tolerance=2**-8)
    assert check(ops.Cast(dtype=DType.I32), x * 3)[0].dtype == jnp.int32
    assert check(ops.Cast(dtype=DType.BOOL), np.arange(3, dtype=np.int32))[0].tolist() == [False, True, True]
    assert check(ops.Constant(value=2.5, dtype=DType.BF16))[0].dtype == jnp.bfloat16


def test_products():
    x, w, b = draw(5, (2, 3, 8), (8, 5), (5,))
    check(Linear(), x, w)
    check(Linear(), x, w, b)
    check(Linear(), *(y.astype(jnp.bfloat16) for y in (x, w, b)), tolerance=2**-6)
    up, a, gate, c, down, d = draw(6, (8, 5), (5,), (8, 5), (5,), (5, 8), (8,))
    gated = apply("mul", apply("mul", U, apply("sigmoid", U)), G)
    check(FeedForward(activation=gated, gated=True, biased=True), x, up, a, gate, c, down, d)
    check(FeedForward(activation=gated, gated=True, biased=False), x, up, gate, down)
    check(FeedForward(activation=apply("tanh", U), gated=False, biased=True), x, up, a, down, d)


@pytest.mark.parametrize("centered", [True, False])
def test_norms(centered: bool):
    x, y, s, b = draw(9, (2, 3, 8), (2, 3, 8), (8,), (8,))
    check(ResidualNorm(centered=centered, eps=1e-5), x)
    check(ResidualNorm(centered=centered, eps=1e-5, scaled=True, biased=True), x, s, b)
    check(ResidualNorm(centered=centered, eps=1e-5, residual=True, biased=True), x, y, b)
    full = ResidualNorm(centered=centered, eps=0.1, residual=True, scaled=True, keeps=True)
    assert len(check(full, x, y, s)) == 2
    low = [v.astype(jnp.bfloat16) for v in (x, y)]
    check(replace(full, dtype=DType.BF16), *low, s, tolerance=2**-7)
    check(replace(full, reduce=DType.BF16, dtype=DType.BF16), *low, s.astype(jnp.bfloat16), tolerance=2**-5)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_rotation(pairing: str):
    angle = apply("mul", Var("pos", Kind.INT), apply("pow", Const(100.0), apply("div", Var("c", Kind.INT), Const(-2))))
    (x,) = draw(7, (2, 5, 2, 6))
    check(Rotate(angle=angle, dims=6, pairing=pairing, offset=3), x)
    check(Rotate(angle=angle, dims=4, pairing=pairing), x, np.array([[4, 3, 2, 1, 0], [9] * 5], np.int32))


def test_rows_of_tables():
    (table,) = draw(8, (5, 3))
    check(Take(), table, np.array([[4, 0, 4], [1, 2, 3]], np.int32))
    check(Take(), np.arange(5, dtype=np.int32), np.array([4, 0], np.int32))
    eqn = equation(Take(), typed(table), TensorType((2,), DType.I32))
    (rows,) = kernel(Take()).build(eqn, CPU)(table, jnp.array([5, -1], jnp.int32))
    assert np.all(np.isnan(rows))


def var(name: str) -> Var:
    return Var(name, Kind.INT)


def read(slot: int, *names: str) -> Read:
    return Read(slot, tuple(map(var, names)), Kind.REAL)


def dot(fn: str, over: tuple[str, ...], *factors: Expr) -> Expr:
    body = factors[0]
    for f in factors[1:]:
        body = apply("mul", body, f)
    return Reduce(fn, over, body)


def index(axes: dict[str, int], reduced: dict[str, int], expr: Expr) -> Index:
    return Index(axes=tuple(axes.items()), reduced=tuple(reduced.items()), expr=expr)


BACK = Read(0, (apply("sub", var("t"), var("w")), var("c")), Kind.REAL)
SQUARES = Reduce("mean", ("d",), apply("mul", read(0, "i", "d"), read(0, "i", "d")))
SCALED = dot("sum", ("c",), read(0, "c", "i"), Const(0.5), read(1, "o", "c"))
THREE = dot("mean", ("c", "d"), read(0, "i", "c"), read(1, "c", "d"), read(0, "i", "c"))

INDEX: dict[str, tuple[Index, list[tuple[int, ...]]]] = {
    "product": (
        index({"i": 2, "o": 4}, {"c": 3}, dot("sum", ("c",), read(0, "i", "c"), read(1, "c", "o"))),
        [(2, 3), (3, 4)],
    ),
    "scaled, transposed": (index({"o": 4, "i": 2}, {"c": 3}, SCALED), [(3, 2), (4, 3)]),
    "mean of three factors": (index({"i": 2}, {"c": 3, "d": 2}, THREE), [(2, 3), (3, 2)]),
    "an index that nothing varies along": (
        index({"i": 2}, {"c": 3, "d": 4}, dot("sum", ("c", "d"), read(0, "i", "c"), read(1, "c"))),
        [(2, 3), (3,)],
    ),
    "a diagonal": (index({"i": 3}, {}, read(0, "i", "i")), [(3, 3)]),
    "convolution": (
        index({"t": 5, "c": 2}, {"w": 3}, dot("sum", ("w",), BACK, read(1, "w", "c"))),
        [(5, 2), (3, 2)],
    ),
    "nested": (
        index(
            {"i": 2, "c": 3},
            {"d": 3},
            apply("div", read(0, "i", "c"), apply("sqrt", apply("add", SQUARES, Const(0.1)))),
        ),
        [(2, 3)],
    ),
    "largest": (index({"i": 2}, {"c": 3}, Reduce("max", ("c",), read(0, "i", "c"))), [(2, 3)]),
    "wider than the operand": (index({"i": 4}, {}, read(0, "i")), [(3,)]),
    "numbers of indices": (
        index({"i": 3, "j": 2}, {}, apply("add", apply("mul", var("i"), Const(2)), var("j"))),
        [],
    ),
    "a constant": (index({"i": 3}, {}, Const(1.5)), []),
    "a truth value": (index({"i": 3, "j": 3}, {}, apply("le", var("j"), var("i"))), []),
}


@pytest.mark.parametrize("name", INDEX)
def test_index_equations(name: str):
    op, shapes = INDEX[name]
    check(op, *draw(9, *shapes))


def test_a_contraction_is_one_product():
    """`sum[c](x * w)` becomes a dot, not a broadcast product of all elements; bf16 operands stay bf16."""
    op, shapes = INDEX["product"]
    x, w = (y.astype(jnp.bfloat16) for y in draw(9, *shapes))
    eqn = equation(op, typed(x), typed(w))
    text = str(jax.make_jaxpr(kernel(op).build(eqn, CPU))(x, w))
    assert "dot_general" in text and "preferred_element_type=float32" in text and "reduce_sum" not in text
    op, shapes = INDEX["convolution"]
    x, w = draw(9, *shapes)
    assert "dot_general" not in str(jax.make_jaxpr(kernel(op).build(equation(op, typed(x), typed(w)), CPU))(x, w))


def test_masks_stay_as_small_as_the_formula():
    """A padding mask is [B, 1, 1, M]: nothing but scores has all of [B, H, N, M] elements."""
    b, n, m, h = 2, 8, 16, 4
    op = Attention(scale=0.5, mask=apply("and", CAUSAL, PADDED))
    types = [TensorType(s, DType.F32) for s in ((b, n, h, 4), (b, m, h, 4), (b, m, h, 4))]
    eqn = equation(op, *types, TensorType((b, m), DType.BOOL))
    args = [jax.ShapeDtypeStruct(v.type.ints, DTYPES[v.type.dtype]) for v in eqn.args]
    jaxpr = jax.make_jaxpr(kernel(op).build(eqn, CPU))(*args)
    types_of = {(e.primitive.name, str(v.aval)) for e in jaxpr.eqns for v in e.outvars}
    made = {name for name, kind in types_of if kind == f"bool[{b},{h},{n},{m}]"}
    assert ("exp", f"f32[{b},{h},{n},{m}]") in {(name, kind.replace("float32", "f32")) for name, kind in types_of}
    assert made <= {"jit", "pjit", "broadcast_in_dim", "ne", "not"}, made  # the select's own broadcast


# --- cuDNN: its library is not called here, only asked


H100 = Target(name="h100", platform="gpu", capability=9.0)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (Const(True), (-inf, inf)),
        (CAUSAL, (0, inf)),
        (apply("ge", Q, K), (0, inf)),
        (apply("lt", K, Q), (1, inf)),
        (WINDOW, (0, 1)),
        (apply("le", apply("abs", apply("sub", K, Q)), Const(3)), (-3, 3)),
        (apply("lt", apply("abs", apply("add", apply("sub", Q, K), Const(1))), Const(3)), (-3, 1)),
        (apply("gt", apply("add", K, Const(4)), Q), (-inf, 3)),
        (apply("le", K, Const(4)), None),
        (apply("eq", apply("mod", Q, Const(2)), Const(0)), None),
        (apply("or", CAUSAL, WINDOW), None),
        (PADDED, None),
    ],
    ids=str,
)
def test_bands(mask: Expr, expected: tuple[float, float] | None):
    """low <= q - k <= high, checked on every pair as well."""
    assert cudnn.band(mask) == expected
    if expected is not None:
        seen = define(ops.Masked(formula=mask), jnp.float32, jnp.zeros((1, 1, 6, 6)))[0][0, 0] == 0
        distance = np.arange(6)[:, None] - np.arange(6)[None]
        np.testing.assert_array_equal(seen, (distance >= expected[0]) & (distance <= expected[1]))


def refusal(
    op: Attention,
    target: Target = H100,
    dtype: DType = DType.BF16,
    n: int = 8,
    m: int = 8,
    d: int = 64,
    dv: int = 64,
    *more: TensorType,
) -> str:
    types = [TensorType(s, dtype) for s in ((1, n, 2, d), (1, m, 1, d), (1, m, 1, dv))]
    return cudnn.KERNEL.refuse(equation(op, *types, *more), target) or ""


def test_cudnn_refuses_in_words():
    plain = Attention(scale=0.5)
    assert "needs an NVIDIA GPU" in refusal(plain, CPU)
    assert "cannot be interpreted" in refusal(
        plain, Target(name="h100", platform="gpu", capability=9.0, interpret=True)
    )
    assert "takes bf16 or f16, not f32" in refusal(plain, dtype=DType.F32)
    assert "head sizes 60" in refusal(plain, d=60, dv=60)
    assert "head sizes 64 and 32" in refusal(plain, dv=32)
    assert "256 are not" in refusal(plain, Target(name="a100", platform="gpu", capability=8.0), d=256, dv=256)
    assert "the score" in refusal(Attention(scale=0.5, score=CAP))
    assert "the weights" in refusal(Attention(scale=0.5, weigh=SILU))
    assert "the mask" in refusal(Attention(scale=0.5, mask=apply("lt", K, Q)))
    assert "aligned at the end" in refusal(Attention(scale=0.5, mask=CAUSAL), n=4)
    assert "an axis is empty" in refusal(plain, n=0)
    if jax.default_backend() != "gpu":
        assert "library" in refusal(plain)


@pytest.mark.parametrize(
    "op", [Attention(scale=0.5), Attention(scale=0.5, mask=CAUSAL), Attention(scale=0.5, mask=WINDOW)]
)
def test_what_cudnn_is_asked_for_is_what_the_formula_says(op: Attention, monkeypatch: pytest.MonkeyPatch):
    """The call's arguments, answered by JAX's own jnp form instead of the library."""
    asked = jax.nn.dot_product_attention

    def answer(*args: Any, implementation: str, **named: Any) -> Any:
        assert implementation == "cudnn"
        return asked(*args, implementation="xla", **named)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    q, k, v = qkv(2, 6, 6, 4, 2, 8, 8)
    form = cudnn.KERNEL.build(equation(op, *map(typed, (q, k, v))), H100)
    for got, want in zip(form(q, k, v), define(op, jnp.float32, q, k, v), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_every_operation_has_an_xla_form():
    """But for the registered functions, which have a definition and nothing else."""
    without = [op.name for op, row in KERNELS.items() if not any(k.name == "xla" for k in row)]
    assert without == ["function"]


@pytest.mark.device
@pytest.mark.parametrize(
    "op", [Attention(scale=0.1), Attention(scale=0.1, mask=CAUSAL), Attention(scale=0.1, mask=WINDOW)]
)
def test_cudnn_on_the_device(op: Attention):
    """Values and gradients in bf16, grouped heads, against the definition."""
    target = resolve("auto")
    q, k, v = (x.astype(jnp.bfloat16) for x in qkv(2, 130, 130, 4, 2, 64, 64))
    eqn = equation(op, *map(typed, (q, k, v)))
    assert cudnn.KERNEL.refuse(eqn, target) is None
    form = cudnn.KERNEL.build(eqn, target)
    got, pull = jax.vjp(lambda *x: form(*x)[0], q, k, v)
    want, true = jax.vjp(lambda *x: define(op, jnp.float32, *x)[0], q, k, v)
    np.testing.assert_allclose(np.float32(got), want, rtol=2**-6, atol=2**-6)
    np.testing.assert_allclose(form(q, k, v)[1], define(op, jnp.float32, q, k, v)[1], rtol=1e-4, atol=1e-4)
    for x, y in zip(pull(jnp.ones_like(got)), true(jnp.ones_like(want)), strict=True):
        np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=2**-4, atol=2**-4 * float(jnp.abs(y).max()))
