"""Procedures that fit thin products and sums: optimal where they say so, exact at full rank, refusals in words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.calibration import GramOf
from tfc.diagnostics import TfcError
from tfc.ir.param_map import Call, ParamMap, Source, sources, substitute, text
from tfc.params.apply import pack, unpack
from tfc.params.fit import FITS
from tfc.params.fit.low_rank import activation_svd, pooling, product, svd


def drawn(shape: tuple[int, ...], seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# few shapes: each is compiled
@given(shape=st.sampled_from([(2, 5, 3), (1, 4, 4)]), seed=st.integers(0, 99), rank=st.integers(1, 4))
def test_svd_is_the_nearest_of_its_rank_and_balanced(shape: tuple[int, int, int], seed: int, rank: int) -> None:
    """The distance is that of the singular values left out; both sides weigh the same; stacks are fitted each alone."""
    w, rank = drawn(shape, seed), min(rank, *shape[1:])
    left, right = svd([w], {"rank": rank})
    assert left.shape == (*shape[:2], rank) and right.shape == (shape[0], rank, shape[2])
    values = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
    distance = np.linalg.norm(np.asarray(w) - np.asarray(product([left, right], {})[0]), axis=(1, 2))
    np.testing.assert_allclose(distance, np.sqrt((values[:, rank:] ** 2).sum(-1)), atol=1e-5)
    kept = values[:, :rank, None] * np.eye(rank)
    np.testing.assert_allclose(jnp.swapaxes(left, 1, 2) @ left, kept, atol=1e-4)
    np.testing.assert_allclose(right @ jnp.swapaxes(right, 1, 2), kept, atol=1e-4)


@given(seed=st.integers(0, 99), rank=st.integers(1, 6))
def test_activation_svd_is_nearest_in_the_outputs(seed: int, rank: int) -> None:
    """Never further than svd on the inputs that it saw; at rank 6 of [6, 8] the weight itself."""
    w, x = drawn((6, 8), seed), np.random.default_rng(seed + 1).normal(size=(40, 6)) * [9, 5, 2, 1, 0.3, 0.1]
    settings = {"rank": rank, "damp": 0.0}
    left, right = activation_svd([w], settings, GramOf(x.T @ x, 40))
    mine = np.linalg.norm(x @ (np.asarray(left @ right) - w))
    theirs = np.linalg.norm(x @ (np.asarray(jnp.matmul(*svd([w], settings))) - w))
    assert mine <= theirs * (1 + 1e-5) + 1e-4
    # nothing of that rank is nearer: the singular values of x w left out
    values = np.linalg.svd(x @ np.asarray(w, np.float64), compute_uv=False)
    np.testing.assert_allclose(mine, np.sqrt((values[rank:] ** 2).sum()), atol=1e-4)


def test_activation_svd_of_even_inputs_is_svd() -> None:
    w = drawn((2, 5, 7), 0)
    for gram in (np.broadcast_to(3 * np.eye(5), (2, 5, 5)), np.zeros((2, 5, 5))):
        got = activation_svd([w], {"rank": 2, "damp": 0.01}, GramOf(gram, 9))
        np.testing.assert_allclose(jnp.matmul(*got), jnp.matmul(*svd([w], {"rank": 2})), atol=1e-5)


def test_directions_that_no_input_had_keep_a_weight() -> None:
    """With damping: inputs in one direction only, and still every rank has something to do."""
    w, x = drawn((4, 4), 1), np.ones((3, 4))
    left, right = activation_svd([w], {"rank": 4, "damp": 0.01}, GramOf(x.T @ x, 3))
    np.testing.assert_allclose(left @ right, w, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_stay_narrow(dtype: str) -> None:
    w = drawn((6, 4), 2).astype(dtype)
    left, right = svd([w], {"rank": 4})
    assert left.dtype == right.dtype == w.dtype
    wide = [np.asarray(x, np.float32) for x in (left, right, w)]
    np.testing.assert_allclose(wide[0] @ wide[1], wide[2], atol=0.05)


@pytest.mark.parametrize(("length", "rows"), [(8, 4), (7, 3), (5, 5), (4, 1)])
def test_pooling_makes_means_of_neighbours(length: int, rows: int) -> None:
    both = pooling([drawn((2, 3, 6, 6), 0)], {"length": length, "rows": rows})
    for made in both:
        assert made.shape == (2, 3, length, rows)
        np.testing.assert_allclose(made.sum(-2), 1, rtol=1e-6)
        assert np.all(np.count_nonzero(made, axis=-1) == 1) and np.all(np.diff(np.argmax(made, -1)) >= 0)
    if rows == length:
        np.testing.assert_array_equal(both[0][0, 0], np.eye(length))


THIN = tuple(Call("svd", (Source("w"),), (("rank", 2),), side) for side in (0, 1))
MAP = ParamMap(
    {"w.left": THIN[0], "w.right": THIN[1]},
    {"w": Call("product", (Source("w.left"), Source("w.right")))},
    removed=frozenset(["w"]),
)


def test_calls_of_a_map_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = []
    monkeypatch.setitem(FITS, "svd", lambda *given: (count.append(1), svd(*given))[1])  # type: ignore[arg-type]
    tree = {"w": drawn((3, 4), 3), "b": jnp.ones(2)}
    packed = pack(MAP, tree)
    assert packed.keys() == {"w.left", "w.right", "b"} and len(count) == 1
    back = unpack(MAP, packed)
    np.testing.assert_allclose(back["w"], packed["w.left"] @ packed["w.right"], rtol=1e-6)


def test_a_call_reads_and_is_written_like_other_expressions() -> None:
    call = Call("activation_svd", (Source("w"),), (("rank", 2),), 1, "w")
    assert text(call) == "activation_svd(w, rank=2, data=w)[1]" and sources(call) == {"w"}
    moved = substitute(call, {"w": Source("v")})
    assert isinstance(moved, Call) and moved.of == (Source("v"),) and moved.data == "w"


def test_a_fit_without_what_it_is_fitted_to_is_refused() -> None:
    call = Call("activation_svd", (Source("w"),), (("rank", 2), ("damp", 0.0)), 0, "w")
    map, tree = ParamMap({"v": call}), {"w": drawn((3, 4), 3)}
    with pytest.raises(TfcError, match="no statistics"):
        pack(map, tree)
    data = {"w": GramOf(np.eye(3), 1)}
    with pytest.raises(TfcError, match="traced"):
        jax.jit(lambda t: pack(map, t, data))(tree)
    assert pack(map, tree, data)["v"].shape == (3, 2)
