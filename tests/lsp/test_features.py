"""What the server answers about a place: hover, definition, references, completion, outline, folding."""

from pathlib import Path

import pytest

SPEC = """tfm 1

let width = 32, heads = 2, twice = 2 * width

"Looks around."
attention look { heads = heads   mask = causal and near(8) }
ffn feed { hidden = twice }

param slope[h: heads] = 2 ^ -h

"Keys that are near."
mask near(reach) = abs(q - k) < reach
score tilt = s - slope[h] * abs(q - k)

"A layer."
block layer(x, look, think = feed) {
  x = x + look(rms@before_look(x))
  y[b, t, c] = x[b, t, c] * 2
  return y + think(rms@before_think(x))
}

model small(ids: int[B, T], start: int[B, T]) {
  embed words = embed { vocab = 11   width = width }
  x = tag(words(ids), segment = start)
  repeat 3 as turn {
    x = layer@step(x, look)
  }
  return unembed(x, words)
}

names hf {
  "h.{turn}.q.weight" = transpose(turn.step.look.q.weight)
  "wte.weight"        = words.weight
}
"""


def at(text: str, where: str, word: str) -> str:
    """The spec with the cursor on `word` in the first line that holds `where`."""
    line = text.index(where)
    place = text.index(word, line)
    return text[: place + 1] + "|" + text[place + 1 :]


def spec(where: str, word: str) -> str:
    return at(SPEC, where, word)


def test_the_spec_is_right(editor):
    assert editor.open(SPEC).diagnostics() == []


# ---- hover


@pytest.mark.parametrize(
    ("where", "word", "said"),
    [
        ("let width", "width", ["let width = 32"]),
        ("let width", "twice", ["let twice = 2 * width", "twice = 64"]),
        ("attention look", "look", ["attention look {", "Looks around.", "made of `attention`", "arXiv:1706.03762"]),
        ("attention look", "attention", ["block attention(x, memory = x", "the prelude, "]),
        ("attention look", "heads", ["heads", "an input of `attention`, without a default", "heads = 2"]),
        ("attention look", "causal", ["mask causal = k <= q", "at its own position and before", "the prelude, "]),
        ("attention look", "near", ["mask near(reach)", "Keys that are near."]),
        ("ffn feed", "hidden", ["hidden = 4 * size(x)", "if not given, `4 * size(x)`", "hidden = 64"]),
        ("param slope", "slope", ["param slope[h: heads]", "slope: f32[2]"]),
        ("mask near", "q -", ["the query token", "in a mask formula"]),
        ("score tilt", "slope", ["param slope[h: heads]"]),
        ("score tilt", "s -", ["the score so far", "in a score formula"]),
        ("block layer", "x,", ["x: f32[B, T, 32]", "segment: int[B, T]"]),
        ("x = x + look", "x = x", ["x: f32[B, T, 32]"]),
        ("x = x + look", "look(", ["turn.step.look", "q.weight` f32[32, 32]", "here it gives f32[B, T, 32]"]),
        ("x = x + look", "before_look", ["turn.step.before_look", "scale` f32[32]"]),
        ("x = x + look", "rms", ["block rms(x", "Root mean square", "turn.step.before_look"]),
        ("y[b, t, c]", "y", ["y: f32[B, T, 32]"]),
        ("y[b, t, c]", "t,", ["an index"]),
        ("model small", "ids", ["ids: int[B, T]"]),
        ("model small", "B", ["a length"]),
        ("embed words", "words", ["embed words = embed", "weight` f32[11, 32]"]),
        ("embed words", "vocab", ["an input of `embed`"]),
        ("x = tag", "tag", ["tag(", "carrying fields"]),
        ("x = tag", "x", ["x: f32[B, T, 32]", "segment: int[B, T]"]),
        ("repeat 3", "turn", ["repeat 3 as turn"]),
        ("repeat 3", "repeat", ["a loop with weights of its own"]),
        ("x = layer@step", "layer", ["block layer(x, look", "A layer.", "turn.step"]),
        ("x = layer@step", "step", ["turn.step"]),
        ('"h.{turn}', "look", ["turn.step.look"]),
        ('"h.{turn}', "weight)", ["turn.step.look.q.weight: f32[32, 32]"]),
        ('"wte', "words", ["`words`", "weight` f32[11, 32]"]),
    ],
)
def test_hover(editor, where, word, said):
    found = editor.open(spec(where, word)).hover()
    for part in said:
        assert part in found, found


