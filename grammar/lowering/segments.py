"""A block -> the path segments that its body opens, and whether a change of a derivation reaches anything."""

from collections.abc import Iterator
from dataclasses import fields

from tfc.diagnostics import Edit, Note, closest
from tfc.grammar import ast
from tfc.grammar.lowering.scope import FileScope, Scope
from tfc.grammar.lowering.session import fail
from tfc.grammar.lowering.values import Component
from tfc.source import Span

__all__ = ["check_path", "did_you_mean", "head", "names_read", "read_first", "segment_of", "segments", "targets"]


_PARTS: dict[str, tuple[str, ...]] = {}


def _parts(kind: type[ast.Node]) -> tuple[str, ...]:
    """The fields of a kind of node that may hold nodes, last first; kept, since every walk asks for them."""
    known = _PARTS.get(kind.__name__)
    if known is None:
        known = tuple(f.name for f in reversed(fields(kind)) if f.name not in ("span", "doc"))
        _PARTS[kind.__name__] = known
    return known


def _walk(node: object) -> Iterator[ast.Node]:
    """Every node below, parents first, in text order."""
    stack = [node]
    while stack:
        at = stack.pop()
        if isinstance(at, ast.Node):
            yield at
            stack.extend([getattr(at, name) for name in _parts(type(at))])
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
            case ast.Call(callee=ast.Name(id="route"), arguments=arguments):
                routed = [a.value for i, a in enumerate(arguments) if a.name == "f" or (a.name is None and i == 1)]
                found.update(dict.fromkeys(n for n in map(segment_of, routed) if n))
            case ast.Call(callee=ast.Name(id=name)) | ast.Call(callee=ast.Attribute(name=name)):
                found[name] = None
        if isinstance(node, ast.Node):
            stack.extend([getattr(node, name) for name in _parts(type(node))])
        elif isinstance(node, tuple):
            stack.extend(reversed(node))
    return tuple(found)


def segment_of(node: ast.Expr) -> str:
    """The path segment of a component that is handed on: what it is called here, `f` of `f { out = 8 }`; else none."""
    match node:
        case ast.Name(id=name) | ast.Attribute(name=name):
            return name
        case ast.Derived(base=base):
            return segment_of(base)
    return ""


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
            case ast.Equation(target=target, indices=indices, value=value):
                if name in names_read((value, indices)):
                    return True
                if target == name:
                    return False
            case _:
                if name in names_read(item):
                    return True
    return False


def check_path(base: Component, setting: ast.Setting) -> None:
    """A change names an input, a segment inside, or a `let` of the file of its base."""
    first = setting.path[0]
    inputs = [i.name for i in base.block.inputs]
    if first in inputs:
        return
    inside = segments(base.block)
    if first in inside or (len(setting.path) == 1 and first in _file_lets(base.scope)):
        return
    near = closest(first, [*inputs, *inside])
    name = Span(setting.span.source, setting.span.start, setting.span.start + len(first))
    fail(
        "E204", f"`{base.name}` has no attribute `{first}`", name,
        help=did_you_mean(near) or f"it has {', '.join(inputs)}", edits=(Edit(name, near),) if near else (),
        notes=(Note(f"`{base.block.name}` is declared here", head(base.block)),),
    )  # fmt: skip


def head(block: ast.Block) -> Span:
    """Where a block says its kind and name, for notes."""
    source, opening = block.span.source, f"{block.kind} {block.name}"
    at = source.text.find(opening, block.span.start, block.span.end)
    return Span(source, at, at + len(opening)) if at >= 0 else block.span


def _file_lets(scope: Scope | None) -> list[str]:
    while scope is not None and not isinstance(scope, FileScope):
        scope = scope.parent
    return list(scope.lets()) if isinstance(scope, FileScope) else []


def did_you_mean(near: str) -> str:
    """The help that offers a name, where there is one."""
    return f"did you mean `{near}`?" if near else ""
