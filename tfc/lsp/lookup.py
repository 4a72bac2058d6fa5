"""A place in a document -> what stands there: a symbol, an attribute, a member, a path; and where that is declared.

What lowering saw is asked first; where it saw nothing, the declarations of the file tell.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tfc.grammar import ast
from tfc.grammar.lowering.seen import Opened
from tfc.grammar.lowering.segments import segment_of
from tfc.grammar.lowering.session import is_library
from tfc.grammar.lowering.values import Component, Failed, Meaning, Place, Poisoned, RoleRef, Tensor
from tfc.grammar.syntax.scan import scan
from tfc.lsp.analysis import Analysis
from tfc.lsp.library import core_words, entry
from tfc.lsp.symbols import Keyword, Scope, Symbol, children
from tfc.lsp.text import Tokens
from tfc.source import Source, Span

__all__ = [
    "Declared",
    "Inside",
    "PathSegment",
    "by_symbol",
    "call_of",
    "declared",
    "descend",
    "inside",
    "item_name",
    "keyword_owner",
    "member_of",
    "openings",
    "owner_of",
    "param_item",
    "path_segments",
    "paths_in",
    "plain",
    "segment_name",
    "segment_nodes",
    "segment_span",
    "weights",
]

DEEP = 12
"""Steps from a name to what declares it, at most."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A block or formula, the file that it stands in (None: the prelude), and the component that changes it."""

    item: ast.Block | ast.Role
    home: Analysis | None
    component: Component | None = None


@dataclass(frozen=True, slots=True)
class Inside:
    """What a setting's segment names: an input of a block, a use or declaration in its body, or a `let` of its file."""

    of: Declared
    node: ast.Node
    span: Span


@lru_cache(maxsize=16)
def _tokens(source: Source) -> Tokens:
    return Tokens(scan(source))


def item_name(item: ast.Item) -> Span:
    """Where an item's own name stands, in whatever file."""
    number = 0 if isinstance(item, ast.Equation) else 1
    return _tokens(item.span.source).name(item.span, number) or item.span


# ---- from names to what declares them


def declared(node: ast.Expr, scope: Scope, home: Analysis, deep: int = 0) -> Declared | None:
    """The block or formula that an expression stands for."""
    for value in home.meanings(node).values():
        found = _of_value(value, home)
        if found is not None:
            return found
    if deep > DEEP:
        return None
    match node:
        case ast.Name(id=name):
            return _by_name(name, scope, home, deep + 1)
        case ast.Attribute(value=ast.Name(id=alias), name=name):
            symbol = scope.find(alias)
            if symbol is not None and isinstance(symbol.item, ast.Import):
                return _imported(symbol.item, name, home, deep + 1)
        case ast.Derived(base=inner) | ast.Label(value=inner):
            return declared(inner, scope, home, deep + 1)
        case ast.Call(callee=ast.Name(id="if"), arguments=[_, ast.Argument(value=yes), *_]):
            return declared(yes, scope, home, deep + 1)
        case ast.List(items=[first, *_]):
            return declared(first, scope, home, deep + 1)
    return None


def _of_value(value: Meaning, home: Analysis) -> Declared | None:
    match value:
        case Component():
            return Declared(value.block, _home(value.block.span.source, home), value)
        case RoleRef(decl):
            return Declared(decl, _home(decl.span.source, home))
    return None


def _home(source: Source, near: Analysis) -> Analysis | None:
    """The file of a text that lowering read."""
    if is_library(source):
        return None
    if source.name == near.source.name:
        return near
    for item in near.module.items:
        if isinstance(item, ast.Import):
            other = near.imported(item)
            if other is not None and other.source.name == source.name:
                return other
    return near


def _by_name(name: str, scope: Scope, home: Analysis, deep: int) -> Declared | None:
    symbol = scope.find(name)
    if symbol is not None:
        return by_symbol(symbol, home, deep)
    found = entry(name)
    return Declared(found.item, None) if found is not None else None


def by_symbol(symbol: Symbol, home: Analysis, deep: int = 0) -> Declared | None:
    """The block or formula that a name of a file stands for."""
    if deep > DEEP:
        return None
    match symbol.item:
        case ast.Block() | ast.Role():
            return Declared(symbol.item, home)
        case ast.Declaration(base=None, kind=kind):
            outer = symbol.scope if kind != symbol.name else symbol.scope.parent
            return _by_name(kind, outer, home, deep + 1) if outer is not None else _prelude(kind)
        case ast.Declaration(base=ast.Expr() as base):
            return declared(base, symbol.scope, home, deep + 1)
        case ast.Import(alias=alias) if alias != symbol.name:
            return _imported(symbol.item, symbol.name, home, deep + 1)
        case ast.Parameter(default=ast.Expr() as value) | ast.Binding(value=value) | ast.Equation(value=value):
            return declared(value, symbol.scope, home, deep + 1)
        case ast.Repeat(over=value):
            return declared(value, symbol.scope.parent or symbol.scope, home, deep + 1)
    return None


