"""A call of a block: its inputs bound, its body run in a scope of its own, under the place that the call opens."""

from collections.abc import Sequence

from tfc.diagnostics import Edit, Note, closest
from tfc.grammar import ast
from tfc.grammar.lowering.again import call_like
from tfc.grammar.lowering.changes import change_inside, check_reached, reach_in
from tfc.grammar.lowering.choices import check_chosen
from tfc.grammar.lowering.evaluate import argument
from tfc.grammar.lowering.inputs import bind_type
from tfc.grammar.lowering.replay import Mark
from tfc.grammar.lowering.scope import FileScope, Scope
from tfc.grammar.lowering.segments import head, segments
from tfc.grammar.lowering.session import Frame, counted, fail, is_library
from tfc.grammar.lowering.statements import run_body
from tfc.grammar.lowering.values import Change, Component, Meaning, Place, Tensor
from tfc.source import Span

__all__ = ["Changes", "apply", "bind_input", "inline", "inside", "with_lets"]

Changes = dict[tuple[str, ...], Change]
Explicit = dict[str, tuple[Meaning, Span]]


def inline(component: Component, node: ast.Call, label: str | None, callee: ast.Expr, frame: Frame) -> Meaning:
    """The value of a call: the block's body, run in a scope of its own under the place that the call opens."""
    frame.session.count("calls", frame.at(node.span))
    segment = label or _segment_name(callee)
    if component.place is None:  # else its declaration was changed
        component = reach_in(component, segment, frame)
    explicit = _arguments(component, node.arguments, frame)
    place = _open(component, segment, label, node, callee, frame)
    like = call_like(component, explicit, place, node, frame)
    if like is None:
        return apply(component, explicit, place, segment, node, frame)
    made = len(frame.builder.eqns)
    value: Meaning | None = frame.session.calls.again(like, place)
    if value is None:
        mark = Mark.of(frame)
        value = _run(component, explicit, place, node, frame)
        frame.session.calls.keep(like, mark, place, value)
    _named(value, segment, made, frame)
    return value


def apply(
    component: Component, explicit: Explicit, place: Place, segment: str, node: ast.Call, frame: Frame
) -> Meaning:
    """A block's body with these arguments, its parameters in that place; node is the call that asks for it."""
    made = len(frame.builder.eqns)
    value = _run(component, explicit, place, node, frame)
    _named(value, segment, made, frame)
    return value


def _named(value: Meaning, segment: str, made: int, frame: Frame) -> None:
    """What a call gives is called as the call is; `made` is how many equations there were before."""
    if isinstance(value, Tensor) and len(frame.builder.eqns) > made:
        frame.builder.rename(value, segment)


def _run(component: Component, explicit: Explicit, place: Place, node: ast.Call, frame: Frame) -> Meaning:
    block = component.block
    given = (_arguments_of_defaults(block, frame), {c.path: c for c in component.changes})
    scope = Scope(with_lets(component, given[1]))
    inner_site = frame.site if is_library(node.span.source) else node.span
    inner = Frame(
        session=frame.session, scope=scope, place=place, builder=frame.builder,
        site=inner_site if is_library(block.span.source) else None,
        inside=(*inside(block, given[0]), *inside(block, given[1])), active=frame.enter(block, node.span),
    )  # fmt: skip
    for wanted in block.inputs:
        bind_input(wanted, explicit, given, component, inner, node.span)
    if frame.session.seen is not None:
        frame.session.seen.open(node, place, component)
        frame.session.seen.enter(block, place, scope)
    value = run_body(block.body, inner, block)
    check_reached(inner, component.name)
    return value


def _segment_name(callee: ast.Expr) -> str:
    match callee:
        case ast.Name(id=name) | ast.Attribute(name=name):
            return name
    fail("E305", f"`{callee.span.text}` has no name that its weights could be kept under", callee.span,
         help="declare it: `KIND name = ..`")  # fmt: skip


def _open(
    component: Component, segment: str, label: str | None, node: ast.Call, callee: ast.Expr, frame: Frame
) -> Place:
    """The place of this use: its declaration's, else a new one named by label or callee, numbered when taken."""
    if component.place is not None:
        if label:
            span = node.callee.span
            fail(
                "E208", f"`{component.name}` is declared in a body and owns its weights; a label would change nothing",
                span, help="leave the label out", edits=(Edit(span, callee.span.text),),
            )  # fmt: skip
        if component.place.home is not None:
            fail("E407", f"`{component.name}` is routed elsewhere: its weights exist in copies; no call chooses one",
                 node.span, help="declare another for calls, or call a recipe")  # fmt: skip
        return component.place
    return frame.open(segment, node.callee, label, callee.span.text)


