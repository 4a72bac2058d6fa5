"""The server as an editor meets it: capabilities, documents, diagnostics while typing, positions in UTF-16, junk."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = """tfm 1

let width = 32, heads = 2

attention look { heads = heads }

model small(x: real[B, T, width]) {
  x = x + look(x)
  return rms(x)
}
"""


def test_capabilities(editor):
    facts = editor.facts["capabilities"]
    for name in (
        "hoverProvider", "definitionProvider", "completionProvider", "renameProvider", "documentFormattingProvider",
        "codeActionProvider", "documentSymbolProvider", "referencesProvider", "foldingRangeProvider",
    ):  # fmt: skip
        assert facts[name], name
    assert facts["renameProvider"] == {"prepareProvider": True}
    assert "source.fixAll" in facts["codeActionProvider"]["codeActionKinds"]
    assert facts["positionEncoding"] == "utf-16"
    assert editor.facts["serverInfo"]["name"] == "tfc"


def test_a_right_file_has_no_diagnostics(editor):
    assert editor.open(SMALL).diagnostics() == []


def test_diagnostics_follow_the_unsaved_text(editor):
    document = editor.open(SMALL)
    assert document.diagnostics() == []
    document.change(SMALL.replace("look(x)", "loook(x)"))
    (found,) = document.diagnostics()
    assert document.under(found["range"]) == "loook"
    assert (found["code"], found["severity"], found["source"]) == ("E201", 1, "tfc")
    assert "did you mean `look`?" in found["message"]
    document.change(SMALL)
    assert document.diagnostics() == []


def test_diagnostics_wait_for_a_pause(editor):
    """Thirty changes at once are not analysed thirty times; the last one is."""
    document = editor.open(SMALL)
    assert document.diagnostics() == []
    for i in range(30):
        document.change(SMALL.replace("heads = 2", f"heads = {2 ** (i % 5)}"))
    versions = []
    while 31 not in versions:
        found = editor.published.get(timeout=30)
        versions += [found["version"]] if found["uri"] == document.uri else []
    assert len(versions) <= 5  # one, but for a machine that stops in between


def test_notes_are_related_places(editor):
    document = editor.open(SMALL.replace("heads = 2", "heads = 5"))
    found = document.diagnostics()[0]
    assert found["relatedInformation"]
    places = {document.under(r["location"]["range"]) for r in found["relatedInformation"]
              if r["location"]["uri"] == document.uri}  # fmt: skip
    assert places
    for related in found["relatedInformation"]:
        assert related["message"]


def test_warnings_are_warnings(editor):
    text = SMALL.replace("return rms(x)", "x = rms(x)\n  return rms(x)")
    (found,) = editor.open(text).diagnostics()
    assert (found["code"], found["severity"]) == ("W901", 2)


def test_a_file_of_parts_needs_no_model(editor):
    (found,) = editor.open("tfm 1\n\nlet width = 8\n").diagnostics()
    assert (found["code"], found["severity"]) == ("E210", 3)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_positions_are_utf16_whatever_the_lines_end_in(editor, end, mark):
    """Beside a character of two units, in a file with a byte order mark, with every line end of the protocol."""
    text = mark + 'tfm 1 "😀 both" let widht = 8 let b = wdith # 😀\nlet c = hights'.replace("\n", end)
    found = editor.open(text).diagnostics()
    places = {f["message"].split("`")[1]: f["range"] for f in found if f["code"] == "E201"}
    first = text.index("wdith")
    assert places["wdith"]["start"] == {"line": 0, "character": first + 1}  # the emoji takes two
    assert places["wdith"]["end"] == {"line": 0, "character": first + 6}
    assert places["hights"]["start"] == {"line": 1, "character": 8}


@pytest.mark.parametrize(("encoding", "units"), [("utf-8", 3), ("utf-32", 0)])
def test_other_encodings_where_the_client_prefers_them(new_editor, encoding, units):
    editor = new_editor([encoding, "utf-16"])
    assert editor.facts["capabilities"]["positionEncoding"] == encoding
    text = 'tfm 1 "😀" let a = wdith'
    (found,) = [f for f in editor.open(text).diagnostics() if f["code"] == "E201"]
    assert found["range"]["start"] == {"line": 0, "character": text.index("wdith") + units}
    assert editor.close() == 0


def test_positions_beyond_the_text_are_its_end(editor):
    document = editor.open(SMALL)
    for line, character in ((0, 99), (99, 0), (99, 99), (2, 10_000)):
        where = {"textDocument": {"uri": document.uri}, "position": {"line": line, "character": character}}
        editor.ask("textDocument/hover", where)
        editor.ask("textDocument/completion", where)


def test_what_an_import_lacks_is_said_at_the_import(editor, tmp_path):
    (tmp_path / "parts.tfm").write_text("tfm 1\n\nattention look { heads = haeds }\n")
    spec = tmp_path / "spec.tfm"
    text = 'tfm 1\n\nimport "parts.tfm" as parts\n\nmodel m(x: real[B, T, 8]) { return parts.look(x) }\n'
    document = editor.open(text, spec)
    found = document.diagnostics()
    assert found
    first = found[0]
    assert document.under(first["range"]) == 'import "parts.tfm" as parts'
    assert "parts.tfm:3:26" in first["message"]
    related = first["relatedInformation"][0]["location"]
    assert related["uri"] == (tmp_path / "parts.tfm").as_uri()
    assert related["range"]["start"] == {"line": 2, "character": 25}


def test_the_unsaved_text_of_an_import_counts(editor, tmp_path):
    """Both are open; the importing file is analysed anew when the imported one changes."""
    (tmp_path / "parts.tfm").write_text("tfm 1\n\nlet heads = haeds\n")
    spec = tmp_path / "spec.tfm"
    text = ('tfm 1\n\nimport "parts.tfm" (heads)\n\n'
            "model m(x: real[B, T, 8]) { return attention(x, heads = heads) }\n")  # fmt: skip
    document = editor.open(text, spec)
    assert document.diagnostics() != []
    parts = editor.open("tfm 1\n\nlet heads = 2\n", tmp_path / "parts.tfm")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = editor.published.get(timeout=30)
        if found["uri"] == document.uri and found["diagnostics"] == []:
            break
    else:
        pytest.fail("the importing file kept its complaint")
    parts.change("tfm 1\n\nlet heads = haeds\n")
    while (found := editor.published.get(timeout=30))["uri"] != document.uri:
        pass
    assert found["diagnostics"] != []


def test_closing_takes_the_diagnostics_away(editor):
    document = editor.open(SMALL.replace("look(x)", "loook(x)"))
    assert document.diagnostics() != []
    editor.tell("textDocument/didClose", {"textDocument": {"uri": document.uri}})
    while (found := editor.published.get(timeout=30))["uri"] != document.uri:
        pass
    assert found["diagnostics"] == []


@pytest.mark.parametrize(
    "text",
    ["", "\0", "tfm", "tfm 1", "{" * 300, "\ud83d", "tfm 1 " + "(" * 500, "a" * 300_000, "tfm 1\nlet a = 10 ^ 10 ^ 10",
     "tfm 1\nlet a = a", 'tfm 1\nimport "x.tfm" as x', "\u2028tfm 1", "tfm 1 model m(x: int[B, T]) { return m(x) }"],
    ids=range(13),
)  # fmt: skip
def test_junk_gets_diagnostics_and_the_server_lives(editor, text):
    document = editor.open(text)
    found = document.diagnostics()
    assert found
    assert all(f["code"] != "internal" for f in found), found
    assert editor.open(SMALL).diagnostics() == []


def test_it_leaves_when_the_client_does(new_editor):
    started = new_editor()
    started.process.stdin.close()
    assert started.process.wait(timeout=30) == 0


def test_no_jax_in_the_server():
    code = "import sys; import tfc.lsp.server; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "jaxlib", "numpy", "ml_dtypes"} & set(run.stdout.split())


def test_over_tcp():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "tfc.cli", "lsp", "--tcp", str(port)])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=30)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        with connection, connection.makefile("rwb") as stream:
            message = {"jsonrpc": "2.0", "id": 1, "method": "initialize",
                       "params": {"processId": None, "rootUri": None, "capabilities": {}}}  # fmt: skip
            data = json.dumps(message).encode()
            stream.write(b"Content-Length: %d\r\n\r\n" % len(data) + data)
            stream.flush()
            assert stream.readline().startswith(b"Content-Length")
    finally:
        process.kill()
        process.wait()


def test_without_pygls_it_says_what_to_install(tmp_path):
    """Run where no pygls can be found."""
    code = (
        "import sys, importlib.util as u; real = u.find_spec; "
        "import tfc.commands.lsp as c; c.find_spec = lambda n: None if n == 'pygls' else real(n); "
        "from tfc.cli import main; sys.exit(main(['lsp']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert run.returncode == 1
    assert "pip install 'tfc[lsp]'" in run.stderr


def test_help_teaches_the_editors(capsys):
    from tfc import cli

    assert cli.main(["lsp", "--help"]) == 0
    said = capsys.readouterr().out
    for word in ("VS Code", "Neovim", "Helix", "vim.lsp", "languages.toml", "tfc[lsp]", "--tcp"):
        assert word in said
    assert (Path(__file__).parents[2] / "editors" / "vscode" / "package.json").is_file()


def test_tcp_and_stdio_exclude_each_other(capsys):
    from tfc import cli

    assert cli.main(["lsp", "--tcp", "2087", "--stdio"]) == 2
    assert "one of them" in capsys.readouterr().err
