"""`route(x, f, count, chosen, weight)` -> one Route: f lowered once as a body, its weights once for each copy."""

from dataclasses import replace

from tfc.diagnostics import Edit, Note
from tfc.formula.expr import Const, Expr, Kind, Read, Var
from tfc.grammar import ast
from tfc.grammar.lowering.arguments import Call
from tfc.grammar.lowering.assemble import Builder
from tfc.grammar.lowering.changes import reach_in
from tfc.grammar.lowering.fields import letters
from tfc.grammar.lowering.segments import head, segment_of
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.sharing import copies, emit_copies
from tfc.grammar.lowering.tokenwise import mixes_tokens
from tfc.grammar.lowering.values import Component, Given, Meaning, Place, Tensor, describe
from tfc.ir.ops import Index, Reshape, Route
from tfc.ir.program import Precision, Program
from tfc.ir.types import DType, Size, TensorType

__all__ = ["route"]


def route(c: Call) -> Meaning:
    """Each token through its chosen copies of f; the results weighted and added."""
    x, frame = c.tokens("x"), c.frame
    component = _component(c)
    count = c.size("count", "the number of copies")
    if not isinstance(count, int) or count < 1:
        code = "E402" if isinstance(count, int) else "E406"
        fail(code, f"{count} copies: a number above 0, known while compiling, is asked for", c.blame("count"))
    chosen = _chosen(c, x)
    weight = _weight(c, chosen)
    label = c.node.callee.label if isinstance(c.node.callee, ast.Label) else None
    segment = label or segment_of(c.given["f"].node) or component.name
    if component.place is None:
        component = reach_in(component, segment, frame)
    place = _place(component, segment, label, c)
    builder = Builder(frame.builder, routed=True)
    own = copies(place, builder)
    frame.session.loops[id(builder)] = place.path
    frame.session.builders.append(builder)
    builder.input(TensorType((), DType.I32), "copy", c.span)
    inside = replace(builder.input(x.type, "x", x.span), fields=x.fields)
    result = _run(component, inside, own, segment, replace(frame, builder=builder, uses={}), c)
    name = place.path.rpartition(".")[2]
    body = builder.finish(name, (result,), Precision())
    _check(body, component, x, c)
    op = Route(count=count, label=name, body=body)
    (out,) = emit_copies(op, (x, chosen, weight, *builder.invariants()), place, c.span, segment, frame)
    return replace(out, fields=x.fields)


def _component(c: Call) -> Component:
    value = c.given["f"].value
    if not isinstance(value, Component):
        fail(
            "E305",
            f"`route` takes a component, whose weights it copies; `{c.shown('f')}` is {describe(value)}",
            c.at("f"),
        )
    if not value.block.inputs:
        fail("E207", f"`{value.name}` takes no input; `route` gives it the tokens", c.at("f"),
             notes=(Note("it is declared here", head(value.block)),))  # fmt: skip
    return value


def _place(component: Component, segment: str, label: str | None, c: Call) -> Place:
    """The place of the copies: that of the declaration, where a body declared the component."""
    place = component.place
    if place is None:
        return c.frame.open(segment, c.node.callee, label, "route")
    if label:
        fail("E208", f"`{component.name}` is declared in a body and owns its weights; a label would change nothing",
             c.frame.at(c.node.callee.span), help="leave the label out",
             edits=(Edit(c.node.callee.span, "route"),))  # fmt: skip
    if place.home is None and (made := next(place.owned(), None)) is not None:
        fail("E407", f"`{component.name}` is called elsewhere: its weights exist once, and `route` asks for copies",
             c.at("f"), help="declare another for calls, or call a recipe",
             notes=(Note("they were made here", made.span),))  # fmt: skip
    return place


