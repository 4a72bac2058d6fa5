"""What changes a text: renaming, with what it refuses and why; layout; quick fixes and all fixes at once."""

import pytest

from tfc.front import front

SPEC = """tfm 1

let width = 32, heads = 2

attention look { heads = heads   mask = near(8) }

mask near(reach) = abs(q - k) < reach
param slope[h: heads] = 2 ^ -h
score tilt = s - slope[h] * abs(q - k)

block layer(x, look, think = ffn) {
  x = x + look(rms@before_look(x))
  return x + think@feed(rms@before_feed(x))
}

block tall = layer { think = ffn { hidden = 8 }   before_look.eps = 1e-3 }

model small(ids: int[B, T]) {
  embed words = embed { vocab = 11   width = width }
  x = words(ids)
  repeat 3 as turn {
    x = layer@step(x, look)
    x = tall@more(x, look = look)
  }
  y[b, t, c] = x[b, t, c]
  return unembed(y, words)
}

names hf {
  "h.{turn}.{2 * turn + 1}.q.weight" = transpose(turn.step.look.q.weight)
  "h.{turn}.scale"                   = turn.step.before_look.scale
  "wte.weight"                       = words.weight
}
"""


def spec(where: str, word: str, text: str = SPEC) -> str:
    place = text.index(word, text.index(where))
    return text[: place + 1] + "|" + text[place + 1 :]


def lines(before: str, after: str) -> list[str]:
    """The lines that differ, as they are afterwards."""
    return [b.strip() for a, b in zip(before.split("\n"), after.split("\n"), strict=True) if a != b]


def test_the_spec_is_right(editor):
    assert editor.open(SPEC).diagnostics() == []


@pytest.mark.parametrize(
    ("where", "word", "new", "changed"),
    [
        ("let width", "width", "wide", ["let wide = 32, heads = 2",
                                         "embed words = embed { vocab = 11   width = wide }"]),
        ("let width", "heads", "many", ["let width = 32, many = 2", "attention look { heads = many   mask = near(8) }",
                                         "param slope[h: many] = 2 ^ -h"]),
        ("attention look", "near", "close", ["attention look { heads = heads   mask = close(8) }",
                                              "mask close(reach) = abs(q - k) < reach"]),
        ("mask near", "reach", "far", ["mask near(far) = abs(q - k) < far"]),
        ("score tilt", "slope", "steep", ["param steep[h: heads] = 2 ^ -h", "score tilt = s - steep[h] * abs(q - k)"]),
        ("attention look", "look", "gaze", ["attention gaze { heads = heads   mask = near(8) }",
                                             "x = layer@step(x, gaze)", "x = tall@more(x, look = gaze)"]),
        ("block layer", "layer", "deep", ["block deep(x, look, think = ffn) {",
                                           "block tall = deep { think = ffn { hidden = 8 }   before_look.eps = 1e-3 }",
                                           "x = deep@step(x, look)"]),
        ("return x + think", "x +", "z", ["block layer(z, look, think = ffn) {",
                                           "z = z + look(rms@before_look(z))",
                                           "return z + think@feed(rms@before_feed(z))"]),
        ("x = words", "x", "z", ["z = words(ids)", "z = layer@step(z, look)", "z = tall@more(z, look = look)",
                                  "y[b, t, c] = z[b, t, c]"]),
        ("y[b, t, c]", "t,", "time", ["y[b, time, c] = x[b, time, c]"]),
        ("x = layer@step", "step", "walk",
         ["x = layer@walk(x, look)",
          '"h.{turn}.{2 * turn + 1}.q.weight" = transpose(turn.walk.look.q.weight)',
          '"h.{turn}.scale"                   = turn.walk.before_look.scale']),
        ("x = x + look", "before_look", "first",
         ["x = x + look(rms@first(x))", "block tall = layer { think = ffn { hidden = 8 }   first.eps = 1e-3 }",
          '"h.{turn}.scale"                   = turn.step.first.scale']),
        ("repeat 3", "turn", "layer_number",
         ["repeat 3 as layer_number {",
          '"h.{layer_number}.{2 * layer_number + 1}.q.weight" = transpose(layer_number.step.look.q.weight)',
          '"h.{layer_number}.scale"                   = layer_number.step.before_look.scale']),
        ("block layer", "look,", "gaze",
         ["block layer(x, gaze, think = ffn) {", "x = x + gaze(rms@before_look(x))", "x = tall@more(x, gaze = look)",
          '"h.{turn}.{2 * turn + 1}.q.weight" = transpose(turn.step.gaze.q.weight)']),
        ("block layer", "think", "muse",
         ["block layer(x, look, muse = ffn) {", "return x + muse@feed(rms@before_feed(x))",
          "block tall = layer { muse = ffn { hidden = 8 }   before_look.eps = 1e-3 }"]),
        ('"wte', "words", "table",
         ["embed table = embed { vocab = 11   width = width }", "x = table(ids)", "return unembed(y, table)",
          '"wte.weight"                       = table.weight']),
        ("model small", "ids", "tokens", ["model small(tokens: int[B, T]) {", "x = words(tokens)"]),
    ],
)  # fmt: skip
def test_rename(editor, where, word, new, changed):
    document = editor.open(spec(where, word))
    prepared = document.ask("prepareRename")
    assert document.under(prepared["range"]) == prepared["placeholder"]
    after = document.renamed(new)
    assert sorted(lines(SPEC, after)) == sorted(changed)
    assert editor.open(after).diagnostics() == []
    assert before_and_after(after)


