"""A program's equations -> sequences of layers that differ in their parameters alone, and such a sequence as a loop."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from operator import eq

from tfc.ir.ops import Constant, Op, Repeat, Route
from tfc.ir.program import Eqn, Init, Input, Param, Program, Value
from tfc.ir.types import DType, TensorType

__all__ = ["Layers", "Text", "with_paths"]

Place = tuple[int, int]
"""A value of a layer: by the number of its equation, and which of its results it is."""


@dataclass(frozen=True, slots=True)
class Role:
    """Where an operand comes from: `own`, a place in the same layer; `before`, one in the layer before; `param`, which
    of the layer's parameters; or `other`, a value from outside."""

    own: Place | None = None
    before: Place | None = None
    param: int | None = None
    other: Value | None = None


@dataclass(frozen=True, slots=True)
class Layers:
    """Equal layers, from equation `start` on.

    eqns: of each layer. roles: of the operands of the second one. params: for each parameter of a layer those of all.
    starts: what a layer hands on, and what the first one takes for it. constants: equations that all layers read, by
    the names of their values.
    """

    start: int
    eqns: Sequence[Sequence[Eqn]]
    roles: Sequence[Sequence[Role]]
    params: Sequence[Sequence[Param]]
    starts: Mapping[Place, Value]
    constants: Mapping[str, Eqn]

    def loop(self, label: str, paths: Mapping[str, str], program: Program) -> Eqn:
        """The loop. paths: of the first layer's parameters -> of their stacks."""
        first, last = self.eqns[0], self.eqns[-1]
        taken = {o.name for e in first for o in e.outs} | {column[0].value.name for column in self.params}

        def fresh(name: str, type: TensorType) -> Value:
            free, n = name, 1
            while free in taken:
                n += 1
                free = f"{name}_{n}"
            taken.add(free)
            return Value(free, type)

        index = fresh(label, TensorType((), DType.I32))
        carried = {place: fresh(v.name, v.type) for place, v in self.starts.items()}
        others = dict.fromkeys(r.other for roles in self.roles for r in roles if r.other is not None)
        outside = {v: fresh(v.name, v.type) for v in others}
        shared = [Eqn((outside[e.out],), e.op, (), e.span) for e in self.constants.values() if e.out in outside]
        given = [v for v in outside if v.name not in self.constants]

        def operand(role: Role, value: Value) -> Value:
            if role.before is not None:
                return carried[role.before]
            return outside[role.other] if role.other is not None else value

        eqns = [
            Eqn(e.outs, with_paths(e.op, lambda p: paths[p]), tuple(map(operand, roles, e.args)), e.span)
            for e, roles in zip(first, self.roles, strict=True)
        ]
        own = {column[0].path for column in self.params}
        body = Program(
            label,
            tuple(Input(v) for v in (index, *carried.values(), *(outside[v] for v in given))),
            tuple(replace(p, path=paths[p.path], init=Init("packed")) for p in program.params if p.path in own),
            (*shared, *eqns),
            tuple(first[at].outs[n] for at, n in carried),
            program.precision,
        )
        op = Repeat(count=len(self.eqns), label=label, carries=len(carried), body=body)
        outs = tuple(last[at].outs[n] for at, n in carried)
        return Eqn(outs, op, (*self.starts.values(), *given), first[0].span)


