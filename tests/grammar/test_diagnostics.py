"""What a syntax error is answered with: golden drawings, edits that work, several errors a run, and fuzzing."""

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tfc.diagnostics import CODES, Diagnostic, Edit
from tfc.grammar.parser import parse
from tfc.grammar.syntax.scan import Token, scan
from tfc.grammar.syntax.words import RESERVED, WORDS, meant
from tfc.source import Source

GOLDEN = Path(__file__).parents[1] / "golden"
ERRORS = sorted((GOLDEN / "errors" / "syntax").glob("*.tfm"))
SKETCHES = sorted((GOLDEN / "syntax").glob("*.tfm"))

# what has no edit: the missing thing is for the author to say
WITHOUT_EDIT = frozenset(
    """arrow big_float braces_then_call braces_then_call2 bracket_statement def dollar early_end
    early_end_name empty_group huge_number if import_inside kind_inputs label_at lambda list_statement
    mask_attributes mask_body missing_left_operand missing_operand missing_operand_paren missing_operand_return
    missing_operand_top missing_size missing_value nested number_index range_in_subscript range_with_step result_colon
    result_dots_last result_number result_shifted several slice star_args top_return two_names two_ops
    type_annotation unicode_name value_component""".split()
)


def diagnose(name: str, text: str) -> list[Diagnostic]:
    return parse(Source(name, text))[1]


def applied(text: str, edits: Iterable[Edit]) -> str:
    for edit in sorted(edits, key=lambda e: e.span.start, reverse=True):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text


@pytest.mark.parametrize("path", ERRORS, ids=lambda p: p.stem)
def test_golden_errors(path: Path, golden: Callable[[str | Path, str], None]) -> None:
    text = path.read_text(encoding="utf-8")
    diagnostics = diagnose(path.name, text)
    assert diagnostics
    golden(path.relative_to(GOLDEN).with_suffix(".txt"), "\n\n".join(map(str, diagnostics)))
    for diagnostic in diagnostics:
        assert diagnostic.code in CODES
        assert diagnostic.span is not None


@pytest.mark.parametrize("path", ERRORS, ids=lambda p: p.stem)
def test_edits_mend(path: Path) -> None:
    """The edits of a file's diagnostics, applied as they are, make it parse."""
    text = path.read_text(encoding="utf-8")
    diagnostics = diagnose(path.name, text)
    assert all(d.edits for d in diagnostics) == (path.stem not in WITHOUT_EDIT)
    if path.stem not in WITHOUT_EDIT:
        mended = applied(text, (e for d in diagnostics for e in d.edits))
        assert diagnose(path.name, mended) == []


def test_each_syntax_code_has_a_golden_error() -> None:
    shown = {p.with_suffix(".txt").read_text(encoding="utf-8")[:4_000] for p in ERRORS}
    for code in CODES:
        if code.startswith("E1"):
            assert any(f"error[{code}]" in text for text in shown), code


def test_hidden_characters_are_edited_away() -> None:
    text = "tfm 1\nlet a = 3\x07 # \u202e\n"
    for left in (1, 0):
        (diagnostic,) = diagnose("t", text)
        assert diagnostic.code == "E004" and "\x07" not in str(diagnostic) and "\u202e" not in str(diagnostic)
        text = applied(text, diagnostic.edits)
        assert bool(diagnose("t", text)) == bool(left)


@pytest.mark.parametrize("word", sorted(RESERVED))
@pytest.mark.parametrize(
    "text",
    [
        "let {} = 3", "let a = {}", "let a = 1 + {} * 2", "let a = x.{}", "let a = x@{}(y)", "let a = f({} = 1)",
        "mask {} = k <= q", "mask m({}) = k <= q", "block f({}) {{ return 1 }}", "block f(x) {{ {} = x   return x }}",
        "attention look {{ {} = 3 }}", "attention look {{ a = 1   {} = 3 }}", "linear {} {{}}", "param {}[3]",
        "attention look {{ q.{} = 3 }}", 'import "a" as {}',
    ],
)  # fmt: skip
def test_words_of_the_language_name_nothing(text: str, word: str) -> None:
    """`not` before a value is a value, and what the parser then misses is another thing."""
    diagnostics = diagnose("t", "tfm 1\n" + text.format(word))
    assert len(diagnostics) == 1
    if word not in ("not", "and", "or"):
        assert diagnostics[0].code == "E108"
        assert diagnose("t", applied("tfm 1\n" + text.format(word), diagnostics[0].edits)) == []


