"""Common mistakes: what is said of each, and that its edits, applied as they are, make the file pass `tfc check`."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tfc.diagnostics import CODES, Diagnostic, Edit, TfcError
from tfc.front import front
from tfc.grammar.format import format_module
from tfc.grammar.lowering.session import is_library
from tfc.grammar.parser import parse
from tfc.source import Source

GOLDEN = Path(__file__).parents[1] / "golden"
MISTAKES = sorted((GOLDEN / "mistakes").glob("*.tfm"))

# the mistakes that everybody makes
WANTED = """ampersand causal_as_attribute colon_for_equals comma_between_attributes curly_quotes declared_twice
    def def_block double_equals field_of_input for_loop head_dim_is_not_whole heads_do_not_divide
    kv_heads_do_not_divide label_twice layer_as_kind mask_as_score misspelt_attribute misspelt_field misspelt_kind
    missing_comma missing_return missing_version num_heads other_kind pipe power python_body python_if python_none
    python_not python_true q_and_k_of_unequal_size q_in_position return_in_loop s_in_mask score_as_mask semicolon
    single_equals slash_comment too_few_arguments too_many_gelu trailing_comma_in_let type_of_torch undeclared_field
    unicode_operators unit unlabelled_reuse weight_before_use weights_of_ffn window_as_attribute
    window_beside_mask wrong_kind""".split()


def diagnose(name: str, text: str) -> tuple[Diagnostic, ...]:
    """Errors and warnings, placed in a source of that name."""
    module, found = parse(Source(name, text))
    if module is None:
        return tuple(found)
    try:
        return front(text).warnings
    except TfcError as error:
        return error.diagnostics


def applied(text: str, edits: Iterable[Edit]) -> str:
    """Edits that overlap contradict each other: that is an error of the compiler's."""
    ordered = sorted(dict.fromkeys(edits), key=lambda e: (e.span.start, e.span.end))
    for before, after in pairwise(ordered):
        assert before.span.end <= after.span.start and before.span != after.span, (before, after)
    for edit in reversed(ordered):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text


def mended(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return applied(text, (e for d in diagnose(path.name, text) for e in d.edits))


def test_the_common_ones_are_there() -> None:
    assert len(MISTAKES) >= 100
    assert set(WANTED) <= {p.stem for p in MISTAKES}


@pytest.mark.parametrize("path", MISTAKES, ids=lambda p: p.stem)
def test_what_is_said(path: Path, golden: Callable[[str | Path, str], None]) -> None:
    found = diagnose(path.name, path.read_text(encoding="utf-8"))
    assert found and all(d.code in CODES and d.span is not None and d.help and d.edits for d in found)
    shown = (replace(d, notes=tuple(n for n in d.notes if not is_library(n.span.source))) for d in found)
    drawn = "\n\n".join(map(str, shown)).replace("<text>", path.name)
    golden(path.relative_to(GOLDEN).with_suffix(".txt"), drawn)


@pytest.mark.parametrize("path", MISTAKES, ids=lambda p: p.stem)
def test_the_edits_mend_it(path: Path) -> None:
    """No error and no warning is left, and formatting agrees with what was made."""
    text = mended(path)
    assert diagnose(path.name, text) == ()
    module, _ = parse(Source(path.name, text))
    assert module is not None
    assert diagnose(path.name, format_module(module)) == ()


def test_the_command_agrees(tmp_path: Path) -> None:
    """`tfc check` refuses each file as it is (a warning is none) and passes all of them mended."""
    for path in MISTAKES:
        (tmp_path / path.name).write_text(mended(path), encoding="utf-8")

    def check(folder: Path) -> subprocess.CompletedProcess[str]:
        files = [str(folder / p.name) for p in MISTAKES]
        return subprocess.run([sys.executable, "-m", "tfc.cli", "check", *files], capture_output=True, text=True)

    done = check(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{len(MISTAKES)} files: no errors\n", "")
    done = check(GOLDEN / "mistakes")
    assert done.returncode == 1 and done.stderr == ""
    assert all(f"{p}:" in done.stdout for p in MISTAKES)
