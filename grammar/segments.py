"""A block -> the path segments that its body opens: what a derivation may reach into."""

from collections.abc import Iterator
from dataclasses import fields

from tfc.grammar import ast

__all__ = ["names_read", "read_first", "segments", "targets"]


def _walk(node: object) -> Iterator[ast.Node]:
    """Every node below, parents first, in text order."""
    stack = [node]
    while stack:
        at = stack.pop()
        if isinstance(at, ast.Node):
            yield at
            stack.extend(reversed([getattr(at, f.name) for f in fields(at) if f.name not in ("span", "doc")]))
        elif isinstance(at, tuple):
            stack.extend(reversed(at))


def segments(block: ast.Block) -> tuple[str, ...]:
    """Labels, callees, declared components and loops of the body itself, each once, in text order."""
    found: dict[str, None] = {}
    stack: list[object] = list(reversed(block.body))
    while stack:
        node = stack.pop()
        match node:
            case ast.Repeat(name=name):
                found[name] = None
                continue
            case ast.Declaration(name=name):
                found[name] = None
            case ast.Block():
                continue
            case ast.Call(callee=ast.Label(label=label)):
                found[label] = None
            case ast.Call(callee=ast.Name(id=name)) | ast.Call(callee=ast.Attribute(name=name)):
                found[name] = None
        if isinstance(node, ast.Node):
            stack.extend(reversed([getattr(node, f.name) for f in fields(node) if f.name not in ("span", "doc")]))
        elif isinstance(node, tuple):
            stack.extend(reversed(node))
    return tuple(found)


def names_read(node: object) -> set[str]:
    """Every name that occurs in expressions."""
    return {n.id for n in _walk(node) if isinstance(n, ast.Name)}


def targets(body: tuple[ast.Item, ...]) -> tuple[str, ...]:
    """The tensors that the equations of a body assign, those of loops inside it too, each once in text order."""
    found: dict[str, None] = {}
    for item in body:
        match item:
            case ast.Equation(target=target):
                found[target] = None
            case ast.Repeat(body=inner):
                found.update(dict.fromkeys(targets(inner)))
    return tuple(found)


def read_first(body: tuple[ast.Item, ...], name: str) -> bool:
    """Whether a turn may read the name before it assigns it."""
    for item in body:
        match item:
            case ast.Equation(target=target, value=value):
                if name in names_read(value):
                    return True
                if target == name:
                    return False
            case _:
                if name in names_read(item):
                    return True
    return False
