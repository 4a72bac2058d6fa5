"""The tree of a document -> its outline for the editor's symbol list, and the ranges that can be folded."""

from collections.abc import Iterator

from lsprotocol import types

from tfc.grammar import ast
from tfc.lsp.analysis import Analysis
from tfc.source import Span

__all__ = ["folding", "outline"]

_KIND = types.SymbolKind


def outline(document: Analysis) -> list[types.DocumentSymbol]:
    """Items of the file; within blocks what they declare, their loops and labels."""
    return [made for item in document.module.items for made in _item(item, document)]


def _item(item: ast.Item, document: Analysis) -> Iterator[types.DocumentSymbol]:
    match item:
        case ast.Let(bindings=bindings):
            for b in bindings:
                yield _symbol(document, b, b.name, _KIND.Constant, " ".join(b.value.span.text.split())[:60], 0)
        case ast.Import(path=path):
            yield _symbol(document, item, f'"{path}"', _KIND.File, "", 0)
        case ast.Declaration(kind=kind, name=name):
            yield _symbol(document, item, name, _KIND.Object, kind, 1)
        case ast.ParamDecl(name=name):
            yield _symbol(document, item, name, _KIND.Field, "param", 1)
        case ast.Role(role=role, name=name):
            yield _symbol(document, item, name, _KIND.Function, role, 1)
        case ast.Block(kind=kind, name=name, body=body):
            made = _symbol(document, item, name, _KIND.Class if kind == "model" else _KIND.Method, kind, 1)
            made.children = [inner for statement in body for inner in _item(statement, document)]
            yield made
        case ast.Repeat(name=name, over=over, body=body):
            span = document.tokens.after(over.span.end, "as")
            made = _symbol(document, item, name, _KIND.Array, f"repeat {' '.join(over.span.text.split())}", 0, span)
            made.children = [inner for statement in body for inner in _item(statement, document)]
            yield made
        case ast.Names(name=name):
            yield _symbol(document, item, name, _KIND.Namespace, "names", 1)
        case ast.Default(kind=kind):
            yield _symbol(document, item, kind, _KIND.Property, "default", 1)
        case ast.Report(name=name):
            yield _symbol(document, item, name, _KIND.Event, "report", 1)


def _symbol(
    document: Analysis, node: ast.Node, name: str, kind: types.SymbolKind, detail: str, number: int,
    at: Span | None = None,
) -> types.DocumentSymbol:  # fmt: skip
    own = at or document.tokens.name(node.span, number) or node.span
    if not (node.span.start <= own.start and own.end <= node.span.end):
        own = node.span
    whole, selected = document.text.range(node.span), document.text.range(own)
    return types.DocumentSymbol(name, kind, whole, selected, detail or None)


def folding(document: Analysis) -> list[types.FoldingRange]:
    """Every bracket over several lines, and runs of comments; from the tokens, so that faults take nothing away."""
    out: list[types.FoldingRange] = []
    stack: list[tuple[str, int]] = []
    position = document.text.position
    for token in document.scanned.tokens:
        if token.kind != "bracket":
            continue
        if token.text in "([{":
            stack.append((token.text, token.start))
        elif stack:
            _, start = stack.pop()
            first, last = position(start).line, position(token.start).line
            if last - 1 > first:
                out.append(types.FoldingRange(first, last - 1))
    lines = [position(start).line for start, _ in document.scanned.comments]
    run = 0
    for i, line in enumerate(lines):
        ends = i + 1 == len(lines) or lines[i + 1] != line + 1
        if ends:
            if line > lines[run]:
                out.append(types.FoldingRange(lines[run], line, kind=types.FoldingRangeKind.Comment))
            run = i + 1
    return out
