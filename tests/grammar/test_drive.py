"""What is parsed from scanned tokens is what Lark makes of the text, places and faults included."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lark
import pytest

from tests.grammar.test_fuzz import mutant
from tfc.grammar import ast, parser
from tfc.grammar.syntax.drive import Driver, words
from tfc.grammar.syntax.scan import Scan, check_characters, scan
from tfc.source import Source

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("examples/*.tfm"), *ROOT.glob("grammar/prelude/*.tfm"), *ROOT.glob("tests/golden/*/*.tfm")])
BRACKETS = (
    'tfm 1 model m(x: int[B]) { y = (a)(b)[c] z = not(a) or(b) and (c) w = 2(x) [a, b] repeat[a](x) return(x)["a"(x)] }'
)


def loaded() -> tuple[lark.Lark, Driver]:
    return parser._load()


def both(scanned: Scan, monkeypatch: pytest.MonkeyPatch) -> tuple[object, object]:
    """(tree, faults, fault) of the driver, where it has one, and of Lark."""
    _, driver = loaded()
    end = len(scanned.source.text)
    with monkeypatch.context() as patch:
        patch.setattr(driver, "run", lambda tokens, rule: None)
        tree, faults, fault = parser._run(scanned, 0, end, "module")
        slow = [*places(tree)], tree, faults, fault
    with parser._LOCK:
        parser._BUILDER.begin(scanned.source)
        made = driver.run(scanned.tokens, "module")
        quick = [*places(made)], made, parser._BUILDER.faults
    return (None if made is None else quick), (None if fault else slow[:3])


def places(node: object) -> Iterator[tuple[str, int, int]]:
    """The kinds of all nodes, and where they are."""
    if isinstance(node, tuple):
        for part in node:
            yield from places(part)
    elif isinstance(node, ast.Node):
        yield type(node).__name__, node.span.start, node.span.end
        for name in node.__dataclass_fields__:
            yield from places(getattr(node, name))


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_files_as_lark_parses_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = scan(Source(path.name, path.read_text(encoding="utf-8")))
    if not scanned.faults:
        quick, slow = both(scanned, monkeypatch)
        assert quick == slow


def test_mutants_as_lark_parses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some fit the grammar and some do not, and of those that do some have faults that it lets pass."""
    seen: Counter[bool] = Counter()
    for number in range(400):
        source = Source("t.tfm", mutant(number))
        if check_characters(source) or (scanned := scan(source)).faults:
            continue
        quick, slow = both(scanned, monkeypatch)
        assert quick == slow, number
        seen[quick is None] += 1
    assert min(seen[True], seen[False]) > 20, seen


@pytest.mark.parametrize("text", [BRACKETS, *(p.read_text(encoding="utf-8") for p in FILES[:20])])
def test_words_as_lark_reads_them(text: str) -> None:
    """Brackets that touch a callee, keywords, numbers: the terminals are those of the grammar's own lexer."""
    plain, driver = loaded()
    scanned = scan(Source("t.tfm", text))
    if not scanned.faults:
        found = [(w.type, str(w), w.start_pos, w.end_pos) for w in words(scanned.tokens, driver.terminals)]
        assert found == [(t.type, str(t), t.start_pos, t.end_pos) for t in plain.lex(text)]
