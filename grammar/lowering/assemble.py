"""Operations and parameters, one at a time -> a Program: captures what bodies read from outside, names every value."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice

from tfc.grammar.lowering.values import Tensor
from tfc.identity import identity
from tfc.ir.ops import Constant, Op
from tfc.ir.program import Eqn, Input, Param, Precision, Program, Value
from tfc.ir.types import DType, Size, TensorType
from tfc.source import Span

__all__ = ["Builder"]

_KEPT = 8
"""Unlike operands of one operation whose results' types are kept, the first ones."""
_NUMBERS = count()  # never the same value twice, in whatever builder: a captured one is known by its number


@dataclass(slots=True, eq=False)
class Builder:
    """A program being written. Values have numbers for names until `finish`, which gives the ones people read.

    parent: the builder whose program will hold this one's as a `repeat` or `route` body; its values are captured on
    use. routed: the body of a `route`. reports: side outputs by path. products: matrices computed of parameters, which
    are left out where nothing reads them. inferred: what operations, by identity, make of which types.
    """

    parent: "Builder | None" = None
    routed: bool = False
    inputs: list[Input] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    eqns: list[Eqn] = field(default_factory=list)
    captured: dict[Value, tuple[Tensor, Value]] = field(default_factory=dict)
    constants: dict[tuple[type, bool | int | float, DType], Tensor] = field(default_factory=dict)
    reports: dict[str, Tensor] = field(default_factory=dict)
    products: set[Value] = field(default_factory=set)
    hints: dict[str, str] = field(default_factory=dict)
    inferred: dict[int, list[tuple[Op, list[TensorType], list[TensorType]]]] = field(default_factory=dict)
    closed: bool = False

    def value(self, type: TensorType, hint: str) -> Value:
        name = str(next(_NUMBERS))
        self.hints[name] = hint
        return Value(name, type)

    def values(self, types: Sequence[TensorType], hints: Sequence[str]) -> list[Value]:
        """Several at once."""
        names = [str(n) for n in islice(_NUMBERS, len(types))]
        self.hints.update(zip(names, hints, strict=True))
        return list(map(Value, names, types))

    def input(self, type: TensorType, hint: str, span: Span, default: Size | None = None) -> Tensor:
        made = self.value(type, hint)
        self.inputs.append(Input(made, default))
        return Tensor(made, self, span)

    def declare(self, param: Param, hint: str, span: Span) -> Tensor:
        """A parameter of this program; its value gets a name of its own."""
        made = self.value(param.value.type, hint)
        self.params.append(param.named(made))
        return Tensor(made, self, span)

    def local(self, tensor: Tensor) -> Value:
        """The tensor as a value of this program: itself, or the input that brings it in from outside."""
        if tensor.home is self:
            return tensor.value
        if tensor.value not in self.captured:
            self.captured[tensor.value] = (tensor, self.value(tensor.type, tensor.home.hints[tensor.value.name]))
        return self.captured[tensor.value][1]

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor is this program's own or that of one around it."""
        at: Builder | None = self
        while at is not None and at is not tensor.home:
            at = at.parent
        return at is not None

    def report(self, path: str, tensor: Tensor) -> None:
        """A side output; the same path again, of a body that runs twice, is numbered."""
        n, free = 1, path
        while free in self.reports:
            n += 1
            free = f"{path}_{n}"
        self.reports[free] = tensor

    def constant(self, value: bool | int | float, dtype: DType, span: Span) -> Tensor:
        """A number as a tensor without axes; the same number once."""
        key = (type(value), value, dtype)
        if key not in self.constants:
            (self.constants[key],) = self.emit(Constant(value=value, dtype=dtype), (), span, "const")
        return self.constants[key]

    def emit(
        self, op: Op, args: tuple[Tensor, ...], span: Span, hint: str, fields: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """One equation. Raises IRError where the operands do not fit."""
        operands = tuple(map(self.local, args))
        types = [a.type for a in operands]
        known = self.inferred.setdefault(identity(op), [])
        made = next((made for _, taken, made in known if taken == types), None)
        if made is None:
            # of equal types one: what follows knows equal layers by that
            made = [next((held for held in types if held == t), t) for t in op.infer(*types)]
            if len(known) < _KEPT:
                known.append((op, types, made))
        outs = tuple([self.value(t, hint) for t in made])
        self.eqns.append(Eqn(outs, op, operands, span))
        return tuple(Tensor(v, self, span, fields or {}) for v in outs)

    def rename(self, tensor: Tensor, hint: str) -> None:
        """The equation's own name for what its last operation gave."""
        if self.eqns and tensor.home is self and tensor.value in self.eqns[-1].outs:
            self.hints[tensor.value.name] = hint

    def invariants(self) -> tuple[Tensor, ...]:
        """What was captured, in the order of first use: the operands that the `repeat` passes besides its carries."""
        return tuple(outer for outer, _ in self.captured.values())

    def _drop_products(self, read: set[Value]) -> None:
        """Leaves out the products that no other equation and no result reads."""
        if not self.products:
            return
        kept = []
        for eqn in reversed(self.eqns):
            if read.isdisjoint(eqn.outs) and self.products.issuperset(eqn.outs):
                continue
            read.update(eqn.args)
            kept.append(eqn)
        self.eqns = kept[::-1]

    def finish(self, name: str, results: tuple[Tensor, ...], precision: Precision, doc: str = "") -> Program:
        """The program, its values named after the equations, parameters and inputs of the spec."""
        ends = tuple(map(self.local, results))  # may capture: a turn may leave a value from outside
        reports = tuple((path, self.local(t)) for path, t in self.reports.items())
        self._drop_products({*ends, *(v for _, v in reports)})
        inputs = (*self.inputs, *(Input(v) for _, v in self.captured.values()))
        order = [i.value for i in inputs] + [p.value for p in self.params] + [o for e in self.eqns for o in e.outs]
        hints = [self.hints[v.name] for v in order]
        names = _names(hints)
        for value, name_now in zip(order, names, strict=True):
            # this builder's own, which nobody looks up by its number any more: new ones would mean new equations
            object.__setattr__(value, "name", name_now)
        self.hints = dict(zip(names, hints, strict=True))  # editors ask for the hint of a finished value
        self.closed = True
        return Program(
            name=name,
            inputs=inputs,
            params=tuple(self.params),
            eqns=tuple(self.eqns),
            results=ends,
            precision=precision,
            doc=doc,
            reports=reports,
        )


def _names(hints: list[str]) -> list[str]:
    """Every hint as a name of its own: the first keeps it, later ones are numbered from 2."""
    taken: set[str] = set(hints)
    counts: dict[str, int] = {}
    bases: dict[str, str] = {}
    out = []
    for hint in hints:
        n = counts[hint] = counts.get(hint, 0) + 1
        if n > 1:
            base = bases.get(hint) or bases.setdefault(hint, re.sub(r"_[0-9]+\Z", "", hint) or hint)
            while (name := f"{base}_{n}") in taken:
                n += 1
            counts[hint] = n
            taken.add(name)
            out.append(name)
        else:
            out.append(hint)
    return out
