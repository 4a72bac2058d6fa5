"""Names in bodies and formulas that no model uses: misspelt ones are reported all the same."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields

from tfc.grammar import ast
from tfc.grammar.lowering.scope import IMPLICIT, FileScope, unknown
from tfc.grammar.lowering.session import Session
from tfc.grammar.lowering.values import Failed, Poisoned

__all__ = ["check_names"]

_LET_PASS = frozenset(["real", ".."]).union(*IMPLICIT.values())
_PARTS: dict[type[ast.Node], tuple[str, ...]] = {}


def check_names(module: ast.Module, scope: FileScope, session: Session) -> None:
    """Report every name of a block or formula of the file that can mean nothing at all."""
    for item in module.items:
        match item:
            case ast.Role(role=role, inputs=inputs, formula=formula):
                own = frozenset(i.name for i in inputs) | IMPLICIT.get(role, frozenset())
                for node in (formula, *(i.default for i in inputs if i.default is not None)):
                    _check(list(_walk(node)), own, scope, session)
            case ast.Block(inputs=inputs, body=body):
                statements = [list(_walk(statement)) for statement in body]
                bound = frozenset(name for nodes in statements for name in _bound(nodes))
                own = frozenset(i.name for i in inputs) | bound | _lengths(inputs)
                for nodes in statements:
                    _check(nodes, own, scope, session)


def _lengths(inputs: tuple[ast.Parameter, ...]) -> frozenset[str]:
    """Capitalized names in types are lengths."""
    found = (n for i in inputs if i.type is not None for n in _walk(i.type))
    return frozenset(n.id for n in found if isinstance(n, ast.Name) and n.id[:1].isupper())


def _bound(nodes: Iterable[ast.Node]) -> Iterator[str]:
    """Every name that the nodes of a body bind."""
    for at in nodes:
        if isinstance(at, ast.Expr):
            continue
        match at:
            case ast.Equation(target=target, indices=indices):
                yield target
                yield from (i.name for i in indices or ())
            case ast.Repeat(name=name) | ast.Declaration(name=name):
                yield name
            case ast.ParamDecl(name=name, dims=dims):
                yield name
                yield from (n for n, _ in dims if n)
            case ast.Let(bindings=bindings):
                yield from (b.name for b in bindings)
            case ast.Role(name=name, inputs=inputs) | ast.Block(name=name, inputs=inputs):
                yield name
                yield from (i.name for i in inputs)
                yield from _lengths(inputs)


def _check(nodes: Sequence[ast.Node], own: frozenset[str], scope: FileScope, session: Session) -> None:
    """Report names that are neither bound in the item nor known to the file.

    Words of formulas are let pass: whether they mean something is known where a formula is used. So are the indices of
    reducers, and whatever a nested item binds: a name wrongly let pass is found when the block is used.
    """
    heads = [i for n in nodes if isinstance(n, ast.Subscript) for i in n.indices]
    reduced = frozenset(
        i.id if isinstance(i, ast.Name) else i.name for i in heads if isinstance(i, ast.Name | ast.Index)
    )
    for at in nodes:
        if not isinstance(at, ast.Name) or at.id in own or at.id in reduced or at.id in _LET_PASS:
            continue
        try:
            found = scope.find(at.id)
        except (Failed, Poisoned):
            continue
        if found is None:
            session.report(unknown(at, scope, own))


def _walk(node: object) -> Iterator[ast.Node]:
    """Every node below, in text order; a derivation's attribute names are no nodes."""
    stack = [node]
    while stack:
        at = stack.pop()
        if isinstance(at, ast.Node):
            yield at
            stack.extend([getattr(at, name) for name in _parts(type(at))])
        elif isinstance(at, tuple):
            stack.extend(reversed(at))


def _parts(kind: type[ast.Node]) -> tuple[str, ...]:
    """The fields of a kind of node that may hold names, last first."""
    known = _PARTS.get(kind)
    if known is None:
        skipped = ("span", "doc", "entries", *(("settings",) if kind is ast.Repeat else ()))
        held = {f.name for f in fields(kind) if f.type not in (str, int)}
        known = tuple(f for f in reversed(kind.__dataclass_fields__) if f in held and f not in skipped)
        _PARTS[kind] = known
    return known
