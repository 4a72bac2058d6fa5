"""Bodies with weights of their own in every turn -> operations; where several places run one, its weights exist once.

The parameters of a `repeat` or a `route` belong to its body, stacked over the turns. Of a loop in a component that a
body declares and then runs in several places, or within a loop of its own, they are made beside the declaration
instead, as stacks that every such operation takes, and of which its body reads the turn's own part.
"""

from collections.abc import Iterator
from dataclasses import replace

from tfc.diagnostics import Note
from tfc.grammar.lowering.assemble import Builder
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import Place, Tensor
from tfc.ir.ops import Op, Repeat, Route, Take
from tfc.ir.program import Eqn, Input, Param, Program, Value
from tfc.ir.types import TensorType
from tfc.source import Span

__all__ = ["copies", "emit_copies"]


def copies(place: Place, builder: Builder) -> Place:
    """The place whose parameters the body of this operation makes: a second operation makes its own, to be compared."""
    if place.home is not None:
        return Place(place.path, builder)
    place.home, place.builder = place.builder, builder
    return place


def emit_copies(
    op: Repeat | Route, operands: tuple[Tensor, ...], place: Place, span: Span, hint: str, frame: Frame
) -> tuple[Tensor, ...]:
    """The operation. place: that of its copies, as it was given to `copies`; its home has their weights once."""
    owner = place.home
    assert owner is not None
    if not op.body.stored():
        return frame.emit(op, operands, span, hint)
    if owner is frame.builder and place.made is None and not place.stacks:
        outs = frame.emit(op, operands, span, hint)
        place.made = frame.builder.eqns[-1]
        return outs
    if place.made is not None:
        _lift_made(place, owner, frame)
    lifted, params = _lifted(op)
    stacks = tuple(_stack(p, place, owner, span, frame) for p in params)
    return frame.emit(lifted, (*operands, *stacks), span, hint)


def _lift_made(place: Place, owner: Builder, frame: Frame) -> None:
    """The operation that had the weights for itself now reads the stacks, too."""
    made, place.made = place.made, None
    assert made is not None and isinstance(made.op, Repeat | Route) and made.span is not None
    lifted, params = _lifted(made.op)
    stacks = tuple(_stack(p, place, owner, made.span, frame).value for p in params)
    at = next(i for i, eqn in enumerate(owner.eqns) if eqn is made)
    owner.eqns[at] = replace(made, op=lifted, args=(*made.args, *stacks))


def _stack(param: Param, place: Place, owner: Builder, span: Span, frame: Frame) -> Tensor:
    """The stack of this path, made where it is new; of the same sizes each time."""
    known = place.stacks.get(param.path)
    if known is None:
        hint = param.path.removeprefix(f"{inner}.") if (inner := frame.session.loops.get(id(owner))) else param.path
        known = place.stacks[param.path] = owner.declare(param, hint, frame.at(span))
    if known.type != param.value.type:
        fail(
            "E407", f"`{param.path}` has the sizes {list(known.type.shape)}, and here {list(param.value.type.shape)}",
            frame.at(span), help="weights declared once fit one size; declare another, or call a recipe",
            notes=(Note("it was made here", known.span),) if known.span != frame.at(span) else (),
        )  # fmt: skip
    return known


# ---- programs


def _lifted[O: Op](op: O) -> tuple[O, tuple[Param, ...]]:
    """The operation with its body's parameters as further operands, stacks over the turns; and these stacks.

    op: Repeat or Route, whose body's first input is the number of the turn.
    """
    assert isinstance(op, Repeat | Route)
    body = _flat(op.body)
    turn = body.inputs[0].value
    taken = set(_names(body))
    inputs, reads, stacks = [], [], []
    for p in body.params:
        type = TensorType((op.count, *p.value.type.shape), p.value.type.dtype)
        stack = Value(_fresh(f"{p.value.name}.turns", taken), type)
        inputs.append(Input(stack))
        reads.append(Eqn((p.value,), Take(), (stack, turn)))
        stacks.append(replace(p, value=Value(p.value.name, type), repeats=((op.label, op.count), *p.repeats)))
    body = replace(body, inputs=(*body.inputs, *inputs), params=(), eqns=(*reads, *body.eqns))
    return replace(op, body=body), tuple(stacks)


def _flat(program: Program) -> Program:
    """The program with the parameters of the bodies within as parameters of its own."""
    taken = set(_names(program))
    params, eqns = list(program.params), []
    for eqn in program.eqns:
        if isinstance(eqn.op, Repeat | Route) and eqn.op.body.stored():
            lifted, stacks = _lifted(eqn.op)
            own = [replace(p, value=Value(_fresh(p.value.name, taken), p.value.type)) for p in stacks]
            params.extend(own)
            eqn = replace(eqn, op=lifted, args=(*eqn.args, *(p.value for p in own)))
        eqns.append(eqn)
    return replace(program, params=tuple(params), eqns=tuple(eqns))


def _names(program: Program) -> Iterator[str]:
    yield from (i.value.name for i in program.inputs)
    yield from (p.value.name for p in program.params)
    yield from (o.name for e in program.eqns for o in e.outs)


def _fresh(name: str, taken: set[str]) -> str:
    n, free = 1, name
    while free in taken:
        n += 1
        free = f"{name}_{n}"
    taken.add(free)
    return free
