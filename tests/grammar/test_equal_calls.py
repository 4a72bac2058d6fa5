"""Calls like earlier ones are not lowered again: the program, its spans and its complaints are as if they were."""

from collections.abc import Iterator

import pytest

from tfc.diagnostics import TfcError
from tfc.grammar.lower import lower
from tfc.grammar.lowering import calls
from tfc.grammar.lowering.replay import Stretch
from tfc.grammar.parser import parse
from tfc.ir.program import Eqn, Program
from tfc.ir.text import show
from tfc.source import Source

HEAD = """tfm 1
attention far { heads = 2   mask = causal   position = rope(100) }
attention wide = far { heads = 4 }
ffn feed { hidden = 8   gate = silu }
param shared[8] = ones
block both(a: real[B, T, C], b: real[B, T, C]) { return linear@one(a, C) + linear@two(b * a, C) }
block reads(a: real[B, T, C]) { return linear(a * shared, C) }
block scaled(a: real[B, T, C], by) { return linear(a * by, C) }
block layer(x: real[B, T, C]) { x = x + far@look(rms@a(x))   return x + feed(rms@b(x)) }
model m(x: real[B, T, 8], y: real[B, T, 8]) {
"""

BODIES = {
    "layers": ["x = layer@l0(x)", "x = layer@l1(x)", "x = layer@l2(y)"],
    "parts": [f"x = x + {kind}@{kind}{n}(rms@{kind}n{n}(x))" for n in range(3) for kind in ("far", "feed")],
    "one for both": ["a = both@p(x, x)", "b = both@q(x, y)", "c = both@r(y, y)", "x = a + b + c"],
    "both for one": ["a = both@p(x, y)", "b = both@q(x, x)", "c = both@r(y, x)", "x = a + b + c"],
    "a parameter of the file": ["a = reads@p(x)", "b = reads@q(y)", "c = reads@r(shared + x)", "x = a + b + c"],
    "numbers": ["a = scaled@p(x, 2)", "b = scaled@q(x, 2.0)", "c = scaled@r(x, 2)", "x = a + b + c"],
    "numbers, and a tensor": ["a = scaled@p(x, 3)", "b = scaled@q(x, shared)", "c = scaled@r(x, y)", "x = a + b + c"],
    "other sizes": ["a = scaled@p(cut(x, 0, 4), 2)", "b = scaled@q(x, 2)", "c = scaled@r(x, 2)", "x = b + c"],
    "settings": ["a = far@p(x)", "b = wide@q(x)", "c = far@r(y)", "x = a + b + c"],
    "without labels": ["a = reads(x)", "b = reads(y)", "c = reads(x)", "x = a + b + c"],
    "within a loop": ["repeat 2 as turn {", "x = layer@l0(x)", "x = layer@l1(x)", "z = both@s(x, y)", "x = x + z", "}"],
    "a complaint": ["a = both@p(x, y)", "b = both@q(x, cut(y, 0, 4))", "c = both@r(x, cut(y, 0, 4))", "x = a + b + c"],
}


def told(body: list[str]) -> str:
    """The program with its spans, or every complaint."""
    module, found = parse(Source("<text>", HEAD + "\n".join(["", *body, "return x", "}", ""])))
    if module is None:
        return "\n".join(map(str, found))
    try:
        lowered = lower(module)
    except TfcError as error:
        return str(error)
    spans = [(e.span.source.name, e.span.start, e.span.end) if e.span else None for e in within(lowered.program)]
    return "\n".join([show(lowered.program), str(spans), *map(str, lowered.warnings)])


def within(program: Program) -> Iterator[Eqn]:
    yield from program.eqns
    for _, body in program.bodies():
        yield from within(body)


@pytest.mark.parametrize("what", BODIES)
def test_as_if_lowered_again(what: str, monkeypatch: pytest.MonkeyPatch):
    found = told(BODIES[what])
    with monkeypatch.context() as patched:
        patched.setattr(calls, "call_like", lambda *_: None)
        assert told(BODIES[what]) == found


def test_equal_calls_are_not_lowered_again(monkeypatch: pytest.MonkeyPatch):
    """Two of three layers are made again, whole; of these calls of `both`, the other one that is given two tensors."""
    made: list[str] = []
    again = Stretch.again
    monkeypatch.setattr(Stretch, "again", lambda self, *rest: (made.append(rest[1].path), again(self, *rest))[1])
    told(BODIES["layers"])
    assert [path for path in made if "." not in path] == ["l1", "l2"]
    assert not any(path.startswith(("l1.", "l2.")) for path in made)
    made.clear()
    told(BODIES["both for one"])
    assert [path for path in made if "." not in path] == ["r"]
