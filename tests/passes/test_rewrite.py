"""The machinery of local rules: what a rule sees, what becomes of its answer, names that are free."""

import pytest

from tfc.ir.ops import Elementwise
from tfc.ir.program import Eqn, Init, Param, Program, Value
from tfc.ir.text import parse, show
from tfc.ir.types import DType, TensorType
from tfc.ir.verify import verify
from tfc.passes.rewrite import Scope, drop_unread, rewrite

PROGRAM = parse("""
program p(%x: f32[B]) {
  %u: f32[4] = param u.w ones
  %a: f32[B] = abs %x
  %b: f32[B] = neg %a
  %y: f32[B] = repeat(count=2, label=layer, carries=1) %b
    program layer(%i: int[], %x: f32[B]) {
      %a: f32[B] = abs %x
      %b: f32[B] = neg %a
      return %b
    }
  %c: f32[B] = add %a, %a
  return %y, %c
}
""")


def by_square(eqn: Eqn, scope: Scope) -> list[Eqn] | None:
    """neg(abs(x)) -> -sqrt(x * x), by two fresh values."""
    made = scope.maker(eqn.args[0]) if eqn.args else None
    if eqn.op != Elementwise(fn="neg") or made is None or made.op != Elementwise(fn="abs"):
        return None
    square, root = (scope.fresh(n, eqn.out.type) for n in ("a", "root"))
    return [
        Eqn((square,), Elementwise(fn="mul"), made.args * 2),
        Eqn((root,), Elementwise(fn="sqrt"), (square,)),
        Eqn(eqn.outs, eqn.op, (root,), eqn.span),
    ]


def test_a_rule_applies_in_bodies_too_and_leaves_nothing_unread():
    """%a stays where it is read elsewhere and goes where it is not; fresh names avoid those of their own program."""
    after = rewrite(PROGRAM, by_square)
    verify(after)
    assert show(after) == show(
        parse("""
program p(%x: f32[B]) {
  %u: f32[4] = param u.w ones
  %a: f32[B] = abs %x
  %a_2: f32[B] = mul %x, %x
  %root: f32[B] = sqrt %a_2
  %b: f32[B] = neg %root
  %y: f32[B] = repeat(count=2, label=layer, carries=1) %b
    program layer(%i: int[], %x: f32[B]) {
      %a_2: f32[B] = mul %x, %x
      %root: f32[B] = sqrt %a_2
      %b: f32[B] = neg %root
      return %b
    }
  %c: f32[B] = add %a, %a
  return %y, %c
}
""")
    )


def test_a_rule_that_answers_nothing_changes_nothing():
    assert rewrite(PROGRAM, lambda eqn, scope: None) == PROGRAM


def test_what_a_rule_sees():
    x, a, b, y, c = (Value(n, TensorType(PROGRAM.inputs[0].value.type.shape, DType.F32)) for n in "xabyc")
    scope = Scope(PROGRAM)
    assert scope.maker(a) == PROGRAM.eqns[0]
    assert scope.maker(x) is None
    assert [e.out.name for e in scope.readers(a)] == ["b", "c"]
    assert scope.readers(c) == ()
    assert (scope.once(b), scope.once(a), scope.once(c), scope.once(y)) == (True, False, True, True)
    assert (scope.order[a], scope.order[c]) == (0, 3)


def test_fresh_names_are_fresh():
    scope = Scope(PROGRAM)
    kind = PROGRAM.inputs[0].value.type
    assert [scope.fresh(n, kind).name for n in ("x", "x", "u", "v", "v")] == ["x_2", "x_3", "u_2", "v", "v_2"]


@pytest.mark.parametrize(("old", "new", "left"), [("", "n", "abn"), ("a", "n", "nb"), ("ba", "n", "n"), ("b", "", "a")])
def test_parameters_take_each_others_places(old: str, new: str, left: str):
    kind = TensorType((4,), DType.F32)
    params = {n: Param(f"{n}.w", Value(n, kind), Init("ones")) for n in "abn"}
    scope = Scope(Program("p", (), (params["a"], params["b"]), (), ()))
    scope.replace_params([params[n] for n in old], params[new] if new else None)
    assert "".join(p.value.name for p in scope.after) == left
    assert list(scope.params.values()) == [params["a"], params["b"]]  # what rules see stays


def test_equations_with_one_result_read_stay():
    program = parse("""
program p(%s: f32[B, 2, T, T]) {
  %w: f32[B, 2, T, T], %lse: f32[B, 2, T] = weigh %s
  %e: f32[B, 2, T] = exp %lse
  %f: f32[B, 2, T] = exp %e
  return %e
}
""")
    assert [e.outs[-1].name for e in drop_unread(program).eqns] == ["lse", "e"]
