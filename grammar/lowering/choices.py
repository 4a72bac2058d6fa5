"""`let kernel = choice(5, 9)` -> a value with alternatives: the first holds, another may be set from outside."""

from collections.abc import Sequence

from tfc.grammar import ast
from tfc.grammar.lowering.evaluate import evaluate
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import Builtin, Meaning, describe, is_number, is_static
from tfc.source import Span

__all__ = ["alternatives", "check_chosen"]


def alternatives(node: ast.Expr, frame: Frame) -> tuple[Meaning, ...] | None:
    """What a `choice` of a `let` offers; None where the value is no choice."""
    match node:
        case ast.Call(callee=ast.Name(id=name), arguments=arguments) if frame.scope.find(name) == Builtin("choice"):
            pass
        case _:
            return None
    if not arguments:
        fail("E206", "`choice` needs what there is to choose from", node.span, help="choice(5, 9)")
    for argument in arguments:
        if argument.name:
            fail("E204", f"`choice` has no input `{argument.name}`", argument.span, help="choice(5, 9)")
    values = tuple(evaluate(a.value, frame) for a in arguments)
    for argument, value in zip(arguments, values, strict=True):
        if not is_static(value):
            fail("E305", f"`choice` offers what is known while compiling, not {describe(value)}", argument.span)
    return values


def check_chosen(name: str, value: Meaning, offered: Sequence[Meaning], span: Span) -> None:
    """A value that is set must be one of those offered."""
    if any(v == value and (type(v) is type(value) or (is_number(v) and is_number(value))) for v in offered):
        return
    shown = " or ".join(describe(v).removeprefix("the number ") for v in offered)
    fail("E308", f"`{name}` is {shown}; {describe(value)} was given", span, help="its `choice` offers no other")
