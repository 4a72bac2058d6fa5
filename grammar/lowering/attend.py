"""`attend(q, k, v, ..)` -> rotations, scores, score, mask, weights and mix; formulas bound to slots and fields."""

from collections.abc import Mapping
from typing import NoReturn

from tfc.diagnostics import Edit, Note
from tfc.formula.expr import (
    Apply,
    Const,
    Expr,
    Field,
    Kind,
    Load,
    Read,
    Side,
    Token,
    Var,
    kind_of,
    rewrite,
    slots,
    substitute,
    walk,
)
from tfc.grammar import ast
from tfc.grammar.lowering.algebra import check_kind, formula_of, kind_given
from tfc.grammar.lowering.numbers import whole
from tfc.grammar.lowering.session import Frame, fail, refuse
from tfc.grammar.lowering.values import NOTHING, Formula, Given, Tensor, describe
from tfc.ir.ops import Index, Masked, Mix, P, Rotate, S, Score, Scores, Weigh
from tfc.ir.types import DType
from tfc.source import Span

__all__ = ["attend"]

Sides = Mapping[Side, Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Given], node: ast.Call, frame: Frame) -> Tensor:
    """q [B, N, H, D], k [B, M, G, D], v [B, M, G, Dv] -> [B, N, H, Dv], one operation for each step."""
    _check_shapes(q, k, v, node.span, frame)
    sides: Sides = {"q": q, "k": k}
    head_dim = q.type.last
    scale = options["scale"].value if "scale" in options else None
    if scale is None:
        scale = float(head_dim) ** -0.5 if isinstance(head_dim, int) else None
    if not isinstance(scale, int | float) or isinstance(scale, bool):
        at = options["scale"].span if "scale" in options else node.span
        fail("E305", f"`scale` is a number known while compiling, not {describe(scale)}", frame.at(at))
    rotated_q, rotated_k = _rotate(sides, options, node, frame)
    (s,) = frame.emit(Scores(scale=float(scale)), (rotated_q, rotated_k), node.span, "scores")
    if "score" in options:
        expr, captured = _bind("score", options["score"], sides, frame)
        if expr != S:
            (s,) = frame.emit(Score(formula=_real(expr)), (s, *captured), node.span, "scored")
    if "mask" in options:
        expr, captured = _bind("mask", options["mask"], sides, frame)
        if expr != Const(True):
            (s,) = frame.emit(Masked(formula=expr), (s, *captured), node.span, "masked")
    expr, captured = _bind("weigh", options["weigh"], sides, frame) if "weigh" in options else (P, ())
    weights, lse = frame.emit(Weigh(formula=_real(expr)), (s, *captured), node.span, "weights")
    frame.builder.hints[lse.value.name] = "lse"
    return frame.emit(Mix(), (weights, v), node.span, "mixed", q.fields)[0]


def _real(expr: Expr) -> Expr:
    """Scores and weights are real, also where a formula of whole numbers gives them."""
    return expr if kind_of(expr) is Kind.REAL else Apply("mul", (expr, Const(1.0)))


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, span: Span, frame: Frame) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.type.rank != 4 or not x.type.dtype.floating:
            fail(
                "E401", f"`attend` takes {name} as [batch, time, heads, head_dim]; it is {x.type}", frame.at(span),
                help="`split(x, heads)` makes heads of channels", notes=(Note("it is made here", x.span),),
            )  # fmt: skip
    if (q.type.shape[0], q.type.shape[3]) != (k.type.shape[0], k.type.shape[3]) or q.type.dtype is not k.type.dtype:
        notes = (Note(f"q is {q.type}, from here", q.span), Note(f"k is {k.type}, from here", k.span))
        fail(
            "E401",
            f"q {q.type} does not fit k {k.type}: batch, head_dim and type must agree",
            frame.at(span),
            notes=notes,
        )
    if v.type.shape[:3] != k.type.shape[:3]:
        notes = (Note(f"k is {k.type}, from here", k.span), Note(f"v is {v.type}, from here", v.span))
        fail(
            "E401", f"k {k.type} does not fit v {v.type}: all but the last size must agree", frame.at(span), notes=notes
        )
    heads, groups = q.type.shape[2], k.type.shape[2]
    if not (isinstance(heads, int) and isinstance(groups, int)):
        fail("E406", f"{heads} heads over {groups}: both must be known while compiling", frame.at(span))
    if groups < 1 or heads % groups:
        fits = [n for n in range(1, heads + 1) if heads % n == 0]
        near = max((n for n in fits if n <= groups), default=1)
        at = k.chosen or k.span
        edits = (Edit(at, str(near)),) if at.text.replace("_", "") == str(groups) else ()
        fail(
            "E404", f"{heads} heads do not divide into {groups} kv_heads", at,
            help=f"kv_heads may be {', '.join(map(str, fits))}", edits=edits,
            notes=(Note(f"the {heads} heads come from here", q.chosen or q.span),),
        )  # fmt: skip


# ---- positions


