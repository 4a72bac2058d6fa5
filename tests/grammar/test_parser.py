"""The grammar has no conflict; texts parse to the trees they mean, in any layout; nothing a file holds raises."""

import logging
import os
import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import lark
import pytest

from tfc.diagnostics import CODES
from tfc.grammar import ast, parser
from tfc.grammar.syntax.build import MAX_NESTING, Builder
from tfc.grammar.syntax.scan import MAX_BYTES, MAX_DEPTH, scan
from tfc.source import Source, Span

SKETCHES = sorted((Path(__file__).parents[1] / "golden" / "syntax").glob("*.tfm"))
HERE = Span(Source("", ""), 0, 0)


def tree(text: str) -> ast.Module:
    module, diagnostics = parser.parse(Source("t.tfm", text))
    assert module is not None, "\n".join(map(str, diagnostics))
    return module


def value(text: str) -> ast.Expr:
    """The expression, parsed as the value of a `let`."""
    (item,) = tree(f"tfm 1 let a = {text}").items
    assert isinstance(item, ast.Let)
    return item.bindings[0].value


def shown(node: ast.Expr) -> str:
    """With all parentheses, for tests of precedence."""
    match node:
        case ast.Name(id=text):
            return text
        case ast.Number(value=number):
            return repr(number)
        case ast.Unary(op=op, operand=operand):
            return f"({op} {shown(operand)})"
        case ast.Binary(op=op, left=left, right=right):
            return f"({shown(left)} {op} {shown(right)})"
        case ast.Compare(first=first, rest=rest):
            return "(" + shown(first) + "".join(f" {op} {shown(e)}" for op, e in rest) + ")"
    raise AssertionError(node)


# ---- the grammar


def conflicts(grammar: str, start: list[str], caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger=lark.logger.name):
        lark.Lark(grammar, parser="lalr", lexer="basic", start=start, debug=True)
    return [r.getMessage() for r in caplog.records if "conflict" in r.getMessage().lower()]


def test_the_grammar_has_no_conflict(caplog: pytest.LogCaptureFixture) -> None:
    grammar = Path(parser.__file__).with_name("tfm.lark").read_text(encoding="utf-8")
    assert conflicts(grammar, ["module", "items"], caplog) == []


def test_a_conflict_would_be_counted(caplog: pytest.LogCaptureFixture) -> None:
    assert conflicts('start: a\na: a "+" a | "x"', ["start"], caplog)


def test_every_rule_has_its_method() -> None:
    """Lark would build a tree of its own for a rule that the builder does not know."""
    tree("tfm 1")
    assert parser._parser is not None
    names = {rule.alias or rule.origin.name for rule in parser._parser.rules}
    without = {name for name in names if not name.startswith("_") and not hasattr(Builder, name)}
    # these always hold one thing, and so are that thing
    assert without == {
        "postfix", "primary", "expr", "value", "statement", "plain_statement", "item", "plain_item", "declaration",
    }  # fmt: skip


# ---- meaning


@pytest.mark.parametrize("path", SKETCHES, ids=lambda p: p.stem)
def test_sketches_parse(path: Path) -> None:
    assert tree(path.read_text(encoding="utf-8")).items


@pytest.mark.parametrize("path", SKETCHES, ids=lambda p: p.stem)
@pytest.mark.parametrize("blank", [" ", "\n", "\r\n", "\r", " # a remark\n\t"])
def test_layout_means_nothing(path: Path, blank: str) -> None:
    text = path.read_text(encoding="utf-8")
    tokens = scan(Source("", text)).tokens
    other = tokens[0].text
    for before, token in pairwise(tokens):
        other += (blank if before.end < token.start else "") + token.text
    assert tree(other) == tree(text)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a + b * c", "(a + (b * c))"),
        ("a - b - c", "((a - b) - c)"),
        ("a // b % c", "((a // b) % c)"),
        ("-x ^ 2", "(- (x ^ 2))"),
        ("2 ^ -3", "(2 ^ (- 3))"),
        ("a ^ b ^ c", "(a ^ (b ^ c))"),
        ("2 ^ -a ^ b", "(2 ^ (- (a ^ b)))"),
        ("2 ^ - -a ^ -b", "(2 ^ (- (- (a ^ (- b)))))"),
        ("(-x) ^ 2", "((- x) ^ 2)"),
        ("a * -b", "(a * (- b))"),
        ("- -a", "(- (- a))"),
        ("not a and b or c", "(((not a) and b) or c)"),
        ("not(a) and(b)", "((not a) and b)"),
        ("not not a == b", "(not (not (a == b)))"),
        ("0 <= q - k < 4", "(0 <= (q - k) < 4)"),
        ("a == b and c != d", "((a == b) and (c != d))"),
        ("1 - (2 - 3)", "(1 - (2 - 3))"),
        ("4_096 + 1e-12 + 0.5 + 1_0.5e+1", "(((4096 + 1e-12) + 0.5) + 105.0)"),
    ],
)
def test_precedence(text: str, meaning: str) -> None:
    assert shown(value(text)) == meaning


