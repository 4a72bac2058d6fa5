"""A loop -> its turns written out one after another, each with parameters of its own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from tfc.ir.ops import Calibrated, Constant, Op, Repeat, Route
from tfc.ir.param_map import Expr, ParamMap, Source, Stack, Turn
from tfc.ir.program import Eqn, Param, Program, Value
from tfc.ir.types import DType, TensorType
from tfc.passes.base import Contract, Note, Rewritten

__all__ = ["Unroll"]


@dataclass(frozen=True)
class Unroll:
    """repeat n as layer { x = f(x, layer.w) }  ->  x = f(x, layer.0.w), x = f(x, layer.1.w), ...

    Exact, bit for bit in the parameters: a stack is taken apart, `layer.w` into `layer.0.w` and so on. For decoding on
    a GPU, where each step reads every weight once: XLA copies the slice of a stack that a turn of a loop reads, and
    reads in place the one that stands in the text. Loops in loops are written out too.

    Holds back where turns report something (what is reported is a stack), where they are computed again for their
    gradients, where one keeps a calibrated statistic (one for all turns), and where a parameter's path does not name
    the loop. Loops in the copies of a route stay.
    """

    name: ClassVar[str] = "unroll"
    contract: ClassVar[Contract] = Contract.EXACT

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        work = _Unrolling(self.name, hold, program)
        new = work.run()
        if new is program:
            return Rewritten(program, notes=work.notes)
        forward = {path: work.made[path] for path in work.made.keys() - work.turns.keys()}
        forward = dict(sorted(forward.items()))
        back = {path: work.back(path) for path in work.turns if path not in work.made}
        return Rewritten(new, ParamMap(forward, back, removed=frozenset(back)), work.notes)


@dataclass
class _Unrolling:
    """made: the paths of turns, over the old parameters. turns: a path and those of its turns, with their axis."""

    name: str
    hold: frozenset[str]
    program: Program
    notes: list[Note] = field(default_factory=list)
    made: dict[str, Expr] = field(default_factory=dict)
    turns: dict[str, tuple[list[str], int]] = field(default_factory=dict)
    values: dict[Value, Value] = field(default_factory=dict)
    eqns: list[Eqn] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)

    def run(self) -> Program:
        program = self.program
        self.names = {v.name for v in _bound(program)}
        self.counts: dict[str, int] = {}
        self.paths = {p.path for p in program.stored()}
        for eqn in program.eqns:
            self.values.update(zip(eqn.outs, self.enter(eqn, eqn.outs), strict=True))
        if not self.turns:
            return program
        now = self.now
        return replace(
            program,
            params=(*program.params, *self.params),
            eqns=tuple(self.eqns),
            results=tuple(map(now, program.results)),
            reports=tuple((path, now(v)) for path, v in program.reports),
        )

    def now(self, value: Value) -> Value:
        return self.values.get(value, value)

    def back(self, path: str) -> Expr:
        if path not in self.turns:
            return Source(path)
        paths, axis = self.turns[path]
        return Stack(tuple(map(self.back, paths)), axis)

    def fresh(self, value: Value) -> Value:
        free, n = value.name, self.counts.get(value.name, 1)
        while free in self.names:
            n += 1
            free = f"{value.name}_{n}"
        self.counts[value.name] = n
        self.names.add(free)
        return Value(free, value.type)

    def enter(self, eqn: Eqn, outs: tuple[Value, ...]) -> Sequence[Value]:
        """One equation, which binds `outs`, or the turns of a loop in its place; and what its results are."""
        eqn = replace(eqn, args=tuple(map(self.now, eqn.args)), outs=outs)
        if isinstance(eqn.op, Repeat):
            site = f"{self.name}:{eqn.op.label}"
            why = "asked to" if site in self.hold else self.refusal(eqn.op)
            if not why:
                return self.write_out(eqn.op, eqn.args)
            self.notes.append(Note(site, why, span=eqn.span))
        self.eqns.append(eqn)
        return outs

    def refusal(self, op: Repeat) -> str:
        if op.body.reports:
            return f"its turns report {op.body.reports[0][0]}"
        if op.remat != "none":
            return f"its turns are computed again for their gradients, remat = {op.remat}"
        if any(isinstance(e.op, Calibrated) for e in _inside(op.body)):
            return "its turns share a calibrated statistic"
        for p in op.body.stored():
            new = _of_turn(p.path, op.label, 0)
            if new is None:
                return f"the path {p.path} does not name it"
            if any(_of_turn(p.path, op.label, n) in self.paths for n in range(op.count)):
                return f"there is a parameter {new} already"
        return ""

    def write_out(self, op: Repeat, args: tuple[Value, ...]) -> Sequence[Value]:
        """The turns; what the carries are after the last."""
        index, *inputs = (i.value for i in op.body.inputs)
        carried, invariants = args[: op.carries], args[op.carries :]
        stored = op.body.stored()
        for p in stored:
            self.turns[p.path] = [], -len(p.type.shape) - 1
        reads = op.body.readers()
        for turn in range(op.count):

            def renamed(path: str, turn: int = turn) -> str:
                new = _of_turn(path, op.label, turn)
                assert new is not None, "refused before"
                return new

            for p in stored:
                paths, axis = self.turns[p.path]
                paths.append(renamed(p.path))
                self.made[paths[-1]] = Turn(self.made.get(p.path, Source(p.path)), turn, axis)
            self.paths.update(self.made)
            here = dict(zip(inputs, (*carried, *invariants), strict=True))
            if reads.get(index):
                here[index] = self.fresh(Value(op.label, TensorType((), DType.I32)))
                self.eqns.append(Eqn((here[index],), Constant(value=turn, dtype=DType.I32), ()))
            for param in op.body.params:
                here[param.value] = self.fresh(param.value)
                self.params.append(replace(param, path=renamed(param.path), value=here[param.value]))
            outer, self.values = self.values, here
            for inner in op.body.eqns:
                again = replace(inner, op=_with_paths(inner.op, renamed))
                here.update(zip(inner.outs, self.enter(again, tuple(map(self.fresh, inner.outs))), strict=True))
            carried = tuple(map(self.now, op.body.results))
            self.values = outer
        return carried


def _of_turn(path: str, label: str, turn: int) -> str | None:
    """`a.layer.b` -> `a.layer.0.b`; None where the path does not name the label, or is numbered there already."""
    segments = path.split(".")
    at = next((n for n, s in enumerate(segments[:-1]) if s == label and not segments[n + 1].isdigit()), None)
    return None if at is None else ".".join([*segments[: at + 1], str(turn), *segments[at + 1 :]])


def _with_paths(op: Op, renamed: Callable[[str], str]) -> Op:
    if not isinstance(op, Repeat | Route):
        return op
    body = op.body
    params = tuple(replace(p, path=renamed(p.path)) for p in body.params)
    eqns = tuple(replace(e, op=_with_paths(e.op, renamed)) for e in body.eqns)
    return replace(op, body=replace(body, params=params, eqns=eqns))


def _inside(program: Program) -> Iterator[Eqn]:
    for eqn in program.eqns:
        yield eqn
        if isinstance(eqn.op, Repeat | Route):
            yield from _inside(eqn.op.body)


def _bound(program: Program) -> Iterator[Value]:
    yield from (i.value for i in program.inputs)
    yield from (p.value for p in program.params)
    for eqn in program.eqns:
        yield from eqn.outs
