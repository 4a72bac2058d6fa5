"""The statements of a body, one after another: each binds a name, declares what the body owns, or loops."""

from collections.abc import Sequence
from dataclasses import replace

from tfc.diagnostics import Diagnostic, Edit, Note
from tfc.grammar import ast
from tfc.grammar.lowering.algebra import tensor_of
from tfc.grammar.lowering.assemble import Builder
from tfc.grammar.lowering.changes import reach_in
from tfc.grammar.lowering.components import component_of
from tfc.grammar.lowering.equations import index_equation
from tfc.grammar.lowering.evaluate import evaluate
from tfc.grammar.lowering.loops import repeat
from tfc.grammar.lowering.params import declare_param
from tfc.grammar.lowering.scope import RESERVED, check_inputs, reserved
from tfc.grammar.lowering.segments import head, names_read
from tfc.grammar.lowering.session import Frame, Use, fail, is_library
from tfc.grammar.lowering.values import NOTHING, POISON, Component, Failed, Meaning, Place, Poisoned, RoleRef, Tensor
from tfc.ir.types import Dim

__all__ = ["run_body"]


def run_body(body: Sequence[ast.Item], frame: Frame, block: ast.Block | None = None) -> Meaning:
    """Run statements in order; the value of `return`, none for the body of a loop.

    In the user's own text a faulty statement does not stop the rest.
    """
    value: Meaning | None = None
    for i, item in enumerate(body):
        if value is not None:
            fail("E212", "nothing after `return` is reached", frame.at(item.span), help="move it up, or remove it",
                 edits=(Edit(item.span, ""),))  # fmt: skip
        try:
            if isinstance(item, ast.Return):
                value = POISON
                value = evaluate(item.value, frame)
            else:
                statement(item, frame, tuple(body[i + 1 :]))
                if frame.session.seen is not None and not is_library(item.span.source):
                    _note(item, frame)
        except Failed as failed:
            if frame.site is not None:
                raise Failed(_with_settings(failed.diagnostic, item, frame)) from None
            frame.session.report(failed.diagnostic)
            _poison(item, frame)
        except Poisoned:
            _poison(item, frame)
    if value is None:
        if block is None:
            return NOTHING
        fail(
            "E212",
            f"the {block.kind} `{block.name}` returns nothing",
            frame.at(head(block)),
            help="end it with `return x`",
        )
    if value is POISON:
        raise Poisoned
    return value


def _with_settings(found: Diagnostic, item: ast.Item, frame: Frame) -> Diagnostic:
    """A complaint about a statement of the library, with the numbers that the user gave and it reads as notes."""
    if found.span is not None and is_library(found.span.source) and frame.site is not None:
        note = Note("this is the library's text", found.span)
        found = replace(found, span=frame.site, notes=(note, *found.notes), edits=())
    if found.span != frame.site:
        return found  # it has a place of its own in the user's text
    seen = {n.span for n in found.notes}
    read = names_read(item)
    notes = []
    for name, value in frame.scope.names.items():
        origin = frame.scope.origins.get(name)
        if (
            (name not in read and f"`{name}`" not in found.message)
            or origin is None
            or origin in seen
            or is_library(origin.source)
        ):
            continue
        if isinstance(value, int | float | Dim) and not isinstance(value, bool):
            notes.append(Note(f"`{name}` is {value}, from here", origin))
            seen.add(origin)
    return replace(found, notes=(*found.notes, *notes))


def _poison(item: ast.Item, frame: Frame) -> None:
    """What the statement would have named cannot be used, and is not complained about again."""
    names: Sequence[str] = ()
    match item:
        case ast.Equation(target=name) | ast.Declaration(name=name) | ast.ParamDecl(name=name):
            names = (name,)
        case ast.Let(bindings=bindings):
            names = tuple(b.name for b in bindings)
        case ast.Repeat(body=body):
            names = tuple(t.target for t in body if isinstance(t, ast.Equation))
    for name in names:
        frame.scope.bind(name, POISON, item.span)


def statement(item: ast.Item, frame: Frame, rest: tuple[ast.Item, ...]) -> None:
    """One statement of a body other than `return`."""
    match item:
        case ast.Equation(target=target, indices=None):
            before = len(frame.builder.eqns)
            value = evaluate(item.value, frame)
            if isinstance(value, Tensor):
                if len(frame.builder.eqns) > before:  # else it is what it was: `x = rounded(x, none)`
                    frame.builder.rename(value, target)
                if not is_library(item.span.source):
                    value = value.at(item.span)
            frame.scope.bind(target, value, item.span)
        case ast.Equation(target=target):
            value = index_equation(item, frame)
            frame.scope.bind(target, value.at(frame.at(item.span)), item.span)
        case ast.Let(bindings=bindings):
            for binding in bindings:
                if binding.name in RESERVED:
                    frame.session.report(reserved(binding.name, binding.span))
                frame.scope.bind(binding.name, evaluate(binding.value, frame), binding.value.span)
        case ast.Declaration():
            made = component_of(item, frame)
            made = reach_in(made, item.name, frame)
            place = _declare(item, frame)
            frame.scope.bind(item.name, replace(made, place=place), item.span)
        case ast.ParamDecl():
            declare_param(item, frame)
        case ast.Role():
            for fault in check_inputs(item):
                frame.session.report(fault)
            frame.scope.bind(item.name, RoleRef(item, frame.scope), item.span)
        case ast.Block():
            frame.scope.bind(item.name, Component(item, frame.scope, item.name), item.span)
        case ast.Repeat():
            repeat(item, frame, rest, run_body)
        case ast.Report():
            _report(item, frame)
        case _:
            fail("E305", f"`{type(item).__name__.lower()}` stands at the top of a file, not in a body", item.span)


def _note(item: ast.Item, frame: Frame) -> None:
    """Tell the editor's record what the statement has bound."""
    seen = frame.session.seen
    assert seen is not None
    match item:
        case ast.Equation(target=name) | ast.Declaration(name=name):
            seen.bind(item, name, frame.scope.names.get(name))
        case ast.Let(bindings=bindings):
            for binding in bindings:
                seen.bind(item, binding.name, frame.scope.names.get(binding.name))
    if isinstance(item, ast.Declaration) and item.name in frame.place.below:
        made = frame.scope.names.get(item.name)
        seen.open(item, frame.place.below[item.name], made if isinstance(made, Component) else None)


def _report(item: ast.Report, frame: Frame) -> None:
    """A side output, under the path of the body."""
    at: Builder | None = frame.builder
    while at is not None:
        if at.routed:
            fail("E305", f"`report {item.name}` in something routed: only some tokens reach it", item.span,
                 help="report beside the `route`, of the choices or of what it gives")  # fmt: skip
        at = at.parent
    if item.name in frame.reported:
        notes = (Note("it is reported first here", frame.reported[item.name]),)
        fail("E202", f"`{item.name}` is reported twice", item.span, notes=notes)
    value = evaluate(item.value, frame)
    frame.reported[item.name] = item.span
    frame.builder.report(frame.place.join(item.name), tensor_of(value, item.value.span, frame))


def _declare(item: ast.Declaration, frame: Frame) -> Place:
    taken = frame.uses.get(item.name)
    if taken is not None:
        fail("E202", f"`{item.name}` names weights of this body already", item.span, notes=(Note("here", taken.span),))
    place = frame.place.under(item.name)
    frame.uses[item.name] = Use(item.span, place)
    return place
