"""Core functions of bodies: sizes, tokens chosen with what they carry, recurrences, registered functions."""

import pytest

from tfc.diagnostics import TfcError
from tfc.formula.expr import text
from tfc.grammar.lower import lower
from tfc.grammar.parser import parse
from tfc.ir.ops import (
    ArrayFunction,
    Concat,
    Elementwise,
    Index,
    Mix,
    Op,
    Recurrence,
    Reshape,
    Scores,
    Slice,
    Top,
    Weigh,
)
from tfc.ir.program import Eqn, Init, Program
from tfc.ir.text import parse as read
from tfc.ir.text import show
from tfc.ir.verify import verify
from tfc.source import Source

HEAD = "tfm 1\nmodel m(x: real[B, T, 8], ids: int[B, T]) {\n"


def program(body: str, items: str = "") -> Program:
    module, found = parse(Source("t", f"tfm 1\n{items}\n{HEAD[6:]}{body}\n}}\n"))
    assert module is not None, "\n".join(map(str, found))
    made = lower(module).program
    verify(made)
    assert read(show(made)) == made
    return made


def refused(body: str, items: str = "") -> list[str]:
    with pytest.raises(TfcError) as caught:
        program(body, items)
    return [d.code for d in caught.value.diagnostics]


def eqns(made: Program, kind: type[Op]) -> list[Eqn]:
    return [e for e in made.eqns if isinstance(e.op, kind)]


def shapes(made: Program) -> list[str]:
    return [str(v.type) for v in made.results]


# ---- sizes


def test_length_and_size_are_symbolic() -> None:
    assert shapes(program("  return part(x, 0, length(x) - 1)")) == ["f32[B, T - 1, 8]"]
    assert shapes(program("  return cut(x, 2, size(x) - 2)")) == ["f32[B, T, 6]"]
    assert refused("  return x * length(mean(ids[0, 0]))") != []
    assert refused("  param w[8]\n  return x * length(w)") == ["E401"]


def test_count_is_of_lists() -> None:
    made = program("  return linear(x, count(list))", "let list = [1, 2, 3] + [4]")
    assert shapes(made) == ["f32[B, T, 4]"]
    assert refused("  return linear(x, count(3))") == ["E305"]


# ---- tokens and channels


def test_top() -> None:
    (found,) = eqns(program("  return top(x, 3)"), Top)
    assert isinstance(found.op, Top) and found.op.count == 3 and str(found.out.type) == "int[B, T, 3]"
    (lengths,) = eqns(program("  n[b, t] = sum[c](x[b, t, c])\n  return top(n, T // 2)"), Top)
    assert str(lengths.out.type) == "int[B, T // 2]"
    assert refused("  return top(x, 9)") == refused("  return top(x, -1)") == ["E402"]
    assert refused("  return top(x > 0, 1)") == ["E301"]


def test_pick_reads_tokens_at_places_and_what_they_carry() -> None:
    made = program("  x = tag(x, kind = ids)\n  p[b, n: 3] = n * 2\n  y = pick(x, p)\n  return [y, y.kind]")
    assert shapes(made) == ["f32[B, 3, 8]", "int[B, 3]"]
    picks = [e.op for e in eqns(made, Index) if len(e.args) == 2]
    assert [text(op.expr) for op in picks if isinstance(op, Index)] == ["$0[b, $1[b, t]]", "$0[b, $1[b, t], c]"]


def test_pick_of_a_field_that_all_rows_share() -> None:
    made = program("  place[t] = t * 2\n  x = tag(x, pos = place)\n  p[b, n: 3] = n\n  return pick(x, p).pos")
    assert shapes(made) == ["int[B, 3]"]
    assert text(made.eqns[-1].op.expr) == "$0[b, $1[b, t], c]"  # type: ignore[attr-defined]  # of x itself, unread
    assert "$0[$1[b, t]]" in show(made)


def test_places_are_whole_numbers_of_the_batch() -> None:
    assert refused("  return pick(x, mean(x))") == ["E301"]
    assert refused("  p[n: 3] = n\n  return pick(x, p)") == ["E401"]
    assert refused("  param w[8]\n  return pick(w, ids)") == ["E401"]


