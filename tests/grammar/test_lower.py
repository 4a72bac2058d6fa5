"""Trees to programs: golden programs, whose parameters are called what, sharing, loops, formulas in their slots."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tfc.diagnostics import TfcError
from tfc.formula.expr import Const, text
from tfc.grammar.lower import Lowered, lower
from tfc.grammar.parser import parse
from tfc.ir.names import Ignored, Joined, NamesMap, Transposed
from tfc.ir.names import Path as Ours
from tfc.ir.names import paths as ours
from tfc.ir.ops import (
    Attention,
    Constant,
    Elementwise,
    Index,
    Linear,
    Masked,
    Op,
    Repeat,
    Rotate,
    Score,
    Scores,
    Take,
    Weigh,
)
from tfc.ir.program import Eqn, Program
from tfc.ir.text import show
from tfc.ir.types import Dim, DType
from tfc.ir.verify import verify
from tfc.source import Source

GOLDEN = Path(__file__).parents[1] / "golden"
EXAMPLES = Path(__file__).parents[2] / "examples"
SHIPPED = [EXAMPLES / f"{name}.tfm" for name in ("minilm", "gpt2_block", "llama_block")]
SPECS = [*sorted((GOLDEN / "lower").glob("*.tfm")), *SHIPPED]
OPEN = """tfm 1
{items}
model m(tokens: int[B, T]) {{
  embed word = embed {{ vocab = 16   width = 8 }}
  x = word(tokens)
"""


def lowered(source: str, **sets: object) -> Lowered:
    module, found = parse(Source("t", source))
    assert module is not None, "\n".join(map(str, found))
    return lower(module, sets)


def body(text: str, items: str = "") -> Program:
    """The program of a small model with these statements, verified."""
    program = lowered(f"{OPEN.format(items=items)}{text}\n}}\n").program
    verify(program)
    return program


def paths(program: Program) -> list[str]:
    return [s.path for s in program.stored()]


def eqns(program: Program, kind: type[Op]) -> list[Eqn]:
    """Every equation with that operation, bodies included."""
    own = [e for e in program.eqns if isinstance(e.op, kind)]
    return own + [e for _, inner in program.bodies() for e in eqns(inner, kind)]


def ops[K: Op](program: Program, kind: type[K]) -> list[K]:
    """Their operations."""
    return [e.op for e in eqns(program, kind) if isinstance(e.op, kind)]


def refused(source: str) -> set[str]:
    with pytest.raises(TfcError) as caught:
        lowered(source)
    return {d.code for d in caught.value.diagnostics}


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_golden_programs(path: Path, golden: Callable[[str | Path, str], None]) -> None:
    module, found = parse(Source(path.name, path.read_text(encoding="utf-8")))
    assert module is not None and not found
    result = lower(module)
    verify(result.program)
    assert result.warnings == ()
    golden(Path("lower") / f"{path.stem}.ir", show(result.program))


# ---- who owns what


def test_a_segment_is_the_label_else_the_callees_name_in_the_body() -> None:
    items = "attention far { heads = 2 }\nblock layer(x, look) { return look(rms@before(x)) }"
    made = paths(body("  return layer(layer@near(x, far), far)", items))
    assert made[:2] == ["word.weight", "near.before.scale"]
    assert "near.look.q.weight" in made and "layer.look.out.weight" in made
    assert len(made) == len(set(made)) == 1 + 2 * 5


def test_a_recipe_owns_at_each_call_and_a_declaration_once() -> None:
    assert paths(body("  x = rms@a(x)\n  return rms@b(x)"))[1:] == ["a.scale", "b.scale"]
    assert paths(body("  rms one = rms\n  x = one(x)\n  return one(x)"))[1:] == ["one.scale"]
    passed = "block f(x, norm) { return norm(norm(x)) }"
    assert paths(body("  rms one = rms\n  return f(x, one)", passed))[1:] == ["one.scale"]
    assert paths(body("  return f(x, rms)", passed))[1:] == ["f.norm.scale", "f.norm_2.scale"]


def test_a_shared_body_has_one_set_of_weights_whatever_calls_it() -> None:
    items = "attention look { heads = 2 }\nblock layer(x) { return x + look(rms@before(x)) }"
    program = body("  block one = layer\n  repeat 3 as turn { x = one(x) }\n  return one(x)", items)
    assert paths(program)[:2] == ["word.weight", "one.before.scale"]
    assert paths(program)[2:] == [f"one.look.{p}.weight" for p in ("q", "k", "v", "out")]
    (loop,) = eqns(program, Repeat)
    assert ops(program, Repeat)[0].body.params == () and len(loop.args) == 1 + 5


def test_a_loop_owns_per_turn_and_nests() -> None:
    program = body("  repeat 3 as a {\n    repeat 2 as b { x = rms(x) }\n    x = rms(x)\n  }\n  return x")
    stored = {s.path: (s.repeats, s.type.shape) for s in program.stored()}
    assert stored["a.rms.scale"] == ((("a", 3),), (3, 8))
    assert stored["a.b.rms.scale"] == ((("a", 3), ("b", 2)), (3, 2, 8))


def test_lists_are_rolled_where_alike_and_unrolled_where_not() -> None:
    assert [s.repeats for s in body("  repeat [rms] * 3 as f { x = f(x) }\n  return x").stored()][1:] == [(("f", 3),)]
    made = paths(body("  repeat [rms, layer_norm] as f { x = f(x) }\n  return x"))
    assert made[1:] == ["f.0.f.scale", "f.1.f.scale", "f.1.f.bias"]
    alike = "rms a = rms { eps = 1e-3 }\nrms b = rms { eps = 1e-3 }\nrms c = rms { eps = 1e-4 }"
    assert len(eqns(body("  repeat [a, b] as f { x = f(x) }\n  return x", alike), Repeat)) == 1
    assert len(eqns(body("  repeat [a, c] as f { x = f(x) }\n  return x", alike), Repeat)) == 0
    assert "power.1.f.scale" not in paths(body("  repeat [1, 2] as power { x = x ^ power }\n  return x"))


def test_a_parameter_exists_where_it_is_read() -> None:
    block = "block f(x, on) {\n  param a[4]\n  param b[8] = ones\n  return if(on, x * b, x)\n}"
    assert paths(body("  return f(x, yes)", block))[1:] == ["f.b"]
    assert paths(body("  return f(x, no)", block))[1:] == []


def test_moving_or_renaming_a_recipe_changes_no_path() -> None:
    one = paths(body("  return look(x)", "attention look { heads = 2 }"))
    two = paths(body("  return look(x)", "attention other { heads = 2 }\nattention look = other"))
    assert one == two


# ---- loops


def loop(text: str) -> Repeat:
    (found,) = ops(body(text), Repeat)
    return found


def test_carries_are_what_later_turns_or_statements_read() -> None:
    assert loop("  repeat 2 as i { x = x + 1 }\n  return x").carries == 1
    assert loop("  y = x\n  repeat 2 as i {\n    y = x * 2\n    x = x + y\n  }\n  return x").carries == 1
    assert loop("  y = x\n  repeat 2 as i {\n    y = x * 2\n    x = x + y\n  }\n  return y").carries == 2
    assert loop("  y = x\n  repeat 2 as i {\n    x = x + y\n    y = x * 2\n  }\n  return x").carries == 2
    nested = "  y = x\n  repeat 2 as i {\n    x = x + y\n    repeat 2 as j { y = x }\n  }\n  return x"
    assert next(op for op in ops(body(nested), Repeat) if op.label == "j").carries == 1


def test_the_index_is_a_value() -> None:
    found = loop("  repeat 2 as i { x = x + i }\n  return x")
    (add,) = found.body.eqns
    assert add.args[1] == found.body.inputs[0].value


def test_an_index_hides_no_block() -> None:
    items = "block layer(x) { return rms(x) }"
    assert paths(body("  repeat 2 as layer { x = layer(x) }\n  return x", items))[1:] == ["layer.layer.rms.scale"]


def test_no_turn_leaves_everything_as_it_is() -> None:
    assert len(body("  repeat 0 as i { x = rms(x) }\n  return x").eqns) == 1


# ---- derivation, defaults, lets


def test_settings_win_over_defaults_and_calls_over_settings() -> None:
    items = "default rms { eps = 0.5 }\nrms mine = rms { eps = 0.25 }"

    def eps(call: str) -> float:
        constants = ops(body(f"  return {call}", items), Constant)
        return next(float(op.value) for op in constants if op.value < 1)

    assert (eps("rms(x)"), eps("mine(x)"), eps("mine(x, eps = 0.125)")) == (0.5, 0.25, 0.125)


def test_attribute_values_see_the_enclosing_scope() -> None:
    items = "let heads = 4\nattention look { heads = heads   head_dim = heads }"
    (scores,) = eqns(body("  return look(x)", items), Scores)
    assert scores.args[0].type.shape[2:] == (4, 4)


def test_overrides_are_of_the_kind_of_the_let() -> None:
    source = f"{OPEN.format(items='let n = 3, deep = n * 2')}  repeat deep as i {{ x = rms(x) }}\n  return x\n}}\n"
    assert lowered(source, n="5").program.stored()[1].repeats == (("i", 10),)
    assert lowered(source, deep=1).lets == {"n": 3, "deep": 1}


def test_the_model_entered_is_the_one_named_else_the_last() -> None:
    source = "tfm 1\nmodel a(x: real[B, 8]) { return x }\nmodel b(x: real[B, 8]) { return x + x }\n"
    module, _ = parse(Source("t", source))
    assert module is not None
    assert (lower(module).program.name, lower(module, model="a").program.name) == ("b", "a")
    with pytest.raises(TfcError, match="no model `c`"):
        lower(module, model="c")


def test_a_model_is_a_block_for_another() -> None:
    source = "tfm 1\nmodel a(x: real[B, 8]) { return rms(x) }\nmodel b(y: real[C, 8]) { return a(y) * 2 }\n"
    program = lowered(source).program
    assert paths(program) == ["a.rms.scale"]
    assert program.results[0].type.shape == (Dim.named("C"), 8)


# ---- formulas


def attention(settings: str, items: str = "", before: str = "") -> Program:
    return body(f"{before}  return look(x)", f"{items}\nattention look {{ heads = 2   {settings} }}")


def formulas(program: Program) -> tuple[str, ...]:
    found = [*ops(program, Score), *ops(program, Masked), *ops(program, Weigh)]
    return tuple(text(op.formula) for op in found)


@pytest.mark.parametrize(
    ("settings", "score", "mask", "weigh"),
    [
        ("mask = causal", "", "k <= q", "p"),
        ("mask = causal and window(4_096 / 2)", "", "k <= q and abs(q - k) < 2048", "p"),
        ("mask = yes and (no or causal)", "", "k <= q", "p"),
        ("mask = not (0 <= q - k < 4)", "", "not (0 <= q - k and q - k < 4)", "p"),
        ("score = softcap(30) - 2 * abs(q - k)", "30 * tanh(s / 30) - 2 * abs(q - k)", "", "p"),
        ("score = softcap(30, s = s + 1)", "30 * tanh((s + 1) / 30)", "", "p"),
        ("score = if(causal, s, -inf)", "if(k <= q, s, -inf)", "", "p"),
        ("score = alibi(2)", "s - 2 ^ ((-8) * (h + 1) / 2) * abs(q - k)", "", "p"),
        ("score = 0", "0 * 1.0", "", "p"),
        ("weigh = silu(s) / 64", "", "", "s * sigmoid(s) / 64"),
        ("weigh = clip(1.5 * p - 0.25, 0, 1)", "", "", "min(max(1.5 * p - 0.25, 0), 1)"),
        ("score = tilt(slope)", "s - $0[h] * abs(q - k)", "", "p"),
        ("mask = q % 4 == k % 4 and -q // 2 != 2 ^ 3", "", "q % 4 == k % 4 and -q // 2 != 8", "p"),
    ],
)
def test_formulas_are_written_out(settings: str, score: str, mask: str, weigh: str) -> None:
    program = attention(settings, "param slope[2]")
    assert formulas(program) == tuple(f for f in (score, mask, weigh) if f)


def test_no_formula_makes_no_operation() -> None:
    program = attention("score = s   mask = yes")
    assert formulas(program) == ("p",)


def test_fields_become_slots_and_positions_are_a_field() -> None:
    tags = "  a[b, t] = t // 4\n  x = tag(x, part = a, pos = a * 2)\n"
    program = attention("mask = q.part == k.part and causal   position = rope", before=tags)
    (masked,) = eqns(program, Masked)
    assert text(ops(program, Masked)[0].formula) == "$0.q == $0.k and $1.k <= $1.q"
    assert [v.type.dtype for v in masked.args[1:]] == [DType.I32, DType.I32]
    assert [op.offset for op in ops(program, Rotate)] == [0, 0]
    assert all(len(e.args) == 2 for e in eqns(program, Rotate))


def test_positions_end_together_where_none_are_given() -> None:
    source = "model m(x: real[B, N, 8], y: real[B, M, 8]) { return attention(x, y, heads = 2, position = rope) }"
    q, k = ops(lowered(f"tfm 1\n{source}\n").program, Rotate)
    assert (str(q.offset), k.offset) == ("M - N", 0)
    assert text(q.angle) == "pos * 10000 ^ (-c / 2)"


def test_a_role_may_stand_in_a_body_and_read_its_tensors() -> None:
    program = body("  param slope[2]\n  score mine = s * slope[h]\n  return attention(x, heads = 2, score = mine)")
    assert formulas(program)[0] == "s * $0[h]"


def test_a_score_applied_to_a_tensor() -> None:
    program = body("  return softcap(30, s = x)")
    assert [op.fn for op in ops(program, Elementwise)] == ["div", "tanh", "mul"]


def test_slopes_are_a_table() -> None:
    program = attention("score = tilt(slope)", "param slope[h: 2] = 2 ^ (-8 * (h + 1) / 2) { trained = no }")
    (slope,) = [s for s in program.stored() if s.path == "slope"]
    assert slope.init.table == (2.0**-4, 2.0**-8) and not slope.trained


# ---- index equations


@pytest.mark.parametrize(
    ("equation", "op"),
    [
        ("y[b, t, o] = sum[c](x[b, t, c] * w[c, o])", Linear),
        ("y[b, t, o] = sum[c](w[c, o] * x[b, t, c])", Linear),
        ("y[.., o] = sum[c](x[.., c] * w[c, o]) + v[o]", Linear),
        ("y[b, t, o] = sum[c](x[b, t, c] * w[o, c])", Index),
        ("y[t, b, o] = sum[c](x[b, t, c] * w[c, o])", Index),
        ("y[b, t, o] = mean[c](x[b, t, c] * w[c, o])", Index),
        ("y[b, t, o] = sum[c](x[b, t, c] * w[c, o]) + x[b, t, o]", Index),
        ("y[b, t, c] = w[tokens[b, t], c]", Take),
        ("y[.., c] = w[tokens[..], c]", Take),
        ("y[b, t] = v[tokens[b, t]]", Take),
        ("y[b, t, c] = w[c, tokens[b, t]]", Index),
        ("y[b, t, c] = w[tokens[b, t] + 1, c]", Index),
    ],
)
def test_recognised_forms(equation: str, op: type) -> None:
    program = body(f"  param w[8, 8]\n  param v[8]\n  {equation}\n  return y")
    assert type(program.eqns[-1].op) is op


def test_an_index_read_nowhere_goes_over_the_length_of_its_letter() -> None:
    (made,) = ops(body("  at[t, b] = t + b\n  return at"), Index)
    assert [(n, str(size)) for n, size in made.axes] == [("t", "T"), ("b", "B")]


@pytest.mark.parametrize(
    ("equation", "axes", "reduced"),
    [
        ("y[b, t: T // 2, c] = x[b, 2 * t, c]", "b: B, t: T // 2, c: 8", ""),
        ("y[b, t: -(-T // 2), c] = x[b, 2 * t, c]", "b: B, t: (T + 1) // 2, c: 8", ""),
        ("y[b, t: length(x) % 4 + 1, c] = x[b, 2 * t, c]", "b: B, t: T % 4 + 1, c: 8", ""),
        ("y[.., c: size(x) // 3] = x[.., c + 1]", "i: B, j: T, c: 2", ""),
        ("y[.., c: 4] = x[.., c + 1] + sum[i: 2](1.0)", "j: B, l: T, c: 4", "i: 2"),
        ("y[b, t: T, c: 8] = x[b, t, c]", "b: B, t: T, c: 8", ""),
        ("y[b, t] = any[j: n](tokens[b, t - j] == 0)", "b: B, t: T", "j: 3"),
        (
            "y[b, t, c] = sum[i: 3](x[b, t + i, c]) + sum[i: 2, d](x[b, 2 * i, d])",
            "b: B, t: T, c: 8",
            "i: 3, i_2: 2, d: 8",
        ),
        ("y[a: 5, z: 2 * n] = a - z", "a: 5, z: 6", ""),
    ],
)
def test_ranges_say_how_far_indices_go(equation: str, axes: str, reduced: str) -> None:
    (made,) = ops(body(f"  let n = 3\n  {equation}\n  return y"), Index)
    assert ", ".join(f"{name}: {size}" for name, size in made.axes) == axes
    assert ", ".join(f"{name}: {size}" for name, size in made.reduced) == reduced


def test_reducers_may_use_one_name() -> None:
    """Each has an index of its own, whose size is its own."""
    program = body(
        "  param w[4]\n  y[b] = sum[c, t](x[b, t, c]) + sum[c](w[c]) * sum[c, c_2](w[c] * w[c_2])\n  return y"
    )
    (made,) = ops(program, Index)
    assert dict(made.reduced) == {"c": 8, "t": Dim.named("T"), "c_2": 4, "c_3": 4, "c_2_2": 4}
    twice = "  y[b, t] = sum[c, c](x[b, t, c])\n  return y\n}\n"
    nested = "  y[b, t] = sum[c](sum[c](x[b, t, c]))\n  return y\n}\n"
    assert [refused(OPEN.format(items="") + text) for text in (twice, nested)] == [{"E309"}] * 2


def test_what_a_range_agrees_with_is_recognised_all_the_same() -> None:
    sums = body("  param w[8, 4]\n  y[b, t: T, o: 4] = sum[c: 8](x[b, t, c] * w[c, o])\n  return y")
    assert type(sums.eqns[-1].op) is Linear
    rows = body("  param w[8, 4]\n  y[.., c: 4] = w[tokens[..], c]\n  return y")
    assert type(rows.eqns[-1].op) is Take


def test_a_loop_carries_what_a_range_reads() -> None:
    turns = "z[b, t: length(NAME)] = x[b, 2 * t, 0]   y = x + 1   x = x * 2"
    text = f"  y = x\n  repeat 2 as i {{ {turns} }}\n  return x"
    assert [loop(text.replace("NAME", name)).carries for name in ("x", "y")] == [1, 2]


def test_a_range_is_of_the_body_around() -> None:
    """In a formula used by an index equation, too; and the sizes of one equation are no others'."""
    items = "let n = 4\nmask seen(w) = any[j: n](w[j] == q)"
    text = "  let n = 3\n  y[b, t] = sum[i: n](x[b, t, 2 * i])\n  z[b, t] = sum[i: 2](x[b, t, 2 * i])\n  return y + z"
    program = body(text)
    assert [op.reduced for op in ops(program, Index)] == [(("i", 3),), (("i", 2),)]
    source = f"{OPEN.format(items=items)}  param w[4]\n  return attention(x, heads = 1, mask = seen(w))\n}}\n"
    assert refused(source) == {"E309"}


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("ceil(2.5)", 3), ("ceil(-2.5)", -2), ("ceil(3)", 3), ("floor(-0.5)", -1), ("min(ceil(7 / 2), 9)", 4),
        ("round(2.5)", 2.0), ("round(3.5)", 4.0), ("normal_quantile(0.975)", 1.959963984540054),
        ("normal_quantile(0)", -math.inf), ("normal_quantile(1)", math.inf), ("straight(2, 5)", 2), ("stop(7)", 7),
    ],
)  # fmt: skip
def test_number_functions_while_compiling(value: str, number: float) -> None:
    source = f"{OPEN.format(items=f'let made = {value}')}  return x\n}}\n"
    made = lowered(source).lets["made"]
    assert made == pytest.approx(number) and type(made) is type(number)


