"""Statistics of values inside a model: Gram matrices and sampled rows, over batches, without padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc.calibration import Gram, Rows, statistics
from tfc.passes.observe import attentions, linear_inputs

SPEC = """tfm 1

let compute = f32

default precision { params = f32   compute = compute   reduce = f32 }

model m(tokens: int[B, T], lengths: int[B] = T) {
  embed words = embed { vocab = 9   width = 6 }
  x = words(tokens)
  real[b, t] = t < lengths[b]
  x = tag(x, real = real)
  repeat 2 as layer { x = x + attention@look(x, heads = 2, mask = k.real) }
  return linear@head(x, 3)
}
"""


@pytest.fixture(scope="module")
def model():
    return tfc.compile(SPEC, "cpu")


@pytest.fixture(scope="module")
def params(model):
    return jax.tree.map(lambda x: 20 * x, model.init(jax.random.key(0)))


def batches(count=3):
    rng = np.random.default_rng(0)
    return [{"tokens": rng.integers(0, 9, (2, 4)), "lengths": np.array([4, 2])} for _ in range(count)]


def real(given):
    return np.arange(4)[None] < np.asarray(given["lengths"])[:, None]


def test_a_gram_is_the_sum_over_real_tokens(model, params):
    """Of what the first layer reads: the rows of the table."""
    found = statistics(model, params, batches(), linear_inputs(), Gram(), real=real)
    assert found["head.weight"].gram.shape == (6, 6) and found["layer.look.q.weight"].gram.shape == (2, 6, 6)
    rows = np.concatenate([np.asarray(params["words"]["weight"])[b["tokens"]][real(b)] for b in batches()])
    gram = found["layer.look.q.weight"]
    np.testing.assert_allclose(gram.gram[0], rows.T @ rows, rtol=1e-4)
    assert gram.count == len(rows) == 18
    whole = statistics(model, params, batches(), linear_inputs(), Gram())
    assert whole["head.weight"].count == 24 and gram.gram.dtype == np.float64


def test_rows_are_drawn_tokens_in_pairs(model, params):
    """All rows where they fit; else so many different ones, the same tokens for queries and keys."""
    all_of = statistics(model, params, batches(), attentions(), Rows(100), real=real)
    queries, keys = all_of["layer.look.queries"], all_of["layer.look.keys"]
    assert queries.shape == keys.shape == (2, 18, 2, 3)
    x = np.asarray(params["words"]["weight"])
    sides = [x @ np.asarray(params["layer"]["look"][n]["weight"][0]) for n in "qk"]
    ids = [np.argmin(np.abs(table[None] - got[0].reshape(18, 1, 6)).sum(-1), 1) for table, got in zip(sides, (queries, keys), strict=True)]  # fmt: skip  # noqa: E501
    np.testing.assert_array_equal(ids[0], ids[1])
    true = np.concatenate([b["tokens"][real(b)] for b in batches()])
    np.testing.assert_array_equal(np.sort(ids[0]), np.sort(true))
    some = statistics(model, params, batches(), attentions(), Rows(5), real=real)["layer.look.keys"]
    assert some.shape == (2, 5, 2, 3)
    other = statistics(model, params, batches(), attentions(), Rows(5), real=real, key=jax.random.key(1))
    again = statistics(model, params, batches(), attentions(), Rows(5), real=real)["layer.look.keys"]
    np.testing.assert_array_equal(some, again)
    assert np.any(other["layer.look.keys"] != some)


def test_every_token_is_as_likely_to_be_drawn():
    """Over 300 keys, 3 of 9 rows that come in two batches: each row's count within 4 deviations of the mean."""
    rows, part = Rows(3), jax.jit(lambda x, key: Rows(3).part(x, 0, None, key))
    counts = np.zeros(9)
    x = jnp.arange(9.0)[None, :, None]
    for seed in range(300):
        state = None
        for n, batch in enumerate((x[:, :5], x[:, 5:])):
            state = rows.merge(state, jax.device_get(part(batch, jax.random.fold_in(jax.random.key(seed), n))))
        assert state is not None
        counts[rows.finish(state, 0)[:, 0].astype(int)] += 1
    assert counts.sum() == 900 and np.all(np.abs(counts - 100) < 4 * np.sqrt(300 * (1 / 3) * (2 / 3)))


def test_it_runs_in_the_models_own_precision(params):
    narrow = tfc.compile(SPEC, "cpu", compute="bf16")
    found = statistics(narrow, params, batches(1), attentions(), Rows(4))
    assert found["layer.look.queries"].dtype == jnp.bfloat16


def test_packed_parameters_serve_too(model, params):
    plain = statistics(model, params, batches(1), linear_inputs(), Gram())
    packed = statistics(model, model.pack(params), batches(1), linear_inputs(), Gram())
    np.testing.assert_array_equal(plain["head.weight"].gram, packed["head.weight"].gram)


def test_what_cannot_be_watched_is_refused(model, params):
    with pytest.raises(ValueError, match="nothing to watch"):
        statistics(model, params, batches(), linear_inputs(lambda path: False), Gram())
    with pytest.raises(ValueError, match="no batch"):
        statistics(model, params, [], linear_inputs(), Gram())
    with pytest.raises(tfc.TfcError, match=r"outside 0\.\.8"):
        statistics(model, params, [{"tokens": np.full((1, 2), 9)}], linear_inputs(), Gram())
    with pytest.raises(tfc.TfcError, match="missing"):
        statistics(model, {"words": params["words"]}, batches(), linear_inputs(), Gram())
