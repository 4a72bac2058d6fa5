"""A program -> the same without equations, carries and operands of loops that no result depends on."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from operator import is_
from typing import ClassVar

from tfc.ir.ops import Repeat, Route
from tfc.ir.param_map import Expr, ParamMap, Source
from tfc.ir.program import Eqn, Program, Value
from tfc.passes.base import Contract, Note, Rewritten

__all__ = ["DeadCode"]


@dataclass(frozen=True)
class DeadCode:
    """y = f(x), with y unread  ->  nothing

    Exact. Equations that no result and no report depends on go, in bodies too; a loop keeps only the carries and
    reports that are read after it, and the carries and operands that those depend on. A parameter that nothing reads
    leaves the program and stays in the tree of parameters, so that the way back is complete.
    """

    name: ClassVar[str] = "dead-code"
    contract: ClassVar[Contract] = Contract.EXACT

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        alive = _alive(program, [*program.results, *(v for _, v in program.reports)])
        unread = set() if alive is program else {p.path for p in program.stored()} - {p.path for p in alive.stored()}
        same: dict[str, Expr] = {path: Source(path) for path in sorted(unread)}
        notes = [Note(f"{self.name}:{path}", "nothing reads it; it is kept, unused", held=False) for path in same]
        return Rewritten(alive, ParamMap(same, same, kept=frozenset(unread)), notes)


def _alive(program: Program, wanted: Collection[Value]) -> Program:
    """The program with the equations and parameters that `wanted` (its results and reports, or some) depend on."""
    read = {v.name for v in wanted}
    eqns: list[Eqn] = []
    for eqn in reversed(program.eqns):
        if read.isdisjoint([out.name for out in eqn.outs]):
            continue
        if isinstance(eqn.op, Repeat):
            eqn = _loop(eqn, eqn.op, read)
        elif isinstance(eqn.op, Route):
            eqn = _route(eqn, eqn.op)
        read.update([a.name for a in eqn.args])
        eqns.append(eqn)
    params = tuple([p for p in program.params if p.value.name in read])
    if len(eqns) == len(program.eqns) and all(map(is_, reversed(eqns), program.eqns)) and params == program.params:
        return program
    return replace(program, params=params, eqns=tuple(reversed(eqns)))


def _loop(eqn: Eqn, op: Repeat, read: Collection[str]) -> Eqn:
    """The loop with the carries that are read after it, by name, and those that they depend on from turn to turn."""
    index, *inputs = op.body.inputs
    carried = {n for n, out in enumerate(eqn.outs[: op.carries]) if out.name in read}
    told = [n for n, out in enumerate(eqn.outs[op.carries :]) if out.name in read]
    reports = tuple(op.body.reports[n] for n in told)
    while True:
        results = [op.body.results[n] for n in sorted(carried)]
        wanted = [*results, *(v for _, v in reports)]
        body = _alive(op.body, wanted)
        inside = {arg for e in body.eqns for arg in e.args} | set(wanted)
        more = {n for n in range(op.carries) if inputs[n].value in inside} - carried
        if not more:
            break
        carried |= more
    keep = [n for n, i in enumerate(inputs) if n in carried or (n >= op.carries and i.value in inside)]
    inputs = [inputs[n] for n in keep]
    body = replace(body, inputs=(index, *inputs), results=tuple(results), reports=reports)
    return Eqn(
        (*(eqn.outs[n] for n in sorted(carried)), *(eqn.outs[op.carries + n] for n in told)),
        replace(op, body=body, carries=len(carried)),
        tuple(eqn.args[n] for n in keep),
        eqn.span,
    )


def _route(eqn: Eqn, op: Route) -> Eqn:
    """The copies with the operands that their result depends on; tokens, choices and weights stay."""
    index, tokens, *inputs = op.body.inputs
    body = _alive(op.body, op.body.results)
    inside = {arg for e in body.eqns for arg in e.args} | set(body.results)
    keep = [n for n, i in enumerate(inputs) if i.value in inside]
    body = replace(body, inputs=(index, tokens, *(inputs[n] for n in keep)))
    return Eqn(eqn.outs, replace(op, body=body), (*eqn.args[:3], *(eqn.args[3 + n] for n in keep)), eqn.span)