def test_hover_says_nothing_of_nothing(editor):
    assert editor.open("tfm 1\n\n|\nlet a = 3\n").hover() == ""
    assert editor.open("tfm 1\n\nlet a = 3 # a| comment\n").hover() == ""


def test_a_block_called_with_two_shapes_has_two(editor):
    text = """tfm 1

block double(x) { return x| + x }

model m(a: real[B, T, 8], b: real[B, 4]) { return double(a) + 0 * sum(sum(double(b))) }
"""
    found = editor.open(text).hover()
    assert "f32[B, T, 8]" in found and "f32[B, 4]" in found


def test_hover_where_the_file_has_faults(editor):
    """One line does not read; the rest is understood all the same."""
    text = at(
        SPEC.replace("  y[b, t, c] = x[b, t, c] * 2\n", "  y = = x\n").replace("y + think", "think"), "x = x +", "x"
    )
    assert "x: f32[B, T, 32]" in editor.open(text).hover()


# ---- definition


@pytest.mark.parametrize(
    ("where", "word", "to"),
    [
        ("embed words", "width }", "width = 32"),
        ("ffn feed", "twice", "twice"),
        ("attention look", "near", "near(reach)"),
        ("score tilt", "slope", "slope[h: heads]"),
        ("block layer", "feed)", "feed { hidden"),
        ("return y", "think(", "think = feed"),
        ("x = layer@step", "layer", "layer(x, look"),
        ("x = layer@step", "look)", "look { heads"),
        ("return unembed", "words", "words = embed"),
        ('"h.{turn}', "turn.step", "turn {"),
        ('"h.{turn}', "step", "step(x, look)"),
        ('"h.{turn}', "look", "look(rms"),
        ('"wte', "words", "words = embed"),
        ("y[b, t, c]", "t, c] *", "t, c] = x"),
    ],
)
def test_definition_in_the_file(editor, where, word, to):
    document = editor.open(spec(where, word))
    (found,) = document.ask("definition")
    assert found["uri"] == document.uri
    start = document.offset(found["range"]["start"])
    assert document.text[start:].startswith(to), document.text[start : start + 40]
    assert document.under(found["range"]).isidentifier()


@pytest.mark.parametrize(
    ("where", "word", "line"),
    [
        ("attention look", "attention", "block attention("),
        ("attention look", "causal", "mask causal"),
        ("ffn feed", "hidden", "block ffn(x, hidden"),
        ("embed words", "vocab", "block embed(ids, vocab"),
        ("x = x + look", "rms", "block rms("),
        ('"wte', "weight", "param weight[vocab"),
        ("turn.step.look", "q.w", "attention"),
    ],
)
def test_definition_in_the_prelude(editor, where, word, line):
    """Locations are files of the installed package that hold what is named, at that place."""
    word_only = "weight" if word == "weight" and '"wte' in where else word.split(".")[0]
    text = SPEC
    place = text.index(word, text.index(where) + (len('"wte.weight"') if '"wte' in where else 0))
    document = editor.open(text[: place + 1] + "|" + text[place + 1 :])
    (found,) = document.ask("definition")
    assert found["uri"].startswith("file://") and found["uri"].endswith(".tfm")
    lines = Path(found["uri"].removeprefix("file://")).read_text().split("\n")
    start, end = found["range"]["start"], found["range"]["end"]
    assert lines[start["line"]][start["character"] : end["character"]] == word_only
    if line != "attention":
        assert line in lines[start["line"]]


def test_definition_through_imports(editor, tmp_path):
    (tmp_path / "parts.tfm").write_text("tfm 1\n\nattention look { heads = 2 }\nlet size_of_it = 8\n")
    uri = (tmp_path / "parts.tfm").as_uri()
    body = "\n\nmodel m(x: real[B, T, 8]) { return parts.look(x) + take_it(x) }\n"
    head = 'tfm 1\n\nimport "parts.tfm" as parts\nimport "parts.tfm" (look)\nblock take_it(x) { return look(x) }'
    text = head + body
    for word, line in (("parts.look", 0), ("look(x) + ", 2), ("look(x) }", 2), ('"parts.tfm" as', 0)):
        place = text.index(word) + 1
        document = editor.open(text[:place] + "|" + text[place:], tmp_path / f"spec{line}{place}.tfm")
        (found,) = document.ask("definition")
        assert found["uri"] == uri and found["range"]["start"]["line"] == line, (word, found)


