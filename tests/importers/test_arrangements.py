"""Names maps that put axes in another order, reshape and move channels: what is read, and what lowering refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tfc.diagnostics import TfcError
from tfc.exporters.hf import export_hf
from tfc.front import front
from tfc.importers.hf import import_hf

SPEC = """tfm 1
let first = 2, width = 6, heads = 3
model m(x: real[B, T, width]) {{
  repeat first as early {{ x = x + linear@a(x, width) }}
  repeat 3 as layer {{
    x = x + linear@a(x, width)
    repeat [rms, rms] as part {{ x = part(x) }}
  }}
  return linear@head(x, 12)
}}
names hf {{
  "e.{{early}}" = early.a.weight
  "l.{{layer + first}}.a" = {a}
  "l.{{layer + first}}.{{part}}" = layer.part.part.scale
  "head" = {head}
  "b" = none
}}
"""
A = "transpose(reshape(roll(reshape(layer.a.weight, [width, heads, width // heads]), 1), [width, width]))"
HEAD = "transpose(reshape(head.weight, [2, heads, 12]), [2, 0, 1])"


def spec(a: str = A, head: str = HEAD) -> str:
    return SPEC.format(a=a, head=head)


def checkpoint() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"e.0": (6, 6), "e.1": (6, 6), "head": (12, 2, 3)}
    shapes |= {f"l.{n}.a": (6, 6) for n in (2, 3, 4)} | {f"l.{n}.{i}": (6,) for n in (2, 3, 4) for i in (0, 1)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_arrays_are_put_in_our_order_and_back(tmp_path: Path):
    lowered = front(spec())
    theirs = checkpoint()
    save_file(theirs, tmp_path / "model.safetensors")
    stored, names = lowered.lowered.program.stored(), lowered.lowered.names["hf"]
    ours = import_hf(tmp_path, stored, names)
    for turn in range(3):
        # their row is channel (head, c) of ours, c moved one place on within its head
        a = theirs[f"l.{turn + 2}.a"].reshape(3, 2, 6)[:, ::-1].reshape(6, 6).T
        np.testing.assert_array_equal(ours["layer.a.weight"][turn], a)
    for row in range(6):
        np.testing.assert_array_equal(ours["head.weight"][row], theirs["head"][:, row // 3, row % 3])
    export_hf(ours, tmp_path / "out", stored, names)
    again = import_hf(tmp_path / "out", stored, names)
    assert all(ours[k].tobytes() == again[k].tobytes() for k in ours)


def test_the_move_has_a_direction(tmp_path: Path):
    """Of three places the last two come first."""
    lowered = front(spec(a="roll(layer.a.weight, 2)")).lowered
    theirs = checkpoint()
    save_file(theirs, tmp_path / "model.safetensors")
    ours = import_hf(tmp_path, lowered.program.stored(), lowered.names["hf"])["layer.a.weight"][0]
    np.testing.assert_array_equal(theirs["l.2.a"][:, :2], ours[:, -2:])
    np.testing.assert_array_equal(theirs["l.2.a"][:, 2:], ours[:, :-2])


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("transpose(head.weight, [1, 2])", "`head.weight` has 2 axes, which [1, 2] does not put in order"),
        ("transpose(head.weight, [0, 0])", "does not put in order"),
        ("reshape(head.weight, [5, 12])", "has the shape [6, 12], which is not [5, 12] in another form"),
        ("reshape(head.weight, [-6, -12])", "not [-6, -12] in another form"),
        ("reshape(head.weight, 72)", "`reshape` takes a list of numbers, not the number 72"),
        ("roll(head.weight, [1])", "is a list"),
        ("reshape(none, [1])", "names no parameter"),
        ("concat(head.weight, reshape(head.weight, [12, 6]))", "joins the shapes [6, 12], [12, 6]"),
        ("flip(head.weight)", "`reshape(path, [4, 8])`"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(head: str, said: str):
    with pytest.raises(TfcError) as caught:
        front(spec(head=head))
    text = str(caught.value)
    assert said in text, text
    assert {d.code for d in caught.value.diagnostics} <= {"E402", "E612"}


def test_a_loop_goes_before_a_number_of_that_name():
    text = spec().replace("let first = 2", "let first = 2, layer = 7")
    names = front(text).lowered.names["hf"]
    assert {"l.2.a", "l.3.a", "l.4.a"} <= {r.theirs for r in names.rows(front(text).lowered.program.stored())}
