"""Factorized programs: exact at full rank, near below it, what is held back and why."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.reference.program import evaluate
from tfc.ir.ops import Linear
from tfc.ir.program import Program
from tfc.ir.text import parse
from tfc.ir.verify import verify
from tfc.params.apply import pack, unpack
from tfc.passes import pipeline
from tfc.passes.base import Contract
from tfc.passes.factorize import Factorize

TEXT = """program m(%x: f32[B, 6]) {
  %first.weight: f32[6, 8] = param first.weight normal(1)
  %first.bias: f32[8] = param first.bias normal(1)
  %tied: f32[8, 8] = param tied normal(1)
  %kept: f32[8, 8] = param kept normal(1) as int8(per=tensor)
  %y: f32[B, 8] = linear %x, %first.weight, %first.bias
  %y_2: f32[B, 8] = repeat(count=3, label=layer, carries=1) %y
    program layer(%layer: int[], %y: f32[B, 8]) {
      %weight: f32[8, 8] = param layer.weight normal(1) frozen
      %z: f32[B, 8] = linear %y, %weight
      return %z
    }
  %a: f32[B, 8] = linear %y_2, %tied
  %b: f32[B, 8] = linear %a, %tied
  %c: f32[B, 8] = linear %b, %kept
  return %c
}
"""


@pytest.fixture(scope="module")
def program() -> Program:
    made = parse(TEXT)
    verify(made)
    return made


def values(program: Program) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {s.path: jnp.asarray(rng.normal(size=s.type.ints) / 3, jnp.float32) for s in program.stored()}


def result(program: Program, params: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)), jnp.float32)
    return np.asarray(evaluate(program.bind({"B": 5}), params, {"x": x}, jnp.float32)[0])


@pytest.mark.parametrize("rank", [8, 64, 1.0])
def test_full_rank_is_the_same_to_rounding(program: Program, rank: float) -> None:
    done, params = Factorize(rank)(program), values(program)
    verify(done.program)
    packed = pack(done.map, params)
    np.testing.assert_allclose(result(done.program, packed), result(program, params), rtol=1e-4, atol=1e-5)
    back = unpack(done.map, packed)
    for path, x in params.items():
        np.testing.assert_allclose(back[path], x, atol=1e-5, err_msg=path)


def test_nearer_with_every_rank(program: Program) -> None:
    params = values(program)
    distances = []
    for rank in (1, 2, 4, 6, 8):
        done = Factorize(rank, names=("first.weight",))(program)
        packed = pack(done.map, params)
        kept = packed["first.weight.left"] @ packed["first.weight.right"]
        distances.append(float(jnp.linalg.norm(kept - params["first.weight"])))
    assert distances == sorted(distances, reverse=True) and distances[0] > 1 and distances[-1] < 1e-5


def test_what_it_makes(program: Program) -> None:
    done = Factorize(0.5)(program)
    assert Factorize.contract is Contract.APPROXIMATE
    stored = {s.path: s for s in done.program.stored()}
    assert stored["first.weight.left"].type.shape == (6, 3) and stored["first.weight.right"].type.shape == (3, 8)
    assert stored["layer.weight.left"].type.shape == (3, 8, 4) and not stored["layer.weight.right"].trained
    assert list(stored)[:3] == ["first.weight.left", "first.weight.right", "first.bias"]
    body = next(b for _, b in done.program.bodies())
    assert [len(e.args) for e in done.program.eqns if isinstance(e.op, Linear)][:2] == [2, 3]
    assert sum(isinstance(e.op, Linear) for e in body.eqns) == 2
    assert done.map.removed == {"first.weight", "layer.weight"}
    assert pipeline.run(program, (Factorize(0.5), *pipeline.DEFAULT)).program is not program


def test_where_it_holds_back(program: Program) -> None:
    done = Factorize(2)(program, frozenset(["factorize:first.weight"]))
    held = {note.site: note.message for note in done.notes if note.held}
    assert held["factorize:first.weight"] == "asked to"
    assert "another reader" in held["factorize:tied"] and "kept as int8" in held["factorize:kept"]
    assert done.map.removed == {"layer.weight"}
    taken = parse(TEXT.replace("param tied ", "param first.weight.left "))
    notes = {n.site: n.message for n in Factorize(2)(taken).notes}
    assert "already" in notes["factorize:first.weight"]


def test_names_choose_and_ranks_that_save_nothing_are_told(program: Program) -> None:
    done = Factorize(6, names=("first.*",))(program)
    assert done.map.removed == {"first.weight"}
    (note,) = done.notes
    assert not note.held and "84 numbers of 48" in note.message


@pytest.mark.parametrize("rank", [0, -1, 0.0, 1.5, True])
def test_no_such_rank(program: Program, rank: float) -> None:
    with pytest.raises(ValueError, match="rank"):
        Factorize(rank)(program)


def test_no_such_fit(program: Program) -> None:
    with pytest.raises(ValueError, match="thin product"):
        Factorize(2, "gptq")(program)  # type: ignore[arg-type]
