"""A typed SSA program: inputs and parameters, equations that bind new values, results."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from tfc.ir.types import DType, Size, TensorType, bind
from tfc.record import record
from tfc.source import Span

if TYPE_CHECKING:
    from tfc.ir.formats import Fit, Format
    from tfc.ir.op import Op

__all__ = ["Eqn", "Init", "Input", "Param", "Precision", "Program", "Stored", "Value"]


@record(frozen=True, slots=True)
class Value:
    """One value of a program. Its name is unique within its program (a body is a program of its own)."""

    name: str
    type: TensorType

    def __hash__(self) -> int:  # the type is as long to hash as to compare, and values of a program differ in name
        return hash(self.name)

    def __str__(self) -> str:
        return f"%{self.name}"


@record(frozen=True, slots=True)
class Eqn:
    """`outs = op(args)`. The span is where the user wrote it; equality ignores it."""

    outs: tuple[Value, ...]
    op: "Op"
    args: tuple[Value, ...]
    span: Span | None = field(default=None, compare=False, repr=False)

    @property
    def out(self) -> Value:
        """The only result. Raises ValueError where there are several."""
        (value,) = self.outs
        return value


@dataclass(frozen=True, slots=True)
class Init:
    """How a parameter starts: `zeros`, `ones`, `normal(std)`, `uniform(low, high)`, `orthogonal(gain)`, `glorot`,
    `constant(x)`, a table of numbers, `packed`.

    value, high: the number that the kind takes; of `uniform` the least and the largest.
    kind `orthogonal`: rows of norm `value`, orthogonal to each other in blocks of as many as a row is long (the
    remainder in a block of its own): [.., K, O], each of the leading axes for itself (arXiv:2009.14794).
    kind `table` holds row-major values (slopes of ALiBi, say) computed by lowering from a closed form;
    kind `packed` is a parameter that a pass made: it starts as the pass's ParamMap computes it.
    """

    kind: str
    value: float = 0.0
    table: tuple[float, ...] = ()
    high: float = 0.0

    def __str__(self) -> str:
        if self.kind == "uniform":
            return f"uniform({self.value:g}, {self.high:g})"
        return f"{self.kind}({self.value:g})" if self.kind in ("normal", "constant", "orthogonal") else self.kind


@record(frozen=True, slots=True)
class Param:
    """An array owned by a program (or by every turn of a `repeat` body).

    path: dotted, as in the spec (`layer.look.q.weight`), always whole, also inside a body.
    value: the name and the type that one turn sees; stacking adds leading axes, see `Stored`.
    format: what its numbers are kept in (`int4`, `low_rank`), None for the element type itself.
    fit: the procedure that finds its value (`ksh`), for a parameter that training does not.
    repeats: (label, count) of the loops whose turns are the leading axes of `value`, outermost first: a parameter of
    a loop that several places run, kept where all of them can read it; `init` speaks of the axes after them.
    """

    path: str
    value: Value
    init: Init
    trained: bool = True
    format: "Format | None" = None
    fit: "Fit | None" = None
    repeats: tuple[tuple[str, int], ...] = ()

    def named(self, value: Value) -> "Param":
        """The parameter with another value to read it by."""
        return Param(self.path, value, self.init, self.trained, self.format, self.fit, self.repeats)


@record(frozen=True, slots=True)
class Stored:
    """A parameter as it is kept: one leading axis for each enclosing `repeat`, outermost first.

    repeats: (path of the repeat segment, count), e.g. (("layer", 6),) for `layer.look.q.weight`.
    """

    path: str
    type: TensorType
    init: Init
    trained: bool
    repeats: tuple[tuple[str, int], ...]
    format: "Format | None" = None
    fit: "Fit | None" = None


@record(frozen=True, slots=True)
class Input:
    """A declared input of the model. `default` is the length it takes (for every element) when not given."""

    value: Value
    default: Size | None = None


@dataclass(frozen=True, slots=True)
class Precision:
    """What parameters are kept in, what is computed in, what sums, norms and softmax run in."""

    params: DType = DType.F32
    compute: DType = DType.F32
    reduce: DType = DType.F32


@dataclass(frozen=True)
class Program:
    """Inputs, parameters, equations in order, results. Structural equality; spans do not count.

    Inside a `repeat` body, `inputs` are (index, carries..., invariants...), see `ops.Repeat`; inside a `route`
    (index, tokens, invariants...). `reports`: side outputs (the losses' inputs) by their paths.
    Lengths (`B`, `T`) are symbolic until a call binds them.
    """

    name: str
    inputs: tuple[Input, ...]
    params: tuple[Param, ...]
    eqns: tuple[Eqn, ...]
    results: tuple[Value, ...]
    precision: Precision = Precision()
    doc: str = ""
    reports: tuple[tuple[str, Value], ...] = ()

    def bodies(self) -> Iterator[tuple[Eqn, "Program"]]:
        """The bodies of this program's own repeats, not of theirs."""
        for eqn in self.eqns:
            body: Program | None = getattr(eqn.op, "body", None)
            if body is not None:
                yield eqn, body

    def stored(self) -> tuple[Stored, ...]:
        """Every parameter of the program and of its bodies as it is kept, in text order."""
        return self._stored

    @cached_property
    def _stored(self) -> tuple[Stored, ...]:  # each pass asks, and most change none
        own = [Stored(p.path, p.value.type, p.init, p.trained, p.repeats, p.format, p.fit) for p in self.params]
        for eqn, body in self.bodies():
            count: int = eqn.op.count  # type: ignore[attr-defined]  # Repeat and Route have bodies
            name: str = eqn.op.label  # type: ignore[attr-defined]
            for p in body.stored():
                kind = TensorType((count, *p.type.shape), p.type.dtype)
                own.append(Stored(p.path, kind, p.init, p.trained, ((name, count), *p.repeats), p.format, p.fit))
        return tuple(own)

    def readers(self) -> Mapping[Value, int]:
        """How often each value is read: by equations (every occurrence counts) and as a result."""
        count: dict[Value, int] = {}
        for value in [*(a for e in self.eqns for a in e.args), *self.results, *(v for _, v in self.reports)]:
            count[value] = count.get(value, 0) + 1
        return count

    def makers(self) -> Mapping[Value, Eqn]:
        """The equation that binds each value; inputs and parameters have none."""
        return {out: e for e in self.eqns for out in e.outs}

    def bind(self, lengths: Mapping[str, int]) -> "Program":
        """The program with named lengths replaced by numbers, in types and in operations' attributes."""

        def value(v: Value) -> Value:
            return Value(v.name, v.type.bind(lengths))

        def default(n: Size | None) -> Size | None:
            return None if n is None else bind(n, lengths)

        return replace(
            self,
            inputs=tuple(Input(value(i.value), default(i.default)) for i in self.inputs),
            params=tuple(replace(p, value=value(p.value)) for p in self.params),
            eqns=tuple(
                Eqn(tuple(map(value, e.outs)), e.op.bind(lengths), tuple(map(value, e.args)), e.span) for e in self.eqns
            ),
            results=tuple(map(value, self.results)),
            reports=tuple((path, value(v)) for path, v in self.reports),
        )
