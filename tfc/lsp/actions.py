"""The edits that diagnostics carry -> quick fixes, and all of them at once as `source.fixAll`."""

from collections.abc import Sequence

from lsprotocol import types

from tfc.diagnostics import Diagnostic, Edit
from tfc.lsp.analysis import Analysis
from tfc.lsp.diagnostics import as_protocol
from tfc.lsp.text import Text
from tfc.source import Span

__all__ = ["actions", "fix_all"]

FIX_ALL = types.CodeActionKind.SourceFixAll
ROUNDS = 10
"""How often the text is analysed anew while fixing all."""


def actions(document: Analysis, uri: str, range: types.Range, only: Sequence[str] | None) -> list[types.CodeAction]:
    """What can be done about the complaints in a range."""
    start, end = document.text.offset(range.start), document.text.offset(range.end)
    out: list[types.CodeAction] = []
    if _wanted(types.CodeActionKind.QuickFix, only):
        for found in document.diagnostics:
            edits = _own(found, document)
            if edits and found.span is not None and found.span.start <= end and found.span.end >= start:
                out.append(_action(document, uri, found, edits))
    if only is not None and _wanted(FIX_ALL, only, named=True):
        edits_ = fix_all(document)
        if edits_:
            workspace = types.WorkspaceEdit(changes={uri: edits_})
            out.append(types.CodeAction("Fix all that has one fix", kind=FIX_ALL, edit=workspace))
    return out


def _wanted(kind: str, only: Sequence[str] | None, named: bool = False) -> bool:
    if only is None:
        return not named
    return any(kind == wanted or kind.startswith(f"{wanted}.") or wanted.startswith(f"{kind}.") for wanted in only)


def _own(found: Diagnostic, document: Analysis) -> tuple[Edit, ...]:
    """Edits of this file; one that reaches into another is not this document's to make."""
    here = all(e.span.source.name == document.source.name for e in found.edits)
    return found.edits if here else ()


def _action(document: Analysis, uri: str, found: Diagnostic, edits: tuple[Edit, ...]) -> types.CodeAction:
    changes = [types.TextEdit(document.text.range(e.span), e.text) for e in edits]
    return types.CodeAction(
        title=_title(edits),
        kind=types.CodeActionKind.QuickFix,
        diagnostics=[as_protocol(found, document, uri)],
        is_preferred=True,
        edit=types.WorkspaceEdit(changes={uri: changes}),
    )


def _title(edits: tuple[Edit, ...]) -> str:
    first = edits[0]
    old, new = _short(first.span.text), _short(first.text)
    if not new:
        said = f"Remove `{old}`" if old else "Remove it"
    elif not old:
        said = f"Insert `{new}`"
    else:
        said = f"Replace `{old}` by `{new}`"
    return said if len(edits) == 1 else f"{said}, and {len(edits) - 1} more"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def fix_all(document: Analysis) -> list[types.TextEdit]:
    """The edits of all complaints, round after round, as one edit of the text between first and last change.

    A round makes the edits that do not touch each other; it counts only if it leaves fewer complaints.
    """
    at = document
    for _ in range(ROUNDS):
        edits: list[Edit] = []
        for found in at.diagnostics:
            new = _own(found, at)
            if new and not any(_touch(a, b) for a in new for b in edits):
                edits += new
        if not edits:
            break
        text = at.source.text
        for edit in sorted(edits, key=lambda e: e.span.start, reverse=True):
            text = text[: edit.span.start] + edit.text + text[edit.span.end :]
        after = Analysis(Text(document.source.name, text, document.text.encoding), document.path, document.opened)
        if not _better(after, at):
            break
        at = after
    return _difference(document, at.source.text)


def _better(after: Analysis, before: Analysis) -> bool:
    """Whether a text reads further: fewer faults, or no fault of syntax any more."""
    if after.whole != before.whole:
        return after.whole
    return len(after.diagnostics) < len(before.diagnostics)


def _touch(a: Edit, b: Edit) -> bool:
    return a.span.start <= b.span.end and b.span.start <= a.span.end


def _difference(document: Analysis, text: str) -> list[types.TextEdit]:
    """One edit, of what differs."""
    old = document.source.text
    if text == old:
        return []
    start = 0
    while start < min(len(old), len(text)) and old[start] == text[start]:
        start += 1
    end = 0
    while end < min(len(old), len(text)) - start and old[-1 - end] == text[-1 - end]:
        end += 1
    span = Span(document.source, start, len(old) - end)
    return [types.TextEdit(document.text.range(span), text[start : len(text) - end])]
