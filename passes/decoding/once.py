"""A decoding form -> two programs: what depends on other inputs alone, computed once, and a step that is given it.

An encoder, and the keys and values that a decoder makes of its result, are the same at every step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from tfc.ir.caching import CacheRead
from tfc.ir.ops import Repeat
from tfc.ir.program import Eqn, Input, Program, Value
from tfc.ir.types import TensorType
from tfc.passes.rewrite import drop_unread

__all__ = ["Once", "once"]


class Known(IntEnum):
    """When a value is known: from parameters alone, with the inputs that are given once, or with the tokens."""

    ALWAYS = 0
    ONCE = 1
    LATER = 2


@dataclass(frozen=True, slots=True)
class Once:
    """prepare: the inputs that are given once -> `memory`, in this order. step: the decoding form, which takes what
    is in `memory` in their place; of what loops make of them it takes all turns, [count, ...]."""

    prepare: Program
    step: Program
    memory: tuple[Value, ...]


def once(form: Program, given: frozenset[str]) -> Once:
    """The form cut in two. given: the names of the inputs that do not change from call to call.

    Exact: `step` of what `prepare` gives is `form`. What is known from parameters alone is computed in each. The inputs
    of `step` are the form's without those given, then `memory`, then from `cache.length` on the form's.
    """
    known = {i.value: Known.ONCE if i.value.name in given else Known.LATER for i in form.inputs}
    part = _Part(form, known, {v.name for v in known} | {o.name for e in form.eqns for o in e.outs})
    part.walk()
    part.read(*form.results)
    memory = tuple(part.memory)
    inputs = {v: v if v.name.startswith("memory.") else Value(part.fresh(f"memory.{v.name}"), v.type) for v in memory}
    names = [i.value.name for i in form.inputs]
    at = next(n for n, name in enumerate(names) if name == "cache.length")
    own = [i for i in form.inputs if i.value.name not in given]
    rest = {i.value for i in form.inputs[at:]}
    taken = (*(i for i in own if i.value not in rest), *map(Input, inputs.values()), *form.inputs[at:])
    prepare = replace(form, inputs=tuple(i for i in form.inputs if i.value.name in given), eqns=tuple(part.before),
                      results=memory)  # fmt: skip
    step = replace(form, inputs=taken, eqns=tuple(_renamed(e, inputs) for e in part.after),
                   results=tuple(inputs.get(v, v) for v in form.results))  # fmt: skip
    return Once(_tidy(prepare), _tidy(step), tuple(inputs.values()))


def _renamed(eqn: Eqn, names: Mapping[Value, Value]) -> Eqn:
    return replace(eqn, args=tuple(names.get(v, v) for v in eqn.args))


def _tidy(program: Program) -> Program:
    """Without equations and parameters that nothing reads."""
    program = drop_unread(program)
    read = program.readers()
    return replace(program, params=tuple(p for p in program.params if p.value in read))


@dataclass
class _Part:
    """One program or body being cut. before, after: the equations of the two. memory: what the second reads of the
    first, in order of use."""

    program: Program
    known: dict[Value, Known]
    names: set[str]
    before: list[Eqn] = field(default_factory=list)
    after: list[Eqn] = field(default_factory=list)
    memory: dict[Value, None] = field(default_factory=dict)

    def fresh(self, name: str) -> str:
        free, n = name, 1
        while free in self.names:
            n += 1
            free = f"{name}_{n}"
        self.names.add(free)
        return free

    def read(self, *values: Value) -> None:
        """The second program reads these."""
        self.memory |= {v: None for v in values if self.known.get(v) is Known.ONCE}

    def walk(self) -> None:
        self.known |= {p.value: Known.ALWAYS for p in self.program.params}
        for eqn in self.program.eqns:
            known = max((self.known[v] for v in eqn.args), default=Known.ALWAYS)
            self.known |= dict.fromkeys(eqn.outs, known)
            if known is Known.LATER:
                made = self._loop(eqn, eqn.op) if isinstance(eqn.op, Repeat) else eqn
                self.read(*made.args)
                self.after.append(made)
            else:
                self.before.append(eqn)
                if known is Known.ALWAYS:
                    self.after.append(eqn)

    def _loop(self, eqn: Eqn, op: Repeat) -> Eqn:
        """The loop as the second program has it; what its turns know beforehand becomes a loop of the first."""
        index, *rest = (i.value for i in op.body.inputs)
        outer = dict(zip(rest, eqn.args, strict=True))
        known = {v: Known.LATER if n < op.carries else self.known[outer[v]] for n, v in enumerate(rest)}
        inner = _Part(op.body, {index: Known.ALWAYS, **known},
                      {v.name for v in (index, *rest)} | {o.name for e in op.body.eqns for o in e.outs})  # fmt: skip
        inner.walk()
        inner.read(*op.body.results)
        made = [v for v in inner.memory if v not in outer]
        if not made:
            return eqn
        invariants = rest[op.carries :]
        kept = tuple((v.name, v) for v in made)
        body = _tidy(replace(op.body, eqns=tuple(inner.before), results=(), reports=kept,
                             inputs=(op.body.inputs[0], *map(Input, invariants))))  # fmt: skip
        body = self._without(body, {v for v in invariants if known[v] is Known.LATER})
        passed = [i.value for i in body.inputs[1:]]
        stacks = [Value(self.fresh(f"memory.{op.label}.{v.name.removeprefix('memory.')}"), _stacked(v.type, op.count))
                  for v in made]  # fmt: skip
        self.known |= dict.fromkeys(stacks, Known.ONCE)
        prepare = replace(op, carries=0, body=body, remat="none")
        self.before.append(Eqn(tuple(stacks), prepare, tuple(outer[v] for v in passed), eqn.span))
        return self._second(eqn, op, inner, dict(zip(made, stacks, strict=True)), outer)

    @staticmethod
    def _without(body: Program, gone: set[Value]) -> Program:
        """The body without inputs that nothing reads; those in `gone` must be among them."""
        read = body.readers()
        assert not any(v in read for v in gone), "known beforehand, but made of tokens"
        return replace(body, inputs=(body.inputs[0], *(i for i in body.inputs[1:] if i.value in read)))

    @staticmethod
    def _second(
        eqn: Eqn, op: Repeat, inner: "_Part", stacks: Mapping[Value, Value], outer: Mapping[Value, Value]
    ) -> Eqn:
        """The loop over what is left: every turn reads its row of each stack."""
        index, *rest = (i.value for i in op.body.inputs)
        rows = {
            v: Value(inner.fresh(f"memory.{v.name.removeprefix('memory.')}.all"), s.type) for v, s in stacks.items()
        }
        reads = [Eqn((v,), CacheRead(), (row, index), eqn.span) for v, row in rows.items()]
        body = _tidy(replace(op.body, eqns=(*reads, *inner.after)))
        read = body.readers()
        left = [v for n, v in enumerate(rest) if n < op.carries or v in read]
        body = replace(body, inputs=tuple(map(Input, (index, *left, *rows.values()))))
        args = (*(outer[v] for v in left), *(stacks[v] for v in rows))
        return replace(eqn, op=replace(op, body=body), args=args)


def _stacked(kind: TensorType, count: int) -> TensorType:
    return TensorType((count, *kind.shape), kind.dtype)
