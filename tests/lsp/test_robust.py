"""Every feature on texts that no one would write: drawn mutations of specs at drawn places; nothing raises."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lsprotocol import types

from tfc.grammar.lowering.scope import RESERVED as IMPLICIT_NAMES
from tfc.grammar.syntax.words import RESERVED, ROLES
from tfc.lsp import actions, completion, definition, diagnostics, formatting, hover, outline, rename
from tfc.lsp.analysis import Analysis
from tfc.lsp.library import IMPLICIT_WORDS, KEYWORDS, core_words
from tfc.lsp.text import Text
from tfc.source import Span

ROOT = Path(__file__).parents[2]
EXAMPLES = [*sorted((ROOT / "examples").glob("*.tfm")), *sorted((ROOT / "examples" / "zoo").rglob("*.tfm"))[::8]]
SMALL = """tfm 1

let width = 8, heads = 2
"Looks."
attention look { heads = heads   mask = causal and near(4) }
mask near(reach) = abs(q - k) < reach
block layer(x, look) { return x + look(rms@first(x)) }
model m(x: real[B, T, width]) {
  repeat 2 as turn { x = layer@deep(x, look) }
  y[b, t, c] = x[b, t, c] # 😀
  return y
}
names hf { "h.{turn}.q" = turn.deep.look.q.weight }
"""
PIECES = [
    "{", "}", "(", ")", "[", "]", "=", ",", ".", "@", '"', "#", ":", "..", " ", "\n", "\r\n", "x", "q", "let ", "tfm 1",
    "repeat 2 as a {", "return x", "attention ", "mask ", "names hf {", 'import "x.tfm" as y', "é", "😀", "\u2028",
    "\0", "\ud800", "9" * 400, "- " * 50, "(" * 120,
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A small spec with up to four pieces cut out, put in, doubled or swapped."""
    text = SMALL
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        piece = draw(st.one_of(st.just(""), st.sampled_from(PIECES), st.just(text[start:end] * 2)))
        text = text[:start] + piece + text[end:]
    return text


def everything(text: str, offset: int, encoding: str = "utf-16") -> Analysis:
    """All features at one place; what they answer lies in the text."""
    document = Analysis(Text("spec.tfm", text, encoding), None)
    uri = "untitled:spec.tfm"
    last = document.text.position(len(document.source.text))

    def fits(range):
        assert (0, 0) <= (range.start.line, range.start.character) <= (range.end.line, range.end.character)
        assert (range.end.line, range.end.character) <= (last.line, last.character)

    for found in diagnostics.diagnostics(document, uri):
        fits(found.range)
        assert found.code != "internal", found.message
    if (said := hover.hover(document, offset)) is not None:
        fits(said.range)
        assert isinstance(said.contents, types.MarkupContent) and said.contents.value.strip()
    for location in definition.definition(document, uri, offset):
        if location.uri == uri:
            fits(location.range)
    for span in definition.references(document, offset, True):
        fits(document.text.range(span))
    for item in completion.completion(document, offset):
        assert item.label and completion.HOLE not in item.label
    for symbol in outline.outline(document):
        fits(symbol.range)
    for fold in outline.folding(document):
        assert fold.start_line < fold.end_line <= last.line
    for action in actions.actions(document, uri, document.text.whole(), ["quickfix", "source.fixAll"]):
        assert action.edit is not None and action.edit.changes is not None
        for edit in action.edit.changes[uri]:
            fits(edit.range)
    for edit in formatting.formatting(document):
        fits(edit.range)
    try:
        for edit in rename.rename(document, offset, "another"):
            fits(edit.range)
    except rename.Refused as refused:
        assert str(refused)
    return document


@settings(max_examples=80)
@given(text=mutated(), data=st.data())
def test_no_feature_fails_on_mutations(text, data):
    everything(text, data.draw(st.integers(0, len(text))), data.draw(st.sampled_from(["utf-8", "utf-16", "utf-32"])))


def test_the_server_survives_mutations(editor):
    """The same over the protocol: changes and questions in one stream, each answered, the last one rightly."""
    drawn = random.Random(7)
    document = editor.open(SMALL)
    methods = ["hover", "definition", "completion", "documentSymbol", "foldingRange", "documentHighlight"]
    for _ in range(40):
        start = drawn.randrange(len(SMALL))
        text = SMALL[:start] + drawn.choice(PIECES) + SMALL[start + drawn.randrange(20) :]
        document.change(text.replace("|", ""))
        document.cursor = drawn.randrange(len(document.text))
        document.ask(drawn.choice(methods))
    document.change(SMALL.replace("rms@first", "r|ms@first"))
    assert "Root mean square" in document.hover()
    assert document.diagnostics() == []


