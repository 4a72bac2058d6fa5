"""The text of a document -> the one edit that lays it out canonically; none where it cannot be read."""

from lsprotocol import types

from tfc.grammar.format import format_module
from tfc.lsp.analysis import Analysis

__all__ = ["formatting"]


def formatting(document: Analysis) -> list[types.TextEdit]:
    """A single edit of the whole text, or none where nothing would change or a fault of syntax stands."""
    if not document.whole:
        return []
    text = format_module(document.module)
    if text == document.text.written:
        return []
    return [types.TextEdit(document.text.whole(), text)]
