"""The VS Code extension: its manifest, its colours against the language's own tokens, its package, its start."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tfc.grammar import ast
from tfc.grammar.lowering.library import library_items
from tfc.grammar.syntax.scan import scan
from tfc.grammar.syntax.words import RESERVED, ROLES
from tfc.ir.types import DType
from tfc.lsp.library import entry
from tfc.source import Source

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "editors" / "vscode"
MANIFEST = json.loads((EXTENSION / "package.json").read_text())
GRAMMAR = json.loads((EXTENSION / "syntaxes" / "tfm.tmLanguage.json").read_text())
SPECS = sorted([*(ROOT / "examples").rglob("*.tfm"), *(ROOT / "grammar" / "prelude").glob("*.tfm")])


# ---- a TextMate tokenizer, as much of one as the grammar asks for


def rules(patterns: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for pattern in patterns:
        if "include" in pattern:
            yield from rules(GRAMMAR["repository"][pattern["include"].removeprefix("#")]["patterns"])
        else:
            yield pattern


RULES = [(re.compile(r.get("match") or r["begin"]), r) for r in rules(GRAMMAR["patterns"])]


def scopes(text: str) -> list[tuple[int, str, str]]:
    """(offset, text, scope) of all that is given a scope: line by line, the first rule of the earliest place."""
    out: list[tuple[int, str, str]] = []
    start = 0
    for line in text.split("\n"):
        at = 0
        while at < len(line):
            found = [(m.start(), i, m) for i, (pattern, _) in enumerate(RULES) if (m := pattern.search(line, at))]
            if not found:
                break
            _, number, match = min(found, key=lambda f: f[:2])
            rule, end = RULES[number][1], match.end()
            if "begin" in rule:
                end = _inside(line, match.end(), rule, start, out)
                out.append((start + match.start(), line[match.start() : end], rule["name"]))
            elif "captures" in rule:
                for group, facts in rule["captures"].items():
                    out.append((start + match.start(int(group)), match.group(int(group)), facts["name"]))
            else:
                out.append((start + match.start(), match.group(), rule["name"]))
            assert end > at or match.end() > match.start(), rule
            at = max(end, at + 1)
        start += len(line) + 1
    return out


def _inside(line: str, at: int, rule: dict[str, Any], start: int, out: list[tuple[int, str, str]]) -> int:
    """From after a `begin` to after its `end`, with what is matched in between."""
    while True:
        end = re.compile(rule["end"]).search(line, at)
        assert end is not None
        inner = [(m.start(), i, m, p["name"]) for i, p in enumerate(rule["patterns"])
                 if (m := re.compile(p["match"]).search(line, at))]  # fmt: skip
        first = min(inner, key=lambda f: f[:2], default=None)
        if first is None or end.start() <= first[0]:
            return end.end()
        out.append((start + first[0], first[2].group(), first[3]))
        at = first[2].end()


def scope_of(text: str, word: str) -> str:
    """The scope of the first token that is a word."""
    return next((s for _, found, s in scopes(text) if found == word), "")


# ---- colours


def test_every_keyword_of_the_grammar_has_a_scope():
    """Read from tfm.lark itself: its quoted words."""
    lark = (ROOT / "grammar" / "tfm.lark").read_text()
    text = re.sub(r"//[^\n]*|/(?:[^/\n\\]|\\.)+/", "", lark)
    words = set(re.findall(r'"([a-z]+)"', text))
    assert words == RESERVED
    shown = {
        "tfm": "tfm 1",
        "as": "repeat n as x {",
        "import": 'import "a"',
        "names": "names hf {",
        "default": "default a {",
    }
    for word in words:
        assert scope_of(shown.get(word, f"{word} x"), word).startswith("keyword."), word


@pytest.mark.parametrize("name", sorted(library_items()))
def test_every_kind_of_the_prelude_has_a_scope(name):
    """A block of the prelude is a kind of component; a formula is called or stands for itself."""
    found = entry(name)
    assert found is not None
    if isinstance(found.item, ast.Block):
        text = f"{name} mine {{ width = 2 }}"
        assert scope_of(text, name) == "storage.type.kind.tfm" and scope_of(text, "mine") == "entity.name.type.tfm"
        assert scope_of(f"block f(x) {{ {name} mine = {name} {{}} }}", name) == "storage.type.kind.tfm"
        assert scope_of(f"  x = {name}@here(x)", name) == "entity.name.function.call.tfm"
    else:
        assert scope_of(f"x {2} = {name}(2)", name) == "entity.name.function.call.tfm"


@pytest.mark.parametrize("word", [*ROLES, "block", "model"])
def test_kinds_are_words_only_where_they_declare(word):
    shape = "f(x) = x" if word in ROLES else "f(x) {"
    assert scope_of(f"{word} {shape}", word).startswith("storage.type.")
    assert scope_of(f"  {word} = 3", word) == "variable.other.assignment.tfm"
    assert scope_of(f"attention a {{ n = 2   {word} = 3 }}", word) == "variable.other.assignment.tfm"


def test_types_and_constants():
    for word in [*(d.value for d in DType), "real"]:
        assert scope_of(f"model m(x: {word}[B]) {{", word) == "support.type.tfm"
    for word in ("yes", "no", "none", "inf", "pi"):
        assert scope_of(f"let a = {word}", word) == "constant.language.tfm"


def test_attributes_are_no_declarations():
    """`heads = heads   mask = causal` holds two names in a row."""
    found = [(t, s) for _, t, s in scopes("attention look { heads = heads   mask = causal }")]
    assert ("heads", "variable.other.assignment.tfm") in found and ("mask", "variable.other.assignment.tfm") in found
    assert [t for t, s in found if s.startswith("storage.")] == ["attention"]


WANTED = {
    "string": ("string.",), "comment": ("comment.",), "number": ("constant.numeric.",),
    "bracket": ("punctuation.section.",), "operator": ("keyword.operator.", "punctuation."),
}  # fmt: skip


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_colours_agree_with_the_tokens_of_the_language(path):
    """Every token of every spec here has the scope of its sort; comments and strings hide what is in them."""
    text = path.read_text()
    scanned = scan(Source("x", text))
    shown = {(start, found): scope for start, found, scope in reversed(scopes(text))}
    wrong = []
    for start, comment in scanned.comments:
        if not shown.get((start, comment), "").startswith("comment."):
            wrong.append(comment)
    for token in scanned.tokens:
        scope = shown.get((token.start, token.text), "")
        sorts = WANTED.get(token.kind)
        if token.kind == "name":
            sorts = (
                ("keyword.",)
                if token.text in RESERVED
                else ("variable.", "entity.", "storage.", "support.", "constant.")
            )
        if sorts is None or not scope.startswith(sorts):
            wrong.append(f"{token.text} at {token.start}: {scope}")
    assert wrong == []


def test_scopes_end_in_the_language():
    names = re.findall(r'"name": "([a-z.-]+)"', json.dumps(GRAMMAR["repository"]))
    assert names and all(name.endswith(".tfm") for name in names)


# ---- the manifest


def test_the_manifest():
    assert MANIFEST["name"] == "tfc" and MANIFEST["publisher"] == "tfc"
    assert re.fullmatch(r"\^1\.\d+\.0", MANIFEST["engines"]["vscode"])
    assert MANIFEST["activationEvents"] == ["onLanguage:tfm"]
    assert "tfc.path" in MANIFEST["contributes"]["configuration"]["properties"]
    assert "tfc.path" in MANIFEST["capabilities"]["untrustedWorkspaces"]["restrictedConfigurations"]
    (language,) = MANIFEST["contributes"]["languages"]
    (grammar,) = MANIFEST["contributes"]["grammars"]
    assert language["extensions"] == [".tfm"] and grammar["language"] == language["id"] == "tfm"
    assert grammar["scopeName"] == GRAMMAR["scopeName"]
    for file in (MANIFEST["main"], language["configuration"], grammar["path"], "README.md", "LICENSE", ".vscodeignore"):
        assert (EXTENSION / file).is_file(), file
    assert (EXTENSION / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    code = (EXTENSION / "extension.js").read_text()
    for command in MANIFEST["contributes"]["commands"]:
        assert f'"{command["command"]}"' in code
    for name in re.findall(r'require\("([^"]+)"\)', code):
        package = name.split("/")[0]
        assert package == "vscode" or package.startswith("node:") or package in MANIFEST["dependencies"]


def test_the_language_configuration():
    facts = json.loads((EXTENSION / "language-configuration.json").read_text())
    assert facts["comments"] == {"lineComment": "#"}
    word = re.compile(facts["wordPattern"])
    for text in ("heads", "kv_heads", "10_000", "1e-5", "0.5"):
        assert word.fullmatch(text), text
    assert re.search(facts["indentationRules"]["increaseIndentPattern"], "block f(x) {")
    assert not re.search(facts["indentationRules"]["increaseIndentPattern"], "block f(x) { return x }")
    assert re.search(facts["indentationRules"]["decreaseIndentPattern"], "  }")


# ---- node

node = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="node and npm are not here"
)


@node
def test_what_npm_packs():
    run = subprocess.run(
        ["npm", "pack", "--dry-run", "--json", "--offline"], cwd=EXTENSION, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    facts = answer[0] if isinstance(answer, list) else next(iter(answer.values()))
    assert sorted(f["path"] for f in facts["files"]) == [
        "LICENSE", "README.md", "extension.js", "language-configuration.json", "package.json",
        "syntaxes/tfm.tmLanguage.json",
    ]  # fmt: skip


STUBS = """
const Module = require("node:module"), log = [], load = Module._load;
let path = "tfc", fails = false, changed;
class LanguageClient {
  constructor(id, name, server, options) { log.push(["new", server.command, server.args, options.documentSelector]); }
  async start() { log.push(["start"]); if (fails) throw new Error("ENOENT"); }
  async dispose() { log.push(["dispose"]); }
}
const vscode = {
  workspace: {
    workspaceFolders: [{ uri: { fsPath: "/folder" } }],
    getConfiguration: () => ({ get: () => path }),
    onDidChangeConfiguration: (f) => { changed = f; return {}; },
  },
  window: { showErrorMessage: async (text) => { log.push(["error", text]); } },
  commands: { registerCommand: (name) => { log.push(["command", name]); return {}; } },
};
const known = { vscode, "vscode-languageclient/node": { LanguageClient, RevealOutputChannelOn: { Never: 4 } } };
Module._load = (name, ...rest) => known[name] ?? load(name, ...rest);
const extension = require(process.argv[1]);
(async () => {
  await extension.activate({ subscriptions: [] });
  path = "${workspaceFolder}/.venv/bin/tfc"; fails = true;
  changed({ affectsConfiguration: (name) => name === "tfc.path" });
  await extension.deactivate();
  console.log(JSON.stringify(log));
})();
"""


@node
def test_the_client_starts_the_server_and_says_when_it_cannot():
    """Against stand-ins of the editor: what is started, again when the setting changes, and what a failure says."""
    run = subprocess.run(
        ["node", "-e", STUBS, str(EXTENSION / "extension.js")], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    log = json.loads(run.stdout)
    started = [entry[1:3] for entry in log if entry[0] == "new"]
    assert started == [["tfc", ["lsp"]], ["/folder/.venv/bin/tfc", ["lsp"]]]
    assert ["command", "tfc.restart"] in log
    assert [entry[0] for entry in log if entry[0] in ("start", "dispose", "error")] == [
        "start",
        "dispose",
        "start",
        "error",
    ]
    (said,) = [entry[1] for entry in log if entry[0] == "error"]
    assert "pip install 'tfc[lsp]'" in said
