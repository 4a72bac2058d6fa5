"""The body of a `route` -> nothing, or the first operation in which one token looks at another."""

from collections.abc import Mapping, Sequence

from tfc.formula.expr import Expr, Kind, Read, Reduce, Var, children
from tfc.ir.formats import Format
from tfc.ir.ops import (
    Cast,
    Concat,
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
from tfc.ir.types import TensorType

__all__ = ["mixes_tokens"]


def mixes_tokens(body: Program) -> Eqn | str | None:
    """The first equation of the body by which a token's result depends on another token, or on where it stands.

    The body's second input is the tokens [B, T, ...]. A value is either of tokens, with their two axes first and each
    token's part made of that token's alone, or free of them. None: the result is of tokens. A text: it is free.
    """
    found = _run(body, (False, True, *[False] * (len(body.inputs) - 2)))
    if isinstance(found, Eqn):
        return found
    return None if found == (True,) else "its result is not made of the tokens that it is given"


def _run(body: Program, of: Sequence[bool]) -> tuple[bool, ...] | Eqn:
    """Whether each result is of tokens, given which inputs are; or the equation that mixes them."""
    known: dict[Value, bool] = {i.value: o for i, o in zip(body.inputs, of, strict=True)}
    known.update({p.value: False for p in body.params})
    for eqn in body.eqns:
        given = [known[a] for a in eqn.args]
        made = [False] * len(eqn.outs) if not any(given) else _made(eqn, known)
        if made is None:
            return eqn
        known.update(zip(eqn.outs, made, strict=True))
    return tuple(known[v] for v in body.results)


def _made(eqn: Eqn, known: Mapping[Value, bool]) -> list[bool] | None:
    """Whether the results are of tokens, some operand being so; None where tokens mix."""
    of = [known[a] for a in eqn.args]
    types = [a.type for a in eqn.args]
    if isinstance(eqn.op, Repeat):
        starts = of[: eqn.op.carries]
        ends = _run(eqn.op.body, (False, *of))
        return None if isinstance(ends, Eqn) or list(ends) != starts else list(ends)
    return [True] if _keeps(eqn.op, of, types, eqn.outs[0].type) else None


def _keeps(op: Op, of: Sequence[bool], types: Sequence[TensorType], out: TensorType) -> bool:
    """Whether each token's result comes of that token alone."""
    first = types[0]
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
