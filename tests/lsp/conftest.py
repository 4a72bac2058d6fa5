"""An editor in a few lines: it starts `tfc lsp`, speaks JSON-RPC over its pipes; the cursor is where `|` stands."""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60
"""Seconds for one answer, on a machine that does other things, too."""


class Failure(Exception):
    """What the server answers when it cannot."""


class Editor:
    """One client of one server process."""

    def __init__(self, encodings: list[str] | None = None) -> None:
        command = [sys.executable, "-m", "tfc.cli", "lsp"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.answers: dict[int, queue.Queue[Any]] = {}
        self.published: queue.Queue[Any] = queue.Queue()
        self.shown: list[Any] = []
        self.number = 0
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        general = {"positionEncodings": encodings} if encodings else {}
        abilities = {"general": general, "textDocument": {"rename": {"prepareSupport": True}}}
        self.facts = self.ask("initialize", {"processId": None, "rootUri": None, "capabilities": abilities})
        self.tell("initialized", {})

    def _listen(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        while line := stream.readline():
            length = 0
            while line.strip():
                name, _, value = line.decode().partition(":")
                length = int(value) if name.lower() == "content-length" else length
                line = stream.readline()
            message = json.loads(stream.read(length))
            if "id" in message and "method" not in message:
                self.answers[message["id"]].put(message)
            elif message.get("method") == "textDocument/publishDiagnostics":
                self.published.put(message["params"])
            else:
                self.shown.append(message)

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(data) + data)
        self.process.stdin.flush()

    def tell(self, method: str, params: Any) -> None:
        self._send({"method": method, "params": params})

    def ask(self, method: str, params: Any) -> Any:
        self.number += 1
        number = self.number
        self.answers[number] = queue.Queue()
        self._send({"id": number, "method": method, "params": params})
        answer = self.answers[number].get(timeout=PATIENCE)
        if "error" in answer:
            raise Failure(answer["error"]["message"])
        return answer["result"]

    def open(self, text: str, path: Path | None = None) -> "Document":
        return Document(self, text, path)

    def close(self) -> int:
        """Says good-bye as the protocol wants it; the exit code of the server."""
        self.ask("shutdown", None)
        self.tell("exit", None)
        return self.process.wait(timeout=PATIENCE)

    def kill(self) -> None:
        """Leaves no process and no pipe behind."""
        self.process.kill()
        self.process.wait()
        self.listener.join(timeout=PATIENCE)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass


class Document:
    """A text that is open in the editor. `|` in it is the cursor, and no part of it."""

    count = 0

    def __init__(self, editor: Editor, text: str, path: Path | None) -> None:
        Document.count += 1
        self.editor, self.version, self.path = editor, 1, path
        self.uri = path.as_uri() if path is not None else f"untitled:spec-{Document.count}.tfm"
        self.text, self.cursor = _cursor(text)
        document = {"uri": self.uri, "languageId": "tfm", "version": 1, "text": self.text}
        editor.tell("textDocument/didOpen", {"textDocument": document})

    @property
    def here(self) -> dict[str, Any]:
        return {"textDocument": {"uri": self.uri}, "position": self.position(self.cursor)}

    def position(self, offset: int) -> dict[str, int]:
        before = self.text[:offset]
        line = before.rsplit("\n", 1)[-1]
        return {"line": before.count("\n"), "character": len(line.encode("utf-16-le")) // 2}

    def change(self, text: str) -> None:
        self.version += 1
        self.text, self.cursor = _cursor(text)
        document = {"uri": self.uri, "version": self.version}
        self.editor.tell("textDocument/didChange", {"textDocument": document, "contentChanges": [{"text": self.text}]})

    def diagnostics(self) -> list[Any]:
        """What is published for this version."""
        while True:
            found = self.editor.published.get(timeout=PATIENCE)
            if found["uri"] == self.uri and found["version"] == self.version:
                return found["diagnostics"]

    def ask(self, method: str, **more: Any) -> Any:
        return self.editor.ask(f"textDocument/{method}", {**self.here, **more})

    def hover(self) -> str:
        found = self.ask("hover")
        return found["contents"]["value"] if found else ""

    def under(self, range: dict[str, Any]) -> str:
        """The text of a range of the protocol."""
        return self.text[self.offset(range["start"]) : self.offset(range["end"])]

    def offset(self, position: dict[str, int]) -> int:
        lines = self.text.split("\n")
        start = sum(len(line) + 1 for line in lines[: position["line"]])
        units = lines[position["line"]].encode("utf-16-le")[: 2 * position["character"]]
        return start + len(units.decode("utf-16-le"))

    def edited(self, edits: list[Any]) -> str:
        """The text with edits made."""
        text = self.text
        for edit in sorted(edits, key=lambda e: self.offset(e["range"]["start"]), reverse=True):
            start, end = (self.offset(edit["range"][side]) for side in ("start", "end"))
            text = text[:start] + edit["newText"] + text[end:]
        return text

    def renamed(self, new: str) -> str:
        return self.edited(self.ask("rename", newName=new)["changes"][self.uri])

    def completions(self) -> dict[str, Any]:
        return {item["label"]: item for item in self.ask("completion") or []}


def _cursor(text: str) -> tuple[str, int]:
    at = text.find("|")
    return (text, 0) if at < 0 else (text[:at] + text[at + 1 :], at)


@pytest.fixture(scope="session")
def editor() -> Iterator[Editor]:
    """One server for all tests that leave nothing behind in it."""
    started = Editor()
    yield started
    code = started.close()
    started.kill()
    assert code == 0


@pytest.fixture
def new_editor() -> Iterator[type[Editor]]:
    """For tests that need a server of their own."""
    started: list[Editor] = []

    class Kept(Editor):
        def __init__(self, *facts: Any) -> None:
            started.append(self)
            super().__init__(*facts)

    yield Kept
    for one in started:
        one.kill()


@pytest.fixture
def failure() -> type[Failure]:
    return Failure
