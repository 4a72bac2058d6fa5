"""An index equation over all tokens -> the same over new ones: numbers become positions, earlier tokens are kept."""

from dataclasses import dataclass, field, replace

from tfc.formula.expr import Apply, Const, Expr, Kind, Read, Reduce, Var, walk
from tfc.ir.ops import Concat, Index
from tfc.ir.program import Eqn, Value
from tfc.ir.types import Dim, Size, TensorType
from tfc.passes.decoding.body import Body
from tfc.passes.decoding.causal import behind

__all__ = ["index_equation"]

ZERO = Const(0)


def index_equation(eqn: Eqn, op: Index, body: Body) -> None:
    """The equation of the new tokens. t, the index that goes over the tokens:

    - where it indexes tokens as it is, it stays; `t - lag` with 0 <= lag <= c reads from the operand with its last c
      tokens before the new ones, which are kept;
    - elsewhere it is a number: t + length[b].
    """
    at = body.axis(eqn.out.type)
    if at is None:
        body.refuse("what it gives depends on several tokens")
    over = [name for name, n in op.reduced if _grows(n, body)]
    if over:
        body.refuse(f"`{over[0]}` runs over the tokens")
    read = {node.name for node in walk(op.expr) if isinstance(node, Var)}
    if counted := [name for name, n in op.lengths if name in read and _grows(n, body)]:
        body.refuse(f"it reads how many tokens there are, `{counted[0]}`")
    taken = {name for name, _ in (*op.axes, *op.reduced, *op.lengths)}
    row = op.axes[0][0] if at == 1 else next(n for n in ("b", "row", *(f"b{i}" for i in range(99))) if n not in taken)
    walked = _Walk(body, eqn, op, Var(row, Kind.INT), Var(op.axes[at][0], Kind.INT))
    for node in walk(op.expr):
        if isinstance(node, Read):
            walked.look(node)
    expr = walked.moved(op.expr)
    axes = op.axes if at == 1 else ((row, body.axes.batch), *op.axes)
    lengths = tuple((name, n) for name, n in op.lengths if not _grows(n, body))
    body.same(eqn, replace(op, axes=axes, lengths=lengths, expr=expr), *walked.slots)


def _grows(size: Size, body: Body) -> bool:
    return isinstance(size, Dim) and str(body.axes.time) in size.names


@dataclass
class _Walk:
    """The expression on its way. lags: how far back each operand is read. slots: the new operands."""

    body: Body
    eqn: Eqn
    op: Index
    row: Var
    token: Var
    lags: dict[Value, int] = field(default_factory=dict)
    windows: dict[Value, Value] = field(default_factory=dict)
    slots: dict[Value, int] = field(default_factory=dict)

    def slot(self, value: Value) -> int:
        return self.slots.setdefault(value, len(self.slots))

    def look(self, node: Read) -> None:
        """How far back a read of tokens goes. Complains where it goes ahead, or nobody knows how far."""
        operand = self.eqn.args[node.slot]
        at = self.body.axis(operand.type)
        if at is None:
            return
        if at == 1 and node.indices[0] != self.row:
            self.body.refuse(f"it reads tokens of other rows, `{node}`")
        sizes = {name: n for name, n in (*self.op.axes, *self.op.reduced) if isinstance(n, int)}
        lag = behind(_unclamped(node.indices[at]), self.token, sizes)
        if lag is None:
            self.body.refuse(f"`{node}` may read tokens that come later, or any number of those before")
        self.lags[operand] = max(lag, self.lags.get(operand, 0))

    def moved(self, expr: Expr) -> Expr:
        match expr:
            case Read(slot, indices, kind):
                operand = self.eqn.args[slot]
                at = self.body.axis(operand.type)
                if at is None:
                    return Read(self.slot(operand), tuple(map(self.moved, indices)), kind)
                rest = tuple(map(self.moved, indices[at + 1 :]))
                return Read(
                    self.slot(self._source(operand)), (self.row, self._place(operand, indices[at]), *rest), kind
                )
            case Var() if expr == self.token:
                return Apply("add", (expr, self._length()))
            case Apply(fn, args):
                return Apply(fn, tuple(map(self.moved, args)))
            case Reduce(fn, names, inner):
                return Reduce(fn, names, self.moved(inner))
        return expr

    def _length(self) -> Expr:
        return Read(self.slot(self.body.known("length")), (self.row,), Kind.INT)

    def _place(self, operand: Value, index: Expr) -> Expr:
        """Where an operand with its last c tokens has what stood at `index`; before the first token stands the first,
        as beyond every end."""
        if not (c := self.lags[operand]):
            return self.token
        first = Apply("sub", (Const(c), self._length()))
        return Apply("max", (Apply("add", (_unclamped(index), Const(c))), first))

    def _source(self, operand: Value) -> Value:
        """The operand of new tokens, after its last c ones before them if any are read."""
        body, value, c = self.body, self.body.value(operand), self.lags[operand]
        if not c:
            return value
        if operand not in self.windows:
            b, _, *rest = value.type.shape
            name = f"{self.eqn.outs[0].name}.{operand.name}"
            stack, before = body.take(name, TensorType((b, c, *rest), value.type.dtype))
            window = body.emit(Concat(axis=1), before, value, name=f"{name}.window")
            axes = (("b", b), ("j", c), *((f"c{i}", n) for i, n in enumerate(rest)))
            later = tuple(Var(f"c{i}", Kind.INT) for i in range(len(rest)))
            count = Read(1, (Var("b", Kind.INT),), Kind.INT)
            place = Apply("add", (Var("j", Kind.INT), count))
            expr = Read(0, (Var("b", Kind.INT), place, *later), value.type.dtype.kind)
            body.put(stack, body.index(axes, expr, window, body.known("count"), name=f"{name}.last"))
            self.windows[operand] = window
        return self.windows[operand]


def _unclamped(index: Expr) -> Expr:
    """`max(t - 1, 0)` as `t - 1`: a read before the first token reads the first."""
    match index:
        case Apply("max", (x, Const(0))) | Apply("max", (Const(0), x)):
            return x
    return index
