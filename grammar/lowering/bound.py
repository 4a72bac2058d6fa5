"""A formula and the sequences it speaks of -> the formula with its fields and captured tensors as numbered slots.

Only now fields have types: kinds, numbers of axes and the ranges of reduced indices are checked here, each complaint at
the part of the text that does not fit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import NoReturn

from tfc.diagnostics import Note
from tfc.formula.expr import (
    Apply,
    Const,
    Expr,
    Field,
    Kind,
    Load,
    Read,
    Reduce,
    Side,
    Token,
    Var,
    kind_of,
    rewrite,
    walk,
)
from tfc.grammar.lowering.algebra import check_kind, formula_of, kind_given
from tfc.grammar.lowering.roles import LEADING
from tfc.grammar.lowering.scope import RESERVED
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import Formula, Given, Tensor
from tfc.ir.types import DType, Size
from tfc.source import Span

__all__ = ["Bound", "Sides", "bind", "field_axes", "positions_of"]

Sides = Mapping[Side, Tensor]

H = Var("h", Kind.INT)


@dataclass(frozen=True, slots=True)
class Bound:
    """A formula over `Load`s and `Read`s of numbered slots, and what the slots hold.

    sizes: of each reduced index, and of each index of `open` that reads an axis alone, with the tensor that has it.
    """

    expr: Expr
    kind: Kind
    captured: tuple[Tensor, ...]
    sizes: Mapping[str, tuple[Size, Tensor]]


def bind(
    role: str, given: Given | Formula, sides: Sides, heads: Size, frame: Frame, *, open: Sequence[str] = ()
) -> Bound:
    """The formula of a role, its fields taken from the sequences of `sides`, whose attention has `heads` heads."""
    formula = given if isinstance(given, Formula) else formula_of(given.value, given.span, frame)
    work = _Binding(sides, heads, frame, formula.span, {name: name for name in open}, set(open))
    made = work.bound(formula.expr)
    assert made.kind is not None
    if (made.kind is Kind.BOOL) != (role == "mask"):
        wanted = "a boolean" if role == "mask" else "a number"
        fail("E303", f"`{role}` is {wanted}; `{formula.span.text}` is {made.kind}", frame.at(formula.span))
    used = tuple(dict.fromkeys(n.slot for n in walk(made.expr) if isinstance(n, Load | Read)))
    local = {slot: i for i, slot in enumerate(used)}
    expr = rewrite(made.expr, lambda n: _numbered(n, local))
    return Bound(expr, made.kind, tuple(frame.session.captures[i] for i in used), work.sizes)


def _numbered(node: Expr, local: Mapping[int, int]) -> Expr | None:
    match node:
        case Load(slot, side, kind, indices):
            return Load(local[slot], side, kind, indices)
        case Read(slot, indices, kind):
            return Read(local[slot], indices, kind)
    return None


def field_axes(held: Tensor, x: Tensor) -> int:
    """How many axes of a field are those of x's tokens: 2, or 1 where all rows have the same."""
    return 2 if held.type.shape[:2] == x.type.shape[:2] else 1


def positions_of(x: Tensor) -> Tensor | None:
    """The field `pos`, where the sequence has one: whole numbers."""
    pos = x.fields.get("pos")
    if pos is not None and pos.type.dtype is not DType.I32:
        fail("E301", f"the field `pos` is {pos.type}; positions are whole numbers", pos.span)
    return pos


