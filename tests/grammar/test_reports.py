"""Side outputs by the paths of their bodies, models of several results, frozen statistics, `let`s with alternatives."""

from pathlib import Path

import pytest

from tfc.diagnostics import TfcError
from tfc.grammar.lower import Lowered, lower
from tfc.grammar.parser import parse
from tfc.ir.ops import Calibrated
from tfc.ir.program import Program
from tfc.ir.text import parse as read
from tfc.ir.text import show
from tfc.ir.verify import verify
from tfc.source import Source


def lowered(body: str, items: str = "", sets: dict[str, object] | None = None, folder: Path | None = None) -> Lowered:
    module, found = parse(Source("t", f"tfm 1\n{items}\nmodel m(x: real[B, T, 8]) {{\n{body}\n}}\n"))
    assert module is not None, "\n".join(map(str, found))
    made = lower(module, sets, folder=folder)
    verify(made.program)
    assert read(show(made.program)) == made.program
    return made


def program(body: str, items: str = "") -> Program:
    return lowered(body, items).program


def refused(body: str, items: str = "", sets: dict[str, object] | None = None) -> list[str]:
    with pytest.raises(TfcError) as caught:
        lowered(body, items, sets)
    return [d.code for d in caught.value.diagnostics]


def reports(body: str, items: str = "") -> dict[str, str]:
    return {path: str(v.type) for path, v in program(body, items).reports}


# ---- reports


def test_a_report_has_the_path_of_its_body() -> None:
    items = "block f(x) {\n  report energy = sum(x)\n  return x\n}"
    assert reports("  report all = x\n  x = f(x)\n  return f@again(x)", items) == {
        "all": "f32[B, T, 8]", "f.energy": "f32[B, T, 1]", "again.energy": "f32[B, T, 1]",
    }  # fmt: skip


def test_reports_of_loops_are_stacked() -> None:
    body = "  repeat 3 as a {\n    repeat 2 as b {\n      x = rms(x)\n      report size = sum(x)\n    }\n"
    assert reports(f"{body}    report end = x\n  }}\n  return x") == {
        "a.b.size": "f32[3, 2, B, T, 1]", "a.end": "f32[3, B, T, 8]",
    }  # fmt: skip
    assert reports("  repeat [1, 2] as f { report n = x * f }\n  return x") == {
        "f.0.n": "f32[B, T, 8]", "f.1.n": "f32[B, T, 8]",
    }  # fmt: skip


def test_a_loop_that_only_reports_stays() -> None:
    assert reports("  repeat 4 as i { report scaled = x * i }\n  return x") == {"i.scaled": "f32[4, B, T, 8]"}


def test_a_shared_body_reports_at_every_use() -> None:
    items = "block f(x) {\n  report energy = sum(x)\n  return rms(x)\n}"
    body = "  block one = f\n  x = one(x)\n  x = one(x)\n  repeat 2 as turn { x = one(x) }\n  return x"
    assert reports(body, items) == {
        "one.energy": "f32[B, T, 1]", "one.energy_2": "f32[B, T, 1]", "one.energy_3": "f32[2, B, T, 1]",
    }  # fmt: skip


def test_a_number_may_be_reported() -> None:
    assert reports("  let n = 3\n  report turns = n\n  return x") == {"turns": "int[]"}


def test_the_value_reported_is_the_one_meant() -> None:
    made = program("  y = x * 2\n  report twice = y\n  y = y * 3\n  return y")
    (reported,) = (v for _, v in made.reports)
    assert reported == made.makers()[made.results[0]].args[0]


def test_what_is_refused_of_reports() -> None:
    assert refused("  report a = x\n  report a = x\n  return x") == ["E202"]
    assert refused("  report a = gelu\n  return x") == ["E305"]
    assert refused("  report a = y\n  return x") == ["E201"]
    items = "block f(x) {\n  repeat 2 as i { report a = x }\n  return linear(x, 8)\n}"
    assert refused("  n[b, t] = t\n  return route(x, f, 2, n)", items) == ["E305"]


# ---- several results


def test_a_model_may_return_a_list() -> None:
    made = program("  return [x, mean(x), x > 0]")
    assert [str(v.type) for v in made.results] == ["f32[B, T, 8]", "f32[B, T, 1]", "bool[B, T, 8]"]
    items = "block two(x) { return [x * 2, rms(x)] }"
    assert len(program("  pair = two(x)\n  return [pair[1], pair[0]]", items).results) == 2
    assert len(program("  return two(x)", items).results) == 2


