"""`repeat N as layer { .. }` -> one Repeat with a body program; over a list of unlike things, turn after turn."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tfc.diagnostics import Note
from tfc.grammar import ast
from tfc.grammar.lowering.again import Turns
from tfc.grammar.lowering.algebra import tensor_of
from tfc.grammar.lowering.assemble import Builder
from tfc.grammar.lowering.changes import check_reached
from tfc.grammar.lowering.evaluate import evaluate
from tfc.grammar.lowering.scope import Scope
from tfc.grammar.lowering.segments import names_read, read_first, targets
from tfc.grammar.lowering.session import LIMITS, Frame, Use, fail, refuse
from tfc.grammar.lowering.sharing import copies, emit_copies
from tfc.grammar.lowering.values import POISON, Component, Meaning, Place, Poisoned, Tensor, describe, is_number
from tfc.ir.ops import REMAT, Repeat
from tfc.ir.program import Precision
from tfc.ir.types import Dim, DType, TensorType

__all__ = ["repeat"]

Items = tuple[ast.Item, ...]
Run = Callable[[Sequence[ast.Item], Frame], Any]


def repeat(item: ast.Repeat, frame: Frame, rest: tuple[ast.Item, ...], run: Run) -> None:
    """The loop; tensors of the body around it that it assigns are carried from turn to turn."""
    over = evaluate(item.over, frame)
    remat = _remat(item)
    if any(isinstance(i, ast.Return) for i in item.body):
        at = next(i.span for i in item.body if isinstance(i, ast.Return))
        fail("E212", "`return` inside `repeat`", at, help="assign a tensor, and return it after the loop")
    place = _place(item, frame)
    if isinstance(over, tuple):
        first = next(iter(over), None)
        if isinstance(first, Component) and all(v == first for v in over):
            _rolled(item, len(over), first, place, frame, rest, run, remat)
        else:
            if remat != "none":
                at = item.settings[-1].span
                what = f"`remat = {remat}` of turns that are unlike one another"
                refuse(what, at, "it needs equal turns, or a number")
            _unrolled(item, over, place, frame, run)
    elif isinstance(over, int) and not isinstance(over, bool):
        if over < 0 or over > LIMITS["turns"]:
            fail("E502", f"{over} turns; 0 to {LIMITS['turns']} are allowed", frame.blame(item.over))
        _rolled(item, over, None, place, frame, rest, run, remat)
    elif isinstance(over, Dim):
        fail(
            "E406", f"the number of turns, {over}, is known only when the model is called", item.over.span,
            help="turns are counted while compiling: `let layers = 12`, `repeat layers as layer`",
        )  # fmt: skip
    else:
        fail("E305", f"`repeat` takes a number or a list, not {describe(over)}", frame.blame(item.over))


def _remat(item: ast.Repeat) -> str:
    """What the loop computes again for gradients; the last setting counts, as everywhere."""
    remat = "none"
    for setting in item.settings:
        name = ".".join(setting.path)
        if name != "remat":
            fail("E204", f"`repeat` has no setting `{name}`", setting.span, help="it has remat")
        remat = setting.value.id if isinstance(setting.value, ast.Name) else ""
        if remat not in REMAT:
            shown = setting.value.span.text
            fail("E305", f"`remat` is {' or '.join(REMAT)}, not `{shown}`", setting.value.span)
    return remat


def _place(item: ast.Repeat, frame: Frame) -> Place:
    taken = frame.uses.get(item.name)
    if taken is not None:
        fail("E202", f"`{item.name}` names weights of this body already", item.span, notes=(Note("here", taken.span),))
    place = frame.place.under(item.name)
    if frame.session.seen is not None:
        frame.session.seen.open(item, place, None)
    frame.uses[item.name] = Use(item.span, place)
    return place


def _reached(item: ast.Repeat, frame: Frame) -> tuple[Any, ...]:
    """Changes that reach into the loop, seen from its body."""
    inside = []
    for change in frame.inside:
        if change.path[0] == item.name:
            frame.seen_inside.add(item.name)
            if len(change.path) == 1:
                fail("E305", f"`{item.name}` is a loop; change something in it: `{item.name}.x = ..`", change.span)
            inside.append(replace(change, path=change.path[1:]))
    return tuple(inside)


def _rolled(
    item: ast.Repeat,
    count: int,
    element: Meaning | None,
    place: Place,
    frame: Frame,
    rest: tuple[ast.Item, ...],
    run: Run,
    remat: str,
) -> None:
    """One Repeat: carries are what a turn leaves for the next or for what follows, invariants are captured."""
    if count == 0:
        return
    carried = _carried(item, frame, rest)
    outer = [_initial(name, frame) for name in carried]
    builder = Builder(frame.builder)
    own = copies(place, builder)
    frame.session.loops[id(builder)] = place.path
    frame.session.builders.append(builder)
    scope = Scope(frame.scope)
    index = builder.input(TensorType((), DType.I32), item.name, item.span)
    scope.bind(item.name, index if element is None else element, item.span)
    for name, start in zip(carried, outer, strict=True):
        made = builder.input(start.type, name, start.span)
        scope.bind(name, replace(made, fields=start.fields, tokens=start.tokens), start.span)
    later = frozenset(names_read(rest) | names_read(item.body)) | frame.later
    inner = replace(
        frame, scope=scope, place=own, builder=builder, uses={}, inside=_reached(item, frame), seen_inside=set(),
        later=later, reported={},
    )  # fmt: skip
    run(item.body, inner)
    check_reached(inner, item.name)
    ends = [_end(name, start, scope, item, frame) for name, start in zip(carried, outer, strict=True)]
    body = builder.finish(item.name, tuple(ends), Precision())
    for name in targets(item.body):
        if name not in carried and frame.scope.find(name) is None:
            frame.scope.lost[name] = item
    if not (carried or body.reports):
        return  # nothing of what the turns make is read
    operands = (*outer, *builder.invariants())
    op = Repeat(count=count, label=item.name, carries=len(carried), body=body, remat=remat)
    outs = emit_copies(op, operands, place, item.span, item.name, frame)
    for name, out, start in zip(carried, outs, outer, strict=False):
        frame.builder.hints[out.value.name] = name
        frame.scope.bind(name, replace(out, fields=start.fields, tokens=start.tokens), item.span)
    for (path, _), out in zip(body.reports, outs[len(carried) :], strict=True):
        frame.builder.hints[out.value.name] = path.rpartition(".")[2]
        frame.builder.report(path, out)


def _carried(item: ast.Repeat, frame: Frame, rest: tuple[ast.Item, ...]) -> list[str]:
    """Names assigned in the loop that exist around it, where a later turn or what follows may read them."""
    later = names_read(rest) | frame.later
    out = []
    for name in targets(item.body):
        exists = frame.scope.find(name)
        if (isinstance(exists, Tensor) or is_number(exists)) and (name in later or read_first(item.body, name)):
            out.append(name)
    return out


def _initial(name: str, frame: Frame) -> Tensor:
    value = frame.scope.find(name)
    span = frame.scope.origin(name)
    assert span is not None and value is not None
    return tensor_of(value, span, frame)


def _end(name: str, start: Tensor, scope: Scope, item: ast.Repeat, frame: Frame) -> Tensor:
    """What a turn leaves in a carried name: of the type that it found, with the fields that it found."""
    value = scope.names[name]
    if value is POISON:
        raise Poisoned
    origin = scope.origins[name]
    end = tensor_of(value, origin, frame) if isinstance(value, Tensor) else None
    if end is None:
        fail("E405", f"`{name}` is {start.type} before a turn and {describe(value)} after it", origin)
    if end.type != start.type:
        fail(
            "E405", f"`{name}` is {start.type} before a turn of `{item.name}` and {end.type} after it", origin,
            help="what goes from turn to turn keeps its sizes and its type",
            notes=(Note(f"it is {start.type} here", start.span),),
        )  # fmt: skip
    if end.tokens != start.tokens:
        now, before = ("a field", "none") if end.tokens else ("no field", "one")
        fail("E405", f"`{name}` is {now} after a turn of `{item.name}` and {before} before it", origin,
             notes=(Note("it enters the loop from here", start.span),))  # fmt: skip
    # fields that a turn adds end with it: the next turn does not find them either
    changed = [n for n, held in start.fields.items() if n not in end.fields or not held.same(end.fields[n])]
    if changed:
        fail("E405", f"the field `{sorted(changed)[0]}` of `{name}` changes in a turn of `{item.name}`", origin,
             help="set fields before the loop", notes=(Note("it enters the loop from here", start.span),))  # fmt: skip
    return end


def _unrolled(item: ast.Repeat, over: tuple[Meaning, ...], place: Place, frame: Frame, run: Run) -> None:
    """One turn after another, each with a place of its own: `layer.0`, `layer.1`, .."""
    inside = _reached(item, frame)
    seen: set[str] = set()
    turns = Turns(item, frame)
    for i, element in enumerate(over):
        frame.session.count("turns written out", frame.at(item.span))
        scope = Scope(frame.scope)
        scope.bind(item.name, element, item.span)
        inner = replace(
            frame, scope=scope, place=place.under(str(i)), uses={}, inside=inside, seen_inside=set(), reported={}
        )  # fmt: skip
        before, first = turns.before(), len(frame.builder.eqns)
        if not turns.again(element, before, inner):
            run(item.body, inner)
            turns.keep(element, before, first, inner)
        seen |= inner.seen_inside
        if i == len(over) - 1:
            check_reached(inner, item.name, seen)
        for name in targets(item.body):
            if name not in scope.names:
                continue
            if frame.scope.find(name) is None:
                frame.scope.lost[name] = item
            else:
                frame.scope.bind(name, scope.names[name], scope.origins[name])
