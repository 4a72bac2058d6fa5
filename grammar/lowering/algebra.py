"""Primitives on any values: folded where known, a formula node in formulas, an operation on tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import cast

from tfc.diagnostics import Note
from tfc.formula.expr import INFIX, PRIMITIVES, Apply, Const, Expr, FormulaError, Kind, Read, Var, kind_of
from tfc.grammar.lowering.fields import aligned
from tfc.grammar.lowering.numbers import fold, foldable
from tfc.grammar.lowering.session import LIMITS, Frame, fail
from tfc.grammar.lowering.values import NOTHING, Formula, Meaning, Tensor, describe, is_number
from tfc.ir.op import promote
from tfc.ir.ops import Elementwise
from tfc.ir.types import Dim, DType, Size
from tfc.source import Span

__all__ = ["check_kind", "combine", "formula_of", "kind_given", "leaf", "merge_fields", "operate", "tensor_of"]

Operand = tuple[Meaning, Span]


def operate(fn: str, operands: Sequence[Operand], span: Span, frame: Frame) -> Meaning:
    """`fn` of the operands, whatever they are."""
    values = [v for v, _ in operands]
    if fn in ("eq", "ne") and NOTHING in values:  # `segment == none`, whatever else a segment may be
        return (values[0] is values[1]) == (fn == "eq")
    if foldable(values):
        return fold(fn, values, frame.at(span))
    if frame.formula or any(isinstance(v, Formula) for v in values):
        return combine(fn, [formula_of(v, s, frame) for v, s in operands], span, frame)
    return elementwise(fn, operands, span, frame)


# ---- formulas


def leaf(expr: Expr, kind: Kind | None, span: Span, frame: Frame) -> Formula:
    """A formula of one node, its place remembered."""
    frame.session.place_of(expr, span)
    return Formula(expr, kind, span)


def formula_of(value: Meaning, span: Span, frame: Frame) -> Formula:
    """A value as a formula: numbers are constants, tensors without axes are read; index equations read lengths, too."""
    match value:
        case Formula():
            return value
        case bool() | int() | float():
            return leaf(Const(value), kind_of(Const(value)), span, frame)
        case Tensor() if not value.type.shape:
            kind = value.type.dtype.kind
            return leaf(Read(frame.session.slot(value), (), kind), kind, span, frame)
        case Tensor():
            axes = "index" if value.type.rank == 1 else f"{value.type.rank} indices"
            fail(
                "E304", f"`{span.text}` is a tensor {value.type}; a formula reads one element of it", frame.at(span),
                help=f"give its {axes} in brackets, for example `{span.text}[h]`",
                notes=(Note("it is made here", value.span),),
            )  # fmt: skip
        case Dim() if frame.ranges is not None:
            name = frame.session.length(value, frame.indices)
            return leaf(Var(name, Kind.INT), Kind.INT, span, frame)
        case Dim():
            fail(
                "E406", f"the length {value} enters a formula, and is known only when the model is called",
                frame.at(span), help="a length in a formula is an explicit attribute: give a number",
            )  # fmt: skip
    fail("E305", f"a formula cannot hold {describe(value)}", frame.at(span))


def combine(fn: str, args: Sequence[Formula], span: Span, frame: Frame) -> Formula:
    """`fn` applied to formulas: kinds are checked here, where the place of each argument is known."""
    known = _shortened(fn, args)
    if known is not None:
        return known
    for a in args:
        check_kind(fn, a, frame)
    expr = Apply(fn, tuple(a.expr for a in args))
    size, depth = 1 + sum(a.size for a in args), 1 + max(a.depth for a in args)
    if size > LIMITS["formula nodes"]:
        fail("E502", f"a formula of {size} nodes; at most {LIMITS['formula nodes']} are allowed", frame.at(span))
    if depth > LIMITS["formula depth"]:
        fail("E504", f"a formula nested {depth} levels deep; at most {LIMITS['formula depth']}", frame.at(span))
    frame.session.place_of(expr, span)
    return Formula(expr, kind_given(fn, args, span, frame), span, size, depth)


def _shortened(fn: str, args: Sequence[Formula]) -> Formula | None:
    """`yes and m` is `m`, `x + 0` is `x`: the neutral elements that defaults bring in."""
    if fn not in ("and", "or", "add"):
        return None
    neutral = {"and": Const(True), "or": Const(False), "add": Const(0)}[fn]
    if args[0].expr == neutral:
        return args[1]
    if args[1].expr == neutral:
        return args[0]
    if fn != "add":
        absorbing = Const(fn == "or")
        return next((a for a in args if a.expr == absorbing), None)
    return None


_TAKES: Mapping[str, tuple[Kind, ...]] = {
    "bool": (Kind.BOOL,), "int": (Kind.INT,), "number": (Kind.INT, Kind.REAL), "any": tuple(Kind), "where": tuple(Kind),
}  # fmt: skip


def check_kind(fn: str, arg: Formula, frame: Frame) -> None:
    takes = PRIMITIVES[fn].takes
    if arg.kind is None or arg.kind in _TAKES[takes]:
        return
    wanted = {"bool": "booleans", "int": "whole numbers", "number": "numbers"}[takes]
    shown = INFIX[fn][0] if fn in INFIX else fn
    kind = "whole" if arg.kind is Kind.INT else str(arg.kind)
    help = (
        "compare it (`x > 0`)"
        if takes == "bool"
        else "choose with `if(condition, 1, 0)`"
        if arg.kind is Kind.BOOL
        else ""
    )
    fail("E301", f"`{shown}` takes {wanted}; `{arg.span.text}` is {kind}", frame.at(arg.span), help=help)


def kind_given(fn: str, args: Sequence[Formula], span: Span, frame: Frame) -> Kind | None:
    """The kind of the result; None where it waits for a field's type."""
    gives = PRIMITIVES[fn].gives
    if any(a.kind is None for a in args):
        return gives
    constant = [a.expr if isinstance(a.expr, Const) else Var("x", cast(Kind, a.kind)) for a in args]
    try:
        return kind_of(Apply(fn, tuple(constant)))
    except FormulaError as error:
        fail("E301", str(error), frame.at(span))


