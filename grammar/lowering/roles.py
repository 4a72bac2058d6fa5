"""What may stand in a formula of each role: implicit variables and their parts, and what can be such a formula."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tfc.diagnostics import closest
from tfc.formula.expr import Apply, Expr, Field, Kind, Read, Reduce, Side, Token, Var
from tfc.grammar import ast
from tfc.grammar.lowering.algebra import formula_of, leaf
from tfc.grammar.lowering.scope import IMPLICIT
from tfc.grammar.lowering.segments import names_read
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import NOTHING, Formula, Meaning, Tensor, describe
from tfc.ir.ops import ROW
from tfc.ir.types import Dim
from tfc.source import Span

__all__ = ["LEADING", "VECTOR", "check_reads", "checked_role", "dot", "element", "implicit", "part_of_implicit"]


_VARIABLES = {
    "s": Kind.REAL, "p": Kind.REAL, "u": Kind.REAL, "h": Kind.INT, "pos": Kind.INT, "c": Kind.INT, "pairs": Kind.INT,
}  # fmt: skip

LEADING = Var("..", Kind.INT)
"""`..` among the indices of a field: the head where the field has heads, else nothing. Gone once fields are bound."""

VECTOR = "u"
"""An element `u[d]` of a feature's vector is `Field("q", VECTOR, (LEADING, d))` until the formula is applied."""


def implicit(node: ast.Name, frame: Frame) -> Formula:
    """An implicit variable of the role, where the formula around it has it too."""
    if node.id not in frame.allowed:
        have = ", ".join(sorted(frame.allowed)) or "none"
        fail("E302", f"`{node.id}` of this {frame.role} has no value here; known are: {have}", frame.at(node.span))
    if node.id in ("q", "k"):
        return leaf(Token("q" if node.id == "q" else "k"), Kind.INT, node.span, frame)
    if node.id == "row":
        fail(
            "E305", "`row` is no number: it has statistics of the query's row", frame.at(node.span),
            help=f"write {', '.join(f'`row.{name}`' for name in _statistics(frame))}",
        )  # fmt: skip
    return leaf(Var(node.id, _VARIABLES[node.id]), _VARIABLES[node.id], node.span, frame)


_OWNERS: dict[str, tuple[tuple[str, Side], ...]] = {
    "position": (("pos", "q"),), "decay": (("q", "q"),),
    **dict.fromkeys(("mask", "score", "weigh"), (("q", "q"), ("k", "k"))),
}  # fmt: skip
"""Role -> the words whose tokens carry fields, and the side that stands for them."""


def part_of_implicit(node: ast.Attribute, frame: Frame) -> Formula | None:
    """`q.segment` and `row.count`, `pos.y` of a position; None where what stands before the point is something else."""
    if not (isinstance(node.value, ast.Name) and frame.role):
        return None
    if node.value.id in frame.bound or node.value.id in frame.indices:
        return None
    side = dict(_OWNERS.get(frame.role, ())).get(node.value.id)
    if side is not None:
        implicit(node.value, frame)
        return leaf(Field(side, node.name), None, node.span, frame)
    if node.value.id != "row" or frame.role not in ("score", "weigh"):
        return None
    if "row" not in frame.allowed:
        implicit(node.value, frame)  # complains
    known = _statistics(frame)
    if node.name not in known:
        near = closest(node.name, known)
        where = "; `lse` is known in weigh formulas" if node.name == "lse" else ""
        help = f"did you mean `row.{near}`?" if near else f"it has {', '.join(known)}{where}"
        fail("E306", f"`row` of a {frame.role} has no `{node.name}`", frame.at(node.span), help=help)
    return leaf(Var(f"row.{node.name}", known[node.name]), known[node.name], node.span, frame)


def _statistics(frame: Frame) -> dict[str, Kind]:
    """The statistics of a row that a formula of this role knows, by the name after the point."""
    return {name.removeprefix("row."): kind for name, kind in ROW.items() if name != "row.lse" or frame.role == "weigh"}


