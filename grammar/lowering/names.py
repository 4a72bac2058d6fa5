"""`names hf { .. }` -> the data that importers read, each path checked against the parameters of the program."""

import re
from collections.abc import Container, Iterator, Mapping
from functools import lru_cache
from math import prod

from tfc.diagnostics import Edit, Note, closest
from tfc.formula.expr import Apply, Const, Expr, Kind, Var, walk
from tfc.grammar import ast
from tfc.grammar.lowering.evaluate import evaluate
from tfc.grammar.lowering.numbers import whole
from tfc.grammar.lowering.session import LIMITS, Frame, Session, fail
from tfc.grammar.lowering.values import Failed, Meaning, describe
from tfc.grammar.parser import parse
from tfc.ir.names import (
    Either,
    Ignored,
    Joined,
    NameEntry,
    NamesMap,
    Ours,
    Path,
    Reordered,
    Reshaped,
    Rolled,
    Transposed,
    shape_of,
)
from tfc.ir.program import Stored
from tfc.ir.types import IRError
from tfc.source import Source, Span

__all__ = ["names_map"]

ALTERNATIVES = 16
"""Names that one line of a map may stand for, in each turn."""

_BINARY = {"+": "add", "-": "sub", "*": "mul", "//": "floordiv", "%": "mod"}


def names_map(item: ast.Names, stored: tuple[Stored, ...], frame: Frame) -> NamesMap:
    """The map; every faulty entry is reported and left out. frame: the file's, for the numbers of entries."""
    session = frame.session
    entries: list[NameEntry] = []
    seen: dict[str, Span] = {}
    known = {s.path: s.type.ints[len(s.repeats) :] for s in stored}
    labels = {part for s in stored for part in s.path.split(".")}
    for pair in item.entries:
        try:
            entry = NameEntry(_pieces(pair, labels, frame), _ours(pair.ours, stored, frame))
            _check(entry, pair, stored, known, seen)
            entries.append(entry)
        except Failed as failed:
            session.report(failed.diagnostic)
            if failed.diagnostic.code == "E502":
                break
    return NamesMap(item.name, tuple(entries))


def _check(
    entry: NameEntry, pair: ast.NamePair, stored: tuple[Stored, ...], known: Mapping[str, tuple[int, ...]],
    seen: dict[str, Span],
) -> None:  # fmt: skip
    """Names written out: every loop of a parameter must be in the pattern, no name may come twice, and shapes fit.

    A pattern that computes with every loop, `{layer % 6}`, says itself that turns share an array: a grown stack.
    """
    rows = NamesMap("", (entry,)).each(stored)
    inside = [piece for piece in entry.theirs if isinstance(piece, Expr)]
    loops = {n.name for piece in inside for n in walk(piece) if isinstance(n, Var)}
    computed = any(isinstance(piece, Apply) for piece in inside)
    fits: Ours | None = None
    while True:
        try:
            row = next(rows, None)
        except IRError as error:
            fail("E612", str(error), pair.span, help="the loops of our path may stand in braces: `{layer}`")
        if row is None:
            return
        if row.ours is not fits and not isinstance(row.ours, Ignored):
            try:
                shape_of(row.ours, known)
            except IRError as error:
                fail("E612", str(error), pair.ours.span, help="`tfc show` has the shape of every parameter")
            fits = row.ours
        for name in row.names:
            if name in seen and not (computed and len(loops) == len(row.turns) and seen[name] == pair.span):
                notes = (Note("first here", seen[name]),) if seen[name] != pair.span else ()
                fail(
                    "E613", f'the name "{name}" comes twice', pair.span, notes=notes,
                    help="a parameter in a loop needs the loop's name in braces: `{layer}`",
                )  # fmt: skip
            seen[name] = pair.span
        if len(seen) > LIMITS["names"]:
            fail("E502", f"more than {LIMITS['names']} names, loops written out", pair.span)


# ---- their side


def _pieces(pair: ast.NamePair, labels: Container[str], frame: Frame) -> tuple[str | Expr | Either, ...]:
    """`"[|model.]h.{2 * pair}.w"` as texts, alternatives and expressions."""
    out: list[str | Expr | Either] = []
    for i, part in enumerate(re.split(r"\{([^{}]*)\}", pair.theirs)):
        if i % 2:
            out.append(_index(part, pair, labels, frame))
        elif "{" in part or "}" in part:
            fail("E612", f'a brace of "{pair.theirs}" has no partner', pair.span)
        else:
            out.extend(_alternatives(part, pair))
    if prod(len(piece.texts) for piece in out if isinstance(piece, Either)) > ALTERNATIVES:
        fail("E612", f'"{pair.theirs}" stands for more than {ALTERNATIVES} names', pair.span)
    return tuple(out)