def _arguments(
    component: Component, arguments: Sequence[ast.Argument], frame: Frame
) -> dict[str, tuple[Meaning, Span]]:
    """What the call itself gives, by input."""
    block = component.block
    inputs = [i.name for i in block.inputs]
    out: Explicit = {}
    position = 0
    for arg in arguments:
        name = arg.name
        if name is None:
            if position >= len(inputs):
                fail(
                    "E207", f"`{component.name}` takes {counted(len(inputs), 'input')}, not {position + 1}",
                    frame.at(arg.span), help=f"{block.name}({', '.join(inputs)})",
                    notes=(Note("it is declared here", head(block)),),
                )  # fmt: skip
            name, position = inputs[position], position + 1
        elif name not in inputs:
            _no_input(name, arg, component, inputs, frame)
        if name in out:
            fail("E214", f"`{name}` is given twice", frame.at(arg.span), notes=(Note("first here", out[name][1]),))
        out[name] = (argument(name, arg.value, frame), frame.blame(arg.value) if frame.site else arg.value.span)
    return out


def _no_input(name: str, arg: ast.Argument, component: Component, inputs: Sequence[str], frame: Frame) -> None:
    near = closest(name, inputs)
    span = Span(arg.span.source, arg.span.start, arg.span.start + len(name))
    fail(
        "E204", f"`{component.name}` has no input `{name}`", frame.at(span),
        help=f"did you mean `{near}`?" if near else f"it has {', '.join(inputs)}",
        edits=(Edit(span, near),) if near else (), notes=(Note("it is declared here", head(component.block)),),
    )  # fmt: skip


def _arguments_of_defaults(block: ast.Block, frame: Frame) -> Changes:
    """What `default KIND { .. }` says of this kind, later ones first asked."""
    return {c.path: c for kind, changes in frame.session.defaults if kind is block for c in changes}


def bind_input(
    wanted: ast.Parameter, explicit: Explicit, given: tuple[Changes, Changes],
    component: Component, inner: Frame, at: Span,
) -> None:  # fmt: skip
    """One input: from the call, else the component, else `default KIND`, else the signature; then changes inside it."""
    name, scope = wanted.name, inner.scope
    defaults, changes = given
    found = next((c[(name,)] for c in (changes, defaults) if (name,) in c), None)
    if name in explicit:
        value, span = explicit[name]
    elif found is not None:
        value, span = found.value, found.span
    elif wanted.default is not None:
        value, span = argument(name, wanted.default, inner), wanted.default.span
        if inner.site and isinstance(wanted.default, ast.Name):
            span = scope.origin(wanted.default.id) or span
    else:
        shown = f"`{name}`" if wanted.type is None else f"`{name}: {wanted.type.span.text}`"
        fail("E206", f"`{component.name}` needs {shown}", inner.at(at),
             help=f"give it in the call, or as an attribute: `{component.name} {{ {name} = .. }}`",
             notes=(Note("it is declared here", wanted.span),))  # fmt: skip
    for source in (defaults, changes):
        for path, change in source.items():
            if path[0] == name and len(path) > 1:
                value, span = change_inside(value, path[1:], change, name), change.span
    if wanted.type is not None:
        bind_type(wanted, value, span, inner)
    scope.bind(name, value, span)


def with_lets(component: Component, changes: Changes) -> Scope:
    """The scope a block was declared in; with other values for `let`s of its file where a derivation says so."""
    inputs = {i.name for i in component.block.inputs}
    if all(path[0] in inputs for path in changes):
        return component.scope
    inner = set(segments(component.block))
    at: Scope | None = component.scope
    while at is not None and not isinstance(at, FileScope):
        at = at.parent
    if at is None or component.scope is not at:
        return component.scope
    lets = {p[0]: (c.value, c.span) for p, c in changes.items() if len(p) == 1 and p[0] not in {*inputs, *inner}}
    lets = {name: v for name, v in lets.items() if name in set(at.lets())}
    for name, (value, span) in lets.items():
        at.own(name)  # a choice says what it offers when it is evaluated
        if name in at.choices:
            check_chosen(name, value, at.choices[name], span)
    return at.override(lets) if lets else at


def inside(block: ast.Block, changes: Changes) -> tuple[Change, ...]:
    """Changes that name a segment of the body rather than an input."""
    inputs = {i.name for i in block.inputs}
    if all(path[0] in inputs for path in changes):
        return ()
    inner = set(segments(block))
    return tuple(c for c in changes.values() if c.path[0] not in inputs and c.path[0] in inner)
