"""What a stretch of lowering appended to a program -> the same equations and parameters again, without lowering.

Only a stretch that did nothing but append equations and parameters of its own is kept: one with a loop, a route, a
report, a statistic or a warning is lowered each time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from tfc.grammar.lowering.session import LIMITS, Frame
from tfc.grammar.lowering.values import Place, Tensor
from tfc.ir.ops import Constant, Op
from tfc.ir.program import Eqn, Param, Value
from tfc.ir.types import TensorType
from tfc.source import Span

__all__ = ["Mark", "Spans", "Stretch", "Values", "enters", "moved"]

Values = dict[str, Value]
"""Values by the name that another value has in the earlier stretch."""

Spans = Mapping[Span, Span]
"""Where something is now said to stand, by where it was then; everything else stands where it stood."""

Pick = Callable[[tuple[Value, ...]], tuple[Value, ...]]
"""What takes some of many values."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far everything was when a stretch began."""

    eqns: int
    params: int
    others: tuple[int, ...]
    counts: Mapping[str, int]

    @staticmethod
    def of(frame: Frame) -> "Mark":
        builder = frame.builder
        return Mark(len(builder.eqns), len(builder.params), _others(frame), dict(frame.session.counts))


def _others(frame: Frame) -> tuple[int, ...]:
    """How much there is of what a repeated stretch would not make."""
    session = frame.session
    made = len(session.builders), len(session.paths), len(frame.builder.reports)
    return (*made, len(session.diagnostics), len(session.warnings), len(session.numbered))


