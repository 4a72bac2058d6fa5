"""The place of a complaint and the tree around it: what holds it, what is below, what a name there stands for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tfc.diagnostics import Diagnostic, Edit
from tfc.grammar import ast
from tfc.source import Span

__all__ = ["Site", "children", "fresh", "holds", "indent_of", "literal", "nodes"]


@dataclass(frozen=True)
class Site:
    """A complaint and the tree around it."""

    found: Diagnostic
    span: Span
    module: ast.Module

    @property
    def text(self) -> str:
        return self.span.text

    @cached_property
    def chain(self) -> list[ast.Node]:
        """The nodes that hold the place, from the module inwards."""
        out: list[ast.Node] = [self.module]
        while inner := next((n for n in children(out[-1]) if holds(n, self.span)), None):
            out.append(inner)
        return out

    def around[N: ast.Node](self, kind: type[N]) -> N | None:
        """The innermost node of a kind that holds the place."""
        return next((n for n in reversed(self.chain) if isinstance(n, kind)), None)

    def said(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.found.message)

    def edit(self, start: int, end: int, text: str) -> Edit:
        return Edit(Span(self.span.source, start, end), text)


def children(node: object) -> Iterator[ast.Node]:
    values: list[object] = []
    if isinstance(node, ast.Node):
        values = [getattr(node, f) for f in node.__dataclass_fields__ if f not in ("span", "doc")]
    while values:
        value = values.pop()
        if isinstance(value, ast.Node):
            yield value
        elif isinstance(value, tuple):
            values.extend(value)


def nodes(node: ast.Node) -> Iterator[ast.Node]:
    stack = [node]
    while stack:
        at = stack.pop()
        yield at
        stack.extend(children(at))


def holds(node: ast.Node, span: Span) -> bool:
    return node.span.source is span.source and node.span.start <= span.start and span.end <= node.span.end


def fresh(name: str, text: str) -> str:
    """A name like this one that the text does not hold."""
    return next(n for n in (f"{name}_{i}" for i in range(2, 1_000)) if not re.search(rf"\b{n}\b", text))


def literal(node: ast.Node | None, module: ast.Module) -> ast.Number | None:
    """The number that an expression is, or that the `let` it names is given."""
    for _ in range(8):
        match node:
            case ast.Number():
                return node
            case ast.Setting(value=value) | ast.Argument(value=value) | ast.Binding(value=value):
                node = value
            case ast.Name(id=name):
                lets = [b for n in nodes(module) if isinstance(n, ast.Let) for b in n.bindings if b.name == name]
                node = lets[0].value if len(lets) == 1 else None
            case _:
                return None
    return None


def indent_of(text: str, start: int) -> str:
    line = text[text.rfind("\n", 0, start) + 1 : start]
    return line if line.isspace() else "  "