def element(base: Formula, indices: Sequence[Formula], node: ast.Subscript, frame: Frame) -> Formula:
    """`q.lag[h, q - k]` of a field, `u[d]` of a feature's vector."""
    match base.expr:
        case Field(side, name, ()):
            expr, kind = Field(side, name, tuple(i.expr for i in indices)), base.kind
        case Var("u", _) if frame.role == "feature":
            if len(indices) != 1:
                fail("E304", f"`u` is a vector: one index, not {len(indices)}", frame.at(node.span))
            expr, kind = Field("q", VECTOR, (LEADING, indices[0].expr)), Kind.REAL
        case _:
            fail("E305", f"`{node.value.span.text}` is a number; it has no elements", frame.at(node.span))
    frame.session.place_of(expr, node.span)
    size, depth = base.size + sum(i.size for i in indices), 1 + max((i.depth for i in indices), default=0)
    return Formula(expr, kind, node.span, size, depth)


def dot(operands: Sequence[tuple[Meaning, Span]], node: ast.Call, frame: Frame) -> Formula:
    """`dot(q.a, k.b)`: `sum[d](q.a[.., d] * k.b[.., d])`, over the last axis of two fields or tables."""
    if not (frame.role and frame.formula):
        fail("E309", "`dot` stands in formulas of attention", frame.at(node.span),
             help="of tensors: an index equation, `y[b, t] = sum[c](a[b, t, c] * d[b, t, c])`")  # fmt: skip
    if len(operands) != 2 or any(a.name for a in node.arguments):
        fail("E207", f"`dot` takes two vectors, not {len(operands)} arguments", frame.at(node.span))
    index = Var("d", Kind.INT)
    parts = []
    for value, span in operands:
        match value:
            case Formula(Field(side, name, ())):
                expr: Expr = Field(side, name, (LEADING, index))
                parts.append(replace(value, expr=expr))
            case Tensor() if value.type.rank in (1, 2) and value.type.dtype.floating:
                leading = (Var("h", Kind.INT),) if value.type.rank == 2 else ()
                expr = Read(frame.session.slot(value), (*leading, index), Kind.REAL)
                parts.append(Formula(expr, Kind.REAL, span))
            case _:
                fail("E305", f"`dot` takes a field or a table [D] or [H, D], not {describe(value)}", frame.at(span))
        frame.session.place_of(expr, span)
    body = Apply("mul", (parts[0].expr, parts[1].expr))
    frame.session.place_of(body, node.span)
    whole = Reduce("sum", ("d",), body)
    frame.session.place_of(whole, node.span)
    return Formula(whole, Kind.REAL, node.span, 7, 4)


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
        case _ if value is NOTHING and role in ("position", "feature", "decay"):
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
            help = "choose with `if(condition, 1, 0)`"
            if role in ("score", "weigh"):
                help = "a mask belongs to `mask = ..`; in a score write `if(mask, s, -inf)`"
        fail("E303", f"`{role}` is {wanted}; `{node.span.text}` is {kind}", frame.at(node.span), help=help)
    return value


def check_reads(decl: ast.Role, bound: Mapping[str, Meaning], span: Span, frame: Frame) -> None:
    """A formula within a formula reads only what the outer one has."""
    if not (frame.role or frame.indices):
        return
    lacking = (names_read(decl.formula) & IMPLICIT[decl.role]) - set(bound) - frame.allowed
    if lacking - {i.name for i in decl.inputs}:
        around = f"a {frame.role}" if frame.role else "an index equation"
        shown = ", ".join(f"`{n}`" for n in sorted(lacking))
        help = f"a {decl.role} belongs to `{decl.role} = ..`" if frame.role else "bind it by name: `f(1, s = x)`"
        fail(
            "E303",
            f"`{decl.name}` is a {decl.role}: it reads {shown}, which {around} has not",
            frame.at(span),
            help=help,
        )