def _rotate(sides: Sides, options: Mapping[str, Given], node: ast.Call, frame: Frame) -> tuple[Tensor, Tensor]:
    """q and k turned by the position formula, where there is one (arXiv:2104.09864)."""
    q, k = sides["q"], sides["k"]
    given = options.get("position")
    if given is None or given.value is NOTHING:
        return q, k
    dims = q.type.last
    if "rotated" in options:
        dims = whole(options["rotated"].value, "`rotated`", frame.at(options["rotated"].span))
    if not isinstance(dims, int) or dims < 0 or dims % 2 or not isinstance(q.type.last, int) or dims > q.type.last:
        where = options["rotated"].span if "rotated" in options else node.span
        fail("E402", f"{dims} channels of {q.type.last} cannot turn in pairs", frame.at(where))
    pairing = options["pairing"].value if "pairing" in options else "half"
    if pairing not in ("half", "interleaved"):
        fail(
            "E305", f'`pairing` is "half" or "interleaved", not {describe(pairing)}', frame.at(options["pairing"].span)
        )
    formula = formula_of(given.value, given.span, frame)
    angle = _real(substitute(formula.expr, {Var("pairs", Kind.INT): Const(dims // 2)}))
    if slots(angle):
        refuse("a position formula that reads a tensor", frame.at(formula.span))
    shift = k.type.shape[1] - q.type.shape[1]
    made = []
    for name, x, offset in (("q", q, shift), ("k", k, 0)):
        positions = (_positions(x, frame),) if "pos" in x.fields else ()
        op = Rotate(angle=angle, dims=dims, pairing=str(pairing), offset=0 if positions else offset)
        made.append(frame.emit(op, (x, *positions), node.span, name, x.fields)[0])
    return made[0], made[1]


def _positions(x: Tensor, frame: Frame) -> Tensor:
    """The field `pos` as [B, N]: the same for every row where the field has one axis."""
    pos = x.fields["pos"]
    if pos.type.dtype is not DType.I32:
        fail("E301", f"the field `pos` is {pos.type}; positions are whole numbers", pos.span)
    if pos.type.rank == 2:
        return pos
    spread = Index(axes=(("b", x.type.shape[0]), ("t", x.type.shape[1])), expr=Read(0, (Var("t", Kind.INT),), Kind.INT))
    return frame.emit(spread, (pos,), pos.span, "pos")[0]


# ---- formulas


def _bind(role: str, given: Given, sides: Sides, frame: Frame) -> tuple[Expr, tuple[Tensor, ...]]:
    """A formula with its fields and captured tensors as numbered slots, and what the slots hold."""
    formula = formula_of(given.value, given.span, frame)
    loads: dict[Expr, Expr] = {}
    for leaf in walk(formula.expr):
        match leaf:
            case Field(side, name):
                held = sides[side].fields.get(name)
                if held is None:
                    _no_field(leaf, formula.span, sides, frame)
                loads[leaf] = _load(held, side, leaf, frame)
            case Token(side) if "pos" in sides[side].fields:
                loads[leaf] = _load(sides[side].fields["pos"], side, leaf, frame)
    kind = _check_kinds(formula.expr, loads, formula.span, frame)
    if (kind is Kind.BOOL) != (role == "mask"):
        wanted = "a boolean" if role == "mask" else "a number"
        fail("E303", f"`{role}` is {wanted}; `{formula.span.text}` is {kind}", frame.at(formula.span))
    expr = substitute(formula.expr, loads)
    used = tuple(dict.fromkeys(n.slot for n in walk(expr) if isinstance(n, Load | Read)))
    local = {slot: i for i, slot in enumerate(used)}
    return rewrite(expr, lambda n: _numbered(n, local)), tuple(frame.session.captures[i] for i in used)


def _numbered(node: Expr, local: Mapping[int, int]) -> Expr | None:
    match node:
        case Load(slot, side, kind):
            return Load(local[slot], side, kind)
        case Read(slot, indices, kind):
            return Read(local[slot], indices, kind)
    return None


def _load(held: Tensor, side: Side, leaf: Expr, frame: Frame) -> Load:
    if isinstance(leaf, Token) and held.type.dtype is not DType.I32:
        fail("E301", f"the field `pos` is {held.type}; positions are whole numbers", held.span)
    return Load(frame.session.slot(held), side, held.type.dtype.kind)


def _no_field(leaf: Field, default: Span, sides: Sides, frame: Frame) -> NoReturn:
    span = _span_of(leaf, default, frame)
    have = ", ".join(sorted(sides[leaf.side].fields)) or "none"
    what = "queries" if leaf.side == "q" else "keys"
    fail(
        "E306", f"the {what} carry no field `{leaf.name}`; they carry {have}", frame.at(span),
        help=f"set it with `tag(x, {leaf.name} = ..)` on the sequence that attention reads",
        notes=(Note(f"the {what} come from here", sides[leaf.side].span),),
    )  # fmt: skip


def _span_of(node: Expr, default: Span, frame: Frame) -> Span:
    known = frame.session.spans.get(id(node))
    return known[1] if known else default


def _check_kinds(expr: Expr, loads: Mapping[Expr, Expr], default: Span, frame: Frame) -> Kind:
    """kind_of, now that fields have types; a misfit is reported at the part that does not fit."""
    if expr in loads:
        return kind_of(loads[expr])
    if not isinstance(expr, Apply):
        return kind_of(expr)
    parts = [Formula(a, _check_kinds(a, loads, default, frame), _span_of(a, default, frame)) for a in expr.args]
    for part in parts:
        check_kind(expr.fn, part, frame)
    kind = kind_given(expr.fn, parts, _span_of(expr, default, frame), frame)
    assert kind is not None
    return kind
