"""Formats and fitting procedures as values: settings checked, on parameters, in rounding, through defaults."""

from pathlib import Path

import pytest

from tfc.diagnostics import TfcError
from tfc.grammar.lower import lower
from tfc.grammar.lowering.library import core_scope, library_items
from tfc.grammar.parser import parse
from tfc.ir.formats import CHOICES, FITTERS, FORMATS, Fit, Format, Rounded
from tfc.ir.ops import Repeat
from tfc.ir.program import Program, Stored
from tfc.ir.verify import verify
from tfc.source import Source

MAP = """block map(x, out = 8, weights = none, inputs = none) {
  param w[size(x), out] { format = weights }
  x = rounded(x, inputs)
  y[.., o] = sum[c](x[.., c] * w[c, o])
  return y
}"""


def program(body: str, items: str = MAP, folder: Path | None = None) -> Program:
    module, found = parse(Source("t", f"tfm 1\n{items}\nmodel m(x: real[B, T, 8]) {{\n{body}\n}}\n"))
    assert module is not None, "\n".join(map(str, found))
    made = lower(module, folder=folder).program
    verify(made)
    return made


def refused(body: str, items: str = MAP) -> list[str]:
    with pytest.raises(TfcError) as caught:
        program(body, items)
    return [d.code for d in caught.value.diagnostics]


def kept(settings: str) -> Stored:
    """The parameter of one map with these attributes."""
    (found,) = program(f"  return map(x, {settings})").stored()
    return found


def rounding(format: str) -> Rounded:
    (eqn,) = program(f"  return rounded(x, {format})").eqns
    assert isinstance(eqn.op, Rounded)
    return eqn.op


def test_bare_names_are_formats_at_their_defaults() -> None:
    for kind in FORMATS.values():
        complete = not any(isinstance(v, type) for v in kind.settings.values())
        if complete:
            assert kept(f"weights = {kind.name}").format == Format(kind.name, tuple(kind.settings.items()))  # type: ignore[arg-type]
        else:
            assert refused(f"  return map(x, weights = {kind.name})") == ["E206"]


def test_no_item_of_the_library_hides_a_word_of_the_core() -> None:
    assert not set(core_scope().names) & set(library_items())


def test_settings_by_name_or_in_the_tables_order() -> None:
    assert rounding("int4(group = 64)").format == Format(
        "int4", (("group", 64), ("per", "column"), ("symmetric", True))
    )
    assert rounding('int8(0, "row", no)').format == Format(
        "int8", (("group", 0), ("per", "row"), ("symmetric", False), ("outliers", float("inf")))
    )
    assert rounding("nm(2, 4)").format == rounding("nm(m = 4, n = 2)").format == Format("nm", (("n", 2), ("m", 4)))
    assert rounding("block_sparse(16, 1)").format == Format("block_sparse", (("size", 16), ("density", 1.0)))
    assert rounding("ternary(threshold = 1)").format["threshold"] == 1.0


def test_a_format_may_be_a_value_and_called_later() -> None:
    (eqn,) = program("  return rounded(x, f(group = 32))", "let f = int4").eqns
    assert isinstance(eqn.op, Rounded) and eqn.op.format["group"] == 32
    assert refused("  return rounded(x, f(group = 32))", "let f = 4") == ["E305"]


@pytest.mark.parametrize(
    ("format", "code"),
    [
        ("int4(group = 1.5)", "E305"),
        ("int4(group = yes)", "E305"),
        ("int4(group = -1)", "E305"),
        ("int4(symmetric = 1)", "E305"),
        ('int4(per = "channel")', "E305"),
        ("int4(per = 2)", "E305"),
        ("int4(1, 2, 3, 4)", "E207"),
        ("int4(128, group = 64)", "E214"),
        ("int4(groups = 64)", "E204"),
        ("nm(2)", "E206"),
        ("nm(4, 2)", "E305"),
        ("nm(0, 2)", "E305"),
        ("block_sparse(16, 0)", "E305"),
        ("block_sparse(16, 1.5)", "E305"),
        ("low_rank(8)", "E305"),
        ("lora(8)", "E305"),
        ("nm", "E206"),
        ("int4(fit = gptq)", "E305"),
        ("gptq", "E305"),
        ("8", "E305"),
        ("f32", "E305"),
        ("linear", "E305"),
    ],
)
def test_what_rounding_refuses(format: str, code: str) -> None:
    assert refused(f"  return rounded(x, {format})") == [code]


