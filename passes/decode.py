"""A causal program -> its prefill-and-step form: new tokens, what was kept of those before -> results, what to keep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any, ClassVar

from tfc.diagnostics import TfcError
from tfc.formula.expr import Expr, Kind, Load, Read, Token, Var, slots, substitute, walk
from tfc.formula.expr import rewrite as rewrite_formula
from tfc.ir.ops import (
    Attention,
    Cast,
    Concat,
    Elementwise,
    FeedForward,
    Index,
    Linear,
    Recurrence,
    Reduction,
    Repeat,
    Reshape,
    ResidualNorm,
    Rotate,
    Rounded,
    Route,
    Slice,
    Take,
    Top,
)
from tfc.ir.program import Eqn, Input, Program, Value
from tfc.ir.types import Dim, DType, TensorType
from tfc.passes.base import Contract, Note, Rewritten
from tfc.passes.decoding.body import Axes, Body
from tfc.passes.decoding.causal import causal
from tfc.passes.decoding.index import index_equation
from tfc.passes.decoding.recurrence import recurrence
from tfc.passes.rewrite import drop_unread

__all__ = ["COUNT", "LENGTH", "Decode", "given_once", "kept", "notes", "tokens_of"]

LENGTH, COUNT = "cache.length", "cache.count"
"""Inputs of a decoding form: int[B], how many tokens each row has kept; and how many of the new ones count, by
default all."""


@dataclass(frozen=True)
class Decode:
    """f(tokens) -> results  =>  f(new tokens, length, count, caches...) -> results of the new tokens, caches...

    Exact, for a program in which a token's results depend on it and on those before it: what is left after any split
    of the tokens into calls is what one call gives. `T` is the number of new tokens; those of a row beyond its `count`
    give results that mean nothing and leave nothing behind.

    - attention whose mask implies k <= q (`decoding/causal.py`): keys, values and fields of keys are kept, place j of a
      cache holding the token at position j, so that the mask alone leaves out what is not written yet; positions of
      queries are given. Others must not see tokens at all (memory of another input, without positions).
    - a causal recurrence continues from the state that it left.
    - index equations: a token index used as a number is the position; a read `lag` tokens back, the last ones of its
      operand kept (`decoding/index.py`).
    - operations on each token by itself are the same. Values [T, ...] become [B, T, ...].
    - in loops the caches are carries, a row a turn, written in place.

    dtype: what keys, values and their real fields are kept in; None for their own type. Reports are left out.
    Raises TfcError (E816), with the place, for everything else. arXiv:1911.02150 on what step by step costs.
    """

    name: ClassVar[str] = "decode"
    contract: ClassVar[Contract] = Contract.EXACT

    dtype: DType | None = None

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        program = _unreported(program)
        axes = _axes(program, self.dtype)
        body = Body(program, axes)
        length = body.fresh(LENGTH, TensorType((axes.batch,), DType.I32))
        count = body.fresh(COUNT, length.type)
        body.extra |= {"length": length, "count": count}
        inputs = [*map(lambda i: _input(body, i), program.inputs), Input(length), Input(count, axes.time)]
        _walk(body)
        results = [*map(body.value, program.results), *(k.after for k in body.kept)]
        inputs += [Input(k.before) for k in body.kept]
        return Rewritten(drop_unread(body.finished(inputs=tuple(inputs), results=tuple(results))))


def tokens_of(program: Program) -> Value | None:
    """The input whose axes are the rows and the tokens: that of the first result's rows and tokens, else the first
    input with two axes; the others of a model (the text that a translation is of) have lengths of their own."""
    inputs = [i.value for i in program.inputs if i.value.type.rank >= 2]
    shape = program.results[0].type.shape[:2]
    named = isinstance(shape[-1], Dim) if shape else False
    return next((v for v in inputs if named and v.type.shape[:2] == shape), next(iter(inputs), None))


def given_once(program: Program) -> frozenset[str]:
    """The inputs of a model that say nothing of single tokens: what they are at the first token, they are at all."""
    first = tokens_of(program)
    time = None if first is None else first.type.shape[1]
    return frozenset(i.value.name for i in program.inputs if time not in i.value.type.shape)


def kept(program: Program) -> tuple[Value, ...]:
    """The caches that a decoding form takes, in the order in which it gives them, after its other results."""
    names = [i.value.name for i in program.inputs]
    return tuple(i.value for i in program.inputs[names.index(COUNT) + 1 :])


def notes(program: Program) -> tuple[Note, ...]:
    """What is kept for each token, and for each row, where the program can be decoded; else nothing."""
    try:
        form = Decode()(program).program
    except TfcError:
        return ()
    batch = form.inputs[[i.value.name for i in form.inputs].index(LENGTH)].value.type.shape[0]
    each = fixed = 0
    for v in kept(form):
        sizes = [n for n in v.type.shape if isinstance(n, int)]
        size = prod(sizes) * v.type.dtype.bytes
        each, fixed = (each, fixed + size) if len(sizes) == v.type.rank - 1 else (each + size, fixed)
    said = f"keeps {each:,} bytes a token and {fixed:,} a row of [{batch}]; generate pads prompts and caches to "
    return (Note(f"decode:{program.name}", said + "lengths of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...", held=False),)


def _unreported(program: Program) -> Program:
    """The program without reports, nor what only they read; loops give their carries alone."""
    eqns = []
    for eqn in program.eqns:
        if isinstance(eqn.op, Repeat | Route):
            op = replace(eqn.op, body=_unreported(eqn.op.body))
            outs = eqn.outs[: op.carries] if isinstance(op, Repeat) else eqn.outs
            eqn = replace(eqn, op=op, outs=outs)
        eqns.append(eqn)
    less = drop_unread(replace(program, eqns=tuple(eqns), reports=()))
    bound = {*(i.value for i in less.inputs), *(p.value for p in less.params), *(o for e in less.eqns for o in e.outs)}
    body = Body(less, Axes(Dim.named("B"), Dim.named("T"), Dim.named("L")))
    for eqn in less.eqns:
        body.begin(eqn)
        if not bound.issuperset(eqn.args):
            body.refuse("it reads what the turns of a loop report")
    return less


def _axes(program: Program, dtype: DType | None) -> Axes:
    """The rows and the tokens are those of `tokens_of`."""
    body = Body(program, Axes(Dim.named("B"), Dim.named("T"), Dim.named("L"), dtype))
    first = tokens_of(program)
    if first is None:
        body.refuse("no input has tokens, [B, T, ...]")
    batch, time = first.type.shape[:2]
    if not (isinstance(batch, Dim) and isinstance(time, Dim) and str(batch) in batch.names and str(time) in time.names):
        body.refuse(f"the batch and the length of its input `{first.name}`, {first.type}, must be left open")
    taken = {n for i in program.inputs for s in i.value.type.shape if isinstance(s, Dim) for n in s.names}
    free = next(name for name in ("L", "slots", *(f"L{n}" for n in range(len(taken) + 1))) if name not in taken)
    return Axes(batch, time, Dim.named(free), dtype)


def _input(body: Body, given: Input) -> Input:
    at = body.axis(given.value.type)
    if at == 0:
        body.refuse(f"its input `{given.value.name}`, {given.value.type}, has no rows")
    if isinstance(given.default, Dim) and str(body.axes.time) in given.default.names:
        body.refuse(f"its input `{given.value.name}` says how many tokens there are in all, which nobody knows yet")
    return given


def _walk(body: Body) -> None:
    for eqn in body.program.eqns:
        body.begin(eqn)
        if not any(body.timed(v) for v in eqn.args) and not any(_timed_out(body, v) for v in eqn.outs):
            body.eqns.append(eqn)
        elif type(eqn.op) in _RULES:
            _RULES[type(eqn.op)](eqn, eqn.op, body)
        else:
            body.refuse(f"`{eqn.op.name}` mixes tokens, or may")


def _timed_out(body: Body, value: Value) -> bool:
    """Whether a result has tokens anywhere."""
    name = str(body.axes.time)
    return any(isinstance(n, Dim) and name in n.names for n in value.type.shape)


# --- operations on each token by itself


def _each(eqn: Eqn, op: Any, body: Body) -> None:
    """Broadcasting keeps tokens apart: two axes of tokens never meet in one of theirs."""
    body.same(eqn, op, *map(body.value, eqn.args))


def _along(eqn: Eqn, op: Any, body: Body) -> None:
    """What works along the last axis, which must not be that of the tokens."""
    for v in eqn.args:
        if (at := body.axis(v.type)) is not None and at == v.type.rank - 1:
            body.refuse("it works along the tokens")
    body.same(eqn, op, *map(body.value, eqn.args))


def _first_only(eqn: Eqn, op: Any, body: Body) -> None:
    """x and weights: only x has tokens."""
    if any(map(body.timed, eqn.args[1:])):
        body.refuse("weights that tokens make")
    _along(eqn, op, body)


def _norm(eqn: Eqn, op: ResidualNorm, body: Body) -> None:
    """x and what is added to it have tokens, scale and bias none."""
    if any(map(body.timed, eqn.args[1 + op.residual :])):
        body.refuse("weights that tokens make")
    _along(eqn, op, body)


def _take(eqn: Eqn, op: Take, body: Body) -> None:
    if body.timed(eqn.args[0]):
        body.refuse("the table is made of tokens")
    body.same(eqn, op, *map(body.value, eqn.args))


def _reshape(eqn: Eqn, op: Reshape, body: Body) -> None:
    (x,) = eqn.args
    at, to = body.axis(x.type), body.axis(eqn.out.type)
    if at is None or at != to or x.type.shape[: at + 1] != op.shape[: at + 1]:
        body.refuse("it moves tokens")
    body.same(eqn, Reshape(shape=body.type(eqn.out.type).shape), body.value(x))


def _cut(eqn: Eqn, op: Slice | Concat, body: Body) -> None:
    if op.axis == 1:
        body.refuse("it adds tokens to the sequence, or takes some of it")
    _along(eqn, op, body)


def _rounded(eqn: Eqn, op: Rounded, body: Body) -> None:
    set_to = dict(op.format.settings)
    own = op.format.name in ("mx", "nm") or set_to.get("per") == "row" or set_to.get("group", 0) != 0
    if not own:
        body.refuse(f"{op.format.name} has a scale that several tokens share")
    if set_to.get("outliers", inf) != inf:
        body.refuse("which channels are outliers depends on all tokens")
    _along(eqn, op, body)


def _rotate(eqn: Eqn, op: Rotate, body: Body) -> None:
    x, *captured = eqn.args
    args = [body.value(v) for v in captured]
    if read := slots(op.angle):
        pos: Expr = Var("pos", Kind.INT)
        if pos in set(walk(op.angle)):
            given = Load(max(read) + 1, "q", Kind.INT)
            op = replace(op, angle=substitute(op.angle, {pos: given}))
            args.append(body.known("position"))
    elif not captured:
        if op.offset != 0:
            body.refuse("its positions do not begin at 0")
        args.append(body.known("position"))
    body.same(eqn, op, body.value(x), *args)


# --- attention


def _attention(eqn: Eqn, op: Attention, body: Body) -> None:
    q, k, v, *captured = eqn.args
    if body.reads.get(eqn.outs[1], 0):
        body.refuse("its sums over keys are read")
    formulas = (op.score, op.mask, op.weigh)
    over_tokens = body.timed(k)
    if over_tokens != body.timed(v) or not body.timed(q):
        body.refuse("its queries, keys or values are not of the tokens")
    if over_tokens and not causal(op.mask):
        body.refuse(f"nothing proves that its mask `{op.mask}` leaves out what comes after a token")
    if not over_tokens and any(node == Token("q") for f in formulas for node in walk(f)):
        body.refuse("it compares positions with another input's")
    name = eqn.outs[0].name
    slot: dict[Value, int] = {}

    def at(value: Value) -> int:
        return slot.setdefault(value, len(slot))

    def moved(node: Expr) -> Expr | None:
        match node:
            case Token("q"):
                return Load(at(body.known("position")), "q", Kind.INT)
            case Load(old, "k", kind, indices) if over_tokens:
                field = body.value(captured[old])
                return Load(at(body.tokens(f"{name}.{field.name}", field)), "k", kind, indices)
            case Load(old, side, kind, indices):
                return Load(at(body.value(captured[old])), side, kind, indices)
            case Read(old, indices, kind):
                if body.timed(captured[old]):
                    body.refuse("it reads tokens by number")
                return Read(at(captured[old]), indices, kind)
        return None

    keys, values = body.value(k), body.value(v)
    if over_tokens:
        keys, values = body.tokens(f"{name}.k", keys), body.tokens(f"{name}.v", values)
    score, mask, weigh = (rewrite_formula(f, moved) for f in formulas)
    made = replace(op, score=score, mask=mask, weigh=weigh)
    args = (body.value(q), keys, values, *slot)
    outs = (body.value(eqn.outs[0]), eqn.outs[1])
    assert made.infer(*(a.type for a in args)) == tuple(o.type for o in outs)
    body.eqns.append(Eqn(outs, made, args, eqn.span))


# --- loops


def _repeat(eqn: Eqn, op: Repeat, body: Body) -> None:
    inner = Body(op.body, body.axes, body, body.turns * op.count, f"{body.place}{op.label}.", body.keeps)
    _walk(inner)
    own = [inner.value(i.value) for i in op.body.inputs]
    caches = [(k.before, k.after, body.fresh(k.before.name, k.before.type)) for k in inner.kept]
    passed = list(inner.passed())
    inputs = [*own[: 1 + op.carries], *(b for b, _, _ in caches), *own[1 + op.carries :], *(v for v, _ in passed)]
    results = [*map(inner.value, op.body.results), *(a for _, a, _ in caches)]
    made = inner.finished(inputs=tuple(map(Input, inputs)), results=tuple(results))
    args = [body.value(a) for a in eqn.args]
    args[op.carries : op.carries] = [stack for _, _, stack in caches]
    outs = [body.value(o) for o in eqn.outs]
    for _, _, stack in caches:
        after = body.fresh(f"{stack.name}.after", stack.type)
        body.give(stack, after)
        outs.append(after)
    looped = replace(op, carries=len(outs), body=drop_unread(made))
    body.eqns.append(Eqn(tuple(outs), looped, (*args, *(v for _, v in passed)), eqn.span))


def _route(eqn: Eqn, op: Route, body: Body) -> None:
    inner = Body(op.body, body.axes, body, body.turns * op.count, f"{body.place}{op.label}.", keeps=False)
    _walk(inner)
    passed = list(inner.passed())
    inputs = [*(inner.value(i.value) for i in op.body.inputs), *(v for v, _ in passed)]
    made = inner.finished(inputs=tuple(map(Input, inputs)), results=tuple(map(inner.value, op.body.results)))
    args = (*map(body.value, eqn.args), *(v for _, v in passed))
    body.same(eqn, replace(op, body=drop_unread(made)), *args)


_RULES: Mapping[type, Callable[[Eqn, Any, Body], None]] = {
    Elementwise: _each,
    Cast: _each,
    Reduction: _along,
    Top: _along,
    Rounded: _rounded,
    Linear: _first_only,
    FeedForward: _first_only,
    ResidualNorm: _norm,
    Take: _take,
    Reshape: _reshape,
    Slice: _cut,
    Concat: _cut,
    Rotate: _rotate,
    Attention: _attention,
    Index: index_equation,
    Recurrence: recurrence,
    Repeat: _repeat,
    Route: _route,
}
"""How each operation on tokens continues. What is not here is refused."""
