"""Loops within components that are declared once and run in several places: their weights exist once."""

import pytest

from tfc.diagnostics import TfcError
from tfc.grammar.lower import lower
from tfc.grammar.parser import parse
from tfc.ir.ops import Op, Repeat, Take
from tfc.ir.program import Eqn, Program
from tfc.ir.text import parse as read
from tfc.ir.text import show
from tfc.ir.verify import verify
from tfc.source import Source

DEEP = "block deep(x) {\n  repeat 2 as inner { x = linear(rms(x), size(x)) }\n  return x\n}"
NESTED = (
    "block deep(x) {\n  repeat 2 as a {\n    repeat 3 as b { x = rms(x) }\n    x = linear(x, 8)\n  }\n  return x\n}"
)


def program(body: str, items: str = DEEP) -> Program:
    module, found = parse(Source("t", f"tfm 1\n{items}\nmodel m(x: real[B, T, 8]) {{\n{body}\n}}\n"))
    assert module is not None, "\n".join(map(str, found))
    made = lower(module).program
    verify(made)
    assert read(show(made)) == made
    return made


def stored(made: Program) -> dict[str, tuple[tuple[str, int], ...]]:
    return {s.path: s.repeats for s in made.stored()}


def shapes(made: Program) -> dict[str, tuple[object, ...]]:
    return {s.path: s.type.shape for s in made.stored()}


def eqns(made: Program, kind: type[Op]) -> list[Eqn]:
    own = [e for e in made.eqns if isinstance(e.op, kind)]
    return own + [e for _, inner in made.bodies() for e in eqns(inner, kind)]


ONCE = program("  block one = deep\n  return one(x)")


@pytest.mark.parametrize(
    "body",
    [
        "  x = one(x)\n  return one(x)",
        "  x = one(x)\n  x = one(x)\n  return one(x)",
        "  repeat 3 as turn { x = one(x) }\n  return x",
        "  x = one(x)\n  repeat 3 as turn { x = one(x) }\n  return one(x)",
        "  repeat 3 as turn { repeat 4 as step { x = one(x) } }\n  return x",
        "  repeat [one, one] as f { x = f(x) }\n  return x",
        "  repeat [one, rms] as f { x = f(x) }\n  return one(x)",
    ],
)
def test_weights_declared_once_exist_once_wherever_they_run(body: str) -> None:
    made = program(f"  block one = deep\n{body}")
    kept = {p: r for p, r in stored(made).items() if not p.startswith("f.")}
    assert sorted(kept.items()) == sorted(stored(ONCE).items())
    assert all(shapes(made)[p] == shapes(ONCE)[p] for p in kept)
    assert all(p.init == q.init for p in made.stored() for q in ONCE.stored() if p.path == q.path)


def test_one_use_needs_no_stacks() -> None:
    assert eqns(ONCE, Take) == [] and len(eqns(program("  block one = deep\n  x = one(x)\n  return one(x)"), Take)) == 4


def test_a_recipe_in_a_loop_owns_in_every_turn() -> None:
    made = program("  repeat 3 as turn { x = deep(x) }\n  return x")
    assert stored(made) == {
        "turn.deep.inner.rms.scale": (("turn", 3), ("inner", 2)),
        "turn.deep.inner.linear.weight": (("turn", 3), ("inner", 2)),
    }
    assert eqns(made, Take) == []


def test_loops_within_loops_are_shared_whole() -> None:
    once, made = (
        program(f"  block one = deep\n{b}", NESTED) for b in ("  return one(x)", "  x = one(x)\n  return one(x)")
    )
    assert (
        stored(made)
        == stored(once)
        == {
            "one.a.linear.weight": (("a", 2),),
            "one.a.b.rms.scale": (("a", 2), ("b", 3)),
        }
    )
    assert shapes(made) == shapes(once)
    assert all(not e.op.body.stored() for e in eqns(made, Repeat) if isinstance(e.op, Repeat))


def test_a_component_declared_in_a_turn_is_shared_in_that_turn() -> None:
    body = "  repeat 3 as turn {\n    block one = deep\n    x = one(x)\n    x = one(x)\n  }\n  return x"
    made = program(body)
    assert stored(made) == {
        "turn.one.inner.rms.scale": (("turn", 3), ("inner", 2)),
        "turn.one.inner.linear.weight": (("turn", 3), ("inner", 2)),
    }
    (outer, *_) = eqns(made, Repeat)
    assert isinstance(outer.op, Repeat) and [p.repeats for p in outer.op.body.params] == [(("inner", 2),)] * 2


def test_tables_are_the_same_in_every_turn() -> None:
    items = DEEP.replace("x = linear(rms(x), size(x))", "param w[h: 8] = h + 1\n    x = x * w")
    made = program("  block one = deep\n  x = one(x)\n  return one(x)", items)
    (kept,) = made.stored()
    assert kept.type.shape == (2, 8) and kept.init.table == tuple(map(float, range(1, 9)))


def test_what_a_use_needs_more_is_made_with_it() -> None:
    items = (
        "block deep(x, on) {\n  repeat 2 as i {\n    param b[8]\n    x = if(on, rms(x) + b, rms(x))\n  }\n  return x\n}"
    )
    made = program("  block one = deep\n  x = one(x, no)\n  return one(x, yes)", items)
    assert stored(made) == {"one.i.rms.scale": (("i", 2),), "one.i.b": (("i", 2),)}


def test_one_weight_has_one_size() -> None:
    with pytest.raises(TfcError) as caught:
        program("  block one = deep\n  return concat(one(x), one(cut(x, 0, 4)))")
    assert [d.code for d in caught.value.diagnostics] == ["E407"]


def test_another_number_of_turns_does_not_fit() -> None:
    items = "block deep(x, n) {\n  repeat n as i { x = rms(x) }\n  return x\n}"
    with pytest.raises(TfcError) as caught:
        program("  block one = deep\n  x = one(x, 2)\n  return one(x, 3)", items)
    assert [d.code for d in caught.value.diagnostics] == ["E407"]
