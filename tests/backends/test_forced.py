"""A kernel asked for by name that cannot serve: every reason of every equation, each with its place and its edit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import tfc
from tfc.backends import emit as emitting
from tfc.backends.emit import emit
from tfc.diagnostics import TfcError
from tfc.front import front
from tfc.ir.text import parse
from tfc.targets import resolve

FORCED = Path(__file__).parents[1] / "golden" / "forced"
SPEC = FORCED / "two_attentions.tfm"
LENGTHS = {"B": 2, "T": 128}
H200 = resolve("h200")


def said(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(TfcError) as caught:
        call(*args)
    assert {d.code for d in caught.value.diagnostics} == {"E812"}
    return str(caught.value).replace(str(FORCED), "golden/forced")


def test_every_reason_of_every_equation_is_said(golden: Callable[[str, str], None]) -> None:
    """Three turns of a loop say theirs once."""
    golden("forced/two_attentions.txt", said(emit(front(SPEC).result.program, H200, "pallas_gpu").plan, LENGTHS))


def test_a_plan_a_report_and_a_call_say_the_same() -> None:
    model = tfc.compile(SPEC, target="h200", implementation="pallas_gpu")
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 128, 96), jnp.float32)
    plan = said(emit(model.program, H200, "pallas_gpu").plan, LENGTHS)
    assert said(model.explain) == plan
    assert said(lambda: jax.eval_shape(model._jitted, params, {"x": x})) == plan


def test_the_edits_that_it_names_serve() -> None:
    """Applied to the spec, by its own `let`s; the one without an edit is the weight that has no form."""
    sets = {"compute": "bf16", "size": "32", "bent": "yes", "plain": "yes"}
    rows = emit(front(SPEC, sets).result.program, H200, "pallas_gpu").plan(LENGTHS)
    assert [r.kernel for r in rows if r.op == "attention"] == ["pallas_gpu"] * 2
    text = said(emit(front(SPEC, {**sets, "plain": "no"}).result.program, H200, "pallas_gpu").plan, LENGTHS)
    assert text.count("error") == 1 and "`erf` has no form" in text  # of the equation that is served nothing is said


def test_an_equation_without_a_text_is_named_by_its_loops_and_its_value() -> None:
    program = parse(
        """
program deep(%x: f32[B, T, 4, 24]) {
  %y: f32[B, T, 4, 24] = repeat(count=2, label=layer, carries=1) %x
    program layer(%i: int[], %h: f32[B, T, 4, 24]) {
      %out: f32[B, T, 4, 24], %lse: f32[B, 4, T] = attention(scale=0.5) %h, %h, %h
      return %out
    }
  return %y
}"""
    )
    text = said(emit(program, H200, "pallas_gpu").plan, LENGTHS)
    assert "the attention `layer/%out` on h200: computes in bf16" in text and "heads of 32 instead of 24" in text


def test_other_implementations_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernel is asked for by name nothing is said, and nothing looked for."""
    monkeypatch.setattr(emitting, "_refused", lambda *_: pytest.fail("looked for refusals"))
    assert emit(front(SPEC).result.program, H200).plan(LENGTHS)
