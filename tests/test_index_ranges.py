"""Index equations whose sizes are arithmetic of lengths: numbers as NumPy computes them, calls too short refused."""

from pathlib import Path

import jax
import numpy as np
import pytest

import tfc
from tfc.diagnostics import TfcError

SPEC = Path(__file__).parent / "golden" / "lower" / "ranges.tfm"


def expected(ids: np.ndarray, table: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """What `ranges.tfm` says: neighbours summed, split into even and odd tokens, joined, pairs of channels averaged."""
    t = np.arange(ids.shape[1])
    x = table[ids]
    y = np.sum([x[:, np.clip(t + i - 1, 0, t[-1])] * kernel[i] for i in range(3)], axis=0)
    narrow = (y[..., 0::2] + y[..., 1::2]) / 2
    near = (ids == 0) | (ids[:, np.clip(t - 1, 0, None)] == 0)
    return np.where(near[..., None], narrow, -narrow)


@pytest.mark.parametrize("implementation", [None, "reference"])
@pytest.mark.parametrize("length", [2, 5, 6])
def test_halves_of_a_length(implementation: str | None, length: int):
    model = tfc.compile(SPEC, target="cpu", implementation=implementation)
    params = model.init(jax.random.key(0))
    ids = np.random.default_rng(length).integers(0, 4, (2, length)).astype(np.int32)
    wanted = expected(ids, np.asarray(params["word"]["weight"]), np.asarray(params["kernel"]))
    np.testing.assert_allclose(model(params, ids), wanted, rtol=1e-5, atol=1e-7)


def test_calls_too_short_are_refused():
    with pytest.raises(TfcError, match=r"E705.*an element of `odd` is read, which has none"):
        model = tfc.compile(SPEC, target="cpu")
        model(model.init(jax.random.key(0)), np.zeros((2, 1), np.int32))
    tail = "tfm 1 model m(x: f32[B, T, 4]) { repeat 2 as i { y[b, t: T - 4, c] = x[b, t + 4, c] }   return x }"
    model = tfc.compile(tail, target="cpu")
    assert model({}, np.ones((2, 4, 4), np.float32)).shape == (2, 4, 4)
    tail = tail.replace("repeat 2 as i {", "").replace("}   return x", "  return y")
    model = tfc.compile(tail, target="cpu")
    assert model({}, np.ones((2, 5, 4), np.float32)).shape == (2, 1, 4)
    with pytest.raises(TfcError, match=r"E705.*the size T - 4 is -1 where T = 3"):
        model({}, np.ones((2, 3, 4), np.float32))


def test_a_sum_given_to_a_block_that_reads_it_twice():
    text = (
        "tfm 1\nmodel m(x: real[B, T, 4], w: real[4, 3]) {\n"
        "  y[b, t, o] = silu(sum[c](x[b, t, c] * w[c, o]))\n  return y\n}\n"
    )
    x, w = np.arange(24.0).reshape(2, 3, 4) / 10, np.ones((4, 3))
    z = x @ w
    for implementation in (None, "reference"):
        model = tfc.compile(text, target="cpu", implementation=implementation)
        y = model({}, x.astype(np.float32), w.astype(np.float32))
        np.testing.assert_allclose(y, z / (1 + np.exp(-z)), rtol=1e-5)