def before_and_after(after: str) -> bool:
    """The renamed file has a program of the same operations and shapes, and its checkpoint's names."""
    old, new = front(SPEC, passes=()), front(after, passes=())
    shape = [[(type(e.op).__name__, [str(o.type) for o in e.outs]) for e in f.program.eqns] for f in (old, new)]
    theirs = [[r.theirs for r in f.names["hf"].rows(f.lowered.program.stored())] for f in (old, new)]
    return shape[0] == shape[1] and theirs[0] == theirs[1]


@pytest.mark.parametrize(
    ("where", "word", "new", "said"),
    [
        ("block layer", "x,", "look", "`look` is declared already"),
        ("let width", "width", "heads", "`heads` is declared already"),
        ("let width", "width", "x", "would hide it"),
        ("let width", "width", "2nd", "is no name"),
        ("let width", "width", "repeat", "is a word of the language"),
        ("let width", "width", "q", "is a word of formulas"),
        ("let width", "width", "True", "is a word of the language"),
        ("x = words", "x", "words", "is declared already"),
        ("block layer", "x,", "rms", "means something else, and would be hidden"),
        ("x = x + look", "before_look", "before_feed", "would not mean the same"),
    ],
)
def test_rename_refuses_names(editor, failure, where, word, new, said):
    document = editor.open(spec(where, word))
    with pytest.raises(failure, match=said):
        document.renamed(new)


@pytest.mark.parametrize(
    ("where", "word", "said"),
    [
        ("x = x + look", "rms", "`rms` is declared in the prelude"),
        ("attention look", "attention", "declared in the prelude"),
        ("mask near", "abs", "`abs` is built in"),
        ("mask near", "q -", "`q` is a word of formulas"),
        ("embed words", "vocab", "an attribute that this file does not declare"),
        ("model small", "B", "is a length"),
        ("turn.step.look", "q.", "is not declared in this file"),
        ("tfm 1", "1", "no name here"),
    ],
)
def test_what_cannot_be_renamed(editor, failure, where, word, said):
    document = editor.open(spec(where, word))
    for method, more in (("prepareRename", {}), ("rename", {"newName": "other"})):
        with pytest.raises(failure, match=said):
            document.ask(method, **more)


def test_rename_needs_a_file_that_reads(editor, failure):
    document = editor.open(spec("let width", "width", SPEC + "\nlet b = = 3\n"))
    with pytest.raises(failure, match="a file that can be read"):
        document.renamed("wide")


def test_a_name_of_another_file_is_renamed_there(editor, failure, tmp_path):
    (tmp_path / "parts.tfm").write_text("tfm 1\n\nattention look { heads = 2 }\n")
    text = 'tfm 1\n\nimport "parts.tfm" (look)\n\nmodel m(x: real[B, T, 8]) { return lo|ok(x) }\n'
    document = editor.open(text, tmp_path / "spec.tfm")
    with pytest.raises(failure, match=r'declared in "parts.tfm": rename it there'):
        document.renamed("gaze")


def test_an_alias_is_renamed_here(editor, tmp_path):
    (tmp_path / "parts.tfm").write_text("tfm 1\n\nattention look { heads = 2 }\n")
    text = 'tfm 1\n\nimport "parts.tfm" as pa|rts\n\nmodel m(x: real[B, T, 8]) { return parts.look(x) }\n'
    after = editor.open(text, tmp_path / "spec.tfm").renamed("base")
    assert 'import "parts.tfm" as base' in after and "base.look(x)" in after