def test_numbers_outside_a_domain() -> None:
    for value in ("normal_quantile(1.5)", "log(-1)", "ceil(inf)"):
        assert refused(f"{OPEN.format(items=f'let made = {value}')}  return x\n}}\n") == {"E501"}


def test_fields_go_with_their_tokens() -> None:
    tags = "  a[b, t] = t\n  x = tag(x, a = a)\n"
    for kept in ("rms(x)", "x + 1", "linear(x, 8)", "join(split(x, 2))", "attention(x, heads = 2)"):
        assert body(f"{tags}  y = {kept}\n  return y.a").results[0].type.dtype is DType.I32
    assert refused(f"{OPEN.format(items='')}{tags}  y[b, c] = sum[t](x[b, t, c])\n  return y.a\n}}\n") == {"E306"}


# ---- names


def rows(text: str, source: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    result = lowered(f"{source}\nnames hf {{ {text} }}\n")
    return {r.theirs: (str(r.ours), r.turns) for r in result.names["hf"].rows(result.program.stored())}


def test_names_are_written_out_over_loops() -> None:
    loops = f"{OPEN.format(items='')}  repeat 2 as pair {{ repeat 2 as half {{ x = rms(x) }} }}\n  return x\n}}"
    assert rows('"w" = word.weight "h.{2 * pair + half}.s" = pair.half.rms.scale', loops) == {
        "w": ("word.weight", ()),
        **{f"h.{2 * i + j}.s": ("pair.half.rms.scale", (i, j)) for i in range(2) for j in range(2)},
    }
    unrolled = f"{OPEN.format(items='')}  repeat [rms, layer_norm] as f {{ x = f(x) }}\n  return x\n}}"
    assert rows('"h.{f}.s" = f.f.scale "h.{f}.b" = f.f.bias', unrolled) == {
        "h.0.s": ("f.0.f.scale", ()), "h.1.s": ("f.1.f.scale", ()), "h.1.b": ("f.1.f.bias", ()),
    }  # fmt: skip


def test_expressions_over_our_parameters() -> None:
    source = f"{OPEN.format(items='')}  return linear@a(x, 8) + linear@b(x, 8)\n}}\n"
    written = 'names hf { "f" = transpose(concat(a.weight, b.weight))   "g" = none }'
    (first, second) = lowered(source + written).names["hf"].entries
    assert first.ours == Transposed(Joined((Ours("a.weight"), Ours("b.weight")))) and second.ours == Ignored()


def test_a_name_may_have_alternatives_and_what_is_not_needed_its_loops() -> None:
    source = f"{OPEN.format(items='')}  repeat 2 as layer {{ x = rms@norm(x) }}\n  return x\n}}"
    text = '"[|m.]h.{layer}.[scale|gamma]" = layer.norm.scale "[m|n].w" = if(1 < 2, word.weight, gone) '
    text += '"{layer}.x" = none'
    result = lowered(f"{source}\nnames hf {{ {text} }}\n")
    found = list(result.names["hf"].rows(result.program.stored()))
    assert [(r.names, r.turns) for r in found] == [
        (("h.0.scale", "h.0.gamma", "m.h.0.scale", "m.h.0.gamma"), (0,)),
        (("h.1.scale", "h.1.gamma", "m.h.1.scale", "m.h.1.gamma"), (1,)),
        (("m.w", "n.w"), ()),
        (("0.x",), ()),
        (("1.x",), ()),
    ]
    assert [str(e) for e in result.names["hf"].entries] == [
        '"[|m.]h.{layer}.[scale|gamma]" = layer.norm.scale', '"[m|n].w" = word.weight', '"{layer}.x" = none',
    ]  # fmt: skip


def test_the_examples_name_every_parameter() -> None:
    for path in SHIPPED:
        module, _ = parse(Source(path.name, path.read_text(encoding="utf-8")))
        assert module is not None
        result = lower(module)
        (names,) = result.names.values()
        assert isinstance(names, NamesMap)
        found = {path for entry in names.entries for path in ours(entry.ours)}
        assert {s.path for s in result.program.stored()} <= found, path.stem


# ---- spans and robustness


def test_operations_point_at_the_users_text() -> None:
    program = attention("mask = causal")
    for eqn in program.eqns:
        assert eqn.span is not None and eqn.span.source.name == "t", eqn


def test_lowering_is_deterministic() -> None:
    path = GOLDEN / "lower" / "sharing.tfm"
    module, _ = parse(Source("t", path.read_text(encoding="utf-8")))
    assert module is not None
    assert lower(module).program == lower(module).program


def test_depth_is_bounded_but_deep_enough() -> None:
    blocks = "block f0(x) { return rms(x) }\n"
    blocks += "".join(f"block f{i}(x) {{ return {'(' * 40}f{i - 1}(x){')' * 40} + 1 }}\n" for i in range(1, 60))
    assert paths(body("  return f59(x)", blocks))[-1].endswith("f0.rms.scale")


def test_masked_everything_is_kept() -> None:
    (masked,) = ops(attention("mask = no"), Masked)
    assert masked.formula == Const(False)


def test_lowering_makes_no_fused_operation() -> None:
    assert eqns(attention("mask = causal"), Attention) == []