def test_the_property_is_not_vacuous():
    """Of texts so mutated, some read, some do not, and features answer on both."""
    drawn = random.Random(3)
    reads = faults = answered = 0
    for _ in range(40):
        start = drawn.randrange(len(SMALL))
        text = SMALL[:start] + drawn.choice(["", " ", "x", "}"]) + SMALL[start + drawn.randrange(3) :]
        document = Analysis(Text("spec.tfm", text), None)
        reads += document.whole
        faults += not document.whole
        answered += hover.hover(document, SMALL.index("look {")) is not None
    assert reads > 3 and faults > 3 and answered > 20


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_name_of_the_examples_says_something(path):
    """Hover has words for each name, definitions exist for all that is not built in, and no complaint comes up."""
    document = Analysis(Text(str(path), path.read_text()), path)
    uri = path.as_uri()
    assert [d for d in document.diagnostics if d.severity == "error"] == []
    silent, homeless = [], []
    for token in document.tokens.all:
        if token.kind != "name" or token.text in ("tfm", "as", "and", "or", "not", "transpose", "concat", "none"):
            continue
        offset = token.start + 1
        where = f"{token.text} in line {document.text.position(offset).line + 1}"
        if hover.hover(document, offset) is None:
            silent.append(where)
        known = token.text in RESERVED | IMPLICIT_NAMES | core_words().keys() | KEYWORDS.keys()
        of_core = document.table.keyword(offset) is not None and "an input of" in str(hover.hover(document, offset))
        if not known and not of_core and not definition.definition(document, uri, offset):
            homeless.append(where)
    allowed = {"params", "compute", "reduce", "precision", "trained", "full", "remat", "dots"}
    assert [s for s in silent if s.split()[0] not in allowed | {"names", "hf"}] == []
    assert [h for h in homeless if h.split()[0] not in allowed | {"real"}] == []


@settings(max_examples=100)
@given(
    text=st.text(st.sampled_from("ab é😀\u2028\x0c\n\r"), max_size=40),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-32"]),
)
def test_positions_and_offsets_are_inverse(text, encoding):
    here = Text("x", text, encoding)
    assert len(here.lines) == here.source.text.count("\n") + 1
    for offset in range(len(here.source.text) + 1):
        assert here.offset(here.position(offset)) == offset


def test_half_a_surrogate_is_no_place_of_its_own():
    here = Text("x", "a😀b")
    assert [here.offset(p) for p in map(here.position, range(4))] == [0, 1, 2, 3]
    assert here.position(2).character == 3
    assert here.offset(types.Position(0, 2)) == 1


def test_what_is_said_of_words_is_complete():
    assert set(IMPLICIT_WORDS) == set(IMPLICIT_NAMES)
    openers = {"block", "model", *RESERVED} - {"and", "as", "not", "or", "tfm"}
    assert set(KEYWORDS) == set(ROLES) | openers
    assert [w.name for w in core_words().values() if not w.doc] == []


def test_a_failure_of_the_compiler_is_told_and_takes_nothing_away(monkeypatch):
    from tfc.lsp import analysis

    def broken(*_):
        raise ZeroDivisionError("as if")

    monkeypatch.setattr(analysis, "lower", broken)
    document = Analysis(Text("spec.tfm", SMALL), None)
    (found,) = document.diagnostics
    assert found.code == "internal" and "ZeroDivisionError" in found.message
    assert hover.hover(document, SMALL.index("look {")) is not None


def test_faults_cost_no_more_than_their_lines():
    """The places of what is left are those of the text."""
    text = SMALL.replace("  y[b, t, c] = x[b, t, c] # 😀\n", "  y = = x\n").replace("return y", "return x")
    document = Analysis(Text("spec.tfm", text), None)
    assert not document.whole
    assert [getattr(i, "name", "") for i in document.module.items][-3:] == ["layer", "m", "hf"]
    symbol = document.table.top.names["layer"]
    assert symbol.span == Span(document.source, text.index("layer("), text.index("layer(") + 5)


def test_a_large_file_is_analysed_in_time():
    """Two thousand lines, once: an editor's pause, not a wait."""
    import time

    parts = "".join(f"attention look{i} {{ heads = heads   mask = causal and window({i + 1}) }}\n" for i in range(600))
    text = SMALL.replace("mask near", parts + "mask near", 1)
    begun = time.process_time()
    everything(text, len(text) - 40)
    assert time.process_time() - begun < 20
