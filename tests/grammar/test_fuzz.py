"""Mutated texts through the front half, in process and by the command: diagnostics, soon, never a traceback.

Text number n is the same in every run: it is drawn by a generator seeded with n from all the specs of the repository.
"""

import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tfc.diagnostics import CODES, Diagnostic, TfcError
from tfc.grammar import ast
from tfc.grammar.format import format_module
from tfc.grammar.lower import lower
from tfc.grammar.lowering.session import is_library
from tfc.grammar.parser import parse
from tfc.grammar.syntax.scan import Token, scan
from tfc.grammar.syntax.words import RESERVED
from tfc.ir.verify import verify
from tfc.passes import pipeline
from tfc.source import Source

ROOT = Path(__file__).resolve().parents[2]
ALL = 10_000
DEFAULT = 1_500
CHUNK = 125
SECONDS = 1.0
"""CPU time that a text may take, from its characters to its diagnostics or its verified program."""
KEYS = {"file", "line", "column", "end_line", "end_column", "code", "severity", "message", "help"}


# ---- texts to start from


@cache
def sources() -> dict[str, list[str]]:
    """Every spec of the repository, by where it stands; a group is drawn before a text of it."""
    groups = {
        "examples": sorted((ROOT / "examples").glob("*.tfm")),
        "zoo": sorted((ROOT / "examples" / "zoo").rglob("*.tfm")),
        "prelude": sorted((ROOT / "grammar" / "prelude").glob("*.tfm")),
        "syntax": sorted((ROOT / "tests" / "golden" / "syntax").glob("*.tfm")),
        "lower": sorted((ROOT / "tests" / "golden" / "lower").glob("*.tfm")),
        "errors": sorted((ROOT / "tests" / "golden" / "errors" / "lower").glob("*.tfm")),
        "faults": sorted((ROOT / "tests" / "golden" / "errors" / "syntax").glob("*.tfm")),
        "mistakes": sorted((ROOT / "tests" / "golden" / "mistakes").glob("*.tfm")),
    }
    texts = {name: [path.read_text(encoding="utf-8") for path in paths] for name, paths in groups.items()}
    pages = (ROOT / "README.md", ROOT / "grammar" / "README.md")
    found = [s for page in pages for s in re.findall(r"^```tfm[^\n]*\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)]
    texts["snippets"] = [s if s.startswith("tfm 1") else f"tfm 1\n{s}" for s in found]
    return texts


GROUPS = ("examples", "zoo", "prelude", "syntax", "lower", "lower", "errors", "faults", "mistakes", "snippets")


def base(draw: random.Random) -> str:
    return draw.choice(sources()[draw.choice(GROUPS)])


# ---- mutations: a text, the choices to make, the next text

WORDS = (
    "0", "1", "-1", "2.5", "1e300", "1e-300", "10 ^ 9", "2 ^ 10 ^ 9", "9" * 30, "yes", "none", "inf", "pi", "x", "s",
    "q", "k", "h", "p", "u", "c", "row", "pos", "T", "B", "[1]", "[]", "[1, 2] * 3", "f32", "int", "causal", "rms",
    "linear", "window(3)", "softcap(30)", "rope()", "q.segment", "k.x", "row.max", '"a"', '""', '"{layer}"', "silu",
    "split(x, 2)", "join(x)", "sum(x)", "sum[j](x[j])", "sum[j: 3](x[j])", "size(x)", "if(x, 1, 2)", "not x",
    "x.weight", "x@a", "a = 1", "zeros", "..", "choice(1, 2)", "linear { out = 3 }", "[rms, silu]", "attention",
    "tag(x, a = 1)", "log(0)", "sqrt(-1)", "1 / 0", "T // 2", "-(-T // 2)", "T % 2", "length(x)", "top(x, 2)",
    "pick(x, top(x, 1))", "append(x, x)", "part(x, 1, T)", "cut(x, 0, 2)", "rounded(x, int8)", "int4(group = 3)",
    "calibrated(x)", "recur(x, x, x)", "weights(x, x)", "mix(x, x)", "route(x, rms, 2, x)", "stop(x)",
    "straight(x, s)", "orthogonal", "dot(q.a, k.b)", "apportion(x, total = 3)", "normal_quantile(x)", "ceil(x)",
    "count([1])", "q.lag[h, q - k]", "",
)  # fmt: skip
SIGNS = (*"+-*/%^=<>@.,:;(){}[]&|!~$'\"#\\", "==", "<=", "**", "//", "..", "and", "or", "not", "->", "≤", "−")
KEYWORDS = ("let", "param", "repeat", "return", "report", "import", "names", "default", "as", "tfm 1", "block", "model")
BEFORE_VALUES = (*"=([,+-*/%^<>", "==", "!=", "<=", ">=", "//", "and", "or", "not", "return", "repeat")
NOISE = 'aZ_09 \n\t\r.,"#{}()[]=+é×а\x00\u202e\u200b\ufeff🙂\u0301ßK²٣'


def _tokens(text: str) -> tuple[Token, ...]:
    return scan(Source("", text)).tokens


def _replaced(text: str, token: Token, new: str) -> str:
    return text[: token.start] + new + text[token.end :]


def delete(text: str, draw: random.Random) -> str:
    return _replaced(text, draw.choice(_tokens(text)), "")


def double(text: str, draw: random.Random) -> str:
    token = draw.choice(_tokens(text))
    return _replaced(text, token, f"{token.text} {token.text}")


def swap(text: str, draw: random.Random) -> str:
    a, b = sorted((draw.choice(_tokens(text)) for _ in range(2)), key=lambda t: t.start)
    return text if a == b else text[: a.start] + b.text + text[a.end : b.start] + a.text + text[b.end :]


def swap_neighbours(text: str, draw: random.Random) -> str:
    tokens = _tokens(text)
    i = draw.randrange(max(1, len(tokens) - 1))
    a, b = tokens[i], tokens[min(i + 1, len(tokens) - 1)]
    return text if a == b else text[: a.start] + b.text + text[a.end : b.start] + a.text + text[b.end :]


def replace(text: str, draw: random.Random) -> str:
    return _replaced(text, draw.choice(_tokens(text)), draw.choice((draw.choice(WORDS), draw.choice(SIGNS + KEYWORDS))))


def _operands(text: str) -> list[Token]:
    """The names, numbers and strings that stand where a value does."""
    tokens = _tokens(text)
    around = zip(("", *(t.text for t in tokens)), tokens, (*(t.text for t in tokens[1:]), ""), strict=False)
    return [
        t
        for before, t, after in around
        if t.kind in ("name", "number", "string") and t.text not in RESERVED
        if before in BEFORE_VALUES and after != "="
    ]


def alike(text: str, draw: random.Random) -> str:
    """A value or a sign by another of its sort, from the same text or another: what mostly still parses."""
    tokens = [t for t in _tokens(text) if t.kind == "operator" and t.text not in ("=", ".", ",")]
    tokens = draw.choice((tokens, _operands(text), _operands(text))) or list(_tokens(text))
    token = draw.choice(tokens)
    others = [t.text for t in draw.choice((tokens, _operands(base(draw)))) if t.kind == token.kind]
    return _replaced(text, token, draw.choice(others or [token.text]))


def value(text: str, draw: random.Random) -> str:
    tokens = _operands(text)
    return _replaced(text, draw.choice(tokens), draw.choice(WORDS)) if tokens else text


def insert(text: str, draw: random.Random) -> str:
    token = draw.choice(_tokens(text))
    return _replaced(text, token, f"{draw.choice(WORDS + SIGNS + KEYWORDS)} {token.text}")


def noise(text: str, draw: random.Random) -> str:
    for _ in range(draw.randint(1, 4)):
        at, new = draw.randrange(len(text) + 1), draw.choice((draw.choice(NOISE), chr(draw.randrange(0x110000)), ""))
        text = text[:at] + new + text[at + draw.randint(0, 1) :]
    return text


def cut(text: str, draw: random.Random) -> str:
    return text[: draw.randrange(len(text) + 1)]


def splice(text: str, draw: random.Random) -> str:
    """The beginning of one file, the end of another."""
    other = base(draw)
    return text[: draw.randrange(len(text) + 1)] + other[draw.randrange(len(other) + 1) :]


def graft(text: str, draw: random.Random) -> str:
    """Some lines of another file among those of this one."""
    lines, others = text.split("\n"), base(draw).split("\n")
    at, start = draw.randrange(len(lines) + 1), draw.randrange(len(others))
    return "\n".join(lines[:at] + others[start : start + draw.randint(1, 8)] + lines[at:])


def move(text: str, draw: random.Random) -> str:
    """A line dropped, doubled, or put elsewhere."""
    lines = text.split("\n")
    line = lines.pop(draw.randrange(len(lines)))
    for _ in range(draw.randint(0, 2)):
        lines.insert(draw.randrange(len(lines) + 1), line)
    return "\n".join(lines)


def deepen(text: str, draw: random.Random) -> str:
    """A value within many brackets, signs or calls."""
    token = draw.choice(_tokens(text))
    n = draw.choice((3, 30, 90, 150, 600))
    opener, closer = draw.choice(
        (("(", ")"), ("[", "]"), ("-", ""), ("not ", ""), ("abs(", ")"), ("x[", "]"), ("2 ^ ", ""), ("{", "}"),
         ("if(yes, 1, ", ")"), ("", " + 1"), ("", ".a"), ("", "@a"), ("repeat 2 as a { ", " }"), ("rms(", ")"),
         ("block b(x) { ", " }"), ("f { a = ", " }"), ("(", ""), ("", "]"))
    )  # fmt: skip
    return _replaced(text, token, opener * n + token.text + closer * n)


def enlarge(text: str, draw: random.Random) -> str:
    """A number beyond reason."""
    tokens = [t for t in _tokens(text) if t.kind == "number" and t.start > 8]
    big = ("1" + "0" * draw.choice((6, 9, 15, 40, 400)), "9" * draw.choice((5, 12, 19, 70)), "1e308", "1e-308", "0.1")
    big += ("2 ^ 62", "2 ^ 63 - 1", "10 ^ 10 ^ 10", "-(2 ^ 40)", "0", "1e400")
    return _replaced(text, draw.choice(tokens), draw.choice(big)) if tokens else text


Mutation = Callable[[str, random.Random], str]
MUTATIONS: tuple[Mutation, ...] = (
    delete, double, swap, swap_neighbours, replace, alike, value, insert, noise, cut, splice, graft, move, deepen,
    enlarge,
)  # fmt: skip
MEANINGS: tuple[Mutation, ...] = (alike, alike, alike, value, value, value, enlarge, move)
"""Those after which a text often still parses: they try what comes after."""


def mutant(number: int) -> str:
    """Text number `number`: a spec changed one to four times."""
    draw = random.Random(number)
    text = base(draw)
    mutations = draw.choice((MUTATIONS, MEANINGS, MEANINGS))
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 4))):
        if _tokens(text):
            text = draw.choice(mutations)(text, draw)
    return f"{text}\n"


