"""`tag`, `top`, `pick`, `append`, `part`, `cut`: tokens and channels chosen, with what tokens carry."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from tfc.diagnostics import Note
from tfc.formula.expr import Kind, Read, Var
from tfc.grammar.lowering.algebra import merge_fields, tensor_of
from tfc.grammar.lowering.arguments import Call
from tfc.grammar.lowering.fields import batched, carried, fits, letters
from tfc.grammar.lowering.session import fail
from tfc.grammar.lowering.values import Meaning, Tensor
from tfc.ir.ops import Concat, Index, Slice, Top
from tfc.ir.types import DType, Size

__all__ = ["append", "cut", "part", "pick", "tag", "top"]


def tag(c: Call) -> Meaning:
    """The same tensor with more fields: those of other tensors of as many tokens, and those by name. No operation."""
    x = c.tensor("x")
    others = [c.as_tensor(given) for given in c.rest]
    for other, given in zip(others, c.rest, strict=True):
        if x.type.rank < 2 or other.type.shape[:2] != x.type.shape[:2]:
            fail("E401", f"`{given.span.text}` is {other.type}: its tokens are not those of {x.type}",
                 c.frame.at(given.span), notes=c.made("x"))  # fmt: skip
    fields = dict(merge_fields([*others, x], x.type.shape, c.span, c.frame))
    for name, given in c.extra.items():
        f = tensor_of(given.value, given.span, c.frame)
        if not fits(f, x):
            tokens = ", ".join(map(str, x.type.shape[:2]))
            fail(
                "E401", f"a field has one value for each token: `{name}` is {f.type}, the tokens are [{tokens}]",
                c.frame.at(given.span), notes=c.made("x"),
            )  # fmt: skip
        fields[name] = carried(f)
    return replace(x, fields=fields)


def top(c: Call) -> Meaning:
    x, n = c.tensor("x"), c.size("n", "how many are chosen")
    if not x.type.rank or x.type.dtype is DType.BOOL:
        fail(
            "E301",
            f"`top` takes numbers along the last axis; `{c.shown('x')}` is {x.type}",
            c.at("x"),
            notes=c.made("x"),
            help=f"`if({c.shown('x')}, 1, 0)` is a number" if x.type.dtype is DType.BOOL else "",
        )
    if _outside(n, x.type.last):
        fail("E402", f"the {n} largest of {x.type.last}", c.blame("n"), notes=c.made("x"))
    return c.emit(Top(count=n), (x,), x.fields if x.type.rank > 2 else {})


def _outside(n: Size, length: Size) -> bool:
    """Whether a number of elements cannot be had of a length, as far as both are known."""
    return isinstance(n, int) and (n < 0 or (isinstance(length, int) and n > length))


def pick(c: Call) -> Meaning:
    """Tokens at the places that ids [B, n] names; what they carry comes with them."""
    x, ids = c.tokens("x"), c.tensor("ids")
    if ids.type.dtype is not DType.I32:
        fail("E301", f"places are whole numbers; `{c.shown('ids')}` is {ids.type}", c.at("ids"), notes=c.made("ids"))
    if ids.type.rank != 2 or ids.type.shape[0] != x.type.shape[0]:
        fail(
            "E401", f"`pick` takes places [{x.type.shape[0]}, n] of {x.type}; `{c.shown('ids')}` is {ids.type}",
            c.at("ids"), notes=c.made("x", "ids"),
        )  # fmt: skip
    fields = {name: _picked(f, ids, f.type.shape[:2] == x.type.shape[:2], name, c) for name, f in x.fields.items()}
    return replace(_picked(x, ids, True, "pick", c), fields=fields)


def _picked(x: Tensor, ids: Tensor, rows: bool, hint: str, c: Call) -> Tensor:
    """y[b, t, ..] = x[b, ids[b, t], ..], or x[ids[b, t], ..] where all rows have the same."""
    lead = 2 if rows else 1
    sizes = (*ids.type.shape, *x.type.shape[lead:])
    names = letters(len(sizes))
    b, t, *rest = (Var(n, Kind.INT) for n in names)
    place = Read(1, (b, t), Kind.INT)
    read = Read(0, (*([b] if rows else []), place, *rest), x.type.dtype.kind)
    return c.emit(Index(axes=tuple(zip(names, sizes, strict=True)), expr=read), (x, ids), hint=hint)


def append(c: Call) -> Meaning:
    """Tokens of one tensor after those of another; fields that all of them carry."""
    parts = [c.as_tensor(given) for given in c.rest]
    if not parts:
        fail("E206", "`append` needs at least one tensor", c.frame.at(c.span))
    head = parts[0]
    for i, part in enumerate(parts):
        a, b = head.type, part.type
        if b.rank < 2:
            fail(
                "E401",
                f"`append` takes tokens, [batch, time, ..]; `{c.rest[i].span.text}` is {b}",
                c.frame.at(c.rest[i].span),
            )
        if (a.shape[:1], a.shape[2:], a.dtype) != (b.shape[:1], b.shape[2:], b.dtype):
            _unlike(parts, i, f"`append` puts {b} after {a}: they differ in more than the number of tokens", c)
    fields: dict[str, Tensor] = {}
    for name in head.fields:
        if all(name in p.fields for p in parts):
            whole = [batched(p.fields[name], p, c.span, c.frame) for p in parts]
            for i, f in enumerate(whole):
                if (f.type.shape[2:], f.type.dtype) != (whole[0].type.shape[2:], whole[0].type.dtype):
                    _unlike(parts, i, f"the field `{name}` is {whole[0].type} of one and {f.type} of the other", c)
            fields[name] = c.emit(Concat(axis=1), tuple(whole), hint=name) if len(parts) > 1 else whole[0]
    return c.emit(Concat(axis=1), tuple(parts), fields) if len(parts) > 1 else head


def _unlike(parts: Sequence[Tensor], i: int, message: str, c: Call) -> NoReturn:
    notes = tuple(Note(f"`{c.rest[j].span.text}` is {parts[j].type}, from here", parts[j].span) for j in (0, i))
    fail("E401", message, c.frame.at(c.rest[i].span), notes=notes)


def part(c: Call) -> Meaning:
    """Some tokens in a row; what they carry comes with them."""
    x, start, count = c.tokens("x"), c.size("start", "the first token"), c.size("count", "the number of tokens")
    _check_range(start, count, x.type.shape[1], "tokens", c)
    fields: dict[str, Tensor] = {}
    for name, f in x.fields.items():
        if f.type.rank == 1:
            fields[name] = c.emit(Slice(start=start, size=count), (f,), hint=name)
        else:
            fields[name] = c.emit(Slice(start=start, size=count, axis=1), (batched(f, x, c.span, c.frame),), hint=name)
    return c.emit(Slice(start=start, size=count, axis=1), (x,), fields)


def cut(c: Call) -> Meaning:
    """Some channels in a row."""
    x, start, count = c.tensor("x"), c.size("start", "the first channel"), c.size("count", "the number of channels")
    if not x.type.rank:
        fail("E401", f"`cut` of {x.type}, which has no axis", c.at("x"))
    _check_range(start, count, x.type.last, "channels", c)
    return c.emit(Slice(start=start, size=count), (x,), x.fields if x.type.rank > 2 else {})


def _check_range(start: Size, count: Size, length: Size, what: str, c: Call) -> None:
    if _outside(start, length):
        fail("E402", f"{what} from {start} of {length}", c.blame("start"), notes=c.made("x"))
    if _outside(count, length) or _outside(start + count, length):
        fail("E402", f"{count} {what} from {start} of {length}", c.blame("count"), notes=c.made("x"))
