"""Models with inputs that are given once, an encoder's text: what is made of them is kept, for decode and generate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc.decoding import Cache
from tfc.diagnostics import TfcError
from tfc.model import Model

SPEC = """tfm 1
attention look { heads = 2 }

model translator(tokens: int[B, T], source: int[B, S], sizes: int[B] = S) {
  embed words = embed { vocab = 11   width = 8   init = normal(1) }
  real[b, s: S] = s < sizes[b]
  memory = tag(look@read(words(source), mask = yes), real = real)
  x = words(tokens)
  repeat 2 as layer {
    x = x + look@self(rms@first(x), mask = causal)
    x = x + look@cross(rms@second(x), memory, mask = k.real)
  }
  return linear@head(x, 11)
}
"""
B, T, S = 2, 6, 5
RNG = np.random.default_rng(0)
TOKENS, SOURCE = (RNG.integers(0, 11, (B, n)).astype(np.int32) for n in (T, S))
SIZES = np.array([5, 2])


@pytest.fixture(scope="module")
def model() -> Model:
    return tfc.compile(SPEC, target="cpu")


@pytest.fixture(scope="module")
def params(model: Model) -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), model.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def want(model: Model, params: Any) -> Any:
    return np.asarray(model(params, TOKENS, SOURCE, SIZES))


def complaint(code: str, call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(TfcError) as caught:
        call(*args, **named)
    assert {d.code for d in caught.value.diagnostics} == {code}
    return str(caught.value)


def close(got: Any, want: Any) -> None:
    """float32 along other orders of summation: the scores are of size 10."""
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_given_once_or_with_each_call(model: Model, params: Any, want: Any):
    kept = model.init_cache(B, T, params=params, source=SOURCE, sizes=SIZES)
    assert sorted(x.shape for x in kept.memory.values()) == [(2, B, S, 2, 4), (2, B, S, 2, 4), (B, S)]
    again = jax.tree.unflatten(jax.tree.structure(kept), jax.tree.leaves(kept))
    assert isinstance(again, Cache) and again.memory.keys() == kept.memory.keys()
    each = model.init_cache(B, T)
    assert not each.memory
    for cut in (slice(0, 3), slice(3, 5), slice(5, 6)):
        y, kept = model.decode(params, kept, TOKENS[:, cut])
        close(y, want[:, cut])
        y, each = model.decode(params, each, TOKENS[:, cut], SOURCE, SIZES)
        close(y, want[:, cut])


def test_generated_tokens_are_those_of_whole_passes(model: Model, params: Any):
    found = model.generate(params, [[3], [3, 7]], steps=5, progress=False, source=SOURCE, sizes=SIZES)
    packed = model.pack(params)
    for row, prompt in enumerate(([3], [3, 7])):
        text = [*prompt, *found[row].tolist()]
        padded = np.array([text + [0] * (7 - len(text))] * B)
        scores = np.asarray(model(packed, padded, SOURCE[[row] * B], SIZES[[row] * B]))[0]
        assert found[row].tolist() == scores[len(prompt) - 1 : len(text) - 1].argmax(-1).tolist()


def test_each_row_has_its_own_source(model: Model, params: Any):
    """Not a vacuous memory: sources, and how much of them counts, decide what is written."""
    base = model.generate(params, [[3], [3]], steps=6, progress=False, source=SOURCE)
    turned = model.generate(params, [[3], [3]], steps=6, progress=False, source=SOURCE[::-1])
    np.testing.assert_array_equal(turned, base[::-1])
    assert not np.array_equal(base, turned)


def test_what_does_not_fit_is_refused(model: Model, params: Any):
    kept = model.init_cache(B, T, params=params, source=SOURCE)
    assert "depends on parameters" in complaint("E708", model.init_cache, B, T, source=SOURCE)
    assert "2 rows of `source` for 3 rows" in complaint("E708", model.init_cache, 3, T, params=params, source=SOURCE)
    assert "lacks its argument `source`" in complaint("E701", model.init_cache, B, T, params=params, sizes=SIZES)
    assert "no argument `tokens`" in complaint(
        "E701", model.init_cache, B, T, params=params, source=SOURCE, tokens=TOKENS
    )
    assert "0..10" in complaint("E704", model.init_cache, B, T, params=params, source=SOURCE + 11)
    assert "no argument `source`" in complaint("E701", model.decode, params, kept, TOKENS, source=SOURCE)
    assert "lacks its argument `source`" in complaint("E701", model.generate, params, [[1], [2]])
    assert "2 rows of `source` for 1 rows" in complaint("E708", model.generate, params, [[1]], source=SOURCE)
    assert "0..10" in complaint("E704", model.generate, params, [[1], [2]], source=SOURCE + 11)


def test_what_is_given_with_each_token_is_no_memory():
    text = SPEC.replace("sizes: int[B] = S", "sizes: int[B] = S, place: int[B, T] = 0").replace(
        "  x = words(tokens)\n", "  x = words(tokens) + words(place)\n"
    )
    model = tfc.compile(text, target="cpu")
    said = complaint("E701", model.generate, {}, [[1], [2]], source=SOURCE, place=TOKENS)
    assert "takes `place` with each token" in said