class Text:
    """A program's equations but for constants, which layers share, as something to find repetitions in.

    Values are known by their names, which are unique in a program.
    """

    def __init__(self, program: Program) -> None:
        self.constants = [e for e in program.eqns if isinstance(e.op, Constant)]
        alike: dict[Op, Value] = {}
        self.same = {e.out.name: alike.setdefault(e.op, e.out) for e in self.constants}
        self.eqns = [e for e in program.eqns if not isinstance(e.op, Constant)]
        self.params = {p.value.name: p for p in program.params}
        self.made: dict[str, Place] = {}
        self.ends = {*program.results, *(v for _, v in program.reports)}
        self.readers: dict[str, list[int]] = {}
        made, readers = self.made, self.readers
        for n, eqn in enumerate(self.eqns):
            for i, out in enumerate(eqn.outs):
                made[out.name] = n, i
            for arg in eqn.args:
                if arg.name in readers:
                    readers[arg.name].append(n)
                else:
                    readers[arg.name] = [n]
        self.signs = self._signs()

    def _signs(self) -> list[int]:
        """A number for each equation, the same for equal ones; of one operation and one type, as lowering makes for
        equal layers, it takes no look inside."""
        known: dict[object, int] = {}
        seen: dict[int, list[tuple[tuple[TensorType, ...], list[bool], int]]] = {}
        signs, params = [], self.params
        for e in self.eqns:
            types = (*[o.type for o in e.outs], *[a.type for a in e.args])
            owned = [a.name in params for a in e.args]
            like = seen.get(id(e.op))
            if like is None:
                like = seen[id(e.op)] = []
            for others, other, found in like:
                if others == types and other == owned:
                    sign = found
                    break
            else:
                sign = known.setdefault(self._sign(e), len(known))
                like.append((types, owned, sign))
            signs.append(sign)
        return signs

    def _sign(self, eqn: Eqn) -> object:
        """What equal equations of two layers have in common."""
        op: object = eqn.op
        if isinstance(eqn.op, Repeat | Route):
            op = repr(with_paths(eqn.op, lambda path: "_"))
        return op, tuple(o.type for o in eqn.outs), tuple((a.type, a.name in self.params) for a in eqn.args)

    def candidates(self, least: int) -> list[tuple[int, int, int]]:
        """(start, equations of a layer, layers) of sequences that look alike, those that save most first; of those with
        parameters. Of several places where a layer may begin, first the one where it takes least of the one before."""
        places: dict[int, list[int]] = {}
        for n, sign in enumerate(self.signs):
            places.setdefault(sign, []).append(n)
        gaps = Counter(b - a for at in places.values() if len(at) >= least for a, b in pairwise(at))
        found = [c for period, often in gaps.items() if often >= least - 1 for c in self._runs(period, least)]
        worth = [c for c in found if next(self.private(*c[:2]), None) is not None]
        return sorted(worth, key=lambda c: (-c[1] * (c[2] - 1), c[1], self._crossing(*c[:2]), c[0]))

    def _runs(self, period: int, least: int) -> Iterator[tuple[int, int, int]]:
        signs = self.signs
        same = bytes(map(eq, signs, islice(signs, period, None)))  # whether each is like the one a period later
        for found in re.finditer(rb"\x01+", same):
            run = found.end() - found.start()
            if (turns := run // period + 1) >= least:
                for shift in range(run % period + 1):
                    yield found.start() + shift, period, turns

    def _crossing(self, start: int, period: int) -> int:
        """How many values of the first layer the second one takes."""
        middle, end = start + period, start + 2 * period
        names = {a.name for e in self.eqns[middle:end] for a in e.args}
        return len([name for name in names if start <= self.made.get(name, (-1, 0))[0] < middle])

    def private(self, start: int, period: int) -> Iterator[Param]:
        """The parameters that one layer has for itself, in the order in which it reads them."""
        seen: set[str] = set()
        for eqn in self.eqns[start : start + period]:
            for arg in eqn.args:
                name = arg.name
                if name in self.params and name not in seen and self._owned(arg, start, start + period):
                    seen.add(name)
                    yield self.params[name]
            if isinstance(eqn.op, Repeat | Route):
                yield from _params(eqn.op.body)

    def _owned(self, value: Value, start: int, end: int) -> bool:
        reads, param = self.readers[value.name], self.params[value.name]
        return start <= reads[0] and reads[-1] < end and not param.repeats and value not in self.ends

    def layers(self, start: int, period: int, turns: int, least: int) -> Layers | str:
        """As many equal layers from `start` on as there are; or why there are fewer than `least`."""
        cuts = [range(start + n * period, start + (n + 1) * period) for n in range(turns)]
        columns = [list(self.private(cut.start, period)) for cut in cuts]
        roles = self._roles(start, cuts[1], period, columns[1])
        starts = self._starts(cuts[0], roles)
        if starts is None:
            return "the first layer takes several values where the others take one"
        count, why = turns, ""
        for n in (0, *range(2, turns)):
            if why := self._unlike(roles, columns, cuts, n):
                count = 0 if n == 0 else n
                break
        while count >= least and (told := self._told(cuts, count, starts)):
            why, count = told, count - 1
        if count < least:
            return why
        if not starts:
            return "none of its layers takes anything of the one before"
        constants = {e.out.name: e for e in self.constants}
        eqns = [[self.eqns[n] for n in cut] for cut in cuts[:count]]
        return Layers(start, eqns, roles, list(zip(*columns[:count], strict=True)), starts, constants)

    def _roles(self, start: int, cut: range, period: int, params: Sequence[Param]) -> list[list[Role]]:
        number = {p.value.name: n for n, p in enumerate(params)}

        def role(value: Value) -> Role:
            name = value.name
            if name in number:
                return Role(param=number[name])
            if name not in self.made:
                return Role(other=self.same.get(name, value))
            at, out = self.made[name]
            if at in cut:
                return Role(own=(at - cut.start, out))
            if start <= at and cut.start - period <= at < cut.start:  # before the first layer there is none
                return Role(before=(at - cut.start + period, out))
            return Role(other=value)

        return [[role(a) for a in self.eqns[n].args] for n in cut]

    def _starts(self, first: range, roles: Sequence[Sequence[Role]]) -> Mapping[Place, Value] | None:
        """What the first layer takes where the second takes a value of the first."""
        starts: dict[Place, Value] = {}
        for n, row in zip(first, roles, strict=True):
            for role, value in zip(row, self.eqns[n].args, strict=True):
                if role.before is not None and starts.setdefault(role.before, value) != value:
                    return None
        return starts

    def _unlike(
        self, roles: Sequence[Sequence[Role]], columns: Sequence[Sequence[Param]], cuts: Sequence[range], n: int
    ) -> str:
        """How layer n differs from the second one, whose roles are given, or an empty string."""
        for own, other in zip(columns[n], columns[1], strict=False):
            if (own.trained, own.format, own.fit) != (other.trained, other.format, other.fit):
                return f"{own.path} and {other.path} are kept in different ways"
            if own.value.type != other.value.type:
                return f"{own.path} is {own.value.type}, {other.path} {other.value.type}"
        if len(columns[n]) != len(columns[1]):
            return f"one of its layers has {len(columns[n])} parameters of its own, another {len(columns[1])}"
        start, before, params = cuts[n].start, cuts[n].start - len(cuts[n]), [p.value.name for p in columns[n]]
        made, eqns, same = self.made, self.eqns, self.same
        for at, row in zip(cuts[n], roles, strict=True):
            for value, role in zip(eqns[at].args, row, strict=True):
                name = value.name
                if role.param is not None:
                    plays = name == params[role.param]
                elif role.own is not None:
                    plays = made.get(name) == (start + role.own[0], role.own[1])
                elif role.before is not None:  # the first layer has none before it
                    plays = n == 0 or made.get(name) == (before + role.before[0], role.before[1])
                else:
                    plays = same.get(name, value) == role.other
                if not plays:
                    return "its layers read different values"
        return ""

    def _told(self, cuts: Sequence[range], count: int, starts: Mapping[Place, Value]) -> str:
        """What of a layer is read elsewhere than it may be, or an empty string."""
        eqns, readers, ends = self.eqns, self.readers, {v.name for v in self.ends}
        for n, cut in enumerate(cuts[:count]):
            end = cuts[n + 1].stop if n + 1 < count else len(eqns)
            for at in cut:
                for number, out in enumerate(eqns[at].outs):
                    handed = (at - cut.start, number) in starts
                    if handed and n + 1 == count:
                        continue
                    reads = readers.get(out.name)  # in the order of the equations
                    if out.name in ends or (reads and reads[-1] >= (end if handed else cut.stop)):
                        return f"{out}, of one of its layers, is read elsewhere too"
        return ""


def with_paths(op: Op, named: Callable[[str], str]) -> Op:
    """The operation with the parameters of its bodies under other paths."""
    if not isinstance(op, Repeat | Route):
        return op
    params = tuple(replace(p, path=named(p.path)) for p in op.body.params)
    eqns = tuple(replace(e, op=with_paths(e.op, named)) for e in op.body.eqns)
    return replace(op, body=replace(op.body, params=params, eqns=eqns))


def _params(body: Program) -> Iterator[Param]:
    yield from body.params
    for eqn in body.eqns:
        if isinstance(eqn.op, Repeat | Route):
            yield from _params(eqn.op.body)