# ---- what must hold of each


def allowed() -> float:
    """SECONDS, longer on a machine that is slower or busy: one at rest does this loop in 25 ms."""
    times = []
    for _ in range(5):
        began, seen = time.process_time(), dict[int, object]()
        for i in range(200_000):
            seen[i & 255] = (i, seen.get(i & 127))
        times.append(time.process_time() - began)
    return SECONDS * max(1.0, sorted(times)[2] / 0.025)


def check_places(found: tuple[Diagnostic, ...], source: Source) -> None:
    """Known codes, places within the text, a drawing of bounded size."""
    for d in found:
        assert d.code in CODES and d.message, d
        assert d.span is not None, d
        told = [n.span for n in d.notes if not is_library(n.span.source)]  # what a note tells may be the library's
        for span in (d.span, *told, *(e.span for e in d.edits)):
            assert span.source.name == source.name, d
            assert 0 <= span.start <= span.end <= len(source.text), d
        assert len(str(d)) < 4_000, d
        assert set(d.to_json()) == KEYS


def compiled(text: str, source: Source) -> tuple[ast.Module | None, tuple[Diagnostic, ...]]:
    """The tree, where there is one, and all that is said of the text. The program is verified after each pass."""
    module, found = parse(source)
    if module is None:
        return None, tuple(found)
    try:
        lowered = lower(module)
        verify(lowered.program)
        pipeline.run(lowered.program, pipeline.DEFAULT)
    except TfcError as error:
        return module, error.diagnostics
    return module, lowered.warnings


