"""Messages of the protocol -> the features, and back: which file answers what. No logic but the wiring.

Every change of a text is analysed after a pause; a request is answered from the text as it is.
"""

import asyncio
import os
import sys
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.lsp.server import LanguageServer

from tfc.lsp import actions, completion, definition, diagnostics, formatting, hover, outline, rename
from tfc.lsp.analysis import Analysis
from tfc.lsp.text import Text, path_of

__all__ = ["PAUSE", "Server", "serve"]

PAUSE = 0.2
"""Seconds without a change before a text is analysed for its diagnostics."""
REQUEST_FAILED = -32803
"""The protocol's code for a request that was understood and cannot be done; its message is shown to the user."""


class Server(LanguageServer):
    """The documents that are open, each analysed once for every version."""

    def __init__(self) -> None:
        super().__init__("tfc", _version(), text_document_sync_kind=types.TextDocumentSyncKind.Full)
        self.analyses: dict[str, tuple[int | None, str, Analysis]] = {}
        self.waiting: dict[str, asyncio.TimerHandle] = {}
        self.stale: set[str] = set()  # documents whose imports have changed since they were analysed

    def document(self, uri: str) -> Analysis:
        """The analysis of a document's present text."""
        here = self.workspace.get_text_document(uri)
        known = self.analyses.get(uri)
        if known is not None and known[:2] == (here.version, here.source) and uri not in self.stale:
            return known[2]
        path = path_of(uri)
        name = str(path) if path is not None else uri
        encoding = self.workspace.position_encoding or types.PositionEncodingKind.Utf16
        made = Analysis(Text(name, here.source, encoding), path, self.unsaved)
        self.analyses[uri] = (here.version, here.source, made)
        self.stale.discard(uri)
        return made

    def unsaved(self, path: Path) -> str | None:
        """The text of an open document, which its imports see as it is on the screen."""
        for uri, document in self.workspace.text_documents.items():
            other = path_of(uri)
            if other is not None and (other == path or other.resolve() == path):
                return str(document.source)
        return None

    def later(self, uri: str) -> None:
        """Publish a document's diagnostics when nothing changes for a while; those of files that import it, too."""
        if (timer := self.waiting.pop(uri, None)) is not None:
            timer.cancel()
        self.waiting[uri] = asyncio.get_running_loop().call_later(PAUSE, self.publish, uri)

    def publish(self, uri: str) -> None:
        if (timer := self.waiting.pop(uri, None)) is not None:
            timer.cancel()
        if uri not in self.workspace.text_documents:
            return
        document = self.document(uri)
        found = diagnostics.diagnostics(document, uri)
        here = self.workspace.get_text_document(uri).version
        self.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, found, here))

    def importers(self, uri: str) -> list[str]:
        """Open documents that read this one."""
        path = path_of(uri)
        if path is None:
            return []
        known = [(other, entry[2]) for other, entry in self.analyses.items() if other != uri]
        return [other for other, document in known if path in document.read or path.resolve() in document.read]

    def changed(self, uri: str, now: bool) -> None:
        """A document's text is new: analyse it, and those that import it."""
        if now:
            self.publish(uri)
        else:
            self.later(uri)
        for other in self.importers(uri):
            self.stale.add(other)
            self.later(other)


def _version() -> str:
    try:
        return version("tfc")
    except PackageNotFoundError:
        return "0"


def _at(server: Server, params: Any) -> tuple[Analysis, str, int]:
    """The document, its URI, and the place that a request is about."""
    uri: str = params.text_document.uri
    document = server.document(uri)
    return document, uri, document.text.offset(params.position)


def make() -> Server:
    """A server with every feature."""
    server = Server()
    _follow(server)
    _answer(server)
    _change(server)
    return server


def _follow(server: Server) -> None:
    """What the client tells of its documents."""

    @server.feature(types.TEXT_DOCUMENT_DID_OPEN)
    def _(params: types.DidOpenTextDocumentParams) -> None:
        server.changed(params.text_document.uri, now=True)

    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def _(params: types.DidChangeTextDocumentParams) -> None:
        server.changed(params.text_document.uri, now=False)

    @server.feature(types.TEXT_DOCUMENT_DID_SAVE)
    def _(params: types.DidSaveTextDocumentParams) -> None:
        server.changed(params.text_document.uri, now=True)

    @server.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def _(params: types.DidCloseTextDocumentParams) -> None:
        uri = params.text_document.uri
        server.analyses.pop(uri, None)
        server.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, []))


