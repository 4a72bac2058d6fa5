"""A turn of an unrolled loop, or a call of a block, that is like an earlier one -> the same equations and parameters.

Two turns are alike if their element is the same and what the loop assigns comes in with the same types and fields.
Two calls are alike if the block, its settings and the numbers given are the same, and tensors come in with the same
types and fields. Then they differ in nothing but the values that they read and the place of their parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tfc.formula.expr import Read, walk
from tfc.grammar import ast
from tfc.grammar.lowering.replay import Mark, Spans, Stretch, Values, enters, moved
from tfc.grammar.lowering.scope import FileScope
from tfc.grammar.lowering.segments import targets
from tfc.grammar.lowering.session import Frame, Use
from tfc.grammar.lowering.values import (
    Builtin,
    Component,
    Formula,
    Kept,
    Meaning,
    Nothing,
    Place,
    Poisoned,
    RoleRef,
    Tensor,
)
from tfc.identity import identity
from tfc.ir.formats import Fit, FormatKind
from tfc.ir.program import Init
from tfc.ir.types import Dim, DType
from tfc.source import Span

__all__ = ["CallLike", "Calls", "Turns", "call_like"]

Bound = Mapping[str, Meaning | None]


@dataclass(frozen=True)
class _Turn:
    """What a turn found, and what it made."""

    element: Meaning
    start: Bound
    made: Stretch
    ends: Mapping[str, tuple[Meaning, Span]]
    uses: Mapping[str, Use]
    seen_inside: frozenset[str]


@dataclass
class Turns:
    """The turns of one loop so far."""

    item: ast.Repeat
    frame: Frame
    known: list[_Turn] = field(default_factory=list)
    made: set[str] = field(default_factory=set)  # names of the values that the turns made

    def before(self) -> tuple[Bound, Mark] | None:
        """Asked when a turn begins. None where it is not worth to be kept: what comes from before the loop may be
        known by other names, too."""
        frame = self.frame
        if frame.session.seen is not None or not self.made:
            return None
        try:
            start = {name: frame.scope.find(name) for name in targets(self.item.body)}
        except Poisoned:
            return None
        return start, Mark.of(frame)

    def keep(self, element: Meaning, before: tuple[Bound, Mark] | None, first: int, inner: Frame) -> None:
        """Asked when a turn is over, whose equations begin with number `first`."""
        self._own(first)
        if before is None:
            return
        start, mark = before
        made = Stretch.since(mark, inner.place, self.frame)
        if made is not None:
            scope = inner.scope
            ends = {n: (v, scope.origins[n]) for n, v in scope.names.items() if n in start}
            self.known.append(_Turn(element, start, made, ends, inner.uses, frozenset(inner.seen_inside)))

    def again(self, element: Meaning, before: tuple[Bound, Mark] | None, inner: Frame) -> bool:
        """The turn as an earlier one, if there is one like it: names bound in the scope of `inner` as after a run."""
        if before is None:
            return False
        for turn in self.known:
            if not _same(turn.element, element) or not turn.made.allowed(self.frame):
                continue
            values = self._values(turn.start, before[0])
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
            if not enters(was, now, values, self.made):
                return None
        return values if _distinct(values) else None

    def _repeat(self, turn: _Turn, values: Values, inner: Frame) -> None:
        first = len(self.frame.builder.eqns)
        turn.made.again(values, inner.place, self.frame, self.item.span, {})
        self._own(first)
        for name, (value, origin) in turn.ends.items():
            inner.scope.bind(name, moved(value, values, {}) if isinstance(value, Tensor) else value, origin)
        inner.uses |= turn.uses
        inner.seen_inside |= turn.seen_inside

    def _own(self, first: int) -> None:
        """The values of the equations from number `first` on are the turns'."""
        eqns = self.frame.builder.eqns
        self.made.update(out.name for n in range(first, len(eqns)) for out in eqns[n].outs)


Explicit = Mapping[str, tuple[Meaning, Span]]

KEPT = 8
"""Unlike calls of one component with the same inputs that are kept, the first ones."""


@dataclass(frozen=True, slots=True)
class CallLike:
    """A call that may be like another: what decides what it makes."""

    component: Component
    frame: Frame
    node: ast.Call
    explicit: Explicit

    def alike(self, other: "CallLike") -> Values | None:
        """What comes into `other` by what comes into this one; None where they are not alike."""
        mine, theirs = self.component, other.component
        values: Values = {}
        if len(mine.changes) != len(theirs.changes) or self.explicit.keys() != other.explicit.keys():
            return None
        for one, two in zip(mine.changes, theirs.changes, strict=True):
            if one is not two and not (one.path == two.path and _same(one.value, two.value)):
                return None
        for name, (was, _) in self.explicit.items():
            now, _ = other.explicit[name]
            if isinstance(was, Tensor) and isinstance(now, Tensor):
                if not enters(was, now, values):
                    return None
            elif not _same(was, now):
                return None
        return values if _distinct(values) else None

    def spans(self, other: "CallLike") -> Spans:
        """The places that the call itself gave to what it made, and those of `other`."""
        return {self.node.span: other.node.span, **_sites(self.frame, other.frame)}

    def told(self, made: Stretch) -> bool:
        """Whether every equation stands where the block has it, or at the call: not at an argument of the call."""
        calls = [self.node.span, *([] if self.frame.site is None else [self.frame.site])]
        others = {e.span for e in made.eqns if e.span is not None} - {*calls}
        return not any(s.source is c.source and c.start <= s.start and s.end <= c.end for s in others for c in calls)


