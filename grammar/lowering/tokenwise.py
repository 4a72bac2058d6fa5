"""The body of a `route` -> nothing, or the first operation in which one token looks at another."""

from collections.abc import Sequence
from enum import Enum

from tfc.formula.expr import Expr, Kind, Read, Reduce, Var, children
from tfc.ir.formats import Format
from tfc.ir.ops import (
    Cast,
    Concat,
    Dropout,
    Elementwise,
    Index,
    Linear,
    Op,
    Reduction,
    Repeat,
    Reshape,
    Rounded,
    Route,
    Slice,
    Take,
    Top,
)
from tfc.ir.program import Eqn, Program, Value
from tfc.ir.types import Size, TensorType

__all__ = ["mixes_tokens"]

Sizes = tuple[Size, ...]


class Of(Enum):
    """What a value is made of: of each token by itself, with the tokens' two axes first; of no token; of no token,
    but with their axes and the same all along them, so that it may stand for either."""

    TOKENS = "tokens"
    NONE = "none"
    SAME = "same"


def mixes_tokens(body: Program) -> Eqn | str | None:
    """The first equation of the body by which a token's result depends on another token, or on where it stands.

    The body's second input is the tokens [B, T, ...]. None: every token's result is made of that token alone. A text:
    the result is made of no token.
    """
    tokens = body.inputs[1].value.type.shape[:2]
    found = _run(body, (Of.NONE, Of.TOKENS, *[Of.NONE] * (len(body.inputs) - 2)), tokens)
    if isinstance(found, Eqn):
        return found
    return None if found == (Of.TOKENS,) else "its result is not made of the tokens that it is given"


def _run(body: Program, of: Sequence[Of], tokens: Sizes) -> tuple[Of, ...] | Eqn:
    """What each result is made of, given the inputs; or the equation that mixes tokens."""
    known: dict[Value, Of] = {i.value: o for i, o in zip(body.inputs, of, strict=True)}
    known.update({p.value: Of.NONE for p in body.params})
    for eqn in body.eqns:
        made = _made(eqn, [known[a] for a in eqn.args], tokens)
        if made is None:
            return eqn
        known.update(zip(eqn.outs, made, strict=True))
    return tuple(known[v] for v in body.results)


def _made(eqn: Eqn, of: Sequence[Of], tokens: Sizes) -> list[Of] | None:
    """What the results are made of; None where tokens mix."""
    types, out = [a.type for a in eqn.args], eqn.outs[0].type
    if Of.TOKENS in of and isinstance(eqn.op, Repeat):
        starts = list(of[: eqn.op.carries])
        ends = _run(eqn.op.body, (Of.NONE, *of), tokens)
        reports = [Of.NONE] * (len(eqn.outs) - len(starts))
        return None if isinstance(ends, Eqn) or list(ends) != starts else [*starts, *reports]
    if Of.TOKENS in of:  # what is the same for all may be of tokens, or of none
        either = any(
            _keeps(eqn.op, [o is Of.TOKENS or (s and o is Of.SAME) for o in of], types, out) for s in (True, False)
        )
        return [Of.TOKENS] if either else None
    same = Of.SAME in of and not isinstance(eqn.op, Dropout)  # which leaves out other elements at each token
    if same and len(eqn.outs) == 1 and _keeps(eqn.op, [o is Of.SAME for o in of], types, out):
        return [Of.SAME]
    if isinstance(eqn.op, Index) and out.shape[:2] == tokens and _keeps(eqn.op, [False for _ in of], types, out):
        return [Of.SAME]
    return [Of.NONE] * len(eqn.outs)


def _keeps(op: Op, of: Sequence[bool], types: Sequence[TensorType], out: TensorType) -> bool:
    """Whether each token's result comes of that token alone, `of` saying which operands are of tokens."""
    first = types[0] if types else out
    match op:
        case Elementwise():
            return all(
                t.rank == out.rank if o else all(n == 1 for n in t.shape[: max(0, t.rank - out.rank + 2)])
                for o, t in zip(of, types, strict=True)
            )
        case Reduction() | Linear() | Top():
            return first.rank > 2 and not any(of[1:])
        case Slice(axis=axis) | Concat(axis=axis):
            return axis == -1 and first.rank > 2 and all(of)
        case Cast():
            return True
        case Dropout():
            return first.rank > 2
        case Rounded(format=format):
            return first.rank > 2 and _by_rows(format)
        case Take():
            return not of[0]
        case Reshape(shape=shape):
            return shape[:2] == first.shape[:2]
        case Route():
            return all(of[:3]) and not any(of[3:])
        case Index(axes=axes, expr=expr):
            return len(axes) > 1 and _plain(expr, axes[0][0], axes[1][0], of)
    return False


def _by_rows(format: Format) -> bool:
    """Whether what a number is rounded to depends on its own token alone."""
    settings = dict(format.settings)
    if format.name in ("nm", "mx"):
        return True
    return bool(settings.get("group")) or settings.get("per") == "row"


def _plain(expr: Expr, b: str, t: str, of: Sequence[bool]) -> bool:
    """Whether what is of tokens is read at [b, t, ..], and b and t occur nowhere else."""
    own = (Var(b, Kind.INT), Var(t, Kind.INT))
    match expr:
        case Read(slot, indices):
            if of[slot]:
                if indices[:2] != own:
                    return False
                indices = indices[2:]
            return all(_plain(i, b, t, of) for i in indices)
        case Var():
            return expr not in own
        case Reduce(_, names, body):
            return not {b, t} & set(names) and _plain(body, b, t, of)
    return all(_plain(a, b, t, of) for a in children(expr))
