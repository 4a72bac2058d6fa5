"""Each pass on small programs, and all on the examples: text before and after, the parameters, why a pass held back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tfc.front import front
from tfc.ir.text import parse, show
from tfc.ir.verify import verify
from tfc.passes.base import Rewritten
from tfc.passes.pipeline import BY_NAME, DEFAULT

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "golden" / "passes"
CASES = sorted(f.relative_to(FOLDER).as_posix().removesuffix(".before.txt") for f in FOLDER.glob("*/*.before.txt"))


def run(case: str) -> tuple[str, Rewritten]:
    """The text before, and what the pass makes of it."""
    text = (FOLDER / f"{case}.before.txt").read_text(encoding="utf-8")
    program = parse(text)
    verify(program)
    return text, BY_NAME[case.partition("/")[0]](program)


def shown(done: Rewritten) -> str:
    """The program, then as comments its parameters over those before, the way back, and the notes."""
    made = [f"{path} = {expr}" for path, expr in done.map.forward.items()]
    back = [f"back: {path} = {expr}" for path, expr in done.map.backward.items()]
    kept = [f"kept, unread: {path}" for path in sorted(done.map.kept)]
    guards = [f"if no element of {g.path} is 0, else hold {g.site}" for g in done.map.guards]
    notes = [str(note) for note in done.notes]
    return show(done.program) + "".join(f"# {line}\n" for line in [*made, *back, *kept, *guards, *notes])


@pytest.mark.parametrize("case", CASES)
def test_after(case: str, golden: Callable[[str, str], None]):
    _, done = run(case)
    verify(done.program, after=case)
    golden(f"passes/{case}.after.txt", shown(done))


@pytest.mark.parametrize("case", CASES)
def test_before_is_canonical(case: str):
    """A file's program is written as `show` writes it, so before and after can be laid side by side."""
    text, _ = run(case)
    plain = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    assert show(parse(text)) == plain


EXAMPLES = {
    "minilm": ("minilm", {}),
    "minilm-bf16": ("minilm", {"compute": "bf16"}),
    "gpt2": ("gpt2_block", {}),
    "llama": ("llama_block", {}),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str, golden: Callable[[str, str], None]):
    """The examples after all passes."""
    spec, sets = EXAMPLES[name]
    result = front(ROOT / "examples" / f"{spec}.tfm", sets).result
    golden(f"passes/{name}.txt", shown(Rewritten(result.program, result.map, result.notes)))


@pytest.mark.parametrize("name", [p.name for p in DEFAULT])
def test_each_pass_is_seen_at_work_and_holding_back(name: str):
    """At least one file in which the pass does something (a change, a finding), and one in which it leaves all be."""
    done = [(run(case)[1], parse(run(case)[0])) for case in CASES if case.startswith(f"{name}/")]
    assert any(after.program != before or any(not n.held for n in after.notes) for after, before in done)
    assert any(after.program == before for after, before in done)
