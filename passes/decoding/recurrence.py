"""A causal recurrence over all tokens -> the same over new ones, from the state that those before them left."""

from dataclasses import replace

from tfc.formula.expr import Apply, Const, Expr, Kind, Read, Var
from tfc.ir.ops import Recurrence
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, Size, TensorType
from tfc.passes.decoding.body import Body

__all__ = ["recurrence"]

B, N, H = (Var(name, Kind.INT) for name in "bnh")


def recurrence(eqn: Eqn, op: Recurrence, body: Body) -> None:
    """State, z and the last segment are kept, a row a turn. A token that does not count adds nothing and decays
    nothing: its key and value are zero, its decay too, and its segment is the last one's."""
    q, k, v, *rest = eqn.args
    if op.direction != "causal" or op.initial:
        body.refuse("it does not run from the first token to the last")
    if body.reads.get(eqn.outs[1], 0):
        body.refuse("its last state is read")
    if not all(map(body.timed, (q, k, v))):
        body.refuse("its queries, keys or values are not of the tokens")
    args = [body.value(q), _counted(body, body.value(k)), _counted(body, body.value(v))]
    if op.decay != "none":
        args.append(_decay(body, rest[0], q.type))
    if op.segmented and not body.timed(rest[-1]):
        body.refuse("its segments are not of the tokens")
    name, state = eqn.outs[0].name, eqn.outs[1].type
    before: list[Value] = []
    taken = [body.take(f"{name}.state", state)]
    if op.normalized:
        taken.append(body.take(f"{name}.total", TensorType(state.shape[:3], state.dtype)))
    if op.segmented:
        segment = body.value(rest[-1])
        stack, last = body.take(f"{name}.segment", TensorType((body.axes.batch, 1), DType.I32))
        own = _segments(body, segment, last)
        args.append(own)
        axes = (("b", body.axes.batch), ("n", 1))
        end = Apply("sub", (Read(1, (B,), Kind.INT), Const(1)))  # of no tokens -1, which reads the first: `last`, too
        body.put(stack, body.index(axes, Read(0, (B, end), Kind.INT), own, body.known("count"), name=f"{name}.newest"))
        before.append(body.index(axes[:1], Read(0, (B, Const(0)), Kind.INT), last, name=f"{name}.segment.last"))
    args += [*(row for _, row in taken), *before]
    made = replace(op, initial=True, decay="token" if op.decay == "head" else op.decay)
    out, *left = made.infer(*(a.type for a in args))
    outs = (body.value(eqn.outs[0]), *(body.fresh(f"{name}.left", t) for t in left))
    assert out == outs[0].type
    body.eqns.append(Eqn(outs, made, tuple(args), eqn.span))
    for (stack, _), after in zip(taken, outs[1:], strict=True):
        body.put(stack, after)


def _axes(value: Value) -> tuple[tuple[str, Size], ...]:
    return tuple(zip(["b", "n", "h", "c"], value.type.shape, strict=False))


def _counts(count: int) -> Expr:
    """Whether token n of row b counts; slot: where the counts are."""
    return Apply("lt", (N, Read(count, (B,), Kind.INT)))


def _counted(body: Body, x: Value) -> Value:
    """x [B, N, ...] with zeros for tokens that do not count."""
    axes = _axes(x)
    read = Read(0, tuple(Var(name, Kind.INT) for name, _ in axes), Kind.REAL)
    expr = Apply("where", (_counts(1), read, Const(0.0)))
    return body.index(axes, expr, x, body.known("count"), name=f"{x.name}.counted")


def _decay(body: Body, decay: Value, q: TensorType) -> Value:
    """The log decays, 0 for tokens that do not count; one a head [H] becomes one a token and head."""
    if body.timed(decay):
        return _counted(body, body.value(decay))
    if decay.type.rank != 1:
        body.refuse("its decays are not of the tokens")
    axes = (("b", q.shape[0]), ("n", q.shape[1]), ("h", q.shape[2]))
    expr = Apply("where", (_counts(1), Read(0, (H,), Kind.REAL), Const(0.0)))
    return body.index(axes, expr, decay, body.known("count"), name=f"{decay.name}.counted")


def _segments(body: Body, segment: Value, last: Value) -> Value:
    """The segments, after the tokens that count those of the last one that does (`last` where none does)."""
    count = Read(1, (B,), Kind.INT)
    newest = Read(0, (B, Apply("sub", (count, Const(1)))), Kind.INT)
    beyond = Apply("where", (Apply("gt", (count, Const(0))), newest, Read(2, (B, Const(0)), Kind.INT)))
    expr = Apply("where", (_counts(1), Read(0, (B, N), Kind.INT), beyond))
    return body.index(_axes(segment), expr, segment, body.known("count"), last, name=f"{segment.name}.counted")