def test_an_input_given_to_something_unknown_is_refused(editor, failure):
    text = """tfm 1

block f(x, depth = 2) { return x * depth }
block g(x, any_block) { return any_block(x, depth = 3) }
model m(x: real[B, T, 8]) { return f(x, de|pth = 1) }
"""
    document = editor.open(text)
    with pytest.raises(failure, match="rename by hand"):
        document.renamed("factor")


# ---- layout


def test_formatting_is_one_edit_of_the_whole(editor):
    document = editor.open("tfm 1\nlet  a=3 # why\n\n\n\nlet b = a+1")
    (edit,) = document.ask("formatting", options={"tabSize": 2, "insertSpaces": True})
    assert edit["range"]["start"] == {"line": 0, "character": 0}
    after = document.edited([edit])
    assert after == "tfm 1\n\nlet a = 3  # why\n\nlet b = a + 1\n"
    assert editor.open(after).ask("formatting", options={"tabSize": 2, "insertSpaces": True}) == []


@pytest.mark.parametrize("text", ["tfm 1\nlet  a = = 3", "", "let a = 3", "tfm 1\nlet a = [1"])
def test_no_layout_of_what_does_not_read(editor, text):
    assert editor.open(text).ask("formatting", options={"tabSize": 2, "insertSpaces": True}) == []


def test_formatting_makes_one_line_end(editor):
    document = editor.open("\ufefftfm 1\r\n\r\nlet  a = 3\r\n")
    (edit,) = document.ask("formatting", options={"tabSize": 2, "insertSpaces": True})
    assert edit["newText"] == "tfm 1\n\nlet a = 3\n"
    assert edit["range"] == {"start": {"line": 0, "character": 0}, "end": {"line": 3, "character": 0}}


# ---- fixes


def fixes(document, only=None):
    whole = {"start": {"line": 0, "character": 0}, "end": {"line": 999, "character": 0}}
    context = {"diagnostics": [], **({"only": only} if only else {})}
    return document.ask("codeAction", range=whole, context=context)


def test_a_quick_fix(editor):
    document = editor.open("tfm 1\n\nlet width = 8, twice = 2 * widht\n")
    (action,) = fixes(document)
    assert (action["title"], action["kind"]) == ("Replace `widht` by `width`", "quickfix")
    assert action["diagnostics"][0]["code"] == "E201"
    assert "2 * width\n" in document.edited(action["edit"]["changes"][document.uri])


def test_fixes_are_those_of_the_range(editor):
    document = editor.open("tfm 1\n\nlet width = 8, twice = 2 * widht\nlet b = wdith\n")
    line = {"start": {"line": 3, "character": 0}, "end": {"line": 3, "character": 20}}
    (action,) = document.ask("codeAction", range=line, context={"diagnostics": []})
    assert action["title"] == "Replace `wdith` by `width`"


def test_a_fix_of_syntax(editor):
    document = editor.open("tfm 1\n\nlet a = True\n")
    (action,) = fixes(document, ["quickfix"])
    assert "let a = yes" in document.edited(action["edit"]["changes"][document.uri])


def test_fix_all(editor):
    """Round after round: what hides behind faults of syntax is fixed, too."""
    text = "tfm 1\n\nlet width = 8, twice = 2 * widht\nlet b = True\nlet c = wdith ** 2\n"
    document = editor.open(text)
    (action,) = fixes(document, ["source.fixAll"])
    assert action["kind"] == "source.fixAll"
    after = document.edited(action["edit"]["changes"][document.uri])
    assert after == "tfm 1\n\nlet width = 8, twice = 2 * width\nlet b = yes\nlet c = width ^ 2\n"
    assert fixes(editor.open(after), ["source.fixAll"]) == []


def test_fix_all_beside_wide_characters(editor):
    document = editor.open('tfm 1\n\n"😀" let a = True # 😀\n')
    (action,) = fixes(document, ["source.fixAll"])
    assert document.edited(action["edit"]["changes"][document.uri]) == 'tfm 1\n\n"😀" let a = yes # 😀\n'


def test_fix_all_is_not_offered_unasked(editor):
    document = editor.open("tfm 1\n\nlet a = True\n")
    assert {a["kind"] for a in fixes(document)} == {"quickfix"}
    assert fixes(document, ["refactor"]) == []