def test_append_puts_tokens_after_tokens() -> None:
    made = program("  x = tag(x, kind = ids)\n  y = append(x, x, part(x, 0, 1))\n  return [y, y.kind]")
    assert shapes(made) == ["f32[B, 2 * T + 1, 8]", "int[B, 2 * T + 1]"]
    assert all(e.op.axis == 1 for e in eqns(made, Concat) if isinstance(e.op, Concat))
    assert len(program("  return append(x)").eqns) == 0


def test_append_keeps_the_fields_that_all_carry() -> None:
    tags = "  place[t] = t\n  y = tag(x, a = ids, b = place)\n  z = tag(x, a = place)\n  w = append(y, z)\n"
    assert shapes(program(f"{tags}  return w.a")) == ["int[B, 2 * T]"]
    assert refused(f"{tags}  return w.b") == ["E306"]


def test_part_cuts_the_fields_too() -> None:
    tags = "  place[t] = t\n  pair[t, r: 2] = t + r\n  y = part(tag(x, a = ids, b = place, c = pair), 1, T - 1)\n"
    made = program(f"{tags}  return [y, y.a, y.b, y.c]")
    assert shapes(made) == ["f32[B, T - 1, 8]", "int[B, T - 1]", "int[T - 1]", "int[B, T - 1, 2]"]
    assert {(e.op.start, e.op.axis) for e in eqns(made, Slice) if isinstance(e.op, Slice)} == {(1, 1), (1, -1)}


def test_cut_keeps_the_fields() -> None:
    made = program("  y = cut(tag(x, kind = ids), 2, 3)\n  return [y, y.kind]")
    assert shapes(made) == ["f32[B, T, 3]", "int[B, T]"]
    assert refused("  return cut(x, 6, 3)") == refused("  return cut(x, -1, 2)") == ["E402"]
    assert refused("  return cut(x, 9, 0)") == ["E402"]


# ---- fields in bodies


@pytest.mark.parametrize(
    ("written", "shape"),
    [
        ("x * x.keep", "[B, T, 8]"),
        ("x.keep * x", "[B, T, 8]"),
        ("split(x, 2) * x.keep", "[B, T, 2, 4]"),
        ("if(x.keep > 0, x, 2 * x)", "[B, T, 8]"),
        ("x * (1 - x.keep)", "[B, T, 8]"),
        ("split(x, 2) * x.gate", "[B, T, 2, 4]"),
        ("x.gate * x.keep", "[B, T, 2]"),
        ("x * x.share", "[B, T, 8]"),
        ("x.share * x.keep", "[B, T]"),
        ("x.share * x.share", "[T]"),
        ("x.share * x.gate", "[B, T, 2]"),
    ],
)
def test_a_field_is_aligned_at_its_tokens(written: str, shape: str) -> None:
    """All sizes are 2 or differ: only the rule, not luck, gives these shapes."""
    tags = "  s[t] = sum[b, c](x[b, t, c])\n  g[b, t, h: 2] = x[b, t, 2 * h]\n  k[b, t] = x[b, t, 0]\n"
    made = program(f"{tags}  x = tag(x, keep = k, gate = g, share = s)\n  return {written}")
    assert shapes(made) == [f"f32{shape}"]


def test_a_field_is_aligned_also_where_sizes_agree() -> None:
    source = (
        "tfm 1\nmodel m(x: real[8, 8, 8], k: real[8, 8]) {\n  x = tag(x, keep = k)\n  return [x * x.keep, x * k]\n}\n"
    )
    module, _ = parse(Source("t", source))
    assert module is not None
    made = lower(module).program
    ends = [next(e for e in made.eqns if e.out == r) for r in made.results]
    assert [str(e.args[1].type) for e in ends] == ["f32[8, 8, 1]", "f32[8, 8]"]


