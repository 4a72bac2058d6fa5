"""A program's equations -> sequences of layers that differ in their parameters alone, and such a sequence as a loop."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise
from operator import eq

from tfc.identity import identity
from tfc.ir.ops import Constant, Op, Repeat, Route
from tfc.ir.program import Eqn, Init, Input, Param, Program, Value
from tfc.ir.types import DType, TensorType

__all__ = ["Layers", "Text", "with_paths"]

_LOOPS = (Repeat, Route)

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


@dataclass(frozen=True, slots=True)
class Likeness:
    """What each layer must read to be like another one.

    size: how many values a layer binds. indices: for each value that a layer reads, where that is among the values of
    the layer before, its own, its parameters, and `others`.
    """

    size: int
    indices: Sequence[int]
    others: Sequence[str]


class Text:
    """A program's equations but for constants, which layers share, as something to find repetitions in.

    Values are known by their names, which are unique in a program; equal constants by the name of the first. `reads`
    and `outs`: what all equations read and bind, one after another; `read_at`, `out_at`: where those of each begin.
    `first`, `last`: the numbers of the equations that read a value first and last. `owning`: of those that read
    parameters, or have bodies.
    """

    def __init__(self, program: Program) -> None:
        self.constants = [e for e in program.eqns if isinstance(e.op, Constant)]
        alike: dict[Op, Value] = {}
        self.same = {e.out.name: alike.setdefault(e.op, e.out) for e in self.constants}
        self.eqns = [e for e in program.eqns if not isinstance(e.op, Constant)]
        self.params = {p.value.name: p for p in program.params}
        self.ends = {v.name for v in (*program.results, *(v for _, v in program.reports))}
        eqns, known = self.eqns, {name: first.name for name, first in self.same.items()}
        self.reads = [known.get(a.name, a.name) for e in eqns for a in e.args]
        self.outs = [o.name for e in eqns for o in e.outs]
        self.read_at = [0, *accumulate([len(e.args) for e in eqns])]
        self.out_at = [0, *accumulate([len(e.outs) for e in eqns])]
        self.made = {name: n for n, name in enumerate(self.outs)}
        readers = [n for n, e in enumerate(eqns) for _ in e.args]
        self.last = dict(zip(self.reads, readers, strict=True))
        self.first = dict(zip(reversed(self.reads), reversed(readers), strict=True))
        self.bodies = {n: e.op.body for n, e in enumerate(eqns) if isinstance(e.op, _LOOPS)}
        owning = [n for name, n in zip(self.reads, readers, strict=True) if name in self.params]
        self.owning = sorted({*owning, *self.bodies})
        self.signs = self._signs()

    def _signs(self) -> list[int]:
        """A number for each equation, the same for equal ones; where the very operation and types are known, as
        lowering makes for equal layers, it takes no look inside."""
        known: dict[object, int] = {}
        seen: dict[int, list[tuple[list[TensorType], list[TensorType], list[bool], int]]] = {}
        eqns, signs, params = self.eqns, [], self.params
        taken = [a.type for e in eqns for a in e.args]
        owned = [name in params for name in self.reads]
        for e, (start, stop) in zip(eqns, pairwise(self.read_at), strict=True):
            given = taken[start:stop], owned[start:stop]
            like = seen.setdefault(identity(e.op), [])
            for types, others, other, found in like:
                if others == given[0] and other == given[1] and types == [o.type for o in e.outs]:
                    signs.append(found)
                    break
            else:
                signs.append(known.setdefault(self._sign(e), len(known)))
                like.append(([o.type for o in e.outs], *given, signs[-1]))
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
        fewest, end = b"\x01" * max(1, period * (least - 1)), 0
        while (start := same.find(fewest, end)) >= 0:
            end = same.find(0, start)
            end = len(same) if end < 0 else end
            run = end - start
            for shift in range(run % period + 1):
                yield start + shift, period, run // period + 1

    def _crossing(self, start: int, period: int) -> int:
        """How many values of the first layer the second one takes."""
        middle, end = start + period, start + 2 * period
        names = {*self.reads[self.read_at[middle] : self.read_at[end]]}
        own = {*self.outs[self.out_at[start] : self.out_at[middle]]}
        return len(names & own)

    def private(self, start: int, period: int) -> Iterator[Param]:
        """The parameters that one layer has for itself, in the order in which it reads them."""
        params, read_at, end = self.params, self.read_at, start + period
        seen: set[str] = set()
        owning = self.owning
        for n in owning[bisect_left(owning, start) : bisect_left(owning, end)]:
            for name in self.reads[read_at[n] : read_at[n + 1]]:
                if name in params and name not in seen and self._owned(name, start, end):
                    seen.add(name)
                    yield params[name]
            if n in self.bodies:
                yield from _params(self.bodies[n])

    def _owned(self, name: str, start: int, end: int) -> bool:
        inside = start <= self.first[name] and self.last[name] < end
        return inside and not self.params[name].repeats and name not in self.ends

    def layers(self, start: int, period: int, turns: int, least: int) -> Layers | str:
        """As many equal layers from `start` on as there are; or why there are fewer than `least`."""
        cuts = [range(start + n * period, start + (n + 1) * period) for n in range(turns)]
        columns = [list(self.private(cut.start, period)) for cut in cuts]
        roles = self._roles(start, cuts[1], period, columns[1])
        starts = self._starts(cuts[0], roles)
        if starts is None:
            return "the first layer takes several values where the others take one"
        count, why = turns, ""
        likeness = self._likeness(cuts[1], roles, columns[1])
        for n in (0, *range(2, turns)):
            if why := self._unlike(likeness, columns, cuts, n):
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
        owned = {p.value.name: n for n, p in enumerate(params)}

        def role(value: Value) -> Role:
            name = value.name
            if name in owned:
                return Role(param=owned[name])
            if name not in self.made:
                return Role(other=self.same.get(name, value))
            number = self.made[name]
            at = bisect_right(self.out_at, number) - 1
            out = number - self.out_at[at]
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

    def _likeness(self, cut: range, roles: Sequence[Sequence[Role]], params: Sequence[Param]) -> Likeness:
        """What a layer must read to be like the second one, which is `cut`: its values come after those of the layer
        before it, as many."""
        first = self.out_at[cut.start]
        size = self.out_at[cut.stop] - first
        others: list[str] = []
        indices = []
        for role in (role for row in roles for role in row):
            if role.param is not None:
                index = 2 * size + role.param
            elif role.own is not None:
                index = size + self.out_at[cut.start + role.own[0]] + role.own[1] - first
            elif role.before is not None:
                index = self.out_at[cut.start + role.before[0]] + role.before[1] - first
            else:
                assert role.other is not None
                index = 2 * size + len(params) + len(others)
                others.append(role.other.name)
            indices.append(index)
        return Likeness(size, indices, others)

    def _unlike(self, likeness: Likeness, columns: Sequence[Sequence[Param]], cuts: Sequence[range], n: int) -> str:
        """How layer n differs from the second one, or an empty string."""
        for own, other in zip(columns[n], columns[1], strict=False):
            if (own.trained, own.format, own.fit) != (other.trained, other.format, other.fit):
                return f"{own.path} and {other.path} are kept in different ways"
            if own.value.type != other.value.type:
                return f"{own.path} is {own.value.type}, {other.path} {other.value.type}"
        if len(columns[n]) != len(columns[1]):
            return f"one of its layers has {len(columns[n])} parameters of its own, another {len(columns[1])}"
        start, stop, size = self.out_at[cuts[n].start], self.out_at[cuts[n].stop], likeness.size
        before = self.outs[start - size : start] if n else [""] * size  # the first layer has none before it
        known = [*before, *self.outs[start:stop], *[p.value.name for p in columns[n]], *likeness.others]
        reads = self.reads[self.read_at[cuts[n].start] : self.read_at[cuts[n].stop]]
        wanted = [known[index] for index in likeness.indices]
        if n == 0:
            wanted = [name or read for name, read in zip(wanted, reads, strict=True)]
        return "" if reads == wanted else "its layers read different values"

    def _told(self, cuts: Sequence[range], count: int, starts: Mapping[Place, Value]) -> str:
        """What of a layer is read elsewhere than it may be, or an empty string."""
        last, ends, first = self.last, self.ends, cuts[0].start
        handed = [(at - first, i) in starts for at in cuts[0] for i in range(len(self.eqns[at].outs))]
        for n, cut in enumerate(cuts[:count]):
            end = cuts[n + 1].stop if n + 1 < count else len(self.eqns)
            outs = self.outs[self.out_at[cut.start] : self.out_at[cut.stop]]
            for name, hands in zip(outs, handed, strict=True):
                if hands and n + 1 == count:
                    continue
                if name in ends or last.get(name, -1) >= (end if hands else cut.stop):
                    return f"%{name}, of one of its layers, is read elsewhere too"
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
