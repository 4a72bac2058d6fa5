"""What a stretch of lowering appended to a program -> the same equations and parameters again, without lowering.

Only a stretch that did nothing but append equations and parameters of its own is kept: one with a loop, a route, a
report, a statistic or a warning is lowered each time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tfc.grammar.lowering.session import LIMITS, Frame
from tfc.grammar.lowering.values import Place, Tensor
from tfc.ir.ops import Constant
from tfc.ir.program import Eqn, Param, Value
from tfc.ir.types import TensorType
from tfc.source import Span

__all__ = ["Mark", "Spans", "Stretch", "Values", "enters", "moved"]

Values = dict[str, Value]
"""Values by the name that another value has in the earlier stretch."""

Spans = Mapping[Span, Span]
"""Where something is now said to stand, by where it was then; everything else stands where it stood."""


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
    """An equation, with what making it again needs: its results' names, types and hints, and its operands by name."""

    eqn: Eqn
    outs: tuple[tuple[str, TensorType, str], ...]
    args: tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was made since a mark, all parameters in one place."""

    place: Place
    eqns: tuple[Eqn, ...]
    params: tuple[Param, ...]
    rows: tuple["_Row", ...]
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
        rows = tuple(
            _Row(e, tuple((v.name, v.type, builder.hints[v.name]) for v in e.outs), tuple((a.name, a) for a in e.args))
            for e in eqns
        )
        counts = {what: n - mark.counts.get(what, 0) for what, n in frame.session.counts.items()}
        return Stretch(place, eqns, params, rows, {what: n for what, n in counts.items() if n})

    def allowed(self, frame: Frame) -> bool:
        """Whether no limit would be passed by making it again."""
        counts = frame.session.counts
        return all(counts.get(what, 0) + n <= LIMITS[what] for what, n in self.counts.items())

    def again(self, values: Values, place: Place, frame: Frame, span: Span, spans: Spans) -> None:
        """The same in another place. values: what comes in now by what came in then; what is made is added.
        span: of the parameters."""
        builder, session = frame.builder, frame.session
        below, within = self.place.path, session.loops.get(id(builder), "")
        for p in self.params:
            path = place.path + p.path.removeprefix(below)
            made = builder.value(p.value.type, path.removeprefix(f"{within}.") if within else path)
            builder.params.append(Param(path, made, p.init, p.trained, p.format, p.fit, p.repeats))
            values[p.value.name] = made
        shared = {held.value.name for held in builder.constants.values()}
        get, new, append = values.get, builder.value, builder.eqns.append
        stood: Span | None = None
        stands: Span | None = None
        for row in self.rows:
            eqn = row.eqn
            if isinstance(eqn.op, Constant) and eqn.out.name in shared:
                continue
            outs = tuple([new(type, hint) for _, type, hint in row.outs])
            for (old, _, _), made in zip(row.outs, outs, strict=True):
                values[old] = made
            if builder.products and builder.products.issuperset(eqn.outs):
                builder.products.update(outs)
            if eqn.span is not stood:  # many in a row stand at one place
                stood = stands = eqn.span
                if stood is not None:
                    stands = spans.get(stood, stood)
            append(Eqn(outs, eqn.op, tuple([get(name, arg) for name, arg in row.args]), stands))
        _fill(place, self.place, values, spans)
        for what, n in self.counts.items():
            session.counts[what] = session.counts.get(what, 0) + n


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
    for name, held in like.params.items():
        place.params[name] = moved(held, values, spans)
    for segment, below in like.below.items():
        _fill(place.under(segment), below, values, spans)
