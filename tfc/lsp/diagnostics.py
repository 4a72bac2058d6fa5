"""Complaints about a document -> diagnostics of the protocol: ranges in its units, notes as related places."""

from pathlib import Path

from lsprotocol import types

from tfc.diagnostics import Diagnostic
from tfc.grammar import ast
from tfc.grammar.lowering.session import is_library
from tfc.lsp.analysis import Analysis
from tfc.lsp.definition import location
from tfc.source import Span

__all__ = ["as_protocol", "diagnostics"]

_SEVERITY = {
    "error": types.DiagnosticSeverity.Error,
    "warning": types.DiagnosticSeverity.Warning,
    "information": types.DiagnosticSeverity.Information,
}


def diagnostics(document: Analysis, uri: str) -> list[types.Diagnostic]:
    """All of a document's, in the order of its text."""
    return [as_protocol(found, document, uri) for found in document.diagnostics]


def as_protocol(found: Diagnostic, document: Analysis, uri: str) -> types.Diagnostic:
    """One; what concerns an imported file stands at the import, and says where it is."""
    message = f"{found.message}\nhelp: {found.help}" if found.help else found.message
    related = [_related(note.message, note.span, document, uri) for note in found.notes]
    span = found.span
    if span is not None and span.source.name != document.source.name:
        place = f"{Path(span.source.name).name}:{span.line}:{span.column}"
        message = f"in {place}: {message}"
        related.insert(0, _related(found.message, span, document, uri))
        span = _import_of(span, document)
    if span is None:
        span = Span(document.source, 0, len(document.source.line(1)))
    return types.Diagnostic(
        range=document.text.range(_visible(span)),
        message=message,
        severity=_SEVERITY.get(found.severity, types.DiagnosticSeverity.Error),
        code=found.code,
        source="tfc",
        related_information=[r for r in related if r is not None] or None,
    )


def _visible(span: Span) -> Span:
    """At least one character, so that there is something to underline: the one after, else the one before."""
    if span.end > span.start:
        return span
    text = span.source.text
    if span.start < len(text) and text[span.start] != "\n":
        return Span(span.source, span.start, span.start + 1)
    if span.start > 0 and text[span.start - 1] != "\n":
        return Span(span.source, span.start - 1, span.start)
    return span


def _related(message: str, span: Span, document: Analysis, uri: str) -> types.DiagnosticRelatedInformation | None:
    place = location(document, uri, span)
    if is_library(span.source) and place is None:
        return None
    return types.DiagnosticRelatedInformation(place, message) if place is not None else None


def _import_of(span: Span, document: Analysis) -> Span | None:
    """The import that leads to another file: directly, else the first."""
    imports = [i for i in document.module.items if isinstance(i, ast.Import)]
    for item in imports:
        other = document.imported(item)
        if other is not None and other.source.name == span.source.name:
            return item.span
    return imports[0].span if imports else None
