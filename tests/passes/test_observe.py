"""Observed programs: results as before, reports with the values that were asked for, stacked over loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc.backends.emit import emit
from tfc.front import front
from tfc.ir.verify import verify
from tfc.params.tree import flatten
from tfc.passes import pipeline
from tfc.passes.observe import attentions, keys_of, linear_inputs, observe

SPEC = """tfm 1

let width = 8

attention look { heads = 2   position = rope(100) }

model m(x: real[B, T, width]) {
  repeat 2 as outer {
    repeat 3 as inner { x = x + look(rms@before(x)) }
    x = linear@mix(x, width)
  }
  return linear@head(x, 5)
}
"""
ROUTED = """tfm 1

model m(x: real[B, T, 8]) {
  x = linear@enter(x, 8)
  return experts(x, 4, chosen = 2, expert = ffn { hidden = 16 })
}
"""


def run(program, params, inputs):
    out = emit(program, tfc.targets.resolve("cpu"))(params, inputs)
    return out[: len(program.results)], dict(zip([p for p, _ in program.reports], out[len(program.results) :]))  # noqa: B905


@pytest.fixture(scope="module")
def seen():
    """The observed program's results, reports by key, and the plain results."""
    model = tfc.compile(SPEC, "cpu")
    params = flatten(model.init(jax.random.key(0)))
    inputs = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)}

    def which(eqn, scope):
        yield from linear_inputs()(eqn, scope)
        yield from attentions()(eqn, scope)

    found = observe(model.lowered, which)
    verify(found.program)
    results, reports = run(found.program, params, inputs)
    return found, results, reports, run(model.lowered, params, inputs)[0], params, inputs


def test_the_function_stays(seen):
    np.testing.assert_array_equal(seen[1][0], seen[3][0])


def test_keys_and_shapes(seen):
    found, _, reports, *_ = seen
    by_key = {s.key: s for s in found.seen}
    place = "outer.inner.look"
    assert keys_of(found.seen) == tuple(by_key) and found.hidden == ()
    assert {f"{place}.{n}.weight" for n in ("q", "k", "v", "out")} < by_key.keys()
    assert by_key[f"{place}.queries"].repeats == (("outer", 2), ("inner", 3))
    for s in found.seen:
        turns = tuple(count for _, count in s.repeats)
        assert reports[s.report].shape == (*turns, *s.type.bind({"B": 2, "T": 5}).ints)
    # one value, one report: q, k and v read the same
    assert len({by_key[f"{place}.{n}.weight"].report for n in "qkv"}) == 1


def test_what_is_reported_is_what_is_read(seen):
    """The head's input by hand from its output; the keys are the projection of what the projection reads, rotated."""
    found, results, reports, _, params, _ = seen
    by_key = {s.key: reports[s.report] for s in found.seen}
    np.testing.assert_allclose(by_key["head.weight"] @ params["head.weight"], results[0], rtol=1e-5, atol=1e-6)
    inside = by_key["outer.inner.look.k.weight"]
    plain = jnp.einsum("abntc,abcd->abntd", inside, params["outer.inner.look.k.weight"]).reshape(2, 3, 2, 5, 2, 4)
    keys = by_key["outer.inner.look.keys"]
    np.testing.assert_allclose(keys[..., :1, :, :], plain[..., :1, :, :], rtol=1e-5, atol=1e-6)  # the first stays
    np.testing.assert_allclose(jnp.sum(keys**2, -1), jnp.sum(plain**2, -1), rtol=1e-4)


def test_passes_keep_the_reports(seen):
    found = seen[0]
    after = pipeline.run(found.program).program
    assert [p for p, _ in after.reports] == [p for p, _ in found.program.reports]


def test_what_is_routed_is_named():
    program = front(ROUTED).lowered.program
    found = observe(program, linear_inputs())
    assert "enter.weight" in keys_of(found.seen) and any("up" in key for key in found.hidden)


def test_nothing_chosen_changes_nothing():
    program = front(SPEC).lowered.program
    assert observe(program, linear_inputs(lambda path: False)).program is program


def test_keys_must_be_paths_and_mean_one_kind_of_value():
    program = front(SPEC).lowered.program
    with pytest.raises(ValueError, match="no path"):
        observe(program, lambda eqn, scope: [("a b", eqn.outs[0])])
    with pytest.raises(ValueError, match="different types"):
        observe(program, lambda eqn, scope: [("a", eqn.outs[0])])
