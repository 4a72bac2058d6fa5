"""`names hf { .. }` -> the data that importers read, each path checked against the parameters of the program."""

import re
from functools import lru_cache

from tfc.diagnostics import Edit, Note, closest
from tfc.formula.expr import Apply, Const, Expr, Kind, Var, walk
from tfc.grammar import ast
from tfc.grammar.lowering.session import LIMITS, Session, fail
from tfc.grammar.lowering.values import Failed
from tfc.grammar.parser import parse
from tfc.ir.names import Ignored, Joined, NameEntry, NamesMap, Ours, Path, Transposed
from tfc.ir.program import Stored
from tfc.ir.types import IRError
from tfc.source import Source, Span

__all__ = ["names_map"]

_BINARY = {"+": "add", "-": "sub", "*": "mul", "//": "floordiv", "%": "mod"}


def names_map(item: ast.Names, stored: tuple[Stored, ...], session: Session) -> NamesMap:
    """The map; every faulty entry is reported and left out."""
    entries: list[NameEntry] = []
    seen: dict[str, Span] = {}
    for pair in item.entries:
        try:
            entry = NameEntry(_pieces(pair), _ours(pair.ours, stored, session))
            _check(entry, pair, stored, seen)
            entries.append(entry)
        except Failed as failed:
            session.report(failed.diagnostic)
            if failed.diagnostic.code == "E502":
                break
    return NamesMap(item.name, tuple(entries))


def _check(entry: NameEntry, pair: ast.NamePair, stored: tuple[Stored, ...], seen: dict[str, Span]) -> None:
    """Names written out: every loop of a parameter must be in the pattern, and no name may come twice.

    A pattern that computes with every loop, `{layer % 6}`, says itself that turns share an array: a grown stack.
    """
    rows = NamesMap("", (entry,)).each(stored)
    inside = [piece for piece in entry.theirs if isinstance(piece, Expr)]
    loops = {n.name for piece in inside for n in walk(piece) if isinstance(n, Var)}
    computed = any(isinstance(piece, Apply) for piece in inside)
    while True:
        try:
            row = next(rows, None)
        except IRError as error:
            fail("E612", str(error), pair.span, help="the loops of our path may stand in braces: `{layer}`")
        if row is None:
            return
        if row.theirs in seen and not (computed and len(loops) == len(row.turns) and seen[row.theirs] == pair.span):
            notes = (Note("first here", seen[row.theirs]),) if seen[row.theirs] != pair.span else ()
            fail(
                "E613", f'the name "{row.theirs}" comes twice', pair.span, notes=notes,
                help="a parameter in a loop needs the loop's name in braces: `{layer}`",
            )  # fmt: skip
        seen[row.theirs] = pair.span
        if len(seen) > LIMITS["names"]:
            fail("E502", f"more than {LIMITS['names']} names, loops written out", pair.span)


# ---- their side


def _pieces(pair: ast.NamePair) -> tuple[str | Expr, ...]:
    """`"h.{2 * pair}.w"` as text and expressions."""
    out: list[str | Expr] = []
    for i, part in enumerate(re.split(r"\{([^{}]*)\}", pair.theirs)):
        if i % 2:
            out.append(_index(part, pair))
        elif "{" in part or "}" in part:
            fail("E612", f'a brace of "{pair.theirs}" has no partner', pair.span)
        elif part:
            out.append(part)
    return tuple(out)


def _index(written: str, pair: ast.NamePair) -> Expr:
    module, _ = parse(Source("<name>", f"tfm 1 let index = {written}\n")) if written.strip() else (None, [])
    items = module.items if module else ()
    if len(items) == 1 and isinstance(items[0], ast.Let) and len(items[0].bindings) == 1:
        found = _whole(items[0].bindings[0].value)
        if found is not None:
            return found
    fail(
        "E612",
        f"`{written}` is no number of a turn",
        pair.span,
        help="write the loop's name, or arithmetic with it: `{2 * pair}`",
    )


def _whole(node: ast.Expr) -> Expr | None:
    match node:
        case ast.Number(value=int() as value):
            return Const(value)
        case ast.Name(id=name):
            return Var(name, Kind.INT)
        case ast.Binary(op=op, left=left, right=right) if op in _BINARY:
            a, b = _whole(left), _whole(right)
            return Apply(_BINARY[op], (a, b)) if a is not None and b is not None else None
    return None


# ---- our side


def _ours(node: ast.Expr, stored: tuple[Stored, ...], session: Session) -> Ours:
    match node:
        case ast.Name(id="none"):
            return Ignored()
        case ast.Call(callee=ast.Name(id="transpose"), arguments=[ast.Argument(name=None, value=inner)]):
            of = _ours(inner, stored, session)
            for path in (of.path,) if isinstance(of, Path) else ():
                rank = _rank(path, stored)
                if rank is not None and rank != 2:
                    fail("E612", f"`{path}` has {rank} axes; `transpose` takes two", inner.span)
            return Transposed(of)
        case ast.Call(callee=ast.Name(id="concat"), arguments=parts) if parts and not any(a.name for a in parts):
            return Joined(tuple(_ours(a.value, stored, session) for a in parts))
        case ast.Name() | ast.Attribute():
            path = _path(node)
            _check_path(path, node, stored, session)
            return Path(path)
    fail("E612", f"`{node.span.text}` is no parameter", node.span,
         help="a path, `transpose(path)`, `concat(path, path)`, or `none` for what is not needed")  # fmt: skip


def _path(node: ast.Expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, name=name):
            return f"{_path(value)}.{name}"
    fail("E612", f"`{node.span.text}` is no parameter's path", node.span)


@lru_cache(maxsize=50_000)
def _plain(path: str) -> str:
    """The path without the numbers of turns: `layer.3.look` as `layer.look`."""
    return re.sub(r"\.[0-9]+(?=\.)", "", path)


def _rank(path: str, stored: tuple[Stored, ...]) -> int | None:
    return next((s.type.rank - len(s.repeats) for s in stored if _plain(s.path) == path), None)


def _check_path(path: str, node: ast.Expr, stored: tuple[Stored, ...], session: Session) -> None:
    known = {_plain(s.path) for s in stored}
    if path not in known:
        near = closest(path, known)
        fail(
            "E611", f"there is no parameter `{path}`", node.span,
            help=f"did you mean `{near}`?" if near else f"there are {', '.join(sorted(known)[:6])}, ..",
            edits=(Edit(node.span, near),) if near else (),
        )  # fmt: skip
    for use in session.numbered:
        if path == _plain(use.place.path) or path.startswith(_plain(use.place.path) + "."):
            fail("E614", f"`{use.place.path}` is a number we gave: it changes when a use is added", node.span,
                 help="name that use with a label first", notes=(Note("this use has no label", use.span),))  # fmt: skip
