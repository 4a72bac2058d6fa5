"""A program that computes in its parameters' element type -> the same with casts, so that it computes as asked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from tfc.formula.expr import Apply, Const, Expr, Read, Reduce, slots
from tfc.ir.op import promote
from tfc.ir.ops import (
    Attention,
    Cast,
    Concat,
    Constant,
    Elementwise,
    FeedForward,
    Index,
    Linear,
    Mix,
    Op,
    Recurrence,
    Reduction,
    Repeat,
    Reshape,
    ResidualNorm,
    Route,
    Scores,
    Slice,
    Take,
)
from tfc.ir.program import Eqn, Program, Value
from tfc.ir.program import Precision as Asked
from tfc.ir.types import DType, TensorType
from tfc.passes.base import Contract, Rewritten
from tfc.passes.rewrite import Scope

__all__ = ["Precision"]


@dataclass(frozen=True)
class Precision:
    """linear(x, w), mean(x * x)  ->  linear(cast(x), cast(w)), mean(cast(x) * cast(x))

    Approximate; parameters are kept as they are and cast where they are used, so gradients have their type. Where
    parameters, computation and reductions have one type the program stays as it is: the limit at which it is exact.

    - Matrix products (linear, ffn, q, k and v of attention and recurrences, index equations that sum products of what
      they read), rows of tables, carries of loops and what routed tokens become: in `compute`. What formulas capture
      stays as it is; scores and softmax are float32 by the operations' own definition.
    - Reductions, the elementwise work that only feeds them, other reducing index equations, and the log decay of
      recurrences (whose state is float32 by definition) with what only leads to it, through index equations and changes
      of shape too: in `reduce`.
    - Other elementwise work takes the widest of the values it reads; parameters and numbers follow those values. So a
      norm runs in `reduce` from its mean on, until a matrix product reads it: from there on all read it in `compute`
      (the residual stream of a post-norm model too).
    """

    name: ClassVar[str] = "precision"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        asked = program.precision
        if asked.params is asked.compute is asked.reduce:
            return Rewritten(program)
        return Rewritten(_Casting(program, asked).run([i.value.type for i in program.inputs]))


class _Casting:
    """One program (or body) on its way: `new` has what each old value became, `eqns` what was written so far."""

    def __init__(self, program: Program, asked: Asked) -> None:
        self.program, self.asked, self.scope = program, asked, Scope(program)
        self.eqns: list[Eqn] = []
        self.new: dict[Value, Value] = {p.value: p.value for p in program.params}
        self.numbers: dict[Value, Constant] = {}
        self.weak = set(self.new)  # parameters, numbers, and what is made of them alone
        self.casts: dict[tuple[Value, DType], Value] = {}
        self.told = {*program.results, *(v for _, v in program.reports)}
        self.wide: set[Value] = set()
        self.decays: set[Value] = set()
        for eqn in reversed(program.eqns):
            if isinstance(eqn.op, Elementwise | Index | Reshape | Slice) and self._only_decays(eqn.out):
                self.decays.add(eqn.out)
                self.wide.add(eqn.out)
            elif isinstance(eqn.op, Elementwise) and self._only_reduced(eqn.out):
                self.wide.add(eqn.out)

    def _only_reduced(self, value: Value) -> bool:
        """Whether all that reads the value are reductions and elementwise work that only feeds reductions."""
        readers = self.scope.readers(value)
        return (
            bool(readers)
            and value not in self.told
            and all(
                isinstance(r.op, Reduction) or (isinstance(r.op, Elementwise) and r.out in self.wide) for r in readers
            )
        )

    def _only_decays(self, value: Value) -> bool:
        """Whether all that reads the value are recurrences, as their decay, and work that only leads to such."""
        readers = self.scope.readers(value)
        return (
            bool(readers)
            and value.type.dtype.floating
            and value not in self.told
            and all(
                value not in r.args[:3] if isinstance(r.op, Recurrence) else self.decays.issuperset(r.outs)
                for r in readers
            )
        )

    def run(self, inputs: Sequence[TensorType], body: bool = False) -> Program:
        """The program for inputs of these types; the results of a body are in `compute`."""
        given = [replace(i, value=Value(i.value.name, t)) for i, t in zip(self.program.inputs, inputs, strict=True)]
        self.new |= {old.value: i.value for old, i in zip(self.program.inputs, given, strict=True)}
        for eqn in self.program.eqns:
            self._eqn(eqn)
        results = tuple(self._in(v, self.asked.compute) if body else self._as_is(v) for v in self.program.results)
        reports = tuple((path, self._as_is(v)) for path, v in self.program.reports)
        return replace(self.program, inputs=tuple(given), eqns=tuple(self.eqns), results=results, reports=reports)

    # operands

    def _in(self, value: Value, dtype: DType) -> Value:
        """What the value became, in the element type; integers and booleans stay what they are."""
        if not value.type.dtype.floating:
            return self._as_is(value)
        if value in self.numbers:
            return self._number(value, dtype)
        now = self.new[value]
        if now.type.dtype is dtype:
            return now
        if (now, dtype) not in self.casts:
            self.casts[now, dtype] = self.scope.fresh(f"{now.name}_{dtype}", now.type.with_dtype(dtype))
            self.eqns.append(Eqn((self.casts[now, dtype],), Cast(dtype=dtype), (now,)))
        return self.casts[now, dtype]

    def _number(self, value: Value, dtype: DType) -> Value:
        """A number, written out in the element type the first time it is asked for."""
        if (value, dtype) not in self.casts:
            first = not any(v == value for v, _ in self.casts)
            type = TensorType((), dtype)
            out = Value(value.name, type) if first else self.scope.fresh(f"{value.name}_{dtype}", type)
            self.casts[value, dtype] = out
            self.eqns.append(Eqn((out,), replace(self.numbers[value], dtype=dtype), ()))
        return self.casts[value, dtype]

    def _as_is(self, value: Value) -> Value:
        return self._number(value, value.type.dtype) if value in self.numbers else self.new[value]

    def _common(self, values: Iterable[Value]) -> DType:
        """The widest of the values that are not weak; of the weak ones where there is no other."""
        floats = [v for v in values if v.type.dtype.floating]
        strong = [v for v in floats if v not in self.weak] or floats
        return promote(self._as_is(v).type.dtype if v not in self.numbers else v.type.dtype for v in strong)

    # equations

    def _eqn(self, eqn: Eqn) -> None:
        op = eqn.op
        if isinstance(op, Constant) and op.dtype.floating:
            self.numbers[eqn.out] = op
            self.weak.add(eqn.out)
            return
        if isinstance(op, Elementwise | Reshape | Slice | Concat) and self.weak.issuperset(eqn.args):
            self.weak.update(eqn.outs)
        args = self._operands(eqn)
        if isinstance(op, Repeat):
            types = [op.body.inputs[0].value.type, *(a.type for a in args)]
            op = replace(op, body=_Casting(op.body, self.asked).run(types, body=True))
        elif isinstance(op, Route):
            types = [op.body.inputs[0].value.type, *(a.type for n, a in enumerate(args) if n not in (1, 2))]
            op = replace(op, body=_Casting(op.body, self.asked).run(types, body=True))
        elif isinstance(op, ResidualNorm):
            op = replace(op, reduce=promote((op.reduce, args[0].type.dtype)))
        outs = tuple(Value(v.name, t) for v, t in zip(eqn.outs, op.infer(*(a.type for a in args)), strict=True))
        self.eqns.append(Eqn(outs, op, args, eqn.span))
        for old, out in zip(eqn.outs, outs, strict=True):
            self.new[old] = out
            if isinstance(op, Take) or (isinstance(op, Elementwise | Reduction | Index) and self._stored(old)):
                self.new[old] = self._in(old, self.asked.compute)

    def _operands(self, eqn: Eqn) -> tuple[Value, ...]:
        op, args = eqn.op, eqn.args
        many = _in_compute(op)
        if many:
            head = [self._in(a, self.asked.compute) if n in many else self._as_is(a) for n, a in enumerate(args)]
            if isinstance(op, Recurrence) and op.decay != "none":
                head[3] = self._in(args[3], promote((self.asked.reduce, self._common([args[3]]))))
            return tuple(head)
        if isinstance(op, ResidualNorm):  # of a program that was through all passes before
            summed = args[: 1 + op.residual]
            common = self._common(summed)
            return (*(self._in(a, common) for a in summed), *map(self._as_is, args[len(summed) :]))
        if isinstance(op, Reduction) or (isinstance(op, Index) and op.reduced):
            return tuple(self._in(a, promote((self.asked.reduce, self._common([a])))) for a in args)
        if isinstance(op, Elementwise | Index | Concat):
            common = self._common(args)
            everything = isinstance(op, Concat)
            if eqn.out in self.wide:
                common, everything = promote((self.asked.reduce, common)), True
            return tuple(self._in(a, common) if everything or a in self.weak else self._as_is(a) for a in args)
        return tuple(map(self._as_is, args))

    def _stored(self, value: Value) -> bool:
        """Whether something that computes in `compute` reads the value."""
        return value.type.dtype.floating and any(
            value in [r.args[n] for n in _in_compute(r.op) if n < len(r.args)] for r in self.scope.readers(value)
        )


def _in_compute(op: Op) -> range:
    """Which operands an operation takes in `compute`."""
    match op:
        case Linear() | FeedForward():
            return range(7)
        case Index(expr=Reduce("sum", _, body)) if _product(body):
            return range(len(slots(body)))
        case Attention() | Recurrence():
            return range(3)
        case Route():
            return range(1)
        case Scores():
            return range(2)
        case Mix():
            return range(1, 2)
        case Repeat(carries=carries):
            return range(carries)
    return range(0)


def _product(expr: Expr) -> bool:
    """Whether an expression multiplies elements of different arrays, and numbers: summed, a matrix product."""
    factors = [expr]
    while any(isinstance(f, Apply) and f.fn == "mul" for f in factors):
        factors = [g for f in factors for g in (f.args if isinstance(f, Apply) and f.fn == "mul" else (f,))]
    return all(isinstance(f, Read | Const) for f in factors) and len(slots(expr)) > 1