def _alternatives(written: str, pair: ast.NamePair) -> Iterator[str | Either]:
    """`h.[weight|gamma]` as text and alternatives."""
    for i, part in enumerate(re.split(r"\[([^\[\]]*)\]", written)):
        texts = tuple(part.split("|"))
        if i % 2 == 0 and ("[" in part or "]" in part):
            fail("E612", f'a bracket of "{pair.theirs}" has no partner', pair.span,
                 help="`[a|b]` stands for a or b, and holds no braces")  # fmt: skip
        elif i % 2 and len(set(texts)) < max(2, len(texts)):
            fail("E612", f"`[{part}]` is no choice", pair.span,
                 help="`[a|b]` stands for a or b, `[|a]` for a or nothing")  # fmt: skip
        elif i % 2:
            yield Either(texts)
        elif part:
            yield part


def _index(written: str, pair: ast.NamePair, labels: Container[str], frame: Frame) -> Expr:
    module, _ = parse(Source("<name>", f"tfm 1 let index = {written}\n")) if written.strip() else (None, [])
    items = module.items if module else ()
    if len(items) == 1 and isinstance(items[0], ast.Let) and len(items[0].bindings) == 1:
        found = _whole(items[0].bindings[0].value, labels, frame)
        if found is not None:
            return found
    fail(
        "E612",
        f"`{written}` is no number of a turn",
        pair.span,
        help="write the loop's name, or arithmetic with it: `{2 * pair}`",
    )


def _whole(node: ast.Expr, labels: Container[str], frame: Frame) -> Expr | None:
    """Arithmetic with loops' names, and with whole numbers of the file where no loop has the name."""
    match node:
        case ast.Number(value=int() as value):
            return Const(value)
        case ast.Name(id=name):
            meaning = None if name in labels else frame.scope.find(name)
            return Const(meaning) if type(meaning) is int else Var(name, Kind.INT)
        case ast.Binary(op=op, left=left, right=right) if op in _BINARY:
            a, b = _whole(left, labels, frame), _whole(right, labels, frame)
            return Apply(_BINARY[op], (a, b)) if a is not None and b is not None else None
    return None


# ---- our side


def _ours(node: ast.Expr, stored: tuple[Stored, ...], frame: Frame) -> Ours:
    match node:
        case ast.Name(id="none"):
            return Ignored()
        case ast.Call(callee=ast.Name(id="transpose"), arguments=[ast.Argument(name=None, value=inner)]):
            of = _ours(inner, stored, frame)
            for path in (of.path,) if isinstance(of, Path) else ():
                rank = _rank(path, stored)
                if rank is not None and rank != 2:
                    fail("E612", f"`{path}` has {rank} axes; `transpose` takes two", inner.span)
            return Transposed(of)
        case ast.Call(callee=ast.Name(id="if"), arguments=[condition, first, second]) if not any(
            a.name for a in (condition, first, second)
        ):
            chosen = evaluate(condition.value, frame)
            if not isinstance(chosen, bool):
                fail("E612", f"`if` takes yes or no, not {describe(chosen)}", condition.value.span)
            return _ours((first if chosen else second).value, stored, frame)
        case ast.Call(callee=ast.Name(id="concat"), arguments=parts) if parts and not any(a.name for a in parts):
            return Joined(tuple(_ours(a.value, stored, frame) for a in parts))
        case ast.Call(
            callee=ast.Name(id="transpose" | "reshape" | "roll" as how),
            arguments=[ast.Argument(name=None, value=inner), ast.Argument(name=None, value=more)],
        ):
            of = _ours(inner, stored, frame)
            if how == "roll":
                return Rolled(of, _number(evaluate(more, frame), more.span))
            numbers = evaluate(more, frame)
            if not isinstance(numbers, tuple):
                fail("E612", f"`{how}` takes a list of numbers, not {describe(numbers)}", more.span)
            listed = tuple(_number(n, more.span) for n in numbers)
            return Reordered(of, listed) if how == "transpose" else Reshaped(of, listed)
        case ast.Name() | ast.Attribute():
            path = _path(node)
            _check_path(path, node, stored, frame.session)
            return Path(path)
    fail("E612", f"`{node.span.text}` is no parameter", node.span,
         help="a path, `transpose(path)`, `transpose(path, [2, 0, 1])`, `reshape(path, [4, 8])`, `roll(path, 2)`, "
         "`concat(path, path)`, `if(condition, path, path)`, or `none` for what is not needed")  # fmt: skip


def _number(value: Meaning, span: Span) -> int:
    size = whole(value, "a number of a names map", span)
    if not isinstance(size, int):
        fail("E612", f"{size} is not known while compiling", span)
    return size


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