@dataclass(slots=True)
class _Binding:
    """One formula being bound.

    names: the indices in scope, by the names they are written with, and what they are called now. taken: every name
    given so far, as two reductions of one formula have indices of their own.
    """

    sides: Sides
    heads: Size
    frame: Frame
    default: Span
    names: dict[str, str]
    taken: set[str]
    sizes: dict[str, tuple[Size, Tensor]] = field(default_factory=dict)

    def span(self, node: Expr) -> Span:
        known = self.frame.session.spans.get(id(node))
        return known[1] if known else self.default

    def bound(self, node: Expr) -> Formula:
        """The node over slots, with its kind; its place is the one it was written at."""
        match node:
            case Field():
                return self._field(node)
            case Token(side) if (pos := positions_of(self.sides[side])) is not None:
                return self._made(Load(self.frame.session.slot(pos), side, Kind.INT), node)
            case Read(slot, indices, kind):
                held = self.frame.session.captures[slot]
                at = self._indices(tuple(H if i == LEADING else i for i in indices), held, 0)
                return self._made(Read(slot, at, kind), node)
            case Reduce():
                return self._reduce(node)
            case Apply(fn, args):
                parts = [self.bound(a) for a in args]
                for part in parts:
                    check_kind(fn, part, self.frame)
                given = kind_given(fn, parts, self.span(node), self.frame)
                return Formula(Apply(fn, tuple(p.expr for p in parts)), given, self.span(node))
            case Var(name, kind) if name in self.names:
                return self._made(Var(self.names[name], kind), node)
        return self._made(node, node)

    def _made(self, expr: Expr, node: Expr) -> Formula:
        return Formula(expr, kind_of(expr), self.span(node))

    def _field(self, node: Field) -> Formula:
        x = self.sides[node.side]
        held = x.fields.get(node.name)
        if held is None:
            self._no_field(node)
        axes = field_axes(held, x)
        own = held.type.shape[axes:]
        indices = node.indices
        if LEADING in indices:
            at = indices.index(LEADING)
            leading = (self._head(own[0], node, held),) if len(own) == len(indices) else ()
            indices = (*indices[:at], *leading, *indices[at + 1 :])
        if len(indices) != len(own):
            self._misread(node, len(indices), own, held)
        at_ = self._indices(indices, held, axes)
        return self._made(Load(self.frame.session.slot(held), node.side, held.type.dtype.kind, at_), node)

    def _misread(self, node: Field, given: int, own: Sequence[Size], held: Tensor) -> NoReturn:
        name, sizes = f"{node.side}.{node.name}", ", ".join(map(str, own))
        if not own:
            message, help = f"each token's `{node.name}` is one number, read without brackets", f"write `{name}`"
        else:
            count = "1 index" if len(own) == 1 else f"{len(own)} indices"
            message = f"each token's `{node.name}` is [{sizes}]: {count}, not {given}"
            help = f"`{name}[{', '.join('ijlmn'[: len(own)])}]` reads one element of it"
        fail("E304", message, self.frame.at(self.span(node)), help=help,
             notes=(Note(f"the field {held.type} is made here", held.span),))  # fmt: skip

    def _head(self, size: Size, node: Field, held: Tensor) -> Expr:
        """The head of a field that has heads: those of keys are shared by groups of query heads (arXiv:2305.13245)."""
        if size == self.heads:
            return H
        if (share := _share(size, self.heads)) is not None:
            return Apply("floordiv", (H, Const(share)))
        fail(
            "E404", f"`{node.name}` has {size} heads, the queries {self.heads}", self.frame.at(self.span(node)),
            notes=(Note(f"the field {held.type} is made here", held.span),),
        )  # fmt: skip

    def _indices(self, indices: Sequence[Expr], held: Tensor, axes: int) -> tuple[Expr, ...]:
        """Indices of what a slot holds, after its first `axes` axes: whole numbers, those alone telling their range."""
        out = []
        for size, index in zip(held.type.shape[axes:], indices, strict=True):
            made = self.bound(index)
            if made.kind is not Kind.INT:
                fail("E301", f"`{made.span.text}` is {made.kind}; an index is a whole number",
                     self.frame.at(made.span))  # fmt: skip
            if isinstance(made.expr, Var) and made.expr.name in {"h", *self.taken}:
                self._ranges(made.expr.name, index, size, held)
            out.append(made.expr)
        return tuple(out)

    def _ranges(self, name: str, index: Expr, size: Size, held: Tensor) -> None:
        if index == H:
            if size != self.heads:  # clamping would read another head
                share = _share(size, self.heads)
                fail(
                    "E403", f"the head `h` ranges over {self.heads} and over {size}", self.frame.at(self.default),
                    help=f"`h // {share}` reads one of the {size}" if share is not None else "",
                    notes=(Note(f"{size} is a size of {held.type}, from here", held.span),),
                )  # fmt: skip
            return
        known, first = self.sizes.setdefault(name, (size, held))
        if known != size:
            written = index.name if isinstance(index, Var) else name
            fail(
                "E403", f"the index `{written}` ranges over {known} and over {size}", self.frame.at(self.default),
                notes=(Note(f"{known} is a size of {first.type}, from here", first.span),
                       Note(f"{size} is a size of {held.type}, from here", held.span)),
            )  # fmt: skip

    def _reduce(self, node: Reduce) -> Formula:
        outer, names = dict(self.names), []
        for name in node.indices:
            fresh = next(n for n in _spellings(name) if n not in self.taken and n not in RESERVED | {"b", "t"})
            self.taken.add(fresh)
            self.names[name] = fresh
            names.append(fresh)
        body = self.bound(node.body)
        self.names = outer
        for written, name in zip(node.indices, names, strict=True):
            if name not in self.sizes:
                fail(
                    "E406", f"nothing tells how far the index `{written}` goes", self.frame.at(self.span(node)),
                    help=f"read a field or a table by `{written}` alone",
                )  # fmt: skip
        if node.fn in ("any", "all") and body.kind is not Kind.BOOL:
            fail("E301", f"`{node.fn}` takes booleans; `{body.span.text}` is {body.kind}", self.frame.at(body.span))
        return self._made(Reduce(node.fn, tuple(names), body.expr), node)

    def _no_field(self, node: Field) -> NoReturn:
        x = self.sides[node.side]
        have = ", ".join(sorted(x.fields)) or "none"
        what = "tokens" if len(self.sides) == 1 else "queries" if node.side == "q" else "keys"
        reader = "this" if len(self.sides) == 1 else "attention"
        fail(
            "E306", f"the {what} carry no field `{node.name}`; they carry {have}", self.frame.at(self.span(node)),
            help=f"set it with `tag(x, {node.name} = ..)` on the sequence that {reader} reads",
            notes=(Note(f"the {what} come from here", x.span),),
        )  # fmt: skip


def _share(size: Size, heads: Size) -> int | None:
    """How many query heads read each of `size` heads; None where they do not divide."""
    if not (isinstance(size, int) and isinstance(heads, int)) or size < 1 or heads % size:
        return None
    return heads // size


def _spellings(name: str) -> Iterator[str]:
    return chain([name], (f"{name}_{i}" for i in count(2)))
