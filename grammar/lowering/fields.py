"""Data that tokens carry, in bodies: set, read, aligned at their tokens, brought along when tokens are chosen."""

from collections.abc import Sequence
from dataclasses import replace

from tfc.formula.expr import Kind, Read, Var
from tfc.grammar.lowering.session import Frame
from tfc.grammar.lowering.values import Tensor
from tfc.ir.ops import Index, Reshape
from tfc.source import Span

__all__ = ["aligned", "batched", "carried", "fits", "letters", "of_tokens"]


def fits(field: Tensor, x: Tensor) -> bool:
    """Whether an array [B, T, ...] or [T, ...] has one value for each token of x [B, T, ...]."""
    shape, tokens = field.type.shape, x.type.shape[:2]
    return len(tokens) == 2 and (shape[:2] == tokens or shape[:1] == tokens[1:])


def _axes(field: Tensor, x: Tensor) -> int:
    """How many axes of a field are those of x's tokens: 2, or 1 where all rows have the same."""
    return 2 if field.type.shape[:2] == x.type.shape[:2] else 1


def carried(field: Tensor) -> Tensor:
    """A tensor as the field of others: what it carries itself is theirs to say."""
    return replace(field, fields={}, tokens=0)


def of_tokens(x: Tensor, name: str) -> Tensor:
    """`x.name` in a body: the field, its tokens those of x."""
    field = x.fields[name]
    axes = _axes(field, x)
    return replace(field, tokens=axes, fields=x.fields if axes == 2 else {})


def batched(field: Tensor, x: Tensor, span: Span, frame: Frame) -> Tensor:
    """A field of x as [B, T, ...], also where all rows have the same."""
    if _axes(field, x) == 2:
        return field
    sizes = (x.type.shape[0], *field.type.shape)
    names = letters(len(sizes))
    read = Read(0, tuple(Var(n, Kind.INT) for n in names[1:]), field.type.dtype.kind)
    return frame.emit(Index(axes=tuple(zip(names, sizes, strict=True)), expr=read), (field,), span, "spread")[0]


def letters(count: int) -> tuple[str, ...]:
    """Names for the axes of an index equation that no author wrote."""
    return tuple("btcdefg"[i] if i < 7 else f"axis_{i}" for i in range(count))


def aligned(args: Sequence[Tensor], span: Span, frame: Frame) -> tuple[list[Tensor], int]:
    """Operands of an elementwise operation, fields among them aligned at their tokens; and `tokens` of the result.

    With other tensors that are no tokens of theirs, and alone, fields are aligned like any tensor: at the last axis.
    """
    fields = [a for a in args if a.tokens]
    others = [a for a in args if not a.tokens and a.type.rank]
    if not fields:
        return list(args), 0
    near = [a for a in others if any(a.type.shape[2 - f.tokens : 2] == f.type.shape[: f.tokens] for f in fields)]
    if others and not near:
        return list(args), 0
    tail = max(a.type.rank - (a.tokens or 2) for a in (*fields, *near))
    out = []
    for arg in args:
        missing = tail - (arg.type.rank - (arg.tokens or 2)) if arg in (*fields, *near) else 0
        if missing:
            shape = (*arg.type.shape, *[1] * missing)
            (made,) = frame.emit(Reshape(shape=shape), (arg,), span, "aligned", arg.fields)
            arg = replace(made, span=arg.span, tokens=arg.tokens)
        out.append(arg)
    return out, 0 if others else max(f.tokens for f in fields)