def test_int_and_float() -> None:
    assert type(value("4_096")) is ast.Number
    assert [type(n.value) for t in ("4", "4.0", "4e0") if isinstance(n := value(t), ast.Number)] == [int, float, float]


def test_strings_and_documentation() -> None:
    text = value(r'"a \"b\" \\ \n\t c"')
    assert isinstance(text, ast.Text) and text.value == 'a "b" \\ \n\t c'
    (item,) = tree('tfm 1 "one" "" "three" let a = 1').items
    assert item.doc == "one\n\nthree"
    assert item.span.text.startswith('"one"')


def test_words_that_open_an_item_are_names_elsewhere() -> None:
    text = """tfm 1
    attention look { score = softcap(50)   mask = causal   block = 4   model = 3   weigh = p }
    block model(block, mask, score = mask) { mask = score(mask = block)   model[weigh, h] = mask[weigh]   return model }
    mask score = block == model
    """
    look, block, role = tree(text).items
    assert isinstance(look, ast.Declaration) and [s.path for s in look.changes][2:4] == [("block",), ("model",)]
    assert isinstance(block, ast.Block) and block.name == "model"
    assert isinstance(role, ast.Role) and (role.role, role.name) == ("mask", "score")


def test_every_construct() -> None:
    text = """tfm 1
    import "a.tfm"   import "b.tfm" as b   import "c.tfm" (f, g)   import "d.tfm" as d(h,)
    let a = 1, b = [x, y { z = 1 },], c = choice(5, 9)
    attention one {}   attention two = one   attention three = b.one { heads = 2   q.weights = int4 }
    param p   param q[h: heads, 4] = f(h) { trained = no }   param r[2] {}   param s = 1
    mask m(size, both = yes) = abs(q - k) < size
    default precision { params = f32   compute = bf16 }
    names hf { "x.{2 * i}" = y[0].z   "w" = transpose(v) }
    block f(x, y: int[B, T] = x, g = rms { eps = 1 },) {
      "inner" let n = 2
      z[b, t,] = sum[c](x[b, c] * w[c, t])
      repeat [g, rms {}] as l remat = full r.s = 2 { x = l@first(x, a = 1,) }
      report loss = z
      return x.f(y)[1]@l.m
    }"""
    module = tree(text)
    kinds = [type(i).__name__ for i in module.items]
    assert kinds == ["Import"] * 4 + ["Let"] + ["Declaration"] * 3 + ["ParamDecl"] * 4 + [
        "Role", "Default", "Names", "Block"
    ]  # fmt: skip
    imports = [i for i in module.items if isinstance(i, ast.Import)]
    assert [(i.path, i.alias, i.names) for i in imports] == [
        ("a.tfm", None, ()), ("b.tfm", "b", ()), ("c.tfm", None, ("f", "g")), ("d.tfm", "d", ("h",)),
    ]  # fmt: skip
    params = [i for i in module.items if isinstance(i, ast.ParamDecl)]
    assert [(len(p.dims), p.init is None, len(p.settings)) for p in params] == [
        (0, True, 0), (2, False, 1), (1, True, 0), (0, False, 0),
    ]  # fmt: skip
    assert params[1].dims[0] == ("h", ast.Name(id="heads", span=HERE))
    block = module.items[-1]
    assert isinstance(block, ast.Block)
    assert [type(s).__name__ for s in block.body] == ["Let", "Equation", "Repeat", "Report", "Return"]
    assert block.body[0].doc == "inner"
    repeat = block.body[2]
    assert isinstance(repeat, ast.Repeat) and [s.path for s in repeat.settings] == [("remat",), ("r", "s")]


