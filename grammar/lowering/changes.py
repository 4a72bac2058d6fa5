"""Changes of a derivation that reach inside: `q.biased = yes` into the component given for `q`, or into a body."""

from collections.abc import Collection
from dataclasses import replace

from tfc.diagnostics import Edit, closest
from tfc.grammar.lowering.segments import did_you_mean, segments
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import Change, Component, Meaning, describe

__all__ = ["change_inside", "check_reached", "reach_in"]


def change_inside(value: Meaning, path: tuple[str, ...], change: Change, name: str) -> Meaning:
    """`q.biased = yes`: the component given for `q`, changed."""
    if not isinstance(value, Component):
        fail("E305", f"`{name}` is {describe(value)}; it has no attribute `{path[0]}`", change.span)
    kept = tuple(c for c in value.changes if c.path[: len(path)] != path)
    inputs = [i.name for i in value.block.inputs]
    if path[0] not in inputs and path[0] not in segments(value.block):
        near, at = closest(path[0], inputs), change.key(path[0])
        edits = (Edit(at, near),) if near else ()
        fail("E204", f"`{name}` has no attribute `{path[0]}`", at, help=did_you_mean(near), edits=edits)
    return replace(value, changes=(*kept, Change(path, change.value, change.span, change.setting)))


def check_reached(inner: Frame, what: str, seen: Collection[str] | None = None) -> None:
    """Every change that reaches into a body must have met what it names there. `seen`: what the body's turns met."""
    for change in inner.inside:
        if change.path[0] in (inner.seen_inside if seen is None else seen):
            continue
        known, at = sorted(inner.uses), change.key(change.path[0])
        near = closest(change.path[0], known)
        have = did_you_mean(near) if near else f"it has {', '.join(known)}" if known else ""
        edits = (Edit(at, near),) if near else ()
        fail("E204", f"nothing in `{what}` is called `{change.path[0]}`", at, help=have, edits=edits)


def reach_in(component: Component, segment: str, frame: Frame) -> Component:
    """The component a segment stands for, changed where a derivation of the body around it reaches in."""
    for change in frame.inside:
        if change.path[0] != segment:
            continue
        frame.seen_inside.add(segment)
        if len(change.path) == 1:
            if not isinstance(change.value, Component):
                fail("E305", f"`{segment}` is a component; {describe(change.value)} is given", change.span)
            component = change.value
        else:
            changed = change_inside(component, change.path[1:], change, segment)
            assert isinstance(changed, Component)
            component = changed
    return component
