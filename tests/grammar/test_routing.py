"""`route`: copies of a component's weights, what each token is given, what a routed component may not do."""

import pytest

from tfc.diagnostics import TfcError
from tfc.grammar.lower import Lowered, lower
from tfc.grammar.parser import parse
from tfc.ir.ops import Index, Op, Repeat, Reshape, Route, Take
from tfc.ir.program import Eqn, Program
from tfc.ir.text import parse as read
from tfc.ir.text import show
from tfc.ir.verify import verify
from tfc.source import Source

MOE = """ffn expert { hidden = 16 }
block moe(x, f = expert) {
  best = top(linear@gate(x, 4), 2)
  w[b, t, k] = 1.0 * best[b, t, k]
  return route(x, f, 4, best, w)
}
"""


def lowered(body: str, items: str = MOE, after: str = "") -> Lowered:
    source = f"tfm 1\n{items}\nmodel m(x: real[B, T, 8], ids: int[B, T]) {{\n{body}\n}}\n{after}"
    module, found = parse(Source("t", source))
    assert module is not None, "\n".join(map(str, found))
    made = lower(module)
    verify(made.program)
    assert read(show(made.program)) == made.program
    return made


def program(body: str, items: str = MOE) -> Program:
    return lowered(body, items).program


def refused(body: str, items: str = MOE) -> list[str]:
    with pytest.raises(TfcError) as caught:
        program(body, items)
    return [d.code for d in caught.value.diagnostics]


def stored(made: Program) -> dict[str, tuple[tuple[str, int], ...]]:
    return {s.path: s.repeats for s in made.stored()}


def eqns(made: Program, kind: type[Op]) -> list[Eqn]:
    own = [e for e in made.eqns if isinstance(e.op, kind)]
    return own + [e for _, inner in made.bodies() for e in eqns(inner, kind)]


def routed(body: str, items: str = MOE) -> tuple[Eqn, Route]:
    (found,) = eqns(program(body, items), Route)
    assert isinstance(found.op, Route)
    return found, found.op


def test_copies_have_one_leading_axis_under_the_components_name() -> None:
    made = program("  return moe(x)")
    assert stored(made) == {
        "moe.gate.weight": (),
        "moe.f.up.weight": (("f", 4),),
        "moe.f.down.weight": (("f", 4),),
    }
    assert str(made.results[0].type) == "f32[B, T, 8]"


def test_the_segment_is_what_the_component_is_called_where_it_is_routed() -> None:
    assert list(stored(program("  return route(x, expert, 2, ids)"))) == ["expert.up.weight", "expert.down.weight"]
    assert list(stored(program("  return route(x, linear { out = 8 }, 2, ids)"))) == ["linear.weight"]
    assert list(stored(program("  return route@own(x, linear { out = 8 }, 2, ids)"))) == ["own.weight"]
    assert list(stored(program("  return moe(x, linear { out = 8 })"))) == ["moe.gate.weight", "moe.f.weight"]


def test_a_second_use_without_a_label_is_numbered_and_warned_of() -> None:
    two = "  x = route(x, expert, 2, ids)\n  return route(x, expert, 2, ids)"
    made = lowered(two)
    assert list(stored(made.program))[2:] == ["expert_2.up.weight", "expert_2.down.weight"]
    (warning,) = made.warnings
    assert warning.code == "W901" and [e.text for e in warning.edits] == ["route@expert_2"]
    labelled = lowered("  x = route(x, expert, 2, ids)\n  return route@more(x, expert, 2, ids)")
    assert labelled.warnings == () and "more.up.weight" in stored(labelled.program)
    assert refused("  x = route@a(x, expert, 2, ids)\n  return route@a(x, expert, 2, ids)") == ["E208"]


def test_a_route_in_a_loop_nests_its_stacks() -> None:
    made = program("  repeat 3 as layer { x = x + moe(x) }\n  return x")
    assert stored(made)["layer.moe.f.up.weight"] == (("layer", 3), ("f", 4))
    assert next(s.type.shape for s in made.stored() if s.path.endswith("up.weight")) == (3, 4, 8, 16)


def test_the_result_may_have_other_channels_and_keeps_the_fields() -> None:
    made = program("  y = route(tag(x, kind = ids), linear { out = 5 }, 2, ids)\n  return [y, y.kind]")
    assert [str(v.type) for v in made.results] == ["f32[B, T, 5]", "int[B, T]"]


def test_other_inputs_come_from_attributes() -> None:
    items = "block f(x, w, n = 2) { return linear(x, 8) * w * n }"
    param = "  param scale[8]\n  return route(x, f { w = scale   n = 3 }, 2, ids)"
    found, op = routed(param, items)
    assert len(found.args) == 4 and [str(i.value.type) for i in op.body.inputs] == ["int[]", "f32[B, T, 8]", "f32[8]"]
    assert refused("  return route(x, f, 2, ids)", items) == ["E206"]


