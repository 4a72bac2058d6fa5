"""Formatting keeps the tree and the comments, and formatting twice changes nothing more."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tfc.grammar import ast
from tfc.grammar.format import WIDTH, format_expr, format_module, format_number
from tfc.grammar.layout import Group, Line, Nest, commas, fill, render
from tfc.grammar.parser import parse
from tfc.grammar.syntax.scan import check_characters, scan
from tfc.grammar.syntax.words import BODIED, FOREIGN, RESERVED, ROLES
from tfc.source import Source, Span

GOLDEN = Path(__file__).parents[1] / "golden"
SKETCHES = sorted((GOLDEN / "syntax").glob("*.tfm"))
NOWHERE = Span(Source("", ""), 0, 0)


def read(text: str) -> ast.Module:
    module, diagnostics = parse(Source("t.tfm", text))
    assert module is not None, "\n".join(map(str, diagnostics)) + "\n" + text
    return module


def same(a: ast.Module, b: ast.Module) -> bool:
    """Equal but for places; 1 and 1.0 are different numbers, which `==` would not tell."""
    return a == b and repr(a.items) == repr(b.items)


# ---- random trees


def node[T: ast.Node](cls: type[T], /, **parts: st.SearchStrategy[object]) -> st.SearchStrategy[T]:
    return st.builds(cls, span=st.just(NOWHERE), **parts)


def tuples[T](elements: st.SearchStrategy[T], least: int = 0, most: int = 3) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(elements, min_size=least, max_size=most).map(tuple)


NAMES = st.sampled_from(["x", "q", "heads", "mask", "score", "block", "model", "if", "yes", "_", "a_1", "B"]) | (
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,30}", fullmatch=True).filter(lambda n: n not in RESERVED | FOREIGN.keys())
)
TEXTS = st.text(
    st.characters(exclude_categories=("Cc", "Cn", "Cs", "Cf", "Zl", "Zp")).filter(
        lambda c: not check_characters(Source("drawn", c))  # variation selectors and the like are refused
    )
    | st.sampled_from('\n\t"\\#{}'),
    max_size=20,
)
DOCS = st.none() | TEXTS
LEADING = ast.Name(id="..", span=NOWHERE)
ALL_BEFORE = ast.Index(name="..", size=None, span=NOWHERE)
NUMBERS = node(
    ast.Number,
    value=st.integers(0, 10**12)
    | st.integers(0, 10**40)
    | st.floats(0, 1e308, allow_nan=False).map(abs)
    | st.sampled_from([0.5, 1e-12, 10_000.0, 1e16, 5e-324]),
)


def derived(expr: st.SearchStrategy[ast.Expr]) -> st.SearchStrategy[ast.Expr]:
    """A value: an expression, or one with changes."""
    inner = settings_of(expr | node(ast.Derived, base=expr, changes=settings_of(expr)))
    return expr | node(ast.Derived, base=expr, changes=inner)


def settings_of(value: st.SearchStrategy[ast.Expr]) -> st.SearchStrategy[tuple[ast.Setting, ...]]:
    return tuples(node(ast.Setting, path=tuples(NAMES, 1, 3), value=value))


def heads(expr: st.SearchStrategy[ast.Expr]) -> st.SearchStrategy[ast.Expr]:
    """`sum[i: 3, j]`: what only a call may have as its callee."""
    sized = node(ast.Index, name=NAMES, size=expr)
    indices = st.tuples(tuples(expr, 0, 2), sized, tuples(expr | sized, 0, 2)).map(lambda p: (*p[0], p[1], *p[2]))
    return node(ast.Subscript, value=expr, indices=indices)


def grown(expr: st.SearchStrategy[ast.Expr]) -> st.SearchStrategy[ast.Expr]:
    binary = node(
        ast.Binary, op=st.sampled_from(["+", "-", "*", "/", "//", "%", "^", "and", "or"]), left=expr, right=expr
    )
    comparison = st.tuples(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), expr)
    argument = node(ast.Argument, name=st.none() | NAMES, value=derived(expr))
    return st.one_of(
        binary,
        node(ast.Unary, op=st.sampled_from(["-", "not"]), operand=expr),
        node(ast.Compare, first=expr, rest=tuples(comparison, 1)),
        node(ast.Attribute, value=expr, name=NAMES),
        node(ast.Label, value=expr, label=NAMES),
        node(ast.Subscript, value=expr, indices=tuples(expr, 1) | tuples(expr).map(lambda rest: (LEADING, *rest))),
        node(ast.Call, callee=expr | heads(expr), arguments=tuples(argument)),
        node(ast.List, items=tuples(derived(expr))),
    )


EXPRS = st.recursive(NUMBERS | node(ast.Text, value=TEXTS) | node(ast.Name, id=NAMES), grown, max_leaves=12)
VALUES = derived(EXPRS)
SETTINGS = settings_of(VALUES)
INPUTS = tuples(node(ast.Parameter, name=NAMES, type=st.none() | EXPRS, default=st.none() | VALUES))
KINDS = NAMES.filter(lambda n: n not in ROLES + BODIED)
BASES = EXPRS.filter(lambda e: isinstance(e, (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Label)))

ANYWHERE = st.one_of(
    node(ast.Let, doc=DOCS, bindings=tuples(node(ast.Binding, name=NAMES, value=VALUES), 1)),
    node(ast.Declaration, doc=DOCS, kind=KINDS, name=NAMES, base=st.none() | BASES, changes=SETTINGS),
    node(ast.Declaration, doc=DOCS, kind=st.sampled_from(BODIED), name=NAMES, base=BASES, changes=SETTINGS),
    node(
        ast.ParamDecl,
        doc=DOCS,
        name=NAMES,
        dims=tuples(st.tuples(st.none() | NAMES, EXPRS)),
        init=st.none() | EXPRS,
        settings=SETTINGS,
    ),
    node(ast.Role, doc=DOCS, role=st.sampled_from(ROLES), name=NAMES, inputs=INPUTS, formula=VALUES),
)


def bodied(statement: st.SearchStrategy[ast.Item]) -> st.SearchStrategy[ast.Item]:
    return st.one_of(
        statement,
        node(ast.Repeat, doc=DOCS, over=EXPRS, name=NAMES, settings=settings_of(EXPRS), body=tuples(statement)),
        node(ast.Block, doc=DOCS, kind=st.sampled_from(BODIED), name=NAMES, inputs=INPUTS, body=tuples(statement)),
    )


INDICES = node(ast.Index, name=NAMES, size=st.none() | EXPRS)
STATEMENTS = st.one_of(
    ANYWHERE,
    node(ast.Equation, doc=DOCS, target=NAMES, indices=st.none() | tuples(INDICES, 1), value=VALUES),
    node(
        ast.Equation,
        doc=DOCS,
        target=NAMES,
        indices=tuples(INDICES).map(lambda rest: (ALL_BEFORE, *rest)),
        value=VALUES,
    ),
    node(ast.Return, doc=DOCS, value=EXPRS),
    node(ast.Report, doc=DOCS, name=NAMES, value=VALUES),
)
BLOCKS = node(
    ast.Block,
    doc=DOCS,
    kind=st.sampled_from(BODIED),
    name=NAMES,
    inputs=INPUTS,
    body=tuples(bodied(STATEMENTS)),
)
ITEMS = st.one_of(
    ANYWHERE,
    BLOCKS,
    node(ast.Import, doc=DOCS, path=TEXTS, alias=st.none() | NAMES, names=tuples(NAMES)),
    node(ast.Default, doc=DOCS, kind=NAMES, changes=SETTINGS),
    node(ast.Names, doc=DOCS, name=NAMES, entries=tuples(node(ast.NamePair, theirs=TEXTS, ours=VALUES))),
)


@given(tuples(ITEMS, 0, 4))
def test_random_trees_survive(items: tuple[ast.Item, ...]) -> None:
    """parse(format(x)) == x, and format(parse(format(x))) == format(x)."""
    module = ast.Module(version=1, items=items, span=NOWHERE)
    text = format_module(module)
    again = read(text)
    assert same(again, module)
    assert format_module(again) == text
    for item in items:
        event(type(item).__name__)


@given(EXPRS)
def test_random_expressions_survive(expr: ast.Expr) -> None:
    (let,) = read(f"tfm 1 let a = {format_expr(expr)}").items
    assert isinstance(let, ast.Let)
    assert repr(let.bindings[0].value) == repr(expr)


@given(NUMBERS)
def test_numbers(number: ast.Number) -> None:
    text = format_number(number.value).replace("_", "")
    back: float = int(text) if text.isdigit() else float(text)
    assert (type(back), back) == (type(number.value), number.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (512, "512"), (4096, "4_096"), (10_000, "10_000"), (256000, "256_000"), (1e-12, "1e-12"), (0.5, "0.5"),
     (1e-05, "1e-5"), (1e16, "1e16"), (10000.0, "10_000.0"), (1.5e300, "1.5e300"), (123456.75, "123_456.75")],
)  # fmt: skip
def test_how_numbers_look(value: float, text: str) -> None:
    assert format_number(value) == text


# ---- the sketches


@pytest.mark.parametrize("path", SKETCHES, ids=lambda p: p.stem)
def test_golden_layout(path: Path, golden: Callable[[str | Path, str], None]) -> None:
    module = read(path.read_text(encoding="utf-8"))
    text = format_module(module)
    golden(Path("syntax") / f"{path.stem}.formatted", text)
    assert same(read(text), module)
    assert format_module(read(text)) == text
    assert all(len(line) <= WIDTH and line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("path", SKETCHES, ids=lambda p: p.stem)
@settings(max_examples=max(10, settings().max_examples // len(SKETCHES)))  # of all the sketches, as many as else of one
@given(data=st.data())
def test_comments_are_kept(path: Path, data: st.DataObject) -> None:
    """Each comment once, in order, wherever it stands; the tree stays; formatting again changes nothing."""
    text = path.read_text(encoding="utf-8")
    tokens = scan(Source("", text)).tokens
    places = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=8)))
    pieces, at = [], 0
    for number, place in enumerate(places):
        offset = tokens[place].start if place < len(tokens) else len(text)
        if offset and place < len(tokens) and tokens[place].text in ("(", "[") and text[offset - 1] not in " \n":
            continue  # the bracket of a call touches its callee
        before, after = data.draw(st.sampled_from(["\n", " ", "\n\n"])), data.draw(st.sampled_from(["\n", "\n\n"]))
        pieces += [text[at:offset], f"{before}# remark {number}{after}"]
        at = offset
    commented = "".join(pieces) + text[at:]
    module = read(commented)
    formatted = format_module(module)
    again = read(formatted)
    assert same(again, module)
    assert [c for _, c in again.comments] == [c for _, c in module.comments]
    assert format_module(again) == formatted


LAYOUT = """\
# the licence

