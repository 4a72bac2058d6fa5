"""Operands that a kernel reads where they lie: rows of caches block by block, weights cast while they are read."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc.backends.kernel import Late, Target
from tfc.backends.xla.blocks import Blocks
from tfc.backends.xla.few import FEW, few, product

GPU = Target(name="h200", platform="gpu", capability=9.0)
SPEC = """tfm 1
default precision { params = f32   compute = COMPUTE   reduce = f32 }
attention look { heads = 4   kv_heads = 2   position = rope(100)   mask = MASK }
ffn feed { hidden = 24   gate = silu   biased = yes }
model small(tokens: int[B, T], segment: int[B, T] = 0) {
  embed words = embed { vocab = 23   width = 16   init = normal(1) }
  x = tag(words(tokens), segment = segment)
  repeat 2 as pair {
    repeat 2 as layer { x = x + look(rms@before(x)) }
    x = x + feed(rms@mid(x))
  }
  return linear@head(rms@last(x), 23)
}
"""


@pytest.mark.parametrize("m", [5, 64, 130, 200])
@pytest.mark.parametrize("kept", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_are_the_row(m: int, kept: Any, masked: bool):
    """Products by blocks, the last of which may begin early, against products with the row; what is not seen may be
    anything."""
    rng = np.random.default_rng(m)
    stack = jnp.asarray(rng.standard_normal((3, 2, m, 2, 8)), kept)
    seen = jnp.asarray(rng.random((2, m)) < 0.7) if masked else None
    row = stack[1].astype(jnp.float32)
    if seen is not None:
        row = jnp.where(seen[..., None, None], row, 0)
        stack = stack.at[1].set(jnp.where(seen[..., None, None], stack[1], jnp.nan))
    blocks = Blocks(Late(stack, jnp.int32(1), jnp.float32), seen)
    q = jnp.asarray(rng.standard_normal((2, 2, 3, 8)), jnp.float32)
    w = jnp.asarray(rng.random((2, 2, 3, m)), jnp.float32)
    scores, sums = jax.jit(lambda q, w: (blocks.scores(q, jnp.float32), blocks.sums(w, jnp.float32)))(q, w)
    np.testing.assert_allclose(scores, jnp.einsum("bgrd,bmgd->bgrm", q, row), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums, jnp.einsum("bgrm,bmgd->bgrd", w, row), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_rows_give_what_many_do(rows: int):
    """One row or several, a weight cast before or while it is read: bfloat16 operands, float32 sums. A CPU reads a
    float32 weight as it is, where a GPU rounds it to 8 bits: as far apart are the two here."""
    rng = np.random.default_rng(rows)
    weight = jnp.asarray(rng.standard_normal((24, 9)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((rows, 1, 24)), jnp.bfloat16)
    right = np.asarray(x, np.float64) @ np.asarray(weight.astype(jnp.bfloat16), np.float64)
    for operand in (weight.astype(jnp.bfloat16), Late(weight, None, jnp.bfloat16)):
        found = product(x, operand, jnp.float32)
        assert found.shape == (rows, 1, 9) and found.dtype == jnp.float32
        late = np.abs(np.asarray(x, np.float64)) @ np.abs(np.asarray(weight, np.float64)) / 2**8
        assert np.all(np.abs(found - right) <= 1e-5 + (late if isinstance(operand, Late) else 0))
    wide = product(x.astype(jnp.float32), weight, jnp.float32)
    np.testing.assert_allclose(wide, np.asarray(x, np.float64) @ np.asarray(weight, np.float64), rtol=1e-5, atol=1e-5)


def test_what_are_few_rows():
    rows = [jnp.zeros((n, 8), jnp.bfloat16) for n in (0, 1, FEW, FEW + 1)]
    assert [few(x, GPU) for x in rows] == [False, True, True, False]
    assert not few(rows[1], Target(name="cpu", platform="cpu"))
    assert not few(rows[1], Target(name="h200", platform="gpu", capability=9.0, interpret=True))


@pytest.mark.parametrize("mask", ["causal", "causal and documents", "causal and window(3)"])
@pytest.mark.parametrize("compute", ["f32", "bf16"])
def test_a_gpus_step_is_the_cpus(mask: str, compute: str):
    """What decoding for a GPU runs, loops written out and all operands late, run on this machine."""
    text = SPEC.replace("MASK", mask).replace("COMPUTE", compute)
    here, there = tfc.compile(text, target="cpu"), tfc.compile(text, target="h200", implementation="xla")
    params = here.init(jax.random.key(0))
    packed = here.pack(params)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 23, (2, 9)).astype(np.int32)
    segment = np.sort(rng.integers(0, 2, (2, 9))).astype(np.int32)
    one, other = here.init_cache(2, 70), there.init_cache(2, 70)
    step = jax.jit(there.decoder.step)
    for cut in (slice(0, 5), slice(5, 6), slice(6, 9)):
        given = {"tokens": tokens[:, cut], "segment": segment[:, cut]}
        want, one = here.decode(packed, one, **given)
        (got,), other = step(packed, other, given, None)
        tolerance = 1e-5 if compute == "f32" else 2e-2  # bf16 has eight bits; sums are of other orders
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * float(jnp.abs(want).max()))
    for name, kept in one.arrays.items():
        np.testing.assert_allclose(other.arrays[name], kept, rtol=0, atol=tolerance * float(jnp.abs(kept).max()))