def test_ranges_of_indices() -> None:
    """`name: size` where an index is bound: in the target of an index equation, in the head of a reducer."""
    text = """tfm 1 block f(x) {
      y[b, t: T // 2, c: n,] = sum[i: 3, j](x[2 * t + i, j])
      z[.., c: 4] = any[a, i: f(x),](x[.., i])
      return z
    }"""
    (block,) = tree(text).items
    assert isinstance(block, ast.Block)
    first, second, _ = block.body
    assert isinstance(first, ast.Equation) and first.indices and isinstance(second, ast.Equation) and second.indices
    sizes = [(i.name, i.size and i.size.span.text, i.span.text) for i in (*first.indices, *second.indices)]
    assert sizes == [
        ("b", None, "b"), ("t", "T // 2", "t: T // 2"), ("c", "n", "c: n"), ("..", None, ".."), ("c", "4", "c: 4"),
    ]  # fmt: skip
    for equation, shown in ((first, "sum[i: 3, j]"), (second, "any[a, i: f(x),]")):
        call = equation.value
        assert isinstance(call, ast.Call) and isinstance(call.callee, ast.Subscript)
        assert call.callee.span.text == shown
        assert [type(i).__name__ for i in call.callee.indices] == (
            ["Index", "Name"] if "sum" in shown else ["Name", "Index"]
        )


@pytest.mark.parametrize(
    "text", ["x[i: 3]", "x[i: 3].f", "f(x[i: 3], 2)", "x[1: 3](y)", "x[..: 3](y)", "x[i: 3: 2](y)"]
)
def test_ranges_stand_nowhere_else(text: str) -> None:
    module, found = parser.parse(Source("t", f"tfm 1 let a = {text}"))
    assert module is None and [d.code for d in found] == ["E110"]


def test_places() -> None:
    text = "tfm 1\r\nlet a = (1 + b)\r\n  * c  # why\r\nmask m = q.x == k\r\n"
    module = tree(text)
    let, mask = module.items
    assert isinstance(let, ast.Let) and isinstance(mask, ast.Role)
    product = let.bindings[0].value
    assert isinstance(product, ast.Binary)
    assert (product.span.line, product.span.column, product.span.end_line, product.span.end_column) == (2, 9, 3, 6)
    assert product.left.span.text == "(1 + b)"
    assert (mask.span.line, mask.span.column, mask.span.text) == (4, 1, "mask m = q.x == k")
    assert [text for _, text in module.comments] == ["# why"]


# ---- files