def test_words_that_are_built_in_have_no_definition(editor):
    assert editor.open(spec("x = tag", "tag")).ask("definition") == []
    assert editor.open(spec("mask near", "q -")).ask("definition") == []


def test_references(editor):
    document = editor.open(spec("let width", "heads"))
    found = document.ask("references", context={"includeDeclaration": True})
    assert [document.under(f["range"]) for f in found] == ["heads"] * 3
    assert len(document.ask("references", context={"includeDeclaration": False})) == 2
    assert len(document.ask("documentHighlight")) == 3


# ---- completion


def complete(editor, text, path=None):
    return editor.open(text, path).completions()


def test_attributes_of_what_is_derived(editor):
    found = complete(editor, "tfm 1\n\nattention look { heads = 8   | }\n")
    assert found["kv_heads"]["detail"] == "= heads" and found["kv_heads"]["insertText"] == "kv_heads = "
    assert found["mask"]["detail"] == "= yes"
    assert "heads" not in found
    assert "an input of `block attention`" in found["mask"]["documentation"]["value"]
    needed = complete(editor, "tfm 1\n\nattention look { | }\n")
    assert needed["heads"]["detail"] == "needed"
    assert min(needed.values(), key=lambda i: i["sortText"])["label"] == "memory"
    assert max((i for i in needed.values() if i["kind"] == 10), key=lambda i: i["sortText"])["label"] == "x"


@pytest.mark.parametrize(
    "text",
    [
        "tfm 1\n\nattention look {|\n",
        "tfm 1\n\nattention look { heads = 2 mas|\n\nlet a = 2\n",
        "tfm 1\n\nattention look { heads = 2\n  |\n}\n\nmodel m(x: int[B]) { y = = }\n",
        "tfm 1\n\nattention base { heads = 2 }\nattention look = base { | }\n",
        "tfm 1\n\nattention base { heads = 2 }\nblock f(x) { return x + g(x, base { | }) }\n",
        "tfm 1\n\ndefault attention { | }\n",
        "tfm 1\n\nlet order = [attention { | }]\n",
    ],
)
def test_attributes_in_half_a_file(editor, text):
    assert "mask" in complete(editor, text)


def test_attributes_within_attributes(editor):
    found = complete(editor, "tfm 1\n\nattention look { heads = 2   q.| }\n")
    assert "biased" in found and "mask" not in found
    found = complete(editor, "tfm 1\n\nattention look { heads = 2   q = linear { | } }\n")
    assert "biased" in found and "mask" not in found


def test_names_in_scope(editor):
    found = complete(editor, SPEC.replace("y + think(rms@before_think(x))", "y + |"))
    assert found["x"]["detail"].startswith("f32[B, T, 32]")
    assert {"y", "look", "think", "feed", "width", "rms", "sqrt", "if"} <= found.keys()
    assert "words" not in found and "turn" not in found  # of another body
    assert found["width"]["detail"] == "= 32"
    assert "Root mean square" in found["rms"]["documentation"]["value"]
    assert found["x"]["sortText"] < found["rms"]["sortText"] < found["causal"]["sortText"]


def test_inputs_of_a_call(editor):
    found = complete(editor, SPEC.replace("layer@step(x, look)", "layer@step(x, |)"))
    assert found["look ="]["insertText"] == "look = " and found["think ="]["detail"] == "= feed"
    assert complete(editor, "tfm 1\n\nblock f(x) { return rms(x, |")["eps ="]["detail"] == "= 1e-6"


@pytest.mark.parametrize(
    ("text", "has", "lacks"),
    [
        ("attention a { mask = | }", {"q", "k", "h", "causal"}, {"s", "p"}),
        ("attention a { score = | }", {"q", "k", "h", "s", "softcap"}, {"p"}),
        ("attention a { weigh = clip(|, 0, 1) }", {"s", "p"}, {"pos"}),
        ("score tilt(slope) = s - |", {"s", "slope", "q"}, {"p"}),
        ("position turn = |", {"pos", "c", "pairs"}, {"q"}),
        ("let a = |", set(), {"q", "s", "p"}),
    ],
)
def test_implicit_variables_by_role(editor, text, has, lacks):
    found = complete(editor, f"tfm 1\n\n{text}\n")
    words = {name for name, item in found.items() if item["kind"] == 6 or item["sortText"][0] in "13"}
    assert has <= words and not lacks & words


