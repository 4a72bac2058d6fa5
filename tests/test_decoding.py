"""Decoding and generation as a user calls them: against whole passes, what is refused, what is drawn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfc
from tfc.decoding import Cache
from tfc.diagnostics import TfcError
from tfc.generation import bucket, pick
from tfc.model import Model

SMALL = """tfm 1
let longest = 24, vocab = 23
attention look { heads = 4   kv_heads = 2   position = rope(100)   mask = causal and window(6) }

model small(tokens: int[B, T]) {
  embed words = embed { vocab = vocab   width = 16   init = normal(1) }
  x = learned_positions@place(words(tokens), longest)
  repeat 2 as layer {
    x = x + look(rms@before(x))
    x = x + causal_conv1d@conv(rms@mid(x), 3)
    x = x + retention_mixer@keep(rms@then(x), 2)
  }
  return linear@head(rms@last(x), vocab)
}
"""
B, T = 2, 9


@pytest.fixture(scope="module")
def model() -> Model:
    return tfc.compile(SMALL, target="cpu")


@pytest.fixture(scope="module")
def params(model: Model) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape) / 2, x.dtype), model.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def packed(model: Model, params: Any) -> Any:
    return model.pack(params)


@pytest.fixture(scope="module")
def tokens() -> Any:
    return np.random.default_rng(1).integers(0, 23, (B, T)).astype(np.int32)


@pytest.fixture(scope="module")
def want(model: Model, params: Any, tokens: Any) -> Any:
    return np.asarray(model(params, tokens))


def complaint(code: str, call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(TfcError) as caught:
        call(*args, **named)
    assert {d.code for d in caught.value.diagnostics} == {code}
    return str(caught.value)


def close(got: Any, want: Any) -> None:
    """float32 along other orders of summation: the scores are of size 10."""
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@given(cuts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=6), step=st.booleans())
@settings(max_examples=6)
def test_any_split_gives_what_one_call_gives(
    model: Model, packed: Any, tokens: Any, want: Any, cuts: list[tuple[int, int]], step: bool
):
    """Three tokens a call, of which drawn numbers count; then one at a time."""
    cache, length = model.init_cache(B, T), np.zeros(B, int)
    for counts in [*cuts, *[(1, 1)] * (3 if step else 0)]:
        new = 1 if step and counts == (1, 1) else 3
        count = np.minimum(counts, T - length)
        at = length[:, None] + np.arange(new)
        given = np.where(np.arange(new) < count[:, None], np.take_along_axis(tokens, np.minimum(at, T - 1), 1), 5)
        y, cache = model.decode(packed, cache, given, count=count)
        for b in range(B):
            close(np.asarray(y)[b, : count[b]], want[b, length[b] : length[b] + count[b]])
        length += count
    assert np.asarray(cache.length).tolist() == length.tolist()


def test_parameters_need_no_packing_and_arguments_have_names(
    model: Model, params: Any, packed: Any, tokens: Any, want: Any
):
    y, cache = model.decode(params, model.init_cache(B, 12), tokens=tokens)
    close(y, want)
    assert np.asarray(cache.length).tolist() == [T, T] and "2 rows of 12 tokens" in repr(cache)
    again, _ = jax.jit(model.decode)(packed, model.init_cache(B, 12), tokens)
    close(again, want)


def test_a_cache_is_a_pytree_and_is_taken_over(model: Model, packed: Any, tokens: Any):
    first = model.init_cache(B, T)
    leaves, structure = jax.tree.flatten(first)
    assert isinstance(jax.tree.unflatten(structure, leaves), Cache) and all(not np.any(x) for x in leaves)
    _, after = model.decode(packed, first, tokens[:, :3])
    assert "go on with the cache that decode gave back" in complaint("E708", model.decode, packed, first, tokens[:, :3])
    y, _ = model.decode(packed, jax.tree.map(jnp.copy, after), tokens[:, 3:6])
    z, _ = model.decode(packed, after, tokens[:, 3:6])
    np.testing.assert_array_equal(y, z)


def test_keys_and_values_may_be_kept_in_less(model: Model, packed: Any, tokens: Any, want: Any):
    """bfloat16 has 8 bits: its rounding of keys and values moves scores by less than a hundredth of their size."""
    cache = model.init_cache(B, T, jnp.bfloat16)
    kinds = {name: x.dtype for name, x in cache.arrays.items()}
    assert {kinds[n] for n in kinds if n.endswith((".k", ".v"))} == {jnp.dtype(jnp.bfloat16)}
    assert {kinds[n] for n in kinds if not n.endswith((".k", ".v"))} == {jnp.dtype(jnp.float32)}
    y, _ = model.decode(packed, cache, tokens)
    off = np.abs(np.asarray(y) - want).max() / np.abs(want).max()
    assert 0 < off < 2e-2
    assert "int32" in complaint("E708", model.init_cache, 1, 2, jnp.int32)


def test_what_does_not_fit_is_refused(model: Model, packed: Any, tokens: Any):
    cache = model.init_cache(B, 8)
    assert "room for 8; 9 more do not fit" in complaint("E708", model.decode, packed, cache, tokens)
    assert "1 rows of 9 tokens" in complaint("E708", model.decode, packed, cache, tokens[:1])
    assert "a cache first" in complaint("E708", model.decode, packed, tokens, tokens)
    assert "[4, 1]" in complaint("E705", model.decode, packed, cache, tokens[:, :3], count=[4, 1])
    assert "shape [3]" in complaint("E702", model.decode, packed, cache, tokens[:, :3], count=[1, 1, 1])
    assert "0..22" in complaint("E704", model.decode, packed, cache, tokens[:, :3] + 23)
    assert "places" in complaint("E701", model.decode, packed, cache, tokens, places=tokens)
    assert "row 24 of `place.weight`" in complaint("E707", model.init_cache, 1, 25)
    assert "0 rows" in complaint("E708", model.init_cache, 0, 3)
    _, cache = model.decode(packed, cache, tokens[:, :6], count=[6, 2])
    _, cache = model.decode(packed, cache, tokens[:, :6], count=[2, 6])  # as long as no row overflows
    assert "row 0 of the cache has 8 tokens" in complaint("E708", model.decode, packed, cache, tokens[:, :1])


def test_without_room_under_a_trace_results_are_nan(model: Model, packed: Any, tokens: Any):
    y, after = jax.jit(lambda c, n: model.decode(packed, c, tokens, count=n))(model.init_cache(B, 7), jnp.array([9, 7]))
    assert np.all(np.isnan(y[0])) and np.all(np.isfinite(y[1, :7]))
    assert np.asarray(after.length).tolist() == [9, 7]


def test_a_model_that_looks_ahead_is_refused_with_its_place():
    ahead = tfc.compile(SMALL.replace("mask = causal and window(6)", "mask = window(6)"), target="cpu")
    for call in (lambda: ahead.init_cache(1, 4), lambda: ahead.generate({}, [[1]])):
        assert "nothing proves that its mask `abs(q - k) < 6`" in complaint("E816", call)


# --- generation


def greedy(model: Model, params: Any, prompt: list[int], steps: int) -> list[int]:
    """By a whole pass for each token, the rest of a fixed length filled up with zeros."""
    text = list(prompt)
    for _ in range(steps):
        whole = np.zeros((1, 20), np.int32)
        whole[0, : len(text)] = text
        text.append(int(np.argmax(np.asarray(model(params, whole))[0, len(text) - 1])))
    return text[len(prompt) :]


PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]


@pytest.fixture(scope="module")
def said(model: Model, params: Any) -> list[list[int]]:
    return [greedy(model, params, p, 8) for p in PROMPTS]


def test_greedy_takes_what_whole_passes_find_likeliest(model: Model, packed: Any, said: list[list[int]]):
    found = model.generate(packed, PROMPTS, steps=8, progress=False)
    assert found.dtype == np.int32 and found.tolist() == said
    padded = np.array([[*p, *[7] * (6 - len(p))] for p in PROMPTS])
    again = model.generate(packed, padded, 8, lengths=[len(p) for p in PROMPTS])
    assert again.tolist() == said
    key = jax.random.key(0)
    assert model.generate(packed, PROMPTS, 8, temperature=0.5, top_k=1, key=key).tolist() == said
    assert model.generate(packed, PROMPTS, 8, temperature=0.5, top_p=1e-6, key=key).tolist() == said


def test_a_row_ends_where_it_stops(model: Model, packed: Any, said: list[list[int]]):
    stop = said[0][2]
    found = model.generate(packed, PROMPTS[:1], 8, stop=stop)
    assert found.tolist() == [said[0][: said[0].index(stop) + 1]]
    rows = model.generate(packed, PROMPTS, 8, stop=[stop]).tolist()
    for row, full in zip(rows, said, strict=True):
        end = full.index(stop) + 1 if stop in full else len(full)
        assert row[:end] == full[:end] and set(row[end:]) <= {stop}


def test_draws_follow_the_key_and_not_the_loops(model: Model, packed: Any, monkeypatch: pytest.MonkeyPatch):
    drawn = [model.generate(packed, [[1, 2]], 7, temperature=1.0, key=jax.random.key(k)).tolist() for k in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    monkeypatch.setattr("tfc.generation.CHUNK", 3)
    other = tfc.compile(SMALL, target="cpu")
    assert other.generate(packed, [[1, 2]], 7, temperature=1.0, key=jax.random.key(0)).tolist() == drawn[0]


def test_generation_fills_a_model_to_its_last_position(model: Model, packed: Any):
    """24 positions: 20 of a prompt (a bucket of 24) and 5 more, the last of which needs none."""
    found = model.generate(packed, [[1] * 20], 5)
    assert found.shape == (1, 5)
    assert "place.weight" in complaint("E707", model.generate, packed, [[1] * 20], 6)


def test_prompts_and_settings_that_mean_nothing(model: Model, packed: Any):
    assert "without a key" in complaint("E705", model.generate, packed, [[1]], temperature=1.0)
    assert "top_p = 2" in complaint("E705", model.generate, packed, [[1]], top_p=2)
    assert "steps = 0" in complaint("E705", model.generate, packed, [[1]], 0)
    assert "a token at least" in complaint("E706", model.generate, packed, [[]])
    assert "[3]" in complaint("E703", model.generate, packed, [1, 2, 3])
    assert "`lengths` is [3]" in complaint("E705", model.generate, packed, [[1, 2]], lengths=np.array([3]))
    assert "outside 0..22" in complaint("E704", model.generate, packed, [[23]])
    text = SMALL.replace("return linear@head(rms@last(x), vocab)", "m[b, t] = sum[c](x[b, t, c])\n  return m")
    assert "no score of each next token" in complaint("E723", tfc.compile(text, target="cpu").generate, packed, [[1]])


def test_buckets_are_powers_of_two_and_halves_between():
    assert sorted({bucket(n) for n in range(1, 100)}) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    assert all(n <= bucket(n) < 1.5 * n or n < 3 for n in range(1, 5000))


SCORES = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))


@pytest.mark.parametrize(
    ("top_k", "top_p", "left"),
    [
        (None, None, [0.4, 0.3, 0.2, 0.1]),
        (2, None, [0.4, 0.3, 0, 0]),
        (None, 0.65, [0.4, 0.3, 0, 0]),
        (None, 0.75, [0.4, 0.3, 0.2, 0]),
        (3, 0.4, [0.4, 0, 0, 0]),
        (9, 1.0, [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_what_is_drawn_has_its_probability(top_k: int | None, top_p: float | None, left: list[float]):
    """Of 4000 draws, within four standard deviations."""
    many = jnp.broadcast_to(SCORES, (4000, 4))
    drawn = np.asarray(pick(many, jax.random.key(5), 1.0, top_k, top_p))
    share = np.bincount(drawn, minlength=4) / 4000
    wanted = np.array(left) / sum(left)
    assert np.all(np.abs(share - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / 4000))


def test_temperature_sharpens():
    many = jnp.broadcast_to(SCORES, (4000, 4))
    share = np.bincount(np.asarray(pick(many, jax.random.key(5), 0.5, None, None)), minlength=4) / 4000
    wanted = np.array([16, 9, 4, 1]) / 30
    assert np.all(np.abs(share - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / 4000))


def test_progress_is_shown_on_a_terminal_only(
    model: Model, packed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model.generate(packed, [[1]], 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    model.generate(packed, [[1]], 2)
    assert "generating" in capsys.readouterr().err