def _sites(then: Frame, now: Frame) -> Spans:
    return {} if then.site is None or now.site is None else {then.site: now.site}


@dataclass
class Calls:
    """The calls so far that others may be like, by what they must have in common."""

    known: dict[object, list[tuple[CallLike, Stretch, Tensor]]] = field(default_factory=dict)
    components: dict[int, tuple[Component, bool]] = field(default_factory=dict)

    def settled(self, component: Component) -> bool:
        """Whether it says the same wherever it is called; each is looked through once."""
        key = identity(component)
        found = self.components.get(key)
        if found is None:
            found = self.components[key] = component, _settled(component)
        return found[1]

    def keep(self, call: CallLike, mark: Mark, place: Place, value: Meaning) -> None:
        """Asked when a call is over, before its result is given a name; `mark` is how far everything was before it."""
        kept = self.known.setdefault(_key(call), [])
        if len(kept) >= KEPT or not isinstance(value, Tensor) or value.home is not call.frame.builder:
            return
        made = Stretch.since(mark, place, call.frame)
        if made is not None and made.eqns and call.told(made):
            kept.append((call, made, value))

    def again(self, call: CallLike, place: Place) -> Tensor | None:
        """The result, made as an earlier call made it, if there is one like it."""
        for earlier, made, value in self.known.get(_key(call), ()):
            values = earlier.alike(call)
            if values is not None and made.allowed(call.frame):
                spans = earlier.spans(call)
                made.again(values, place, call.frame, call.frame.at(call.node.span), spans)
                return moved(value, values, spans)
        return None


def call_like(component: Component, explicit: Explicit, place: Place, node: ast.Call, frame: Frame) -> CallLike | None:
    """The call as one that may be like another. None where it may depend on more than is seen here: a block of a body
    reads that body's names, a formula tensors that it captured, a place may be in use."""
    session = frame.session
    if session.seen is not None or component.place is not None or place.params or place.below:
        return None
    if place.builder is not frame.builder or not session.calls.settled(component):
        return None
    above = () if session.root is None else session.root.params.values()
    shared = {held.value.name for held in (*above, *frame.builder.constants.values())}
    for value, _ in explicit.values():
        if isinstance(value, Tensor):
            if not _free(value, frame, shared):
                return None
        elif not _settled(value):
            return None
    return CallLike(component, frame, node, explicit)


def _free(tensor: Tensor, frame: Frame, shared: set[str]) -> bool:
    """Whether a block can come to this tensor, and its fields, by the call alone: not by a name of its file.

    shared: names of values that a block can come to otherwise; while a program is written no two values have one name.
    """
    if tensor.home is not frame.builder or tensor.factors is not None or tensor.value.name in shared:
        return False
    return tensor.value not in frame.builder.products and all(_free(f, frame, shared) for f in tensor.fields.values())


def _key(call: CallLike) -> object:
    component, frame = call.component, call.frame
    inputs = tuple(call.explicit)
    own = identity(component.block), identity(component.scope), identity(frame.builder)
    return *own, len(frame.active), inputs, frame.site is None


def _settled(value: Meaning) -> bool:
    """Whether it says the same wherever it is asked."""
    match value:
        case bool() | int() | float() | str() | Dim() | DType() | Init() | Builtin() | Nothing():
            return True
        case Kept() | FormatKind() | Fit():
            return True
        case tuple():
            return all(map(_settled, value))
        case Component():
            outside = value.place is None and isinstance(value.scope, FileScope)
            return outside and all(_settled(c.value) for c in value.changes)
        case RoleRef():
            return isinstance(value.scope, FileScope)
        case Formula():
            return not any(isinstance(node, Read) for node in walk(value.expr))
    return False


def _same(x: object, y: object) -> bool:
    """Whether two elements, or two numbers, are one; tensors and lists of them never are."""
    if x is y or type(x) is not type(y):
        return x is y
    return repr(x) == repr(y) if isinstance(x, float) else isinstance(x, (bool, int, str, Dim)) and x == y


def _distinct(values: Values) -> bool:
    return len({v.name for v in values.values()}) == len(values)
