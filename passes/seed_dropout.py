"""A program with dropouts -> the one that takes a seed for them, for calls with a key."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from tfc.ir.dropout import SEED, Dropout, drops
from tfc.ir.ops import Repeat, Route
from tfc.ir.program import Eqn, Input, Program, Value
from tfc.ir.types import TensorType
from tfc.passes.base import Contract, Rewritten

__all__ = ["SeedDropout"]


@dataclass(frozen=True)
class SeedDropout:
    """f(inputs), with dropout(x)  ->  f(inputs, seed), with dropout(x, seed, turns of the loops around)

    Exact: the program says what is dropped, where before a call with a key left it open. The seed, int[2], is the last
    input; loops and routes hand it to their bodies with the turns of the loops around them.
    """

    name: ClassVar[str] = "seed-dropout"
    contract: ClassVar[Contract] = Contract.EXACT

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        if not drops(program):
            return Rewritten(program)
        (seed,) = _fresh(program, [("dropout.seed", SEED)])
        return Rewritten(_seeded(replace(program, inputs=(*program.inputs, Input(seed))), seed, ()))


def _seeded(program: Program, seed: Value, turns: tuple[Value, ...]) -> Program:
    """The program, one of whose inputs is the seed; turns: values of it, those of the loops around, outermost first."""
    eqns: list[Eqn] = []
    for eqn in program.eqns:
        op = eqn.op
        if isinstance(op, Dropout):
            eqn = replace(eqn, args=(eqn.args[0], seed, *turns))
        elif isinstance(op, Repeat | Route) and drops(op.body):
            own, *around = _fresh(op.body, [("dropout.seed", SEED), *(("dropout.turn", t.type) for t in turns)])
            body = replace(op.body, inputs=(*op.body.inputs, Input(own), *map(Input, around)))
            body = _seeded(body, own, (*around, op.body.inputs[0].value))
            eqn = replace(eqn, op=replace(op, body=body), args=(*eqn.args, seed, *turns))
        eqns.append(eqn)
    return replace(program, eqns=tuple(eqns))


def _fresh(program: Program, wanted: Iterable[tuple[str, TensorType]]) -> list[Value]:
    """Values of these types whose names the program does not have: as wanted, else numbered from 2."""
    given = [*(i.value for i in program.inputs), *(p.value for p in program.params)]
    taken = {v.name for v in (*given, *(o for e in program.eqns for o in e.outs))}
    out: list[Value] = []
    for name, type in wanted:
        free, n = name, 1
        while free in taken:
            n += 1
            free = f"{name}_{n}"
        taken.add(free)
        out.append(Value(free, type))
    return out