def test_choices_of_one_or_several_and_of_a_field() -> None:
    def given(chosen: str, before: str = "") -> list[str]:
        found, _ = routed(f"{before}  return route(x, expert, 2, {chosen})")
        return [str(a.type) for a in found.args[1:3]]

    assert given("ids") == ["int[B, T, 1]", "f32[B, T, 1]"]
    assert given("top(x, 2)") == ["int[B, T, 2]", "f32[B, T, 2]"]
    assert given("x.kind", "  x = tag(x, kind = ids)\n") == ["int[B, T, 1]", "f32[B, T, 1]"]
    assert given("x.kind", "  k[t] = t\n  x = tag(x, kind = k)\n") == ["int[B, T, 1]", "f32[B, T, 1]"]
    assert refused("  return route(x, expert, 2, mean(x))") == ["E301"]
    assert refused("  k[b] = b\n  return route(x, expert, 2, k)") == ["E401"]
    assert refused("  return route(x, expert, 2, 1)") == ["E305"]


def test_weights_of_all_of_tokens_and_of_choices() -> None:
    def weight(written: str) -> Op | None:
        body = "  best = top(x, 2)\n  w[b, t] = x[b, t, 0]\n  v[b, t, k] = 1.0 * best[b, t, k]\n  u[t] = 1.0 * t\n"
        made = program(f"{body}  return route(x, expert, 8, best, {written})")
        (found,) = eqns(made, Route)
        assert str(found.args[2].type) == "f32[B, T, 2]"
        return made.makers()[found.args[2]].op

    for written in ("1", "0.5", "weight = 2", "w", "u", "v"):
        assert isinstance(weight(written), Index | Reshape), written
    assert refused("  return route(x, expert, 2, ids, ids)") == ["E301"]
    assert refused("  return route(x, expert, 2, ids, x)") == ["E401"]
    assert refused("  return route(x, expert, 2, ids, yes)") == ["E305"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("x, expert, 0, ids", "E402"),
        ("x, expert, -1, ids", "E402"),
        ("x, expert, T, ids", "E406"),
        ("x, expert, 1.5, ids", "E402"),
        ("x, gelu, 2, ids, 1, 2", "E207"),
        ("x, 3, 2, ids", "E305"),
        ("x, causal, 2, ids", "E305"),
        ("3, expert, 2, ids", "E305"),
        ("x, expert, 2", "E206"),
        ("x, expert, 2, chosne = ids", "E204"),
        ("x, nothing, 2, ids", "E207"),
        ("x, number, 2, ids", "E305"),
        ("x, whole, 2, ids", "E401"),
    ],
)
def test_what_route_refuses(arguments: str, code: str) -> None:
    items = "block nothing() { return 1 }\nblock number(x) { return 1 }\nblock whole(x) { return x > 0 }\n"
    assert refused(f"  return route({arguments})", MOE + items) == [code]


# ---- one token at a time

ALONE = {
    "linear(x, 8)": True,
    "linear(rms(x), 8, biased = yes)": True,
    "join(split(x, 2) * 2)": True,
    "cut(x, 0, 4)": True,
    "concat(x, x)": True,
    "layer_norm(x)": True,
    "if(sum(x) > 0, x, 0)": True,
    "linear(x * w, 8)": True,
    "part(append(x, x), 0, T)": False,
    "part(x, 0, T)": False,
    "attention(x, heads = 2)": False,
    'rounded(x, int8(per = "row"))': True,
    "rounded(x, mx)": True,
    'rounded(x, int8(per = "tensor"))': False,
    "other": False,
    "x * other": False,
    "other * 2": False,
    "x + calibrated(w)": True,
}


@pytest.mark.parametrize("written", ALONE)
def test_what_is_routed_sees_its_own_token(written: str) -> None:
    items = f"block f(x, other, w, T) {{\n  return {written}\n}}"
    body = "  y = x * 2\n  param w[8]\n  return route(x, f { other = y   w = w   T = T }, 2, ids)"
    if ALONE[written]:
        program(body, items)
    else:
        assert refused(body, items) == ["E408"]


