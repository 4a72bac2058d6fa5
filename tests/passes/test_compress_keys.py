"""Attentions to fewer keys: the same at full length, means below it, and what is held back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.reference.program import evaluate
from tfc.front import front
from tfc.ir.program import Program
from tfc.ir.verify import verify
from tfc.params.apply import pack, unpack
from tfc.passes import pipeline
from tfc.passes.compress_keys import CompressKeys
from tfc.passes.rewrite import drop_unread

SPEC = """tfm 1

attention look { heads = 2   kv_heads = 1   SETTINGS }

model m(x: real[B, 6, 8], lengths: int[B] = 6) {
  real[b, t: 6] = t < lengths[b]
  x = tag(x, real = real)
  repeat 2 as layer { x = x + look(x) }
  return x
}
"""


def program(settings: str) -> Program:
    return front(SPEC.replace("SETTINGS", settings)).lowered.program


def values(program: Program) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {s.path: jnp.asarray(rng.normal(size=s.type.ints), jnp.float32) for s in program.stored()}


def result(program: Program, params: dict[str, jax.Array], lengths: tuple[int, ...] = (6, 6, 6)) -> Any:
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6, 8)), jnp.float32)
    inputs = {"x": x, "lengths": jnp.asarray(lengths, jnp.int32)}
    bound = program.bind({"B": 3})
    given = {i.value.name: inputs[i.value.name] for i in bound.inputs}
    return np.asarray(evaluate(bound, params, given, jnp.float32)[0])


@pytest.mark.parametrize("settings", ["", "mask = k.real", "score = softcap(3)", "weigh = p * p"])
def test_as_many_rows_as_keys_are_the_same(settings: str) -> None:
    """E = F = I: every key for itself; a mask that hides none does not change that."""
    before = program(settings)
    done, params = CompressKeys(6)(before), values(before)
    verify(done.program)
    assert not [n for n in done.notes if n.held] and done.map.forward.keys() == {
        "layer.look.key_rows", "layer.look.value_rows"
    }  # fmt: skip
    packed = pack(done.map, params)
    assert packed["layer.look.key_rows"].shape == (2, 6, 6)
    np.testing.assert_allclose(result(done.program, packed), result(before, params), rtol=1e-4, atol=1e-5)
    assert unpack(done.map, packed).keys() == params.keys()


def test_one_row_is_the_mean_of_the_values() -> None:
    """kk = 1: every query sees the mean; then so does attention whose keys are all alike."""
    before = program("")
    done, params = CompressKeys(1)(before), values(before)
    even = params | {"layer.look.k.weight": jnp.zeros_like(params["layer.look.k.weight"])}
    packed = pack(done.map, params)
    np.testing.assert_allclose(result(done.program, packed), result(before, even), rtol=1e-4, atol=1e-5)


def test_hidden_keys_are_zeros_before_they_are_summed() -> None:
    """What stands beyond a length changes nothing."""
    before = program("mask = k.real")
    done = CompressKeys(2)(before)
    packed = pack(done.map, values(before))
    bound, short = done.program.bind({"B": 3}), jnp.asarray([6, 3, 1], jnp.int32)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6, 8)), jnp.float32)
    other = jnp.where(jnp.arange(6)[None, :, None] < short[:, None, None], x, 9.0)
    ours, theirs = (evaluate(bound, packed, {"x": v, "lengths": short}, jnp.float32)[0] for v in (x, other))
    for row, n in enumerate((6, 3, 1)):
        np.testing.assert_allclose(ours[row, :n], theirs[row, :n], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("mask = causal", "every sum of keys holds every token"),
        ("mask = window(2)", "every sum of keys holds every token"),
        ("mask = causal and k.real", "every sum of keys holds every token"),
        ("score = s - abs(q - k)", "speaks of single keys"),
    ],
)
def test_what_speaks_of_single_keys_is_held_back(settings: str, why: str) -> None:
    before = program(settings)
    done = CompressKeys(3)(before)
    (note,) = done.notes
    assert note.held and note.site == "compress-keys:layer.look" and why in note.message
    assert done.program == drop_unread(before) and not done.map.forward


def test_lengths_and_choices() -> None:
    open = front(SPEC.replace("SETTINGS", "").replace("[B, 6, 8]", "[B, T, 8]").replace("t: 6", "t: T")).lowered.program
    (note,) = CompressKeys(3)(open).notes
    assert "known only when the model is called" in note.message
    (note,) = CompressKeys(7)(program("")).notes
    assert "fewer than 7" in note.message
    assert CompressKeys(3, names=("other.*",))(program("")).map.forward == {}
    (note,) = CompressKeys(3)(program(""), frozenset(["compress-keys:layer.look"])).notes
    assert note.message == "asked to"
    with pytest.raises(ValueError, match="at least one"):
        CompressKeys(0)(program(""))


def test_the_other_passes_take_it_up() -> None:
    """The shorter attention is fused like another."""
    result = pipeline.run(program("mask = k.real"), (CompressKeys(3), *pipeline.DEFAULT))
    body = next(b for _, b in result.program.bodies())
    assert [e.op.name for e in body.eqns].count("attention") == 1