def check_edits(found: tuple[Diagnostic, ...], source: Source) -> None:
    """The first complaint that has edits is not said again, at the same place, once these are applied."""
    first = next((d for d in found if d.edits), None)
    if first is None or first.span is None or "\r" in source.text or source.text.startswith("\ufeff"):
        return
    text = source.text
    for edit in sorted(dict.fromkeys(first.edits), key=lambda e: (e.span.start, e.span.end), reverse=True):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    _, after = compiled(text, Source(source.name, text))
    for d in after:
        same = d.code == first.code and d.message == first.message
        assert not (same and d.span is not None and d.span.start == first.span.start), first


def check_format(module: ast.Module) -> None:
    once = format_module(module)
    again, found = parse(Source("formatted", once))
    assert again is not None, "\n".join(map(str, found))
    assert again == module and repr(again.items) == repr(module.items)  # 1 and 1.0 are different numbers
    assert format_module(again) == once


def examine(number: int) -> str:
    """Text number `number` held to all of it; how far it came: "refused", "parsed" or "compiled"."""
    text = mutant(number)
    source = Source(f"text {number}", text)
    began = time.process_time()
    module, found = compiled(text, source)
    spent = time.process_time() - began
    assert spent < SECONDS or spent < allowed(), f"{spent:.2f} s\n" + "\n".join(map(str, found))
    # line ends are made one: places are those of the text so read
    check_places(found, Source(source.name, text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")))
    if number % 4 == 0:
        check_edits(found, source)
    if module is None:
        assert found and all(d.severity == "error" for d in found)
        return "refused"
    check_format(module)
    return "parsed" if any(d.severity == "error" for d in found) else "compiled"


def run(numbers: range) -> Counter[str]:
    reached: Counter[str] = Counter()
    for number in numbers:
        try:
            reached[examine(number)] += 1
        except BaseException as error:
            error.add_note(f"text {number}:\n{mutant(number)}")
            raise
    return reached


@pytest.mark.parametrize("start", range(0, DEFAULT, CHUNK))
def test_mutants(start: int) -> None:
    reached = run(range(start, start + CHUNK))
    assert reached["refused"] > CHUNK // 5 and reached["parsed"] > CHUNK // 5 and reached["compiled"] > 0, reached


@pytest.mark.slow
@pytest.mark.parametrize("start", range(DEFAULT, ALL, 500))
def test_all_mutants(start: int) -> None:
    run(range(start, start + 500))


def test_mutants_are_what_they_are() -> None:
    """The same in every run and all different, nearly."""
    texts = [mutant(n) for n in range(300)]
    assert texts == [mutant(n) for n in range(300)]
    assert len(set(texts)) > 290


# ---- the same by the command


def command(folder: Path, numbers: range, *words: str) -> subprocess.CompletedProcess[str]:
    """`tfc check` of these texts, each a file of that name."""
    files = [f"{number}.tfm" for number in numbers]
    for name, number in zip(files, numbers, strict=True):
        (folder / name).write_bytes(mutant(number).encode("utf-8", "surrogatepass"))
    done = subprocess.run(
        [sys.executable, "-m", "tfc.cli", "check", *words, *files], capture_output=True, cwd=folder, timeout=300
    )
    out, err = done.stdout.decode("utf-8", "strict"), done.stderr.decode("utf-8", "strict")
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def test_the_command_on_many(tmp_path: Path) -> None:
    """Two hundred files: exit code 1, as some are wrong, an empty stderr, as many errors as are counted."""
    done = command(tmp_path, range(190))
    assert (done.returncode, done.stderr) == (1, "")
    said = re.fullmatch(r"(?s).*\n190 files: (\d+) errors(?:, (\d+) warnings?)?\n", done.stdout)
    assert said is not None
    assert "Traceback" not in done.stdout and "internal error" not in done.stdout
    assert len(re.findall(r"^(?:[^ \n]+:\d+:\d+: )?error\[E\d+\]: ", done.stdout, re.M)) == int(said[1])


def test_the_command_on_one(tmp_path: Path) -> None:
    """One by one: 0 where the count is of no errors, else 1."""
    codes = set()
    for number in range(190, 200):
        done = command(tmp_path, range(number, number + 1))
        assert done.stderr == "" and "Traceback" not in done.stdout
        assert done.returncode == (0 if "1 file: no errors" in done.stdout else 1)
        codes.add(done.returncode)
    assert codes <= {0, 1}


def test_the_command_in_json(tmp_path: Path) -> None:
    done = command(tmp_path, range(60), "--format", "json")
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert len(found) > 40
    for one in found:
        assert set(one) == KEYS and one["code"] in CODES and one["severity"] in ("error", "warning")
        assert all(isinstance(one[key], str) for key in ("message", "help"))
        if one["file"] is not None:
            assert (tmp_path / one["file"]).is_file() and one["line"] >= 1 and one["column"] >= 1
            assert (one["end_line"], one["end_column"]) >= (one["line"], one["column"])