def _prelude(name: str) -> Declared | None:
    found = entry(name)
    return Declared(found.item, None) if found is not None else None


def _imported(item: ast.Import, name: str, home: Analysis, deep: int) -> Declared | None:
    other = home.imported(item)
    if other is None:
        return None
    return _by_name(name, other.table.top, other, deep)


def member_of(node: ast.Attribute, scope: Scope, home: Analysis) -> tuple[Analysis, Symbol] | None:
    """The item of an imported file that `base.name` means."""
    if isinstance(node.value, ast.Name):
        symbol = scope.find(node.value.id)
        if symbol is not None and isinstance(symbol.item, ast.Import):
            other = home.imported(symbol.item)
            found = other.table.top.names.get(node.name) if other is not None else None
            if other is not None and found is not None:
                return other, found
    return None


# ---- attributes


def keyword_owner(keyword: Keyword, home: Analysis) -> Declared | None:
    """What the first segment of a keyword's path is an input of."""
    return owner_of(keyword.owner, keyword.scope, home)


def owner_of(owner: ast.Node, scope: Scope, home: Analysis) -> Declared | None:
    """The block or formula that a call, a derivation's base, or an item with settings is about."""
    match owner:
        case ast.Call(callee=ast.Name(id=name)) if scope.find(name) is None and name in core_words():
            return None
        case ast.Call(callee=callee):
            for opened in openings(owner, home):
                if opened.component is not None:
                    return _of_value(opened.component, home)
            return declared(callee.value if isinstance(callee, ast.Label) else callee, scope, home)
        case ast.Declaration(kind=kind, name=name):
            outer = scope
            if kind == name:
                outer = scope.parent or scope
            found = _by_name(kind, outer, home, 0)
            return found if found is not None and isinstance(found.item, ast.Block) else _prelude(kind)
        case ast.Default(kind=kind):
            return _by_name(kind, scope, home, 0)
        case ast.Expr():
            return declared(owner, scope, home)
    return None


def inside(of: Declared, segment: str) -> Inside | None:
    """What a change of a component by that name changes."""
    for wanted in of.item.inputs:
        if wanted.name == segment:
            span = wanted.span
            return Inside(of, wanted, Span(span.source, span.start, span.start + len(segment)))
    if isinstance(of.item, ast.Block):
        for node, name in segment_nodes(of.item):
            if name == segment:
                return Inside(of, node, segment_span(node))
    if of.home is not None:
        symbol = of.home.table.top.names.get(segment)
        if symbol is not None and symbol.kind == "let":
            return Inside(of, symbol.item, symbol.span)
    return None


def segment_nodes(block: ast.Block) -> Iterator[tuple[ast.Node, str]]:
    """What opens path segments in a body, with their names: loops, declarations, calls."""
    stack: list[ast.Node] = list(reversed(block.body))
    while stack:
        node = stack.pop()
        match node:
            case ast.Repeat(name=name) | ast.Declaration(name=name):
                yield node, name
            case ast.Call() if (named := segment_name(node)) is not None:
                yield node, named[0]
        if not isinstance(node, ast.Block | ast.Repeat):
            stack.extend(reversed(list(children(node))))


def segment_name(node: ast.Call) -> tuple[str, ast.Expr] | None:
    """The path segment that a call opens, and the expression that names it: a label, the callee, or what is routed."""
    match node.callee:
        case ast.Label(label=name):
            return name, node.callee
        case ast.Name(id="route"):
            routed = [a.value for a in node.arguments if a.name == "f"] or [a.value for a in node.arguments[1:2]]
            named = routed[0].base if routed and isinstance(routed[0], ast.Derived) else next(iter(routed), None)
            if isinstance(named, ast.Name | ast.Attribute):
                return segment_of(named), named
        case ast.Name(id=name) | ast.Attribute(name=name):
            return name, node.callee
    return None


def segment_span(node: ast.Node) -> Span:
    """Where what opens a segment writes the segment's name."""
    tokens = _tokens(node.span.source)
    match node:
        case ast.Repeat(over=over):
            return tokens.after(over.span.end, "as") or node.span
        case ast.Call(callee=callee):
            named = segment_name(node)
            at = named[1].span if named is not None else callee.span
            return tokens.last(at) or at
        case ast.Item():
            return item_name(node)
        case ast.Parameter(name=name):
            return Span(node.span.source, node.span.start, node.span.start + len(name))
    return node.span


def descend(of: Declared, segment: str, home: Analysis, deep: int = 0) -> Declared | None:
    """The component that stands inside another under a name: given for an input, or used in the body."""
    if deep > DEEP:
        return None
    if of.component is not None:
        for change in of.component.changes:
            if change.path == (segment,):
                found = _of_value(change.value, home)
                if found is not None:
                    return found
    found_inside = inside(of, segment)
    match found_inside.node if found_inside is not None else None:
        case ast.Parameter(default=ast.Expr() as value):
            return _in_component(value, of, home, deep + 1)
        case ast.Call() as call if (named := segment_name(call)) is not None:
            named_by = named[1].value if isinstance(named[1], ast.Label) else named[1]
            return _in_component(named_by, of, home, deep + 1)
        case ast.Declaration(base=None, kind=kind):
            return _prelude(kind)
        case ast.Declaration(base=ast.Expr() as value):
            return _in_component(value, of, home, deep + 1)
    return None


