"""Traced functions evaluated by numpy give what compiled ones give; marks are rounded at random, and only in a draw."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tfc.testing.interpreted import Draw, Traced, interpreted, mark

X = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
I = np.array([2, -1, 7, 0], np.int32)  # noqa: E741  # indices, two of them outside


def loop(x: Any) -> Any:
    return lax.scan(lambda c, row: (c * 0.5 + row, jnp.tanh(c)), x[0], x, reverse=True)


def until(x: Any) -> Any:
    return lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, jnp.sin(s[1]) + x[0]), (0, x[1]))[1]


def chosen(x: Any) -> Any:
    return lax.cond(x[0, 0, 0] > 0, jnp.exp, jnp.log1p, jnp.abs(x))


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "elementwise": lambda x: jnp.where(x > 0, jax.nn.gelu(x), lax.rsqrt(1 + x**2)) + lax.erf(x) - jax.nn.softplus(x),
    "whole numbers": lambda x: (lax.convert_element_type(8 * x, jnp.int32) // 3, jnp.arange(-7, 8) % -4),
    "truncating": lambda x: (lax.div(jnp.arange(-7, 8), jnp.int32(3)), lax.rem(x, jnp.float32(0.3))),
    "rounding": lambda x: (jnp.round(4 * x), lax.round(4 * x), jnp.floor(x), jnp.sign(x), jnp.ceil(x)),
    "sums": lambda x: (x.sum((0, 2)), x.max(1), x.min(), x.prod(-1), jnp.argmax(x, 1), jnp.any(x > 2, 0), x.mean()),
    "running": lambda x: (jnp.cumsum(x, 1), lax.cumsum(x, 2, reverse=True), lax.cummax(x, 0), jnp.cumprod(x, 1)),
    "products": lambda x: (jnp.einsum("bij,bkj->bik", x, x), jnp.einsum("bij,bik->jk", x, x), x[0] @ x[1].T),
    "narrow": lambda x: jnp.einsum("bij,bkj->bik", x.astype(jnp.bfloat16), x.astype(jnp.bfloat16)),
    "shapes": lambda x: (x.transpose(2, 0, 1), x.reshape(6, 10), x[None, :, 1], jnp.flip(x, 1), jnp.split(x, 2, 1)),
    "pads": lambda x: lax.pad(x, jnp.float32(7), ((1, 2, 1), (-1, 0, 0), (0, -2, 2))),
    "slices": lambda x: (x[:, ::2, 1:4], lax.dynamic_slice(x, (1, 9, -3), (2, 2, 3)), x.at[1].set(0)),
    "updates": lambda x: lax.dynamic_update_slice(x, jnp.ones((2, 2, 2)), (5, 1, 2)),
    "gathers": lambda x: (x[:, I], jnp.take(x, I, 1, mode="clip"), jnp.take(x, I, 1, mode="fill"), x[I % 3, I % 4]),
    "along": lambda x: (jnp.take_along_axis(x, jnp.argsort(x, 1), 1), lax.top_k(x, 2)),
    "scatters": lambda x: (x.at[:, I % 4].add(1.5), x.at[I % 3, I % 4].set(x[0]), x.at[:, I].add(2.0, mode="drop")),
    "mapped": lambda x: jax.vmap(lambda row, i: lax.dynamic_slice_in_dim(row, i, 2))(x, jnp.arange(3)),
    "loop": loop,
    "until": until,
    "chosen": chosen,
    "gradient": jax.grad(lambda x: sum(jnp.sum(y**2) for y in jax.tree.leaves(loop(jax.checkpoint(jnp.sin)(x))))),
    "gradient of gathers": jax.grad(lambda x: jnp.sum(jnp.cos(jnp.take(x, I, 1, mode="clip"))) + jnp.max(x[I % 3])),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_as_compiled(name: str):
    f = FUNCTIONS[name]
    found, right = interpreted(f)(X), jax.jit(f)(X)
    assert jax.tree.structure(found) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        assert isinstance(a, np.ndarray) and a.shape == b.shape and a.dtype == b.dtype
        rtol = 1e-2 if a.dtype == jnp.bfloat16 else 2e-5
        np.testing.assert_allclose(a.astype(np.float64), np.asarray(b).astype(np.float64), rtol=rtol, atol=1e-5)


def test_marks_are_rounded_in_a_draw_alone():
    f = Traced(jax.grad(lambda x: jnp.sum(mark(x, 23) ** 2)), X)
    exact = f(X)
    np.testing.assert_allclose(exact, 2 * X, rtol=1e-6)
    asked: list[int] = []

    def unit(bits: int) -> float:
        asked.append(bits)
        return 0.01

    off = np.abs(f(X, draw=Draw(np.random.default_rng(1), unit)) / exact - 1)
    assert 0.001 < off.max() <= 0.021  # forward and backward, a unit each
    assert set(asked) == {23}
    np.testing.assert_array_equal(f(X), exact)