def test_a_name_given_to_a_field_stays_aligned_in_loops_too() -> None:
    tags = "  k[b, t] = x[b, t, 0]\n  x = tag(x, keep = k)\n  keep = x.keep + 1\n"
    assert shapes(program(f"{tags}  return x * keep")) == ["f32[B, T, 8]"]
    assert shapes(program(f"{tags}  repeat 2 as i {{ x = x * keep }}\n  return x")) == ["f32[B, T, 8]"]
    carried = "  repeat 2 as i {\n    x = x * keep\n    keep = keep * 2\n  }\n  return x * keep"
    assert shapes(program(f"{tags}{carried}")) == ["f32[B, T, 8]"]


def test_a_field_itself_carries_what_its_tokens_carry() -> None:
    tags = "  k[b, t] = x[b, t, 0]\n  x = tag(x, kind = ids, keep = k)\n"
    assert shapes(program(f"{tags}  return x.keep.kind")) == ["int[B, T]"]
    assert shapes(program(f"{tags}  y = tag(x, kind = ids * 2)\n  return (y * y.keep).kind")) == ["int[B, T]"]


# ---- attention in two halves, recurrences


def test_weights_and_mix_are_the_halves_of_attend() -> None:
    head = "  h = split(x, 2)\n"
    halves = program(f"{head}  return join(mix(weights(h, h, mask = causal, scale = 0.5), h))")
    whole = program(f"{head}  return join(attend(h, h, h, mask = causal, scale = 0.5))")
    kinds = [type(e.op) for e in whole.eqns]
    assert [type(e.op) for e in halves.eqns] == kinds and {Scores, Weigh, Mix} <= set(kinds)
    seen = "  p = weights(split(x, 2), split(x, 2))\n  seen[b, k] = sum[h, q](p[b, h, q, k])\n  return seen"
    assert shapes(program(seen)) == ["f32[B, T]"]


def recurrence(settings: str, before: str = "", items: str = "") -> Recurrence:
    made = program(f"  h = split(x, 2)\n{before}  return join(recur(h, h, h{settings}))", items)
    (found,) = eqns(made, Recurrence)
    assert isinstance(found.op, Recurrence)
    return found.op


def test_recurrences() -> None:
    assert recurrence("") == Recurrence()
    plain = recurrence(', scale = 0.5, normalized = yes, eps = 1e-6, direction = "both"')
    assert plain == Recurrence(scale=0.5, normalized=True, eps=1e-6, direction="both")
    assert recurrence(", segment = ids").segmented and not recurrence(", segment = none").segmented
    assert recurrence(", segment = place", "  place[t] = t\n").segmented
    assert recurrence(", decay = -0.1 * (h + 1)").decay == "head"
    assert recurrence(", decay = g", "  g[b, t, h: 2] = -abs(x[b, t, 2 * h])\n").decay == "token"
    assert recurrence(", decay = none, feature = none") == Recurrence()


def test_features_apply_to_queries_and_keys() -> None:
    elu = "feature elu1 = if(u > 0, u + 1, exp(u))"
    made = program("  h = split(x, 2)\n  g = split(2 * x, 2)\n  return join(recur(h, g, g, feature = elu1))", elu)
    (found,) = eqns(made, Recurrence)
    assert [type(made.makers()[a].op) for a in found.args] == [Index, Index, Reshape]
    (same,) = eqns(program("  h = split(x, 2)\n  return join(recur(h, h, h, feature = elu1))", elu), Recurrence)
    assert same.args[0] == same.args[1] != same.args[2]


def test_the_result_of_a_recurrence_keeps_the_fields_of_its_queries() -> None:
    made = program("  h = split(tag(x, kind = ids), 2)\n  return join(recur(h, h, h)).kind")
    assert shapes(made) == ["int[B, T]"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("x, h, h", "E401"),
        ("h, h, split(x, 4)", "E401"),
        ("split(x, 4), h, h", "E401"),
        ("split(cut(x, 0, 4), 1), h, h", "E404"),
        ('h, h, h, direction = "both", decay = -1', "E305"),
        ("h, h, h, normalized = 1", "E305"),
        ("h, h, h, scale = h", "E305"),
        ("h, h, h, segment = 3", "E305"),
        ("h, h, h, segments = ids", "E204"),
        ("h, h", "E206"),
    ],
)
def test_what_a_recurrence_refuses(arguments: str, code: str) -> None:
    assert refused(f"  h = split(x, 2)\n  return recur({arguments})") == [code]


