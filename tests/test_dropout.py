"""Models that drop: when, what, and that nothing else changes; element types of gradients; layers computed again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc.diagnostics import TfcError
from tfc.ir.ops import Repeat

SPEC = """
tfm 1
let drop = 0.25, layers = 2, compute = f32
default dropout { rate = drop }
default precision { params = f32   compute = compute   reduce = f32 }
model m(tokens: int[B, T]) {
  embed word = embed { vocab = 16   width = 8 }
  x = dropout(word(tokens))
  repeat layers as layer remat = REMAT {
    x = x + dropout(attention(rms(x), heads = 2, mask = causal, dropout = drop))
    x = x + ffn(rms(x), hidden = 64)
  }
  report size = mean(x)
  return unembed(rms(x), word)
}
"""
TOKENS = jnp.arange(12).reshape(2, 6)
KEY = jax.random.key(7)


def compiled(text: str = SPEC, remat: str = "none", **lets: Any) -> tfc.Model:
    return tfc.compile(text.replace("REMAT", remat), target="cpu", **lets)


@pytest.fixture(scope="module")
def model() -> tfc.Model:
    return compiled()


@pytest.fixture(scope="module")
def params(model: tfc.Model) -> Any:
    return jax.tree.map(lambda x: 20 * x if x.ndim > 1 else x, model.init(jax.random.key(0)))


def far(a: Any, b: Any) -> float:
    return float(jnp.abs(a - b).max())


def test_dropout_happens_with_a_key_alone(model: tfc.Model, params: Any):
    plain = model(params, TOKENS)
    np.testing.assert_array_equal(plain, compiled(drop=0)(params, TOKENS))
    one, again, other = (model(params, TOKENS, key=jax.random.key(n)) for n in (7, 7, 8))
    np.testing.assert_array_equal(one, again)
    assert far(one, plain) > 0.1 and far(one, other) > 0.1
    legacy = model(params, tokens=TOKENS, key=jax.random.PRNGKey(7))
    np.testing.assert_array_equal(one, legacy)


def test_it_is_the_reference_that_says_what_is_dropped(model: tfc.Model, params: Any):
    """Values and gradients, through loops, attention and embeddings; against the program before the passes."""
    other = tfc.compile(SPEC.replace("REMAT", "none"), target="cpu", implementation="reference", passes=())

    def loss(m: tfc.Model) -> Any:
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(m(p, TOKENS, key=KEY)))))(params)

    value, slopes = loss(model)
    wanted, steep = loss(other)
    np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4)
    for got, want in zip(jax.tree.leaves(slopes), jax.tree.leaves(steep), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-4 * float(jnp.abs(want).max()))


def test_the_mean_over_keys_is_what_is_kept(model: tfc.Model):
    """Of a model that is linear in what it drops, the mean over many keys is the result without a key."""
    text = "tfm 1\nmodel m(x: real[B, T, 64]) {\n  return dropout(x, 0.25)\n}\n"
    linear, x = compiled(text), jnp.ones((2, 8, 64))
    keys = jax.random.split(jax.random.key(0), 64)
    every = jax.vmap(lambda key: linear({}, x, key=key))(keys)
    assert set(np.unique(every).tolist()) == {0.0, float(np.float32(4 / 3))}
    assert abs(float(every.mean()) - 1) < 4 * (0.25 / 0.75 / every.size) ** 0.5
    np.testing.assert_array_equal(every[3], linear({}, x, key=keys[3]))


def test_turns_of_a_loop_drop_other_elements():
    text = """tfm 1
    model m(x: real[B, T, 32]) {
      repeat 3 as layer { x = dropout(x, 0.5) }
      return x
    }
    """
    out = compiled(text)({}, jnp.ones((4, 8, 32)), key=KEY)
    assert set(np.unique(out).tolist()) == {0.0, 8.0}
    assert abs(float((out != 0).mean()) - 1 / 8) < 4 * (1 / 8 * 7 / 8 / out.size) ** 0.5  # one mask would keep 1/2


def test_packed_parameters_drop_the_same(model: tfc.Model, params: Any):
    np.testing.assert_array_equal(model(model.pack(params), TOKENS, key=KEY), model(params, TOKENS, key=KEY))
    text = """tfm 1
    model m(x: real[B, T, 8]) {
      y = dropout(rms(x), 0.5)
      return linear@a(y, 4) + linear@b(y, 4)
    }
    """
    held = compiled(text)  # the norm's scale is folded into the maps where no dropout stands between them
    p = held.init(jax.random.key(0))
    p["rms"]["scale"] = jnp.linspace(0.5, 2.0, 8)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 8)), jnp.float32)
    assert held.pack(p).arrays.keys() != {"a.weight", "b.weight", "rms.scale"}
    np.testing.assert_allclose(held(held.pack(p), x, key=KEY), held(p, x, key=KEY), rtol=0, atol=1e-5)
    np.testing.assert_allclose(held(held.pack(p), x), held(p, x), rtol=0, atol=1e-5)


def test_decoding_never_drops(model: tfc.Model, params: Any):
    plain = compiled(drop=0)
    prompt = np.asarray(TOKENS[:, :3])
    np.testing.assert_array_equal(
        model.generate(params, prompt, 4, progress=False), plain.generate(params, prompt, 4, progress=False)
    )
    logits, _ = model.decode(params, model.init_cache(2, 6), TOKENS)
    np.testing.assert_allclose(logits, model(params, TOKENS), rtol=0, atol=1e-5)


def test_reports_drop_too(model: tfc.Model, params: Any):
    (plain,), (dropped,) = (model.reports(params, TOKENS, key=k).values() for k in (None, KEY))
    assert far(plain, dropped) > 1e-3


def test_other_keys(model: tfc.Model, params: Any):
    plain = compiled(drop=0)
    np.testing.assert_array_equal(plain(params, TOKENS, key=KEY), plain(params, TOKENS))
    for wrong in (0, "seed", jax.random.split(KEY)):
        with pytest.raises(TfcError, match=r"E703\]: `key` is .*, not one key of jax.random"):
            model(params, TOKENS, key=wrong)
    named = compiled("tfm 1\nmodel m(x: real[B, 4], key: real[B, 4]) {\n  return x + key\n}\n")
    np.testing.assert_array_equal(named({}, jnp.ones((1, 4)), key=jnp.ones((1, 4))), np.full((1, 4), 2.0))


def test_a_kernel_that_cannot_drop_is_refused_with_a_key_alone():
    text = SPEC.replace("REMAT", "none").replace("width = 8", "width = 64")
    model = tfc.compile(text, target="h200", implementation="pallas_gpu", compute="bf16", drop=0.25)
    assert "pallas_gpu" in str(model.explain(B=2, T=64))
    with pytest.raises(TfcError, match="drops no attention weights, and this call has a key"):
        model.explain(dropping=True, B=2, T=64)
    chosen = str(tfc.compile(text, target="h200", compute="bf16").explain(dropping=True, B=2, T=64))
    assert "pallas_gpu for attention: drops no attention weights" in chosen


# --- element types


@pytest.mark.parametrize("compute", ["f32", "bf16"])
def test_gradients_have_the_parameters_type(compute: str):
    model = compiled(compute=compute)
    params = model.init(jax.random.key(0))
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(model(p, TOKENS, key=KEY).astype(jnp.float32) ** 2)))(params)
    assert {x.dtype.name for x in jax.tree.leaves(slopes)} == {"float32"}
    assert all(bool(jnp.isfinite(x).all()) and float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(slopes))


def test_gradients_of_bfloat16_parameters_are_bfloat16():
    model = compiled(SPEC.replace("params = f32", "params = bf16"), compute="bf16")
    params = model.init(jax.random.key(0))
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(model(p, TOKENS).astype(jnp.float32))))(params)
    assert {x.dtype.name for x in jax.tree.leaves(slopes)} == {"bfloat16"}


# --- computed again


def kept_bytes(model: tfc.Model, params: Any, key: Any) -> int:
    """What the forward pass leaves for the backward pass, beside the parameters themselves."""
    residuals = jax.eval_shape(lambda p: jax.vjp(lambda p: model(p, TOKENS, key=key), p)[1], params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))


def test_what_is_computed_again_is_the_same_and_keeps_less(params: Any):
    models = {remat: compiled(remat=remat) for remat in ("none", "full", "dots")}
    for remat, model in models.items():
        (loop,) = [e.op for e in model.program.eqns if isinstance(e.op, Repeat)]
        assert loop.remat == remat
    slopes = {
        remat: jax.jit(jax.grad(lambda p, m=m: jnp.sum(jnp.sin(m(p, TOKENS, key=KEY)))))(params)
        for remat, m in models.items()
    }
    for remat in ("full", "dots"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max())),
            slopes[remat], slopes["none"],
        )  # fmt: skip
    for key in (None, KEY):
        sizes = {remat: kept_bytes(m, params, key) for remat, m in models.items()}
        assert sizes["full"] < sizes["dots"] < sizes["none"]
        assert sizes["full"] < 0.5 * sizes["none"]
