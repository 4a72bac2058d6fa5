"""Rows of a stack: xla against the definition, what is dropped, what is no row."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.backends.kernel import DTYPES, Target
from tfc.backends.reference.program import define
from tfc.backends.table import named
from tfc.ir.ops import CacheRead, CacheWrite, Op
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, IRError, TensorType

CPU = Target(name="cpu", platform="cpu")


def typed(x: Any) -> TensorType:
    (dtype,) = (d for d, j in DTYPES.items() if j == x.dtype)
    return TensorType(tuple(x.shape), dtype)


def both(op: Op, *operands: Any) -> tuple[Any, Any]:
    """What xla's form gives, and what the definition does."""
    types = [typed(x) for x in operands]
    (out,) = op.infer(*types)
    eqn = Eqn((Value("o", out),), op, tuple(Value(f"a{i}", t) for i, t in enumerate(types)))
    kernel = named(type(op), "xla")
    assert kernel is not None and kernel.refuse(eqn, CPU) is None
    (got,), (want,) = kernel.build(eqn, CPU)(*operands), define(op, jnp.float32, *operands)
    assert typed(got) == out
    return got, want


@given(
    new=st.integers(1, 5),
    length=st.integers(1, 6),
    at=st.lists(st.integers(0, 7), min_size=2, max_size=2),
    count=st.lists(st.integers(0, 5), min_size=2, max_size=2),
    index=st.integers(0, 2),
)
def test_tokens_go_to_their_places(new: int, length: int, at: list[int], count: list[int], index: int):
    """Each by itself, in plain Python: those that count and fit are written, all else stays."""
    stack = np.random.default_rng(0).standard_normal((3, 2, length, 2)).astype(np.float32)
    tokens = 10 + np.arange(2 * new * 2, dtype=np.float32).reshape(2, new, 2)
    want = stack.copy()
    for b in range(2):
        for i in range(min(count[b], new)):
            if at[b] + i < length:
                want[index, b, at[b] + i] = tokens[b, i]
    operands = (stack, tokens, np.int32(index), np.array(at, np.int32), np.array(count, np.int32))
    for made in both(CacheWrite(), *map(jnp.asarray, operands)):
        np.testing.assert_array_equal(made, want)
    for made in both(CacheRead(), jnp.asarray(want), jnp.int32(index)):
        np.testing.assert_array_equal(made, want[index])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.bfloat16])
def test_a_row_is_replaced_and_cast(dtype: Any):
    stack = jnp.zeros((2, 1, 3, 2), dtype)
    row = jnp.full((1, 3, 2), 1.00390625) if dtype == jnp.bfloat16 else jnp.ones((1, 3, 2), dtype)
    got, want = both(CacheWrite(), stack, row, jnp.int32(1))
    np.testing.assert_array_equal(got, jnp.asarray(want, dtype))
    assert not np.any(got[0]) and np.all(got[1] == 1)


def test_what_is_not_written_may_be_anything():
    """A NaN of a token that does not count reaches nothing."""
    stack, new = jnp.zeros((1, 1, 4, 1)), jnp.array([[[1.0], [jnp.nan]]])
    for made in both(CacheWrite(), stack, new, jnp.int32(0), jnp.array([1]), jnp.array([1])):
        assert made[0, 0, :, 0].tolist() == [0, 1, 0, 0]


def test_writing_is_linear_in_what_is_written():
    stack, new = jnp.ones((2, 1, 3, 1)), jnp.ones((1, 2, 1))

    def written(stack: jax.Array, new: jax.Array) -> jax.Array:
        return both(CacheWrite(), stack, new, jnp.int32(1), jnp.array([2]), jnp.array([2]))[0]

    kept, taken = jax.grad(lambda *x: jnp.sum(written(*x)), argnums=(0, 1))(stack, new)
    assert kept[..., 0].tolist() == [[[1, 1, 1]], [[1, 1, 0]]] and taken[..., 0].tolist() == [[1, 0]]


def test_what_does_not_fit_is_no_equation():
    n, b = TensorType((), DType.I32), TensorType((2,), DType.I32)
    stack, new = TensorType((3, 2, 5, 4), DType.F32), TensorType((2, 1, 4), DType.F32)
    for operands in ((stack, new, n), (stack, new, b, b, b), (stack, new, n, b), (stack, new.with_last(3), n, b, b),
                     (stack, new, n, n, b), (stack, new.with_dtype(DType.I32), n, b, b)):  # fmt: skip
        with pytest.raises(IRError, match="cache_write"):
            CacheWrite().infer(*operands)
    assert CacheWrite().infer(stack, new, n, b, b) == (stack,)
    with pytest.raises(IRError, match="cache_read"):
        CacheRead().infer(n, n)