# ---- tensors


def tensor_of(value: Meaning, span: Span, frame: Frame, dtype: DType | None = None) -> Tensor:
    """A value as a tensor; a number becomes a constant of the given element type."""
    match value:
        case Tensor():
            return value
        case bool():
            return frame.builder.constant(value, DType.BOOL, frame.at(span))
        case int() if dtype is None or not dtype.floating:
            return frame.builder.constant(value, DType.I32, frame.at(span))
        case int() | float():
            return frame.builder.constant(float(value), dtype or frame.session.precision.params, frame.at(span))
        case Dim():
            fail(
                "E406", f"the length {value} is known only when the model is called", frame.at(span),
                help="an input of the model (`lengths: int[B] = T`) can carry it",
            )  # fmt: skip
    fail("E305", f"{describe(value)} is no tensor", frame.at(span))


def elementwise(fn: str, operands: Sequence[Operand], span: Span, frame: Frame) -> Tensor:
    """One operation on tensors, numbers taking the element type of what they meet."""
    floats = [v.type.dtype for v, _ in operands if isinstance(v, Tensor) and v.type.dtype.floating]
    dtype = promote(floats) if floats else None
    args = []
    for i, (value, s) in enumerate(operands):
        exponent = fn == "pow" and i == 1 and isinstance(value, int)
        condition = fn == "where" and i == 0
        if is_number(value) and dtype is None and isinstance(value, int) and PRIMITIVES[fn].gives is Kind.REAL:
            args.append(tensor_of(value, s, frame, None))
        else:
            args.append(tensor_of(value, s, frame, None if exponent or condition else dtype))
    args, tokens = aligned(args, span, frame)
    shape = broadcast_shape(args)
    _check_shapes(shape, args, operands, span, frame)
    _check_tensor_kinds(fn, args, operands, frame)
    fields = merge_fields(args, shape, span, frame)
    (made,) = frame.emit(_operation(fn), tuple(args), span, fn, fields)
    return replace(made, tokens=tokens) if tokens else made


@cache
def _operation(fn: str) -> Elementwise:
    """One for all equations: what follows knows equal layers by that."""
    return Elementwise(fn=fn)


def _check_tensor_kinds(fn: str, args: Sequence[Tensor], operands: Sequence[Operand], frame: Frame) -> None:
    if fn != "where" and all(a.type.dtype.kind in _TAKES[PRIMITIVES[fn].takes] for a in args):
        return
    shown = [
        Formula(Var("x", a.type.dtype.kind), a.type.dtype.kind, s) for a, (_, s) in zip(args, operands, strict=True)
    ]
    if fn == "where":
        if shown[0].kind is not Kind.BOOL:
            fail(
                "E301", f"`if` asks a boolean first; `{shown[0].span.text}` is {args[0].type}", frame.at(shown[0].span)
            )
        return
    for a in shown:
        check_kind(fn, a, frame)


def broadcast_shape(args: Sequence[Tensor]) -> tuple[Size, ...]:
    first = args[0].type.shape
    if all(a.type.shape == first for a in args):
        return first
    longest = max((a.type.shape for a in args), key=len)
    out = list(longest)
    for a in args:
        for i in range(1, a.type.rank + 1):
            if out[-i] == 1:
                out[-i] = a.type.shape[-i]
    return tuple(out)


def _check_shapes(
    out: tuple[Size, ...], args: Sequence[Tensor], operands: Sequence[Operand], span: Span, frame: Frame
) -> None:
    for arg in args:
        for i in range(1, 0 if arg.type.shape == out else arg.type.rank + 1):
            if arg.type.shape[-i] in (1, out[-i]):
                continue
            other = next(a for a in args if a.type.rank >= i and a.type.shape[-i] == out[-i])
            pair = [(a, s) for a, (_, s) in zip(args, operands, strict=True) if a is arg or a is other]
            notes = tuple(Note(f"`{s.text}` is {a.type}, from here", a.span) for a, s in pair)
            fail(
                "E401",
                f"sizes {out[-i]} and {arg.type.shape[-i]} do not fit in `{span.text}`",
                frame.at(span),
                notes=notes,
                help="axes are matched from the last; an index equation says otherwise: `y[b, t] = x[b, t] * n[b]`",
            )


def merge_fields(
    args: Sequence[Tensor], shape: tuple[int | Dim, ...], span: Span, frame: Frame
) -> Mapping[str, Tensor]:
    """The fields that a result of that shape keeps from its operands; one name with two values is an error."""
    out: dict[str, Tensor] = {}
    for arg in args:
        if not arg.fields or arg.type.shape[:2] != shape[:2]:
            continue
        for name, value in arg.fields.items():
            if name in out and not out[name].same(value):
                fail(
                    "E307", f"two different fields `{name}` meet in `{span.text}`", frame.at(span),
                    notes=(Note("one is set here", out[name].span), Note("the other here", value.span)),
                )  # fmt: skip
            out[name] = value
    return out