tfm 1  # the version

# about all of it

# about a
let a = 1, b = 2  # a and b
mask near = k <= q

# a block
"What it does,
in words."
block f(x) {  # its body
  # first
  y = x  # y

  z = y
  # last
}  # the end of f

attention look {
  # how many
  heads    = 2     # a power of two
  kv_heads = 1
  # no more
}

names hf {
  # theirs
  "a"     = b  # one
  "a.b.c" = d
}

# the end
""".replace("does,\nin", 'does,"\n"in')


def test_comments_stay_where_they_are() -> None:
    expected = LAYOUT.replace("heads    = 2     # a", "heads    = 2  # a")
    assert format_module(read(LAYOUT)) == expected
    assert format_module(read(expected)) == expected


def test_what_is_canonical() -> None:
    """One text for all ways of writing the same."""
    text = """
tfm 1 let a=(1)+(2*3),b=[1,2,]   attention look{heads=12 q=linear{bias=no}}mask m=((k)<=(q))
block f(x,y:int[B,T]=x){return(x)}   block g(x)
{ repeat 3 as turn { x=f(x) y = f(y) } return x }
linear e {}
"""
    assert (
        format_module(read(text))
        == """tfm 1

let a = 1 + 2 * 3, b = [1, 2]
attention look { heads = 12   q = linear { bias = no } }
mask m = k <= q
block f(x, y: int[B, T] = x) { return x }

block g(x) {
  repeat 3 as turn { x = f(x)   y = f(y) }
  return x
}

linear e {}
"""
    )


def test_long_lines_break() -> None:
    name = "a_rather_long_name"
    inputs = ", ".join(f"{name}_{i}" for i in range(9))
    value = f"g({name} + {name} * {name}, {name}({name}, {name} == {name} and {name}))"
    text = f"tfm 1 block f({inputs}) {{ return {value} }}"
    formatted = format_module(read(text))
    assert max(map(len, formatted.splitlines())) <= WIDTH
    assert same(read(formatted), read(text))
    assert format_module(read(formatted)) == formatted


# ---- the printer


def test_groups_break_or_do_not() -> None:
    doc = Group(("f(", Nest((Line(""), "a,", Line(), "b")), Line(""), ")"))
    assert render(doc, 80) == "f(a, b)"
    assert render(doc, 5) == "f(\n  a,\n  b\n)"


def test_fill_takes_as_many_as_fit() -> None:
    assert render(fill("aaa", "bbb", "ccc", "ddd"), 8) == "aaa bbb\nccc ddd"
    assert render(commas("f(", ["aaa", "bbb", "ccc"], ")"), 10) == "f(aaa,\n    bbb,\n    ccc)"
