"""A turn of an unrolled loop that is like an earlier one -> the same equations and parameters again, without lowering.

Two turns are alike if their element is the same and what the loop assigns comes in with the same types and fields.
Then they differ in nothing but the values that they read and the place of their parameters. A turn that did more than
append equations and parameters of its own (a loop, a route, a report, a statistic, a warning) is not repeated so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tfc.grammar import ast
from tfc.grammar.lowering.segments import targets
from tfc.grammar.lowering.session import LIMITS, Frame, Use
from tfc.grammar.lowering.values import Meaning, Place, Poisoned, Tensor
from tfc.ir.ops import Constant
from tfc.ir.program import Eqn, Param, Value
from tfc.source import Span

__all__ = ["Turns"]

Bound = Mapping[str, Meaning | None]
Values = dict[str, Value]
"""Values by the name that another value has in the earlier turn."""


@dataclass(frozen=True)
class _Turn:
    """What a turn found, and what it made."""

    element: Meaning
    start: Bound
    place: Place
    eqns: tuple[Eqn, ...]
    params: tuple[Param, ...]
    hints: Mapping[str, str]
    ends: Mapping[str, tuple[Meaning, Span]]
    counts: Mapping[str, int]
    uses: Mapping[str, Use]
    seen_inside: frozenset[str]


@dataclass(frozen=True)
class _Before:
    """How far everything was when a turn began."""

    start: Bound
    eqns: int
    params: int
    others: tuple[int, ...]
    counts: Mapping[str, int]


@dataclass
class Turns:
    """The turns of one loop so far."""

    item: ast.Repeat
    frame: Frame
    known: list[_Turn] = field(default_factory=list)
    made: set[str] = field(default_factory=set)  # names of the values that the turns made

    def before(self) -> _Before | None:
        """Asked when a turn begins. None where it is not worth to be kept: what comes from before the loop may be
        known by other names, too."""
        frame = self.frame
        if frame.session.seen is not None or not self.made:
            return None
        try:
            start = {name: frame.scope.find(name) for name in targets(self.item.body)}
        except Poisoned:
            return None
        return _Before(
            start, len(frame.builder.eqns), len(frame.builder.params), self._others(), dict(frame.session.counts)
        )

    def _others(self) -> tuple[int, ...]:
        """How much there is of what a repeated turn would not make."""
        session = self.frame.session
        made = len(session.builders), len(session.paths), len(self.frame.builder.reports)
        return (*made, len(session.diagnostics), len(session.warnings), len(session.numbered))

    def keep(self, element: Meaning, before: _Before | None, first: int, inner: Frame) -> None:
        """Asked when a turn is over, whose equations begin with number `first`."""
        eqns = tuple(self.frame.builder.eqns[first:])
        self.made |= {out.name for eqn in eqns for out in eqn.outs}
        if before is None or before.others != self._others():
            return
        params = tuple(self.frame.builder.params[before.params :])
        below = f"{inner.place.path}."
        if not all(p.path.startswith(below) for p in params) or not all(map(_plain, _tree(inner.place))):
            return
        if any(hasattr(eqn.op, "body") or hasattr(eqn.op, "path") for eqn in eqns):
            return
        names = [v.name for eqn in eqns for v in eqn.outs]
        counts = self.frame.session.counts
        self.known.append(
            _Turn(
                element,
                before.start,
                inner.place,
                eqns,
                params,
                {name: self.frame.builder.hints[name] for name in names},
                {n: (v, inner.scope.origins[n]) for n, v in inner.scope.names.items() if n in before.start},
                {what: n - before.counts.get(what, 0) for what, n in counts.items()},
                inner.uses,
                frozenset(inner.seen_inside),
            )
        )

    def again(self, element: Meaning, before: _Before | None, inner: Frame) -> bool:
        """The turn as an earlier one, if there is one like it: names bound in the scope of `inner` as after a run."""
        if before is None:
            return False
        counts = self.frame.session.counts
        for turn in self.known:
            if not _same(turn.element, element) or any(counts[c] + n > LIMITS[c] for c, n in turn.counts.items() if n):
                continue
            values = self._values(turn.start, before.start)
            if values is not None:
                self._repeat(turn, values, inner)
                return True
        return False

    def _values(self, old: Bound, new: Bound) -> Values | None:
        """What comes in now by what came in then; None where the two are not alike."""
        values: Values = {}
        for name, was in old.items():
            now = new[name]
            if not (isinstance(was, Tensor) and isinstance(now, Tensor)):
                if was is not now and not _same(was, now):
                    return None
                continue
            if not self._enter(was, now, values):
                return None
        return values if len({v.name for v in values.values()}) == len(values) else None

    def _enter(self, was: Tensor, now: Tensor, values: Values) -> bool:
        alike = was.type == now.type and was.home is now.home and (was.tokens, was.chosen) == (now.tokens, now.chosen)
        if not alike or was.fields.keys() != now.fields.keys():
            return False
        own = {was.value.name, now.value.name} <= self.made
        if not (own or was.same(now)) or values.setdefault(was.value.name, now.value) != now.value:
            return False
        return all(self._enter(held, now.fields[name], values) for name, held in was.fields.items())

    def _repeat(self, turn: _Turn, values: Values, inner: Frame) -> None:
        builder, session = self.frame.builder, self.frame.session
        below, within = turn.place.path, session.loops.get(id(builder), "")
        for param in turn.params:
            path = inner.place.path + param.path.removeprefix(below)
            hint = path.removeprefix(f"{within}.") if within else path
            values[param.value.name] = builder.declare(replace(param, path=path), hint, self.item.span).value
        shared = {held.value.name for held in builder.constants.values()}
        for eqn in turn.eqns:
            if isinstance(eqn.op, Constant) and eqn.out.name in shared:
                continue
            outs = tuple(builder.value(v.type, turn.hints[v.name]) for v in eqn.outs)
            values.update(zip((v.name for v in eqn.outs), outs, strict=True))
            if builder.products.issuperset(eqn.outs):
                builder.products.update(outs)
            self.made.update(v.name for v in outs)
            builder.eqns.append(Eqn(outs, eqn.op, tuple(values.get(a.name, a) for a in eqn.args), eqn.span))
        _fill(inner.place, turn.place, values)
        for name, (value, origin) in turn.ends.items():
            inner.scope.bind(name, _moved(value, values) if isinstance(value, Tensor) else value, origin)
        for what, n in turn.counts.items():
            session.counts[what] += n
        inner.uses |= turn.uses
        inner.seen_inside |= turn.seen_inside


def _same(x: object, y: object) -> bool:
    """Whether two elements, or two numbers, are one; tensors and lists of them never are."""
    return x is y or (type(x) is type(y) and isinstance(x, (bool, int, float, str)) and x == y)


def _tree(place: Place) -> Iterator[Place]:
    yield place
    for below in place.below.values():
        yield from _tree(below)


def _plain(place: Place) -> bool:
    """Whether it owns nothing but parameters of the program around it."""
    return place.home is None and place.made is None and not place.stacks


def _fill(place: Place, like: Place, values: Values) -> None:
    place.params |= {name: _moved(held, values) for name, held in like.params.items()}
    for segment, below in like.below.items():
        _fill(place.under(segment), below, values)


def _moved(tensor: Tensor, values: Values) -> Tensor:
    fields = {name: _moved(held, values) for name, held in tensor.fields.items()}
    parts = tensor.factors
    if parts is not None:
        base = None if parts.base is None else _moved(parts.base, values)
        parts = replace(parts, left=_moved(parts.left, values), right=_moved(parts.right, values), base=base)
    return replace(tensor, value=values.get(tensor.value.name, tensor.value), fields=fields, factors=parts)
