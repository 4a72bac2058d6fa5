"""Components made of others: `KIND name = base { .. }`."""

from dataclasses import replace

from tfc.diagnostics import Edit, closest
from tfc.grammar import ast
from tfc.grammar.lowering.evaluate import derive, evaluate
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import Component, Meaning, describe
from tfc.source import Span

__all__ = ["component_of"]


def component_of(item: ast.Declaration, frame: Frame) -> Component:
    """`KIND name = base { changes }`: the base, or the kind's own component, with changes."""
    kind = None if item.kind in ("block", "model") else _kind(item, frame)
    if item.base is None:
        if kind is None:
            fail("E205", f"a {item.kind} is derived from another: `{item.kind} {item.name} = ..`", item.span)
        base: Meaning = kind
    else:
        base = evaluate(item.base, frame)
        if not isinstance(base, Component):
            fail(
                "E305",
                f"`{item.base.span.text}` is {describe(base)}; it cannot be derived from",
                frame.at(item.base.span),
            )
        if kind is not None and base.block is not kind.block:
            fail(
                "E205", f"`{item.base.span.text}` is of the kind `{base.block.name}`, not `{item.kind}`",
                item.base.span,
                help=f"write `{base.block.name} {item.name} = ..`, or `block {item.name} = ..` for any block",
                edits=(Edit(_kind_span(item), base.block.name),),
            )  # fmt: skip
    return replace(derive(base, item.changes, item.span, frame), name=item.name)


def _kind_span(item: ast.Declaration) -> Span:
    start = item.span.start
    if item.doc is not None:
        found = item.span.text.find(f"{item.kind} {item.name}")
        start += max(found, 0)
    return Span(item.span.source, start, start + len(item.kind))


def _kind(item: ast.Declaration, frame: Frame) -> Component:
    value = frame.scope.find(item.kind)
    if isinstance(value, Component):
        return value
    kinds = [n for n in frame.scope.known() if isinstance(n, str)]
    near = closest(item.kind, kinds)
    span = _kind_span(item)
    what = "is not known" if value is None else f"is {describe(value)}"
    fail("E205", f"the kind `{item.kind}` {what}", span, help=f"did you mean `{near}`?" if near else "",
         edits=(Edit(span, near),) if near else ())  # fmt: skip