def _run(component: Component, x: Tensor, place: Place, segment: str, frame: Frame, c: Call) -> Tensor:
    """What one copy gives for the tokens."""
    frame.session.count("calls", frame.at(c.span))
    first = component.block.inputs[0].name
    result = frame.session.apply(component, {first: (x, c.given["x"].span)}, place, segment, c.node, frame)
    if not isinstance(result, Tensor):
        fail("E305", f"`{component.name}` returns {describe(result)}; `route` adds tensors up", c.at("f"))
    if not result.type.dtype.floating or result.type.shape[:2] != x.type.shape[:2]:
        tokens = ", ".join(map(str, x.type.shape[:2]))
        fail("E401", f"`{component.name}` gives {result.type} for the tokens [{tokens}]; `route` adds reals "
             f"[{tokens}, ..] up", c.at("f"), notes=c.made("x"))  # fmt: skip
    return result


def _check(body: Program, component: Component, x: Tensor, c: Call) -> None:
    """A token's result is that token's alone: which copies the others chose must not matter."""
    found = mixes_tokens(body)
    if found is None:
        return
    help = "mix tokens before the `route` or after it"
    if isinstance(found, str):
        fail("E408", f"`{component.name}` is routed, and {found}", c.at("f"), notes=c.made("x"))
    at, notes = found.span or c.at("f"), (Note("it is routed here", c.at("f")),)
    fail("E408", f"`route` gives `{component.name}` the channels of one token; here it reads more: other tokens, "
         "its place among them, or a field", at, help=help, notes=notes)  # fmt: skip


# ---- choices and weights, [B, T, K]


def _chosen(c: Call, x: Tensor) -> Tensor:
    chosen = c.tensor("chosen")
    type, tokens = chosen.type, x.type.shape[:2]
    if type.dtype is not DType.I32:
        fail(
            "E301",
            f"choices are whole numbers; `{c.shown('chosen')}` is {type}",
            c.at("chosen"),
            notes=c.made("chosen"),
        )
    if type.shape == tokens[1:]:
        return _spread(chosen, (Var("t", Kind.INT),), (*tokens, 1), c)
    if type.shape == tokens:
        return c.emit(Reshape(shape=(*tokens, 1)), (chosen,), hint="chosen")
    if type.rank != 3 or type.shape[:2] != tokens:
        shown = ", ".join(map(str, tokens))
        fail("E401", f"`chosen` is int[{shown}] or int[{shown}, K]; `{c.shown('chosen')}` is {type}", c.at("chosen"),
             notes=c.made("x", "chosen"))  # fmt: skip
    return chosen


def _weight(c: Call, chosen: Tensor) -> Tensor:
    """What each choice counts: a number for all, one for each token, or one for each choice."""
    shape = chosen.type.shape
    given: Given | None = c.given.get("weight")
    if given is None or not isinstance(given.value, Tensor):
        op = Index(axes=tuple(zip(letters(3), shape, strict=True)), expr=Const(float(c.number("weight", 1))))
        return c.emit(op, (), hint="weight")
    weight = given.value
    if not weight.type.dtype.floating:
        fail(
            "E301", f"weights are reals; `{c.shown('weight')}` is {weight.type}", c.at("weight"), notes=c.made("weight")
        )
    b, t = Var("b", Kind.INT), Var("t", Kind.INT)
    match weight.type.shape:
        case ():
            return _spread(weight, (), shape, c)
        case own if own == shape[1:2]:
            return _spread(weight, (t,), shape, c)
        case own if own == shape[:2]:
            return _spread(weight, (b, t), shape, c)
        case own if own != shape:
            tokens = ", ".join(map(str, shape[:2]))
            fail(
                "E401", f"`weight` is a number, real[{tokens}] or for each choice real[{', '.join(map(str, shape))}]; "
                f"`{c.shown('weight')}` is {weight.type}", c.at("weight"), notes=c.made("chosen", "weight"),
            )  # fmt: skip
    return weight


def _spread(x: Tensor, indices: tuple[Expr, ...], shape: tuple[Size, ...], c: Call) -> Tensor:
    """The same for all that `indices` leave out."""
    read = Read(0, indices, x.type.dtype.kind)
    return c.emit(Index(axes=tuple(zip(letters(3), shape, strict=True)), expr=read), (x,), hint="spread")
