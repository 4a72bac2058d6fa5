"""What may stand in a formula of each role: its implicit variables, and values that can be such a formula."""

from tfc.formula.expr import Kind, Token, Var
from tfc.grammar import ast
from tfc.grammar.lowering.algebra import formula_of, leaf
from tfc.grammar.lowering.session import Frame, fail, refuse
from tfc.grammar.lowering.values import NOTHING, Formula, Meaning, Tensor, describe
from tfc.ir.types import Dim

__all__ = ["checked_role", "implicit"]


_VARIABLES = {"s": Kind.REAL, "p": Kind.REAL, "h": Kind.INT, "pos": Kind.INT, "c": Kind.INT, "pairs": Kind.INT}


def implicit(node: ast.Name, frame: Frame) -> Formula:
    """An implicit variable of the role, where the formula around it has it too."""
    if node.id not in frame.allowed:
        have = ", ".join(sorted(frame.allowed)) or "none"
        fail("E302", f"`{node.id}` of this {frame.role} has no value here; known are: {have}", frame.at(node.span))
    if node.id in ("q", "k"):
        return leaf(Token("q" if node.id == "q" else "k"), Kind.INT, node.span, frame)
    if node.id in _VARIABLES:
        return leaf(Var(node.id, _VARIABLES[node.id]), _VARIABLES[node.id], node.span, frame)
    refuse(f"`{node.id}` in formulas", frame.at(node.span))


def checked_role(role: str, value: Meaning, node: ast.Expr, frame: Frame) -> Meaning:
    """The value, where it can be a formula of that role."""
    kind: Kind | None = None
    match value:
        case Formula():
            kind = value.kind
        case bool():
            kind = Kind.BOOL
        case int() | float():
            kind = Kind.REAL
        case Tensor():
            kind = value.type.dtype.kind
        case _ if value is NOTHING and role == "position":
            return value
        case Dim():
            return formula_of(value, node.span, frame)
        case _:
            fail("E303", f"`{role}` takes a formula, not {describe(value)}", frame.at(node.span))
    if kind is not None and (kind is Kind.BOOL) != (role == "mask"):
        wanted = "a boolean: which keys a query may see" if role == "mask" else "a number"
        help = ""
        if role == "mask":
            help = "a score formula belongs to `score = ..`"
        elif kind is Kind.BOOL:
            help = "a mask belongs to `mask = ..`; in a score write `if(mask, s, -inf)`"
        fail("E303", f"`{role}` is {wanted}; `{node.span.text}` is {kind}", frame.at(node.span), help=help)
    return value