@pytest.mark.parametrize(
    ("slip", "word"),
    [("modle", "model"), ("retrun", "return"), ("reapeat", "repeat"), ("lett", "let"), ("imprt", "import"),
     ("Block", "block"), ("prama", "param"), ("width", ""), ("layer", ""), ("wieght", "weigh"), ("at", "as")],
)  # fmt: skip
def test_slips(slip: str, word: str) -> None:
    assert meant(slip) == word


def test_no_word_is_a_slip_of_itself() -> None:
    assert all(meant(word) == "" for word in WORDS)


def test_independent_errors_come_in_one_run() -> None:
    bad = ["let a = 4k", "mask m = k <=", "modle f(x) { return x }", "let b = True", "mask n = a & b", "score t = (s"]
    good = ["attention look { heads = 2 }", "let c = 3", "block g(x) {\n  y = x\n  return y\n}"]
    lines = ["tfm 1"]
    for i, line in enumerate(bad):
        lines += [good[i % len(good)], line]
    diagnostics = diagnose("t", "\n".join(lines) + "\n")
    assert [d.code for d in diagnostics] == ["E105", "E111", "E115", "E109", "E104", "E107"]
    assert [d.span.line for d in diagnostics if d.span] == sorted(d.span.line for d in diagnostics if d.span)


def test_at_most_ten() -> None:
    assert len(diagnose("t", "tfm 1\n" + "mask m = k <= <\n" * 50)) == 10
    assert len(diagnose("t", "tfm 1\n" + "let a = 4k\n" * 50)) == 10


# ---- fuzzing: one token less, more, twice

STRAY = (
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    ",",
    "=",
    "==",
    "-",
    "^",
    "@",
    ".",
    ":",
    "and",
    "let",
    "repeat",
    "x",
    "3",
    '"s"',
    "&",
    "'",
    "§",
)


def mutants(path: Path, count: int) -> list[tuple[str, Token, str]]:
    """(what was done, at which token, the text), the same ones in every run."""
    text = path.read_text(encoding="utf-8")
    tokens = scan(Source("", text)).tokens
    choose = random.Random(path.stem)
    out = []
    for _ in range(count):
        token = choose.choice(tokens)
        before, after = text[: token.start], text[token.end :]
        match choose.choice(("delete", "insert", "double")):
            case "delete":
                out.append(("delete", token, before + after))
            case "insert":
                stray = choose.choice(STRAY)
                out.append((f"insert {stray}", token, f"{before}{stray} {token.text}{after}"))
            case _:
                out.append(("double", token, f"{before}{token.text} {token.text}{after}"))
    return out


@pytest.mark.parametrize("path", SKETCHES, ids=lambda p: p.stem)
def test_mutants_end_in_diagnostics(path: Path) -> None:
    """No exception, soon, within the text; and an edit, where all diagnostics have one, leads on."""
    for what, token, text in mutants(path, 40):
        began = time.perf_counter()
        module, diagnostics = parse(Source("mutant.tfm", text))
        assert time.perf_counter() - began < 1, (what, token)
        assert (module is None) == bool(diagnostics), (what, token)
        for d in diagnostics:
            assert d.code in CODES and d.span is not None and str(d)
            assert 0 <= d.span.start <= d.span.end <= len(text)
            assert all(0 <= e.span.start <= e.span.end <= len(text) for e in d.edits)
        if len(diagnostics) == 1 and diagnostics[0].edits:
            after = diagnose("mutant.tfm", applied(text, diagnostics[0].edits))
            assert after != diagnostics, (what, token, str(diagnostics[0]))


def test_errors_are_found_where_they_are() -> None:
    """Of single deletions that are errors, most are reported on the line that lost the token, or at its end."""
    near = far = 0
    for path in SKETCHES:
        for what, token, text in mutants(path, 40):
            diagnostics = diagnose("t", text) if what == "delete" else []
            if diagnostics and diagnostics[0].span:
                line = Source("", text).position(token.start)[0]
                on_line = any(d.span and d.span.line == line for d in diagnostics)
                near, far = near + on_line, far + (not on_line)
    assert near + far > 80
    assert near / (near + far) > 0.85


def test_edits_lead_to_a_text_that_parses() -> None:
    """Of the mutants whose diagnostics all propose edits, nearly all parse once these are applied."""
    mended = tried = 0
    for path in SKETCHES:
        for _, _, text in mutants(path, 20):
            diagnostics = diagnose("t", text)
            if diagnostics and all(d.edits for d in diagnostics):
                tried += 1
                mended += not diagnose("t", applied(text, (e for d in diagnostics for e in d.edits)))
    assert tried > 50
    assert mended / tried > 0.95