@pytest.mark.parametrize("result", ["[]", "[x, 3]", "[x, gelu]", "3", "gelu", "none", "[x, none]"])
def test_what_no_model_returns(result: str) -> None:
    assert refused(f"  return {result}") == ["E305"]


# ---- frozen statistics


def calibrated(body: str, items: str = "") -> list[str]:
    def paths(made: Program) -> list[str]:
        own = [e.op.path for e in made.eqns if isinstance(e.op, Calibrated)]
        return own + [p for _, inner in made.bodies() for p in paths(inner)]

    return paths(program(body, items))


def test_a_frozen_statistic_has_a_path_of_its_own() -> None:
    items = "block f(x) {\n  m[b] = mean[t, c](x[b, t, c])\n  y[b, t, c] = x[b, t, c] / (1 + m[b])\n"
    items += "  n = calibrated(m) + calibrated(m * 2)\n  z[b, t, c] = y[b, t, c] * n[b]\n  return z\n}"
    assert calibrated("  return f(x)", items) == ["f.calibrated", "f.calibrated_2"]
    assert calibrated("  repeat 2 as i { x = f(x) }\n  return x", items) == ["i.f.calibrated", "i.f.calibrated_2"]
    shared = calibrated("  block one = f\n  x = one(x)\n  return one(x)", items)
    assert shared == [f"one.calibrated{n}" for n in ("", "_2", "_3", "_4")]


def test_what_is_frozen_is_real_and_of_known_sizes() -> None:
    assert calibrated("  return x * calibrated(2)") == []
    assert refused("  return x * calibrated(x > 0)") == ["E301"]
    assert refused("  return x * calibrated(x)") == ["E406"]
    assert refused("  return x * calibrated(gelu)") == ["E305"]


# ---- choices


LIST = "let kernel = choice(5, 9), act = choice(gelu, relu), rate = choice(0.5, 1)"


def test_the_first_of_a_choice_is_the_value() -> None:
    made = lowered("  return linear(act(x), kernel)", LIST)
    assert str(made.program.results[0].type) == "f32[B, T, 5]"
    assert (
        made.choices["kernel"] == (5, 9) and made.lets["kernel"] == 5 and set(made.choices) == {"kernel", "act", "rate"}
    )
    assert lowered("  return x").choices == {}


def test_another_of_a_choice_may_be_set() -> None:
    made = lowered("  return linear(act(x), kernel)", LIST, {"kernel": "9", "act": "relu", "rate": 1})
    assert str(made.program.results[0].type) == "f32[B, T, 9]" and made.choices["kernel"] == (5, 9)
    assert made.lets["rate"] == 1.0
    for wrong in ({"kernel": "7"}, {"kernel": 7}, {"kernel": "5.5"}, {"act": "silu"}, {"rate": 0.75}):
        assert refused("  return x", LIST, dict(wrong)) == ["E308"]


def test_a_choice_is_one_of_a_let() -> None:
    assert refused("  return x * choice(1, 2)") == ["E305"]
    assert refused("  let n = choice(1, 2)\n  return x * n") == ["E305"]
    assert refused("  return x * n", "let n = 1 + choice(1, 2)") == ["E305"]
    assert refused("  return x * n", "let n = choice()") == ["E206"]
    assert refused("  return x * n", "let n = choice(a = 1)") == ["E204"]
    assert lowered("  return x * n", "let n = choice(7)").choices == {"n": (7,)}


def test_a_derivation_chooses_too(tmp_path: Path) -> None:
    base = "tfm 1\nlet kernel = choice(5, 9)\nmodel m(x: real[B, T, 8]) { return linear(x, kernel) }\n"
    (tmp_path / "base.tfm").write_text(base, encoding="utf-8")

    def derived(value: str) -> str:
        text = f'tfm 1\nimport "base.tfm" as base\nmodel d = base.m {{ kernel = {value} }}\n'
        module, _ = parse(Source("t", text))
        assert module is not None
        return str(lower(module, folder=tmp_path).program.results[0].type)

    assert derived("9") == "f32[B, T, 9]"
    with pytest.raises(TfcError, match=r"`kernel` is 5 or 9; the number 7 was given"):
        derived("7")