def test_reading_files(tmp_path: Path) -> None:
    def code(path: Path | str) -> str:
        source, diagnostics = parser.read_source(path)
        assert (source is None) == bool(diagnostics)
        assert all(str(d) and d.code in CODES for d in diagnostics)
        return diagnostics[0].code if diagnostics else ""

    def file(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    assert code(tmp_path / "missing.tfm") == "E001"
    assert code(tmp_path) == "E001"
    assert code("a\0b") == "E001"
    assert code(file("binary.tfm", bytes(range(256)))) == "E002"
    assert code(file("latin.tfm", "tfm 1 # größe".encode("latin-1"))) == "E002"
    assert code(file("utf16.tfm", "tfm 1".encode("utf-16"))) == "E002"
    assert code(file("large.tfm", b" " * (MAX_BYTES + 1))) == "E003"
    assert code(file("full.tfm", b" " * MAX_BYTES)) == ""
    assert code(file("empty.tfm", b"")) == ""
    source, _ = parser.read_source(file("marked.tfm", b"\xef\xbb\xbftfm 1\r\nlet a = 1\rlet b = 2\n"))
    assert source is not None and source.text == "tfm 1\nlet a = 1\nlet b = 2\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "E101"),
        ("\ufefftfm 1 let a = 1", ""),
        ("tfm 1 let a = 1\x00", "E004"),
        ("tfm 1 # \u202e", "E004"),
        ('tfm 1 let a = "\u2066"', "E004"),
        ("tfm 1 \ud800", "E004"),
        ("tfm 1" + " " * MAX_BYTES, "E003"),
        ("tfm 1 #" + "é" * (MAX_BYTES // 2), "E003"),
        ("tfm 1 let a = " + "(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH, ""),
        ("tfm 1 let a = " + "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1), "E005"),
        ("tfm 1 let a = " + "(" * 100_000, "E005"),
        ("tfm 1 let a = " + "[" * (MAX_NESTING - 2) + "]" * (MAX_NESTING - 2), ""),
        ("tfm 1 let a = " + "[" * MAX_NESTING + "]" * MAX_NESTING, "E005"),
        ("tfm 1 let a = 1" + " + 1" * 5_000, "E005"),
        ("tfm 1 let a = " + "-" * 5_000 + "1", "E005"),
        ("tfm 1 let a = " + "2 ^ -" * 5_000 + "1", "E005"),
        ("tfm 1 let a = x" + ".y" * 5_000, "E005"),
        ("tfm 1 let a = x" + "()" * 5_000, "E005"),
        ("tfm 1 let a = 1" + " < 1" * 5_000, ""),
        ("tfm 1 let a = " + "9" * 100_000, "E006"),
        ("tfm 1 let a = 1e999", "E006"),
        ("tfm 1 let a = 1e-999", "E006"),
        ("tfm 1 let a = 0e-999", ""),
        ("tfm 1 " + ")" * 20_000, "E107"),
        ("tfm 1 " + "& " * 20_000, "E104"),
        ("tfm 1 " + '"\n' * 20_000, "E106"),
        ("tfm 1 " + "mask m = k <=\n" * 5_000, "E111"),
        ("tfm 1 " + "1a" * 20_000, "E105"),
    ],
)
def test_hostile_texts_end_in_a_diagnostic(text: str, code: str) -> None:
    module, diagnostics = parser.parse(Source("t.tfm", text))
    assert (module is None) == bool(diagnostics)
    assert len(diagnostics) <= 10
    assert [d.code for d in diagnostics[:1]] == ([code] if code else [])
    drawn = "\n".join(map(str, diagnostics))
    assert len(drawn) < 6_000
    assert all(c == "\n" or c == "\t" or c.isprintable() for c in drawn)


# ---- the cached tables


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No parser yet, and a cache folder of its own."""
    monkeypatch.setattr(parser, "_parser", None)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    return tmp_path / "tfc" / "grammar"


def test_the_cache_is_used(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree("tfm 1 let a = 1")
    (file,) = fresh.iterdir()
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    monkeypatch.setattr(parser, "_parser", None)
    monkeypatch.setattr("lark.lark.load_grammar", None)  # computing anew would call it
    assert tree("tfm 1 let a = 1").items
    assert list(fresh.iterdir()) == [file]


def test_a_broken_cache_is_replaced(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree("tfm 1 let a = 1")
    (file,) = fresh.iterdir()
    whole = file.read_bytes()
    for broken in (b"", b"junk", whole[: len(whole) // 2]):
        file.write_bytes(broken)
        monkeypatch.setattr(parser, "_parser", None)
        assert tree("tfm 1 let a = 1").items
        assert len(file.read_bytes()) > len(whole) // 2


def test_without_a_safe_folder_there_is_no_cache(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.parent.write_text("a file in the way")
    assert tree("tfm 1 let a = 1").items
    fresh.parent.unlink()
    fresh.mkdir(parents=True)
    for folder in (fresh, fresh.parent):
        folder.chmod(0o777)  # others may have put a pickle there
        monkeypatch.setattr(parser, "_parser", None)
        assert tree("tfm 1 let a = 1").items
        assert list(fresh.iterdir()) == []
        folder.chmod(0o700)
    fresh.rmdir()
    fresh.symlink_to(fresh.parent.parent)
    monkeypatch.setattr(parser, "_parser", None)
    assert tree("tfm 1 let a = 1").items
    assert [p.name for p in fresh.parent.parent.iterdir()] == ["tfc"]


def test_parsing_loads_little() -> None:
    """A process that parses stays light: no JAX, no numpy, no rich."""
    program = (
        "import sys; from tfc.grammar.parser import parse; from tfc.source import Source\n"
        "assert parse(Source('t', 'tfm 1 let a = 1'))[0]\n"
        "print(sorted({'jax', 'jaxlib', 'numpy', 'ml_dtypes', 'rich', 'click'} & set(sys.modules)))"
    )
    root = Path(parser.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"
