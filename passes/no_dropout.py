"""A program with dropouts -> the same without them, for calls that drop nothing."""

from dataclasses import dataclass, replace
from typing import ClassVar

from tfc.ir.dropout import Dropout, drops
from tfc.ir.ops import Repeat, Route
from tfc.ir.program import Eqn, Program, Value
from tfc.passes.base import Contract, Rewritten

__all__ = ["NoDropout"]


@dataclass(frozen=True)
class NoDropout:
    """dropout(x)  ->  x

    Exact: a call without a key drops nothing, so that what follows sees the program as if dropout had not been written.
    """

    name: ClassVar[str] = "no-dropout"
    contract: ClassVar[Contract] = Contract.EXACT

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        return Rewritten(_without(program) if drops(program) else program)


def _without(program: Program) -> Program:
    same: dict[Value, Value] = {}
    eqns: list[Eqn] = []
    for eqn in program.eqns:
        args = tuple(same.get(a, a) for a in eqn.args)
        if isinstance(eqn.op, Dropout):
            same[eqn.out] = args[0]
            continue
        op = eqn.op
        if isinstance(op, Repeat | Route) and drops(op.body):
            op = replace(op, body=_without(op.body))
        eqns.append(eqn if op is eqn.op and args == eqn.args else replace(eqn, op=op, args=args))
    return replace(
        program,
        eqns=tuple(eqns),
        results=tuple(same.get(v, v) for v in program.results),
        reports=tuple((path, same.get(v, v)) for path, v in program.reports),
    )