@dataclass(frozen=True, slots=True)
class _Row:
    """An equation to be made again: its results and operands are picked out of all values of the stretch."""

    op: Op
    outs: Pick
    args: Pick
    span: Span | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was made since a mark, all parameters in one place.

    outside: what the equations read and do not make, numbers included that all equations share; then come the values
    of the parameters and those of the equations, `made` by their earlier names with types and hints: together they are
    what rows pick from.
    tails: the parameters' paths without that of the place. products: the names of those among `made`.
    """

    place: Place
    eqns: tuple[Eqn, ...]
    params: tuple[Param, ...]
    tails: tuple[str, ...]
    outside: tuple[Value, ...]
    made: tuple[str, ...]
    types: tuple[TensorType, ...]
    hints: tuple[str, ...]
    rows: tuple[_Row, ...]
    products: tuple[str, ...]
    counts: Mapping[str, int]

    @staticmethod
    def since(mark: Mark, place: Place, frame: Frame) -> "Stretch | None":
        """None where more was made than a stretch can make again."""
        builder = frame.builder
        if mark.others != _others(frame):
            return None
        params = tuple(builder.params[mark.params :])
        below = f"{place.path}."
        if not all(p.path.startswith(below) for p in params) or not all(map(_plain, _tree(place))):
            return None
        eqns = tuple(builder.eqns[mark.eqns :])
        if any(hasattr(eqn.op, "body") or hasattr(eqn.op, "path") for eqn in eqns):
            return None
        shared = {held.value.name for held in builder.constants.values()}
        own = [e for e in eqns if not (isinstance(e.op, Constant) and e.out.name in shared)]
        outs = [out for e in own for out in e.outs]
        inside = [v.name for v in (*[p.value for p in params], *outs)]
        made = set(inside)
        outside = {a.name: a for e in own for a in e.args if a.name not in made}
        number = {name: n for n, name in enumerate((*outside, *inside))}
        rows = [_Row(e.op, _pick(e.outs, number), _pick(e.args, number), e.span) for e in own]
        counts = {what: n - mark.counts.get(what, 0) for what, n in frame.session.counts.items()}
        return Stretch(
            place, eqns, params, tuple([p.path.removeprefix(place.path) for p in params]), tuple(outside.values()),
            tuple([o.name for o in outs]), tuple([o.type for o in outs]), tuple([builder.hints[o.name] for o in outs]),
            tuple(rows), tuple([o.name for o in outs if o in builder.products]),
            {what: n for what, n in counts.items() if n},
        )  # fmt: skip

    def allowed(self, frame: Frame) -> bool:
        """Whether no limit would be passed by making it again."""
        counts = frame.session.counts
        return all(counts.get(what, 0) + n <= LIMITS[what] for what, n in self.counts.items())

    def again(self, values: Values, place: Place, frame: Frame, span: Span, spans: Spans) -> None:
        """The same in another place. values: what comes in now by what came in then; what is made is added.
        span: of the parameters."""
        builder, session = frame.builder, frame.session
        outside = [values.get(v.name, v) for v in self.outside]
        params = self._params_again(values, place, frame)
        made = builder.values(self.types, self.hints)
        values.update(zip(self.made, made, strict=True))
        builder.products.update([values[name] for name in self.products])
        picked = (*outside, *params, *made)
        append = builder.eqns.append
        stood: Span | None = None
        stands: Span | None = None
        for row in self.rows:
            if row.span is not stood:  # many in a row stand at one place
                stood = stands = row.span
                if stood is not None:
                    stands = spans.get(stood, stood)
            append(Eqn(row.outs(picked), row.op, row.args(picked), stands))
        _fill(place, self.place, values, spans)
        for what, n in self.counts.items():
            session.counts[what] = session.counts.get(what, 0) + n

    def _params_again(self, values: Values, place: Place, frame: Frame) -> Sequence[Value]:
        """The parameters in another place; their values."""
        builder = frame.builder
        within = f"{frame.session.loops.get(id(builder), '')}."
        made = []
        for p, tail in zip(self.params, self.tails, strict=True):
            path = place.path + tail
            value = builder.value(p.value.type, path.removeprefix(within))
            builder.params.append(Param(path, value, p.init, p.trained, p.format, p.fit, p.repeats))
            values[p.value.name] = value
            made.append(value)
        return made


def _pick(values: tuple[Value, ...], number: Mapping[str, int]) -> Pick:
    """What takes these values out of all of them, by their numbers."""
    numbers = [number[v.name] for v in values]
    if len(numbers) > 1:
        return itemgetter(*numbers)
    return itemgetter(slice(numbers[0], numbers[0] + 1) if numbers else slice(0))  # else it were no tuple


def enters(was: Tensor, now: Tensor, values: Values, own: "Mapping[str, object] | set[str] | None" = None) -> bool:
    """Whether `now` can stand where `was` stood, fields and all; then it is added to `values`.

    own: names of the values that may differ, None for all.
    """
    alike = was.type == now.type and was.home is now.home and (was.tokens, was.chosen) == (now.tokens, now.chosen)
    if not alike or was.fields.keys() != now.fields.keys():
        return False
    free = own is None or (was.value.name in own and now.value.name in own)
    if not (free or was.same(now)) or values.setdefault(was.value.name, now.value) != now.value:
        return False
    return all(enters(held, now.fields[name], values, own) for name, held in was.fields.items())


def moved(tensor: Tensor, values: Values, spans: Spans) -> Tensor:
    """The tensor of the new stretch, by that of the old one."""
    fields, parts = tensor.fields, tensor.factors
    if fields:
        fields = {name: moved(held, values, spans) for name, held in fields.items()}
    if parts is not None:
        base = None if parts.base is None else moved(parts.base, values, spans)
        left, right = moved(parts.left, values, spans), moved(parts.right, values, spans)
        parts = replace(parts, left=left, right=right, base=base)
    value, span = values.get(tensor.value.name, tensor.value), spans.get(tensor.span, tensor.span)
    chosen = None if tensor.chosen is None else spans.get(tensor.chosen, tensor.chosen)
    return Tensor(value, tensor.home, span, fields, chosen, tensor.tokens, parts)


def _tree(place: Place) -> Iterator[Place]:
    yield place
    for below in place.below.values():
        yield from _tree(below)


def _plain(place: Place) -> bool:
    """Whether it owns nothing but parameters of the program around it."""
    return place.home is None and place.made is None and not place.stacks


def _fill(place: Place, like: Place, values: Values, spans: Spans) -> None:
    params = place.params
    stood: Span | None = None
    for name, held in like.params.items():
        if held.fields or held.factors is not None or held.chosen is not None:
            params[name] = moved(held, values, spans)
            continue
        if held.span is not stood:
            stood, stands = held.span, spans.get(held.span, held.span)
        params[name] = Tensor(values.get(held.value.name, held.value), held.home, stands, {}, None, held.tokens)
    for segment, below in like.below.items():
        _fill(place.under(segment), below, values, spans)