def _in_component(node: ast.Expr, of: Declared, home: Analysis, deep: int) -> Declared | None:
    """An expression of a block's own text: its inputs first, then the scope that the block stands in."""
    match node:
        case ast.Name(id=name):
            if any(i.name == name for i in of.item.inputs):
                return descend(of, name, home, deep)
            if of.component is not None:
                try:
                    value = of.component.scope.find(name)
                except (Failed, Poisoned):
                    return None
                if value is not None:
                    return _of_value(value, home)
            scope = of.home.table.top if of.home is not None else Scope(node.span)
            return _by_name(name, scope, of.home or home, deep)
        case ast.Derived(base=base):
            return _in_component(base, of, home, deep + 1)
        case ast.Call(callee=ast.Name(id="if"), arguments=[_, *_, ast.Argument(value=last)]):
            return _in_component(last, of, home, deep + 1)
    return None


# ---- what lowering opened


def openings(node: ast.Node, home: Analysis) -> list[Opened]:
    """Every place in the tree of parameters that a call, declaration or loop of the file opened."""
    return [o for found in home.seen.opened.values() for o in found if o.node is node]


def call_of(node: ast.Node | None, home: Analysis) -> ast.Call | None:
    """The call whose callee an expression is."""
    return home.table.calls.get((node.span.start, node.span.end)) if node is not None else None


def plain(path: str) -> str:
    """A path without the numbers of turns: `layer.0.look` as `layer.look`."""
    return ".".join(s for s in path.split(".") if not s.isdigit())


# ---- paths of `names`


@dataclass(frozen=True, slots=True)
class PathSegment:
    """One segment of a path in `names`: the path up to it, what opened it, or the parameter it ends in."""

    span: Span
    name: str
    path: str
    opened: Opened | None
    param: Tensor | None


def path_segments(home: Analysis) -> Iterator[PathSegment]:
    """Every segment of every path that the `names` of the file map."""
    known: dict[str, Opened] = {}
    for path, found in home.seen.opened.items():
        # a declaration names the place; the calls of what it declares only use it
        best = next((o for o in found if isinstance(o.node, ast.Declaration)), found[0])
        known.setdefault(plain(path), best)
    roots = [e.place for found in home.seen.entered.values() for e in found if e.place.path == ""]
    for _, pair in home.table.entries:
        for node in paths_in(pair.ours):
            yield from _segments(node, known, roots, home)


def _segments(node: ast.Expr, known: dict[str, Opened], roots: list[Place], home: Analysis) -> Iterator[PathSegment]:
    names = [t for t in home.tokens.within(node.span) if t.kind == "name"]
    path = ""
    for token in names:
        owner = known[path].place if path in known else None
        place = [owner] if owner is not None else roots if path == "" else []
        param = next((p.params[token.text] for p in place if token.text in p.params), None)
        path = f"{path}.{token.text}" if path else token.text
        yield PathSegment(home.tokens.span(token), token.text, path, known.get(path), param)


def paths_in(node: ast.Expr) -> Iterator[ast.Expr]:
    """The paths of the right side of an entry: `transpose(layer.look.q.weight)`."""
    match node:
        case ast.Call(arguments=arguments):
            for argument in arguments:
                yield from paths_in(argument.value)
        case ast.Attribute() | ast.Name():
            if not (isinstance(node, ast.Name) and node.id == "none"):
                yield node


def param_item(tensor: Tensor, home: Analysis) -> ast.ParamDecl | None:
    """The declaration that a parameter was made by."""
    name = tensor.home.hints.get(tensor.value.name, "").rsplit(".", 1)[-1]
    for found in home.seen.opened.values():
        for opened in found:
            if name in opened.place.params and opened.place.params[name].same(tensor) and opened.component is not None:
                item = _param_of(opened.component.block, name)
                if item is not None:
                    return item
    here: list[ast.Item] = [*home.module.items]
    while here:
        at = here.pop()
        if isinstance(at, ast.ParamDecl) and at.name == name:
            return at
        here.extend(getattr(at, "body", ()))
    return None


def _param_of(block: ast.Block, name: str) -> ast.ParamDecl | None:
    stack: list[ast.Item] = list(block.body)
    while stack:
        at = stack.pop()
        if isinstance(at, ast.ParamDecl) and at.name == name:
            return at
        if isinstance(at, ast.Repeat):
            stack.extend(at.body)
    return None


def weights(place: Place) -> Iterator[tuple[str, Tensor]]:
    """Every parameter at a place and below, by its path from there."""
    stack = [("", place)]
    while stack:
        prefix, at = stack.pop()
        for name, tensor in at.params.items():
            yield f"{prefix}{name}", tensor
        stack.extend((f"{prefix}{name}.", below) for name, below in reversed(at.below.items()))
