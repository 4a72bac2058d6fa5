"""A place in a document -> where the name there is declared, here, in an imported file or the prelude; its uses."""

from pathlib import Path

from lsprotocol import types

from tfc.grammar import ast
from tfc.grammar.lowering.session import is_library
from tfc.grammar.lowering.values import Tensor
from tfc.lsp.analysis import Analysis
from tfc.lsp.library import entry, library_path
from tfc.lsp.lookup import (
    descend,
    inside,
    item_name,
    keyword_owner,
    member_of,
    param_item,
    path_segments,
    segment_span,
)
from tfc.lsp.symbols import Keyword, Symbol
from tfc.lsp.text import Text, uri_of
from tfc.source import Span

__all__ = ["definition", "location", "references", "symbol_at"]


def definition(document: Analysis, uri: str, offset: int) -> list[types.Location]:
    """Where the name at a place is declared; nothing for words that are built in."""
    imported = _import_path(document, offset)
    if imported is not None:
        return [imported]
    spans = _declared_at(document, offset)
    found = [location(document, uri, span) for span in spans]
    return [one for one in found if one is not None]


def _declared_at(document: Analysis, offset: int) -> list[Span]:
    for segment in path_segments(document):
        if segment.span.start <= offset <= segment.span.end:
            if segment.param is not None:
                item = param_item(segment.param, document)
                return [item_name(item)] if item is not None else [segment.param.span]
            return [segment_span(segment.opened.node)] if segment.opened is not None else []
    occurrence = document.table.at(offset)
    if occurrence is not None:
        if occurrence.symbol is not None:
            return [_symbol_span(occurrence.symbol, document)]
        known = entry(occurrence.name) if occurrence.role is None else None
        return [item_name(known.item)] if known is not None else []
    keyword = document.table.keyword(offset)
    if keyword is not None:
        owner = keyword_owner(keyword, document)
        for segment_name in keyword.path[: keyword.number]:
            owner = descend(owner, segment_name, document) if owner is not None else None
        found = inside(owner, keyword.name) if owner is not None else None
        if found is None and _is_tag(keyword):
            return [keyword.span]  # a field is declared where it is set
        return [found.span] if found is not None else []
    member = document.table.member(offset)
    if member is not None:
        _, node, scope = member
        other = member_of(node, scope, document)
        if other is not None:
            return [other[1].span]
        return _field(node, document) or _weight(node, document)
    return []


def _symbol_span(symbol: Symbol, document: Analysis) -> Span:
    """An imported name is declared in the other file."""
    if isinstance(symbol.item, ast.Import):
        other = document.imported(symbol.item)
        if other is not None:
            found = other.table.top.names.get(symbol.name)
            if symbol.kind == "import" and found is not None:
                return found.span
            if symbol.kind == "file":
                return Span(other.source, 0, 0)
    return symbol.span


def _field(node: ast.Attribute, document: Analysis) -> list[Span]:
    """`x.real` and `k.real`: where the file sets the field, `tag(x, real = ..)`."""
    if any(isinstance(v, Tensor) for v in document.meanings(node.value).values()) or _is_token(node, document):
        return [k.span for k in document.table.keywords if k.name == node.name and _is_tag(k)]
    return []


def _is_tag(keyword: Keyword) -> bool:
    call = keyword.owner
    return isinstance(call, ast.Call) and isinstance(call.callee, ast.Name) and call.callee.id == "tag"


def _is_token(node: ast.Attribute, document: Analysis) -> bool:
    here = document.table.at(node.value.span.start)
    return here is not None and here.role is not None and here.name in ("q", "k", "pos")


def _weight(node: ast.Attribute, document: Analysis) -> list[Span]:
    """`words.weight`: the parameter's declaration in the block that `words` is made of."""
    for value in document.meanings(node).values():
        if isinstance(value, Tensor):
            item = param_item(value, document)
            return [item_name(item)] if item is not None else []
    return []


def _import_path(document: Analysis, offset: int) -> types.Location | None:
    """The file that an import's text names."""
    for item in document.module.items:
        if isinstance(item, ast.Import) and item.span.start <= offset <= item.span.end:
            text = next((t for t in document.tokens.within(item.span) if t.kind == "string"), None)
            other = document.imported(item)
            if text is not None and text.start <= offset <= text.end and other is not None and other.path is not None:
                start = types.Position(0, 0)
                return types.Location(uri_of(other.path), types.Range(start, start))
    return None


def location(document: Analysis, uri: str, span: Span) -> types.Location | None:
    """A place in whatever file, for the client; None where there is no file to open."""
    if span.source.name == document.source.name:
        return types.Location(uri, document.text.range(span))
    path = library_path(span.source) if is_library(span.source) else Path(span.source.name)
    if path is None:
        return None
    text = Text(span.source.name, span.source.text, document.text.encoding)
    return types.Location(uri_of(path), text.range(span))


def symbol_at(document: Analysis, offset: int) -> Symbol | None:
    """The symbol of this file at a place."""
    found = document.table.at(offset)
    return found.symbol if found is not None else None


def references(document: Analysis, offset: int, declaration: bool) -> list[Span]:
    """Every place of this file that means what the name here means."""
    symbol = symbol_at(document, offset)
    if symbol is None:
        found = document.table.at(offset)
        if found is None:
            return []
        return [o.span for o in document.table.occurrences if o.symbol is None and o.role is None
                and found.role is None and o.name == found.name]  # fmt: skip
    return [s for s in symbol.uses if declaration or s != symbol.span]
