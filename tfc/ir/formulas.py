"""The formulas inside an operation: which attributes hold them, what they may name, where their slots are bound."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tfc.formula.expr import Expr, Kind
from tfc.ir.ops import ROW, FeedForward, Index, Op

__all__ = ["Place", "formulas", "held", "variables"]


@dataclass(frozen=True, slots=True)
class Place:
    """An attribute that holds a formula.

    variables: the names it may use, with their kinds. gives: the kind of its value; "number" is an integer or a real.
    captured: the first operand that a slot can mean, so slot 0 is `args[captured]`; None where slots have no meaning.
    tokens: whether `q` and `k` are the query and key token; then it may reduce over indices of its own, too.
    """

    attribute: str
    variables: Mapping[str, Kind]
    gives: Literal["boolean", "number", "any"] = "number"
    captured: int | None = None
    tokens: bool = False


_H = {"h": Kind.INT}
_S = {**_H, "s": Kind.REAL, **{name: kind for name, kind in ROW.items() if name != "row.lse"}}
_P = {**_S, "p": Kind.REAL, **ROW}

_PLACES: Mapping[str, tuple[Place, ...]] = {
    "score": (Place("formula", _S, captured=1, tokens=True),),
    "masked": (Place("formula", _H, "boolean", captured=1, tokens=True),),
    "weigh": (Place("formula", _P, captured=1, tokens=True),),
    "attention": (
        Place("score", _S, captured=3, tokens=True),
        Place("mask", _H, "boolean", captured=3, tokens=True),
        Place("weigh", _P, captured=3, tokens=True),
    ),
    "ffn": (Place("activation", {"u": Kind.REAL, "g": Kind.REAL}),),
    "index": (Place("expr", {}, "any", captured=0),),
    "rotate": (Place("angle", {"pos": Kind.INT, "c": Kind.INT}, captured=1, tokens=True),),
}


def variables(op: Op, place: Place) -> Mapping[str, Kind]:
    """The names that a formula at `place` of `op` may use. An index equation's are its indices and lengths."""
    if isinstance(op, Index):
        return {axis: Kind.INT for axis, _ in (*op.axes, *op.reduced, *op.lengths)}
    if isinstance(op, FeedForward) and not op.gated:
        return {"u": Kind.REAL}
    return place.variables


def formulas(op: Op | type[Op]) -> tuple[Place, ...]:
    """The places where an operation (or every operation of a class) holds formulas."""
    return _PLACES.get(op.name, ())


def held(op: Op) -> Iterator[tuple[Place, Expr]]:
    """Each formula of an operation with its place."""
    for place in formulas(op):
        yield place, getattr(op, place.attribute)