def test_words_of_the_table_name_settings_that_are_texts() -> None:
    texts = {(f.name, k) for f in FORMATS.values() for k, v in f.settings.items() if isinstance(v, str)}
    assert set(CHOICES) == texts
    for (name, key), words in CHOICES.items():
        assert FORMATS[name].settings[key] in words


def test_none_rounds_nothing() -> None:
    assert program("  return rounded(x, none)").eqns == ()
    assert kept("weights = none").format is None


def test_what_is_rounded_is_real() -> None:
    assert refused("  y[b, t] = t\n  return rounded(y, int8)") == ["E301"]
    assert refused("  return rounded(3, int8)") == ["E305"]


def test_the_procedure_comes_with_the_format() -> None:
    gptq = (("damp", 0.5), ("block", 128))
    found = kept("weights = int4(group = 64, fit = gptq(damp = 0.5))")
    assert found.format is not None and found.format["group"] == 64 and found.fit == Fit("gptq", gptq)
    assert kept("weights = int4").fit is None
    assert kept("weights = int4(fit = none)").fit is None


def test_fitting_procedures_of_parameters() -> None:
    def fit(settings: str) -> Stored:
        items = "block map(x) {\n  param w[8, 8] { %s }\n  y[.., o] = sum[c](x[.., c] * w[c, o])\n  return y\n}"
        (found,) = program("  return map(x)", items % settings).stored()
        return found

    assert fit("trained = no   fit = ksh") == fit("fit = ksh()   trained = no")
    assert not fit("trained = no   fit = ksh").trained
    for fitter in FITTERS.values():
        assert fit(f"fit = {fitter.name}").fit == Fit(fitter.name, tuple(fitter.settings.items()))  # type: ignore[arg-type]
    both = fit("format = int4(fit = gptq)   fit = nearest")
    assert both.fit == Fit("nearest") and both.format is not None


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ("fit = int8", "E305"),
        ("fit = 3", "E305"),
        ("fit = ksh(step = 3)", "E204"),
        ("fit = ksh(steps = 1.5)", "E305"),
        ("fit = gptq(damp = -1)", "E305"),
        ("format = ksh", "E305"),
        ("trained = 1", "E305"),
        ("fit = ksh   fit = svd", "E214"),
    ],
)
def test_what_a_parameter_refuses(settings: str, code: str) -> None:
    assert refused(f"  param w[8, 8] {{ {settings} }}\n  return x * sum(w)") == [code]


def test_a_format_is_of_weights_with_inputs_and_outputs() -> None:
    assert refused("  param w[8] { format = int8 }\n  return x * w") == ["E305"]


def test_defaults_reach_what_a_file_imports(tmp_path: Path) -> None:
    (tmp_path / "base.tfm").write_text(
        f"tfm 1\n{MAP}\nblock two(x) {{ return map@a(x) + map@b(x) }}\n", encoding="utf-8"
    )
    items = 'import "base.tfm" (two, map)\ndefault map { weights = int4(group = 64)   inputs = int8 }'
    made = program("  return two(x) + map@c(x, weights = none)", items, tmp_path)
    assert [str(s.format) for s in made.stored()] == ["int4(group=64)", "int4(group=64)", "None"]
    assert sum(isinstance(e.op, Rounded) for e in made.eqns) == 3


def test_formats_reach_inside_by_derivation() -> None:
    items = f"{MAP}\nblock two(x, up = map, down = map) {{ return down(up(x)) }}"
    made = program("  return two(x, up = map { weights = nm(2, 4) }, down = map { weights = low_rank(2) })", items)
    assert [(s.path, str(s.format)) for s in made.stored()] == [
        ("two.up.w", "nm(n=2, m=4)"), ("two.down.w.left", "None"), ("two.down.w.right", "None")
    ]  # fmt: skip
    items += "\nblock thin = two { up.weights = nm(2, 4)   down = map { weights = lora(2) } }"
    made = program("  return thin(x)", items)
    assert [s.path for s in made.stored()] == [
        f"thin.{path}" for path in ("up.w", "down.w.base", "down.w.left", "down.w.right")
    ]


def test_alike_formats_roll_and_unlike_ones_do_not() -> None:
    items = MAP + "".join(
        f"\nblock {n} = map {{ weights = {f} }}" for n, f in (("a", "int8"), ("b", "int8()"), ("c", "int4"))
    )
    assert isinstance(program("  repeat [a, b] as f { x = f(x) }\n  return x", items).eqns[0].op, Repeat)
    assert len(program("  repeat [a, c] as f { x = f(x) }\n  return x", items).stored()) == 2
