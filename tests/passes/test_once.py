"""Decoding forms cut in two: what other inputs alone decide is computed once, and a step takes it."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.kernel import DTYPES
from tfc.backends.reference.program import evaluate
from tfc.front import front
from tfc.ir.ops import Attention, Repeat, Take
from tfc.ir.program import Program
from tfc.ir.text import parse, show
from tfc.ir.types import DType
from tfc.ir.verify import verify
from tfc.params import apply
from tfc.passes.decode import Decode, given_once, kept, tokens_of
from tfc.passes.decoding.once import Once, once
from tfc.passes.unroll import Unroll

SPEC = """tfm 1
let width = 8
attention look {{ heads = 2 }}

block read(x) {{
  repeat 2 as layer {{ x = x + look(rms@before(x), mask = k.real) }}
  return x
}}

model translator(tokens: int[B, T], source: int[B, S], sizes: int[B] = S) {{
  embed words = embed {{ vocab = 11   width = width   init = normal(1) }}
  real[b, s: S] = s < sizes[b]
  memory = read(tag(words(source), real = real))
  x = words(tokens)
{body}
  return unembed(x, words)
}}
"""
FLAT = """  repeat 3 as layer {
    x = x + look@self(rms@first(x), mask = causal)
    x = x + look@cross(rms@second(x), memory, mask = k.real)
  }"""
NESTED = f"""  repeat 2 as pair {{
    x = x + look@outer(x, memory, mask = k.real)
  {FLAT}
  }}"""
CARRIED = """  y = x
  repeat 2 as layer {
    y = memory_mean(memory) + x
    x = x + look@self(rms@first(x + y), mask = causal)
  }"""
MEAN = """
block memory_mean(memory) {
  y[b, t: 1, c] = mean[s](memory[b, s, c])
  return y
}
"""


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def translator(body: str) -> Program:
    return front(SPEC.format(body=body).replace("\nmodel", f"{MEAN}\nmodel")).program


def cut(program: Program) -> tuple[Program, Once]:
    form = Decode()(program).program
    return form, once(form, given_once(program))


def drawn(program: Program) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {s.path: jnp.asarray(rng.standard_normal(s.type.ints) / 2) for s in program.stored()}


LENGTHS = {"B": 2, "T": 3, "S": 5, "L": 7}


def inputs(form: Program) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    given: dict[str, Any] = {}
    for v in (i.value for i in form.bind(LENGTHS).inputs):
        real = v.type.dtype.floating
        given[v.name] = rng.standard_normal(v.type.ints) if real else rng.integers(0, 11, v.type.ints)
    given |= {"sizes": np.array([5, 2]), "cache.length": np.array([2, 0]), "cache.count": np.array([3, 1])}
    return {k: jnp.asarray(x) for k, x in given.items()}


@pytest.mark.parametrize("body", [FLAT, NESTED, CARRIED], ids=["flat", "nested", "mean"])
def test_a_step_of_what_was_prepared_is_the_form(body: str):
    program = translator(body)
    form, parts = cut(program)
    for part in (parts.prepare, parts.step):
        verify(part)
        assert parse(show(part)) == part
    params, given = drawn(program), inputs(form)
    want = evaluate(form.bind(LENGTHS), params, given, jnp.float64)
    read = {i.value.name: given[i.value.name] for i in parts.prepare.inputs}
    memory = evaluate(parts.prepare.bind(LENGTHS), params, read, jnp.float64)
    names = {v.name for v in parts.memory}
    taken = {k: x for k, x in given.items() if k not in read} | dict(
        zip((v.name for v in parts.memory), memory, strict=True)
    )
    got = evaluate(parts.step.bind(LENGTHS), params, taken, jnp.float64)
    assert names and all(name.startswith("memory.") for name in names)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, y)


def ops(program: Program, kind: type) -> int:
    inner = sum(ops(body, kind) * int(getattr(eqn.op, "count", 1)) for eqn, body in program.bodies())
    return inner + sum(isinstance(e.op, kind) for e in program.eqns)


def test_the_step_neither_reads_the_source_nor_computes_with_it():
    program = translator(NESTED)
    form, parts = cut(program)
    assert (ops(parts.prepare, Attention), ops(parts.step, Attention)) == (2, 2 * (1 + 3 * 2))
    assert ops(form, Attention) == 2 + ops(parts.step, Attention)
    assert (ops(form, Take), ops(parts.step, Take)) == (2, 1)
    assert {s.path.split(".")[0] for s in parts.step.stored()} == {"words", "pair"}
    names = {s.path for s in parts.step.stored()}
    assert "pair.layer.cross.q.weight" in names and not any(".cross.k" in n or ".cross.v" in n for n in names)
    assert not {"source", "sizes"} & {i.value.name for i in parts.step.inputs}
    assert [str(v) for v in kept(parts.step)] == [str(v) for v in kept(form)]
    stacks = {str(v.type) for v in parts.memory if v.name.startswith("memory.pair.layer.")}
    assert stacks == {"f32[2, 3, B, S, 2, 4]"}


def test_loops_of_what_is_kept_compute_nothing_else():
    _, parts = cut(translator(FLAT))
    loops = [e.op for e in parts.prepare.eqns if isinstance(e.op, Repeat)]
    assert [(op.carries, len(op.body.reports)) for op in loops] == [(1, 0), (0, 2)]


def test_which_input_has_the_tokens():
    """That of the result's tokens, wherever it stands; else the first with two axes."""
    program = translator(FLAT)
    turned: str = SPEC.format(body=FLAT).replace(
        "tokens: int[B, T], source: int[B, S]", "source: int[B, S], tokens: int[B, T]"
    )
    for p in (program, front(turned).program):
        tokens = tokens_of(p)
        assert tokens is not None and tokens.name == "tokens"
        assert given_once(p) == {"source", "sizes"}
    pooled = "tfm 1\nmodel m(x: real[B, T, 4], y: int[B, S]) { z[b, c] = mean[t](x[b, t, c])\n return z }\n"
    tokens = tokens_of(front(pooled).program)
    assert tokens is not None and tokens.name == "x"


def test_kinds_of_what_is_kept_are_those_that_were_computed():
    """A mask of the source is kept as a mask: no size but its own."""
    _, parts = cut(translator(FLAT))
    (real,) = [v for v in parts.memory if v.type.dtype is DType.BOOL]
    assert str(real.type) == "bool[B, S]" and DTYPES[real.type.dtype] is jnp.bool_


def test_a_step_can_be_written_out():
    """As decoding on a GPU does: rows of stacks are read by numbers, parameters of turns have paths of their own."""
    program = translator(FLAT)
    form, parts = cut(program)
    done = Unroll()(parts.step)
    verify(done.program)
    assert not any(isinstance(e.op, Repeat) for e in done.program.eqns)
    params, given = drawn(program), inputs(form)
    memory = {v.name: inputs(parts.step)[v.name] for v in parts.memory}
    taken = {i.value.name: given[i.value.name] for i in parts.step.inputs if i.value.name in given} | memory
    want = evaluate(parts.step.bind(LENGTHS), params, taken, jnp.float64)
    got = evaluate(done.program.bind(LENGTHS), apply.pack(done.map, params), taken, jnp.float64)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, y)
