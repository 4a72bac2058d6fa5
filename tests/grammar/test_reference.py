"""The language's reference is what the grammar, the tables and the library say; every snippet of it parses."""

import re

import lark
import pytest

from tfc.grammar import reference
from tfc.grammar.lowering.core import FUNCTIONS
from tfc.grammar.lowering.library import library_items
from tfc.grammar.parser import parse
from tfc.grammar.reference import EXAMPLES, PAGE, page, rules
from tfc.ir.formats import FITTERS, FORMATS
from tfc.source import Source

GROUPS = {
    "binding", "body", "conjunction", "dim", "dims", "disjunction", "exponent", "index", "inputs", "name", "name_pair",
    "negation", "argument", "group", "parameter", "postfix", "range", "repeat_setting", "setting", "settings", "sign",
    "sum", "term", "declaration", "expr", "primary", "value",
}  # fmt: skip
"""Rules that only stand within others, or that need no explanation."""


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


@pytest.mark.parametrize("text", re.findall(r"^```tfm\n(.*?)^```", page(), re.MULTILINE | re.DOTALL))
def test_snippets_parse(text: str) -> None:
    module, diagnostics = parse(Source("REFERENCE.md", text if text.startswith("tfm 1") else f"tfm 1\n{text}"))
    assert module is not None, "\n".join(map(str, diagnostics))


def test_every_rule_has_an_example_that_uses_it() -> None:
    grammar = PAGE.with_name("tfm.lark").read_text(encoding="utf-8")
    parser = lark.Lark(grammar, parser="lalr", lexer="basic", start="module", keep_all_tokens=True)
    for rule, example in EXAMPLES.items():
        used = {tree.data for tree in parser.parse(f"tfm 1\n{example}").iter_subtrees()}
        assert rule in used, rule
    assert set(rules()) - set(EXAMPLES) == GROUPS


def test_everything_is_on_the_page() -> None:
    text = page()
    for name in (*library_items(), *FUNCTIONS, *FORMATS, *FITTERS):
        assert re.search(rf"`{name}\b", text), name
    assert text.count("**`") == len(library_items())


def test_signatures() -> None:
    text = page()
    assert "block unit(x, eps = 1e-12)\n" in text
    assert "mask causal = k <= q\n" in text
    assert "int4(group = 128" in text and "gptq(damp = 0.01, block = 128)" in text
    assert reference.PAGE.name == "REFERENCE.md"
