"""Program x local rule -> Program: the rule everywhere, bodies too, then without what nothing reads any more."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from operator import is_

from tfc.ir.ops import Constant, Repeat, Route
from tfc.ir.program import Eqn, Param, Program, Value
from tfc.ir.types import TensorType

__all__ = ["Rule", "Scope", "beside", "drop_unread", "rewrite", "unlike_written"]


class Scope:
    """One program, or one body, as a rule sees it: who makes and who reads each value, names that are free.

    Everything is as it was before the pass, whatever rules have answered so far: a rule replaces an equation by
    others that bind the same values, so what was true of a value stays true.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.makers: Mapping[Value, Eqn] = program.makers()
        self.reads: Mapping[Value, int] = program.readers()
        self.params: Mapping[Value, Param] = {p.value: p for p in program.params}
        self.after = program.params

    @cached_property
    def order(self) -> Mapping[Value, int]:
        """The number of the equation that binds a value."""
        return {out: n for n, e in enumerate(self.program.eqns) for out in e.outs}

    @cached_property
    def _readers(self) -> Mapping[Value, Sequence[Eqn]]:
        readers: dict[Value, list[Eqn]] = {}
        for eqn in self.program.eqns:
            for arg in dict.fromkeys(eqn.args):
                readers.setdefault(arg, []).append(eqn)
        return readers

    @cached_property
    def _names(self) -> set[str]:
        return {v.name for v in (*[i.value for i in self.program.inputs], *self.params, *self.makers)}

    def maker(self, value: Value) -> Eqn | None:
        """The equation that binds the value; None for inputs and parameters."""
        return self.makers.get(value)

    def readers(self, value: Value) -> Sequence[Eqn]:
        """The equations that read the value, each once, in order."""
        return self._readers.get(value, ())

    def once(self, value: Value) -> bool:
        """Whether the value is read exactly once, results and reports counted."""
        return self.reads.get(value, 0) == 1

    def number(self, value: Value) -> bool | int | float | None:
        """The number that the value is, if it is a constant."""
        eqn = self.maker(value)
        return eqn.op.value if eqn is not None and isinstance(eqn.op, Constant) else None

    def fresh(self, name: str, type: TensorType) -> Value:
        """A new value, called `name` or, where that is taken, `name_2` and so on."""
        free, n = name, 1
        while free in self._names:
            n += 1
            free = f"{name}_{n}"
        self._names.add(free)
        return Value(free, type)

    def replace_params(self, old: Collection[Param], new: Param | None) -> None:
        """Puts a parameter (or none) in the place of others; of none, at the end. To be seen in `after` only."""
        gone = {p.path for p in old}
        at = next((i for i, p in enumerate(self.after) if p.path in gone), len(self.after))
        kept = [p for p in self.after[at:] if p.path not in gone]
        self.after = (*self.after[:at], *([] if new is None else [new]), *kept)


def beside(param: Param, path: str) -> str:
    """What to call the value of a new parameter at `path`: its path, without what `param`'s name lacks of its own."""
    dropped = param.path.removesuffix(param.value.name)
    return path.removeprefix(dropped) if dropped != param.path else path


def unlike_written(param: Param) -> str:
    """Why a parameter may not become part of another, or an empty string: groups, scales and what a procedure finds
    are those of the weight as it is written; of another weight they are others."""
    if param.repeats:
        return f"{param.path} belongs to a loop that several places run"
    if param.format is not None:
        return f"{param.path} is kept as {param.format}, which would round another weight in another way"
    return f"{param.path} is fitted by {param.fit}" if param.fit is not None else ""


Rule = Callable[[Eqn, Scope], Sequence[Eqn] | None]
"""What an equation becomes: other equations that bind the same values (or fewer, where the rest is unread), or None
to leave it. Operands must be bound above the equation."""


def rewrite(program: Program, rule: Rule) -> Program:
    """The program with the rule applied to every equation, innermost bodies first; equations that then nothing reads
    are gone. Parameters stay unless the rule replaced them. Where nothing changes it is the same object."""
    scope = Scope(program)
    eqns: list[Eqn] = []
    for eqn in program.eqns:
        if isinstance(eqn.op, Repeat | Route) and (body := rewrite(eqn.op.body, rule)) is not eqn.op.body:
            eqn = replace(eqn, op=replace(eqn.op, body=body))
        answer = rule(eqn, scope)
        eqns.extend([eqn] if answer is None else answer)
    if scope.after is program.params and all(map(is_, eqns, program.eqns)) and len(eqns) == len(program.eqns):
        return drop_unread(program)
    return drop_unread(replace(program, params=scope.after, eqns=tuple(eqns)))


def drop_unread(program: Program) -> Program:
    """The program without equations of which no value is read. Bodies stay as they are."""
    read = {v.name for v in (*program.results, *[v for _, v in program.reports])}
    kept: list[Eqn] = []
    for eqn in reversed(program.eqns):
        if not read.isdisjoint([out.name for out in eqn.outs]):
            kept.append(eqn)
            read.update([a.name for a in eqn.args])
    return program if len(kept) == len(program.eqns) else replace(program, eqns=tuple(reversed(kept)))
