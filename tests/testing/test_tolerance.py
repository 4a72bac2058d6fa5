"""The tolerance: right computations pass by a margin, small faults of every kind do not, and it is not loosened."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.formula.expr import Const, Kind, Read, Token, Var, apply
from tfc.ir.ops import Attention, S
from tfc.ir.types import DType
from tfc.testing.cases import Array, Sizes, attention_eqn, operands
from tfc.testing.float64 import seen_by
from tfc.testing.tolerance import FACTOR, FLOOR, compare, expected, expected_gradients

Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)
CAUSAL = apply("le", K, Q)
ALIBI = apply("sub", S, apply("mul", Read(0, (H,), Kind.REAL), apply("abs", apply("sub", Q, K))))
TYPES = (DType.BF16, DType.F16, DType.F32)
SHAPES = (
    Sizes(1, 64, 64, 2, 1, 32),
    Sizes(2, 1, 64, 2, 2, 64),
    Sizes(1, 130, 200, 4, 2, 64),
    Sizes(1, 5, 600, 1, 1, 128),
    Sizes(1, 1, 1, 1, 1, 32),
)


def drawn(of: Sizes, seed: int, mask: Any = CAUSAL, flavour: str = "normal") -> tuple[Attention, tuple[Array, ...]]:
    op = Attention(scale=of.head_dim**-0.5, mask=mask)
    return op, operands(attention_eqn(op, of), seed, flavour)


def streamed(op: Attention, arrays: Sequence[Array], sums: Any = np.float32) -> tuple[Array, Array]:
    """Attention as kernels compute it: blocks of keys from the last, a running maximum, rescaled sums in `sums`."""
    block, (q, k, v) = 64, arrays
    seen, heads = seen_by(op, q, k, ()), q.shape[2]
    q, k, values = (np.repeat(x.astype(np.float32), heads // x.shape[2], 2).transpose(0, 2, 1, 3) for x in arrays)
    top = np.full(q.shape[:3], -np.inf, np.float32)
    total, out = np.zeros(q.shape[:3], sums), np.zeros(q.shape, sums)
    for start in reversed(range(0, k.shape[2], block)):
        part = slice(start, start + block)
        s = np.float32(op.scale) * (q @ k[:, :, part].swapaxes(2, 3))
        s = np.where(seen[..., part], s, -np.inf)
        raised = np.maximum(top, s.max(3))
        base = np.where(np.isneginf(raised), 0, raised)
        p, shrink = np.exp(s - base[..., None]), np.exp(top - base).astype(sums)
        total, out, top = total * shrink, out * shrink[..., None], raised
        weights = p.astype(v.dtype).astype(np.float32)
        if sums is np.float32:
            total, out = total + p.sum(3), out + weights @ values[:, :, part]
            continue
        for j in range(p.shape[3]):
            total = (total + p[..., j]).astype(sums)
            out = (out + weights[..., j, None] * values[:, :, start + j, None]).astype(sums)
    share = np.where(total == 0, 0, 1 / np.where(total == 0, 1, total).astype(np.float32))
    with np.errstate(divide="ignore"):
        lse = top + np.log(total.astype(np.float32))
    return (out * share[..., None]).transpose(0, 2, 1, 3).astype(v.dtype), lse


def ratios(op: Attention, arrays: tuple[Array, ...], got: tuple[Array, Array]) -> tuple[float, float]:
    out, lse = (right.compare(x).ratio for right, x in zip(expected(op, arrays), got, strict=True))
    return out, lse


def test_the_table_is_as_derived():
    """Whoever changes these derives them anew in `tolerance`; a kernel that fails is no reason."""
    assert (FACTOR, FLOOR) == (2.0, 2.0)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("of", SHAPES, ids=str)
def test_a_right_computation_passes_by_a_margin(of: Sizes, dtype: DType):
    """Blocks, a running maximum and rescaling differ from the plain order in rounding only; flavours of all kinds."""
    found = []
    for seed in range(12 if of.n > 64 else 30):
        flavour = ("normal", "ties", "large")[seed % 3]
        op, arrays = drawn(replace(of, dtype=dtype), seed, CAUSAL if seed % 2 else Const(True), flavour)
        found.append(max(ratios(op, arrays, streamed(op, arrays))))
    assert max(found) < 0.75, sorted(found)[-3:]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("of", SHAPES[:2], ids=str)
def test_a_dropped_key_of_64_fails(of: Sizes, dtype: DType):
    for seed in range(10):
        op, arrays = drawn(replace(of, dtype=dtype), seed, Const(True))
        fault = replace(op, mask=apply("ne", K, Const(seed * 7 % 64)))
        out, lse = ratios(op, arrays, streamed(fault, arrays))
        assert out > 5 and lse > 100


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("of", SHAPES[:4], ids=str)
def test_a_scale_off_by_a_percent_fails(of: Sizes, dtype: DType):
    for seed in range(10):
        op, arrays = drawn(replace(of, dtype=dtype), seed, Const(True))
        out, lse = ratios(op, arrays, streamed(replace(op, scale=op.scale * 1.01), arrays))
        assert lse > 100
        assert out > 1 or (dtype is DType.BF16 and of.n < 64)  # one row of bf16 is too coarse to tell by itself


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_sums_in_float16_fail(dtype: DType):
    """lse shows them for every type, the result where its own type is not coarser than the sum's."""
    for seed in range(3):
        op, arrays = drawn(replace(SHAPES[2], dtype=dtype), seed, Const(True))
        out, lse = ratios(op, arrays, streamed(op, arrays, sums=np.float16))
        assert lse > 30
        assert out > 1 or dtype is DType.BF16