# ---- registered functions, statistics, initializers


def test_registered_functions_are_called_by_name() -> None:
    norms = "  n[g: 2] = sum[b, t, d: 4](x[b, t, 4 * g + d] ^ 2)\n"
    made = program(f"{norms}  owner = apportion(n, total = 6)\n  return x * sum(owner)")
    (found,) = eqns(made, ArrayFunction)
    assert found.op == ArrayFunction(fn="apportion", settings=(("total", 6),))
    assert refused(f"{norms}  return x * sum(apportion(n))") == ["E206"]
    assert refused(f"{norms}  return x * sum(apportion(n, n, total = 6))") == ["E207"]
    assert refused(f"{norms}  return x * sum(apportion(n, total = 6.5))") == ["E305"]
    assert refused("  return x * sum(apportion(x, total = 6))") == ["E401"]


def test_a_registered_function_of_no_array() -> None:
    def memory(given: str) -> str:
        return f"  w = legendre({given})\n  y[b, t, n] = x[b, t, 0] * w[7, n]\n  return y"

    made = program(memory("order = 4, window = 9, steps = 8"))
    (found,) = eqns(made, ArrayFunction)
    assert isinstance(found.op, ArrayFunction) and not found.args
    assert found.op.settings == (("order", 4), ("window", 9.0), ("steps", 8))
    assert str(found.outs[0].type) == "f32[8, 4]"
    for order, window, steps in ((0, 9, 8), (4, 0, 8), (4, 9, 0)):
        assert refused(memory(f"order = {order}, window = {window}, steps = {steps}")) == ["E401"]
    assert refused(memory("x, order = 4, window = 9, steps = 8")) == ["E207"]


def starts(init: str) -> Init:
    made = program(f"  param w[8, 8] = {init}\n  y[b, t, o] = sum[c](x[b, t, c] * w[c, o])\n  return y")
    return made.params[0].init


def test_initializers() -> None:
    assert starts("uniform(-0.5, 2)") == Init("uniform", -0.5, high=2.0)
    assert starts("orthogonal") == starts("orthogonal()") == Init("orthogonal", 1.0)
    assert starts("orthogonal(gain = 2)") == Init("orthogonal", 2.0)
    assert [str(starts(i)) for i in ("uniform(0, 1)", "orthogonal(3)", "normal(2)")] == [
        "uniform(0, 1)", "orthogonal(3)", "normal(2)",
    ]  # fmt: skip
    assert refused("  param w[8] = uniform\n  return x * w") == ["E206"]
    assert refused("  param w[8] = orthogonal\n  return x * w") == ["E305"]


def test_core_words_may_be_names_of_ones_own() -> None:
    items = "let count = 2, int8 = 3, top = 4\nblock binary(x) { return x * int8 }"
    made = program("  part = binary(x)\n  return part * count * top", items)
    assert [e.op.fn for e in eqns(made, Elementwise) if isinstance(e.op, Elementwise)] == ["mul"] * 3


# ---- what tokens carry, from one use of a tensor to another


def test_a_field_set_later_is_carried_from_there() -> None:
    """One tensor, read with the field and without: each use carries what it was given."""
    body = "  y = tag(x, g = linear@first(x, 8))\n  z = linear@second(y, 8)\n"
    assert shapes(program(body + "  return z * z.g")) == ["f32[B, T, 8]"]
    assert refused("  y = tag(x, g = linear@first(x, 8))\n  return linear@second(x, 8).g") == ["E306"]


def test_fields_that_a_turn_adds_end_with_it() -> None:
    body = "  x = 2 * x\n  repeat 3 as turn { x = tag(linear(x, 8), near = ids) }\n"
    assert shapes(program(body + "  return x")) == ["f32[B, T, 8]"]
    assert refused(body + "  return x * x.near") == ["E306"]


def test_formulas_are_given_by_place_as_by_name() -> None:
    items = "position slow = pos / 2"
    by_name = program("  return rotate(split(x, 2), position = slow)", items)
    assert program("  return rotate(split(x, 2), slow)", items) == by_name