def _answer(server: Server) -> None:
    """Questions about a place or a document."""

    @server.feature(types.TEXT_DOCUMENT_HOVER)
    def _(params: types.HoverParams) -> types.Hover | None:
        document, _, offset = _at(server, params)
        return hover.hover(document, offset)

    @server.feature(types.TEXT_DOCUMENT_DEFINITION)
    def _(params: types.DefinitionParams) -> list[types.Location]:
        return definition.definition(*_at(server, params))

    @server.feature(types.TEXT_DOCUMENT_REFERENCES)
    def _(params: types.ReferenceParams) -> list[types.Location]:
        document, uri, offset = _at(server, params)
        found = definition.references(document, offset, params.context.include_declaration)
        return [types.Location(uri, document.text.range(span)) for span in found]

    @server.feature(types.TEXT_DOCUMENT_DOCUMENT_HIGHLIGHT)
    def _(params: types.DocumentHighlightParams) -> list[types.DocumentHighlight]:
        document, _, offset = _at(server, params)
        found = definition.references(document, offset, declaration=True)
        return [types.DocumentHighlight(document.text.range(span)) for span in found]

    @server.feature(
        types.TEXT_DOCUMENT_COMPLETION, types.CompletionOptions(trigger_characters=[".", "(", "{", '"', "="])
    )
    def _(params: types.CompletionParams) -> list[types.CompletionItem]:
        document, _, offset = _at(server, params)
        return completion.completion(document, offset)

    @server.feature(types.TEXT_DOCUMENT_DOCUMENT_SYMBOL)
    def _(params: types.DocumentSymbolParams) -> list[types.DocumentSymbol]:
        return outline.outline(server.document(params.text_document.uri))

    @server.feature(types.TEXT_DOCUMENT_FOLDING_RANGE)
    def _(params: types.FoldingRangeParams) -> list[types.FoldingRange]:
        return outline.folding(server.document(params.text_document.uri))


def _change(server: Server) -> None:
    """Edits: names, layout, fixes."""

    @server.feature(types.TEXT_DOCUMENT_PREPARE_RENAME)
    def _(params: types.PrepareRenameParams) -> types.PrepareRenamePlaceholder:
        document, _, offset = _at(server, params)
        try:
            return rename.prepare(document, offset)
        except rename.Refused as refused:
            raise JsonRpcException(str(refused), REQUEST_FAILED) from None

    @server.feature(types.TEXT_DOCUMENT_RENAME, types.RenameOptions(prepare_provider=True))
    def _(params: types.RenameParams) -> types.WorkspaceEdit:
        document, uri, offset = _at(server, params)
        try:
            return types.WorkspaceEdit(changes={uri: rename.rename(document, offset, params.new_name)})
        except rename.Refused as refused:
            raise JsonRpcException(str(refused), REQUEST_FAILED) from None

    @server.feature(types.TEXT_DOCUMENT_FORMATTING)
    def _(params: types.DocumentFormattingParams) -> list[types.TextEdit]:
        return formatting.formatting(server.document(params.text_document.uri))

    kinds = [types.CodeActionKind.QuickFix, types.CodeActionKind.SourceFixAll]

    @server.feature(types.TEXT_DOCUMENT_CODE_ACTION, types.CodeActionOptions(code_action_kinds=kinds))
    def _(params: types.CodeActionParams) -> list[types.CodeAction]:
        uri = params.text_document.uri
        return actions.actions(server.document(uri), uri, params.range, params.context.only)


def serve(port: int | None = None) -> None:
    """Speak over stdio, or to one client at a TCP port of this machine."""
    server = make()
    if port is None:
        # pipes of its own: whatever else prints must not end up in the protocol, and pygls closes what it is given
        reader, writer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        with redirect_stdout(sys.stderr):
            server.start_io(reader, writer)
    else:
        server.start_tcp("127.0.0.1", port)