def test_tensor_float_32_is_not_float32():
    """Operands cut to 10 bits before the products: fp32 means IEEE fp32."""
    op, arrays = drawn(SHAPES[0], 0)
    cut = tuple((x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in arrays)
    assert ratios(op, arrays, streamed(op, cut))[0] > 100


def unchanged(x: Any) -> Any:
    return x


def pulled(op: Attention, arrays: tuple[Array, ...], dout: Array, fault: Callable[[Any], Any] = unchanged) -> list[Any]:
    """Gradients by JAX of ALiBi's attention at the operands' precision; `fault` is applied to the scores."""

    def out(q: Any, k: Any, v: Any, slope: Any) -> Any:
        (n, h), (m, g) = q.shape[1:3], k.shape[1:3]
        k, values = (jnp.repeat(x, h // g, 2).astype(jnp.float32) for x in (k, v))
        s = op.scale * jnp.einsum("bnhd,bmhd->bhnm", q.astype(jnp.float32), k)
        i, j = jnp.arange(n)[:, None] + (m - n), jnp.arange(m)
        s = fault(s - slope[:, None, None] * jnp.abs(i - j))
        p = jax.nn.softmax(jnp.where(j <= i, s, -jnp.inf), -1)
        return jnp.einsum("bhnm,bmhd->bnhd", p.astype(v.dtype).astype(jnp.float32), values).astype(v.dtype)

    value, pull = jax.vjp(out, *map(jnp.asarray, arrays))
    return list(pull(jnp.asarray(dout).astype(value.dtype)))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("of", (SHAPES[0], SHAPES[2]), ids=str)
def test_gradients_pass_by_a_margin_and_fail_for_a_small_fault(of: Sizes, dtype: DType):
    """A fault of 3 percent in the scores' gradient alone is found in dq and dk."""
    of = replace(of, dtype=dtype)
    op = Attention(scale=of.head_dim**-0.5, score=ALIBI, mask=CAUSAL)

    @jax.custom_vjp
    def tilted(s: Any) -> Any:
        return s

    tilted.defvjp(lambda s: (s, None), lambda _, g: (g * 1.03,))
    for seed in range(3):
        arrays = operands(attention_eqn(op, of), seed, "normal")
        rng = np.random.default_rng(seed)
        dout = rng.standard_normal((of.batch, of.n, of.heads, of.head_dim)).astype(arrays[2].dtype)
        right = expected_gradients(op, arrays, dout)
        assert sorted(right) == [0, 1, 2, 3]
        found = pulled(op, arrays, dout)
        assert max(right[i].compare(found[i]).ratio for i in right) < 0.75
        wrong = pulled(op, arrays, dout, tilted)
        assert all(right[i].compare(wrong[i]).ratio > 1.5 for i in (0, 1))
        assert right[2].compare(wrong[2]).ok


def one(candidate: Any, definition: Any) -> float:
    x = np.asarray(definition, np.float64)
    return compare("x", np.asarray(candidate, np.float64), x, x, np.full(x.shape, 1e-3)).ratio


def test_what_is_not_a_number_is_never_close():
    assert one([1.0, np.nan], [1.0, 2.0]) == np.inf
    assert one([np.inf, 2.0], [1.0, 2.0]) == np.inf
    assert one([0.0, 2.0], [-np.inf, 2.0]) == np.inf
    assert one([np.inf, 2.0], [-np.inf, 2.0]) == np.inf
    assert one([-np.inf, 2.0], [-np.inf, 2.0]) == 0
    assert one([5.0, 2.0], [np.nan, 2.0]) == 0  # the definition says nothing here


def test_shapes_must_agree():
    found = compare("out", np.zeros((2, 3)), np.zeros((3, 2)), np.zeros((3, 2)), np.ones((3, 2)))
    assert not found.ok and found.reason == "out has shape [2, 3], not [3, 2]"


def test_where_nothing_may_be_lost_nothing_is_allowed():
    """A unit of zero: rows that see nothing."""
    zero = np.zeros(4)
    assert compare("out", np.array([0, 0, 0, 1e-30]), zero, zero, zero).ratio == np.inf
    assert compare("out", zero, zero, zero, zero).ratio == 0


def test_one_element_among_many_is_found():
    """One element ten units off among a million that are right: the largest error shows it, the mean does not."""
    x = np.zeros((1000, 1000))
    y = x.copy()
    y[3, 4] = 10.0
    found = compare("out", y, x, x, np.ones(x.shape))
    assert not found.ok and found.at == (3, 4) and "this element" in found.reason


def test_a_small_error_of_all_is_found():
    """Every element a twentieth of a unit off, all of a million: the mean shows it."""
    x = np.zeros((10_000, 100))
    found = compare("out", x + 0.05, x, x, np.ones(x.shape))
    assert not found.ok and "root mean square" in found.reason