def test_masks_come_first_where_a_mask_is_wanted(editor):
    found = complete(editor, "tfm 1\n\nattention a { mask = | }\n")
    assert found["causal"]["sortText"] < found["softcap"]["sortText"]
    assert found["causal"]["sortText"] < found["attention"]["sortText"]


def test_fields(editor):
    found = complete(editor, SPEC.replace("abs(q - k) < reach", "q.|"))
    assert "segment" in found and "pos" in found and "width" not in found
    found = complete(editor, SPEC.replace("  return unembed(x, words)", "  return x.|"))
    assert found["segment"]["detail"] == "int[B, T]"
    found = complete(editor, SPEC.replace("return unembed(x, words)", "return unembed(x, words) + words.|"))
    assert found["weight"]["detail"] == "f32[11, 32]"


def test_kinds_where_an_item_begins(editor):
    for text in ("tfm 1\n\n|\n", "tfm 1\n\nlet a = 2\n\natt|\n\nlet b = 3\n"):
        found = complete(editor, text)
        assert {"attention", "ffn", "linear", "mask", "block", "model", "let", "import", "param"} <= found.keys()
        assert "return" not in found and "repeat" not in found
    assert "attention" in complete(editor, "tfm 1\n\ndefault |\n")
    assert "precision" in complete(editor, "tfm 1\n\ndefault |\n")


def test_words_where_a_statement_begins(editor):
    found = complete(editor, SPEC.replace("  return y +", "  |\n  return y +"))
    assert {"return", "repeat", "report", "let", "param", "x", "attention"} <= found.keys()
    assert "import" not in found and "model" not in found


def test_types(editor):
    found = complete(editor, "tfm 1\n\nmodel m(x: |) { return x }\n")
    assert {"int", "f32", "bf16", "real", "bool"} == found.keys() & {"int", "f32", "bf16", "real", "bool", "rms"}


def test_paths_in_names(editor):
    assert "turn" in complete(editor, SPEC.replace("transpose(turn.step.look.q.weight)", "|"))
    found = complete(editor, SPEC.replace("transpose(turn.step.look.q.weight)", "turn.step.|"))
    assert {"look", "before_look", "feed", "think"} & found.keys() >= {"look", "before_look"}
    found = complete(editor, SPEC.replace("transpose(turn.step.look.q.weight)", "turn.step.look.q.|"))
    assert found["weight"]["detail"] == "f32[32, 32]"


def test_members_of_a_file_and_files_to_import(editor, tmp_path):
    (tmp_path / "parts.tfm").write_text("tfm 1\n\nattention look { heads = 2 }\n")
    text = 'tfm 1\n\nimport "parts.tfm" as parts\n\nattention mine = parts.|\n'
    assert complete(editor, text, tmp_path / "a.tfm").keys() == {"look"}
    assert "parts.tfm" in complete(editor, 'tfm 1\n\nimport "|"\n', tmp_path / "b.tfm")
    assert "parts.tfm" in complete(editor, 'tfm 1\n\nimport "|', tmp_path / "c.tfm")


@pytest.mark.parametrize("text", ["tfm 1\n\n# att|", 'tfm 1\n\n"a text |"\nlet a = 2', "tfm 1\n\nlet a| = 2"])
def test_nothing_where_nothing_is_to_be_offered(editor, text):
    found = complete(editor, text)
    assert "attention" not in found


def test_an_empty_file_begins_with_the_version(editor):
    assert complete(editor, "|").keys() == {"tfm 1"}


# ---- outline


def test_outline(editor):
    found = editor.open(SPEC).ask("documentSymbol")
    assert [(s["name"], s.get("detail")) for s in found] == [
        ("width", "32"), ("heads", "2"), ("twice", "2 * width"), ("look", "attention"), ("feed", "ffn"),
        ("slope", "param"), ("near", "mask"), ("tilt", "score"), ("layer", "block"), ("small", "model"),
        ("hf", "names"),
    ]  # fmt: skip
    document = editor.open(SPEC)
    by_name = {s["name"]: s for s in document.ask("documentSymbol")}
    assert [s["name"] for s in by_name["small"]["children"]] == ["words", "turn"]
    for symbol in by_name.values():
        assert document.under(symbol["selectionRange"]) == symbol["name"]


def test_folding(editor):
    found = editor.open("tfm 1\n# one\n# two\n\nblock f(x) {\n  y = x\n  return y\n}\n").ask("foldingRange")
    assert {(f["startLine"], f["endLine"], f.get("kind")) for f in found} == {(1, 2, "comment"), (4, 6, None)}