EQUATIONS = {
    "y[b, t, o] = sum[c](x[b, t, c] * w[c, o])": True,
    "y[b, t, c] = x[b, t, c] + w[c, c]": True,
    "y[b, t, c: 4] = x[b, t, 2 * c] * x[b, t, 2 * c + 1]": True,
    "y[b, t, c] = if(any[d](x[b, t, d] > x[b, t, c]), x[b, t, c], 0)": True,
    "y[b, t, c: 3] = w[floor(x[b, t, 0]), 2 * c]": True,
    "y[b, t, c] = x[b, t, c] + x[b, t - 1, c]": False,
    "y[b, t, c] = x[b, t, c] * t": False,
    "y[b, t, c] = x[b, t, c] + w[2 * t, c]": False,
    "y[b, t, c] = x[b, t, c] / sum[u](x[b, u, c])": False,
    "y[b, t, c] = x[t, b, c]": False,
    "z[t, b, c] = x[b, t, c]\n  y[b, t, c] = z[t, b, c]": False,
    "z[b, c] = mean[t](x[b, t, c])\n  y[b, t, c] = x[b, t, c] - z[b, c]": False,
    "y = x\n  repeat 3 as i { y = y + linear(y, 8) }": True,
    "y = x\n  repeat 3 as i { y = attention(y, heads = 1) }": False,
    "y = route(x, linear { out = 8 }, 3, top(x, 1))": True,
    "z[b: 4, t: 4, c: 8] = w[c, 2 * c]\n  y = x + z": True,
    "z[b: 4, t: 4, c: 8] = w[2 * t, c]\n  y = x + z": False,
    "z[b: 4, t: 4] = 1.0\n  y[b, t, c] = sum[d: 4](x[b, t, 2 * d]) * z[2 * c, 1] + 0 * x[b, t, c]": True,
}


@pytest.mark.parametrize("written", EQUATIONS)
def test_equations_of_a_token_alone(written: str) -> None:
    items = f"block f(x) {{\n  param w[8, 8]\n  {written}\n  return y\n}}"
    source = "tfm 1\n" + items + "\nmodel m(x: real[4, 4, 8], ids: int[4, 4]) { return route(x, f, 2, ids) }\n"
    module, _ = parse(Source("t", source))
    assert module is not None
    if EQUATIONS[written]:
        verify(lower(module).program)
        return
    with pytest.raises(TfcError) as caught:
        lower(module)
    assert [d.code for d in caught.value.diagnostics] == ["E408"]


# ---- declared components, names, changes from outside


def test_a_declared_component_that_is_routed_has_its_weights_once() -> None:
    made = program("  ffn one = expert\n  x = route(x, one, 2, ids)\n  return route(x, one, 2, ids)")
    assert stored(made) == {"one.up.weight": (("one", 2),), "one.down.weight": (("one", 2),)}
    assert len(eqns(made, Take)) == 4 and not any(isinstance(e.op, Route) and e.op.body.params for e in made.eqns)
    once = program("  ffn one = expert\n  return route(x, one, 2, ids)")
    assert stored(once) == stored(made) and eqns(once, Take) == []


def test_other_numbers_of_copies_do_not_fit() -> None:
    assert refused("  ffn one = expert\n  x = route(x, one, 2, ids)\n  return route(x, one, 3, ids)") == ["E407"]


def test_a_component_is_either_called_or_routed() -> None:
    one = "  linear one = linear { out = 8 }\n"
    assert refused(f"{one}  x = one(x)\n  return route(x, one, 2, ids)") == ["E407"]
    assert refused(f"{one}  x = route(x, one, 2, ids)\n  return one(x)") == ["E407"]
    assert refused(f"{one}  return route@two(x, one, 2, ids)") == ["E208"]


def test_names_of_copies() -> None:
    body = "  repeat 2 as layer { x = route(x, linear { out = 8 }, 3, ids) }\n  return x"
    result = lowered(body, after='names hf { "h.{layer}.e.{linear}.w" = transpose(layer.linear.weight) }\n')
    rows = {r.theirs: r.turns for r in result.names["hf"].rows(result.program.stored())}
    assert rows == {f"h.{i}.e.{j}.w": (i, j) for i in range(2) for j in range(3)}


def test_a_change_reaches_what_is_routed() -> None:
    items = (
        f"{MOE}block layer(x, ids) {{ return route(x, expert, 2, ids) }}\nblock wide = layer {{ expert.hidden = 24 }}"
    )
    made = program("  return wide(x, ids)", items)
    assert [s.type.shape for s in made.stored()] == [(2, 8, 24), (2, 24, 8)]
    assert refused("  return wide(x, ids)", items.replace("expert.hidden", "expret.hidden")) == ["E204"]


def test_copies_of_a_loop() -> None:
    items = "block f(x) {\n  repeat 2 as step { x = linear(x, 8) }\n  return x\n}"
    made = program("  return route(x, f, 3, ids)", items)
    assert stored(made) == {"f.step.linear.weight": (("f", 3), ("step", 2))}
    assert len(eqns(made, Repeat)) == 1
