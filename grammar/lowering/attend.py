"""`attend(q, k, v, ..)` -> rotations, scores, score, mask, weights and mix; formulas bound to slots and fields."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tfc.diagnostics import Edit, Note
from tfc.formula.expr import Apply, Const, Expr, Field, Kind, Read, Var, kind_of, substitute, walk
from tfc.grammar import ast
from tfc.grammar.lowering.algebra import formula_of
from tfc.grammar.lowering.bound import Sides, bind, positions_of
from tfc.grammar.lowering.numbers import whole
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import NOTHING, Formula, Given, Tensor, describe
from tfc.ir.ops import Dropout, Index, Masked, Mix, Rotate, S, Score, Scores, Weigh, follows_mask
from tfc.ir.types import Size
from tfc.source import Span

__all__ = ["attend", "carried", "drop", "mix", "rotate", "weights"]


def carried(q: Tensor) -> Mapping[str, Tensor]:
    """The fields that a mixer's result has: those of the queries, but for fields with axes of their own, which were
    made for the formulas of this mixer and would meet others of the same name."""
    return {name: held for name, held in q.fields.items() if held.type.rank <= 2}


def attend(q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Given], node: ast.Call, frame: Frame) -> Tensor:
    """q [B, N, H, D], k [B, M, G, D], v [B, M, G, Dv] -> [B, N, H, Dv], one operation for each step."""
    _check_keys(q, k, node.span, frame)
    _check_values(k, v, node.span, frame)
    w = weights(q, k, options, node, frame)
    if "dropout" in options:
        w = drop(w, options["dropout"], node, frame, "dropout")
    return mix(w, v, node, frame, carried(q))


def drop(x: Tensor, rate: Given, node: ast.Call, frame: Frame, path: str = "dropped") -> Tensor:
    """x with a share of its elements left out where a call has a key; itself where the share is 0.

    path: where this happens, below the place of the body; numbered where there are several.
    """
    share = rate.value
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < 1:
        shown = f"{share:g}" if isinstance(share, int | float) and not isinstance(share, bool) else describe(share)
        fact = f"dropout is a share known while compiling, 0 or more and below 1, not {shown}"
        fail("E305", fact, frame.at(rate.span))
    if not share:
        return x
    op = Dropout(rate=float(share), path=frame.session.numbered_path(frame.place.join(path)))
    return frame.emit(op, (x,), node.span, "dropped", x.fields)[0]


def weights(q: Tensor, k: Tensor, options: Mapping[str, Given], node: ast.Call, frame: Frame) -> Tensor:
    """q [B, N, H, D], k [B, M, G, D] -> what each query gives each key, [B, H, N, M]: the first half of `attend`.

    options: `scale`, `score`, `mask`, `weigh`, `position`, `rotated`, `pairing`, as far as they are given.
    """
    _check_keys(q, k, node.span, frame)
    sides: Sides = {"q": q, "k": k}
    heads, head_dim = q.type.shape[2:]
    scale = options["scale"].value if "scale" in options else None
    if scale is None:
        scale = float(head_dim) ** -0.5 if isinstance(head_dim, int) else None
    if not isinstance(scale, int | float) or isinstance(scale, bool):
        at = options["scale"].span if "scale" in options else node.span
        fail("E305", f"`scale` is a number known while compiling, not {describe(scale)}", frame.at(at))
    rotated_q, rotated_k = _rotate(sides, options, node, frame)
    (s,) = frame.emit(Scores(scale=float(scale)), (rotated_q, rotated_k), node.span, "scores")
    score = bind("score", options["score"], sides, heads, frame) if "score" in options else None
    mask = bind("mask", options["mask"], sides, heads, frame) if "mask" in options else None
    made = [(score, S, "scored"), (mask, Const(True), "masked")]
    if score is not None and follows_mask(score.expr):
        made.reverse()
    for bound, nothing, hint in made:
        if bound is not None and bound.expr != nothing:
            op = Masked(formula=bound.expr) if bound is mask else Score(formula=_real(bound.expr))
            (s,) = frame.emit(op, (s, *bound.captured), node.span, hint)
    weigh = bind("weigh", options["weigh"], sides, heads, frame) if "weigh" in options else None
    last = Weigh(formula=_real(weigh.expr)) if weigh is not None else Weigh()
    w, lse = frame.emit(last, (s, *(weigh.captured if weigh is not None else ())), node.span, "weights")
    frame.builder.hints[lse.value.name] = "lse"
    return w


def mix(w: Tensor, v: Tensor, node: ast.Call, frame: Frame, fields: Mapping[str, Tensor] | None = None) -> Tensor:
    """w [B, H, N, M], v [B, M, G, Dv] -> the values weighed, [B, N, H, Dv]: the second half of `attend`.

    fields: those of the queries, which the result's tokens are.
    """
    if w.type.rank != 4 or not w.type.dtype.floating:
        fail(
            "E401", f"`mix` takes weights as [batch, heads, queries, keys]; they are {w.type}", frame.at(node.span),
            help="`weights(q, k)` makes them", notes=(Note("they are made here", w.span),),
        )  # fmt: skip
    _check_heads("mix", "v", v, node.span, frame)
    if (w.type.shape[0], w.type.shape[3]) != v.type.shape[:2]:
        notes = (Note(f"the weights are {w.type}, from here", w.span), Note(f"v is {v.type}, from here", v.span))
        fail("E401", f"weights {w.type} do not fit v {v.type}: batch and keys must agree", frame.at(node.span),
             notes=notes)  # fmt: skip
    _check_groups(w.type.shape[1], v.type.shape[2], w, v, node.span, frame)
    return frame.emit(Mix(), (w, v), node.span, "mixed", fields)[0]


def _real(expr: Expr) -> Expr:
    """Scores and weights are real, also where a formula of whole numbers gives them."""
    return expr if kind_of(expr) is Kind.REAL else Apply("mul", (expr, Const(1.0)))


def _check_heads(function: str, name: str, x: Tensor, span: Span, frame: Frame) -> None:
    if x.type.rank != 4 or not x.type.dtype.floating:
        fail(
            "E401", f"`{function}` takes {name} as [batch, time, heads, head_dim]; it is {x.type}", frame.at(span),
            help="`split(x, heads)` makes heads of channels", notes=(Note("it is made here", x.span),),
        )  # fmt: skip


def _check_keys(q: Tensor, k: Tensor, span: Span, frame: Frame) -> None:
    for name, x in (("q", q), ("k", k)):
        _check_heads("attend", name, x, span, frame)
    if (q.type.shape[0], q.type.shape[3]) != (k.type.shape[0], k.type.shape[3]) or q.type.dtype is not k.type.dtype:
        notes = (Note(f"q is {q.type}, from here", q.span), Note(f"k is {k.type}, from here", k.span))
        fail(
            "E401",
            f"q {q.type} does not fit k {k.type}: batch, head_dim and type must agree",
            frame.at(span),
            notes=notes,
        )
    _check_groups(q.type.shape[2], k.type.shape[2], q, k, span, frame)


def _check_values(k: Tensor, v: Tensor, span: Span, frame: Frame) -> None:
    _check_heads("attend", "v", v, span, frame)
    if v.type.shape[:3] != k.type.shape[:3]:
        notes = (Note(f"k is {k.type}, from here", k.span), Note(f"v is {v.type}, from here", v.span))
        fail(
            "E401", f"k {k.type} does not fit v {v.type}: all but the last size must agree", frame.at(span), notes=notes
        )


def _check_groups(heads: Size, groups: Size, q: Tensor, k: Tensor, span: Span, frame: Frame) -> None:
    if not (isinstance(heads, int) and isinstance(groups, int)):
        fail("E406", f"{heads} heads over {groups}: both must be known while compiling", frame.at(span))
    if groups < 1 or heads % groups:
        fits = [n for n in range(1, min(heads, 10_000) + 1) if heads % n == 0][:40]
        near = max((n for n in fits if n <= groups), default=1)
        at = k.chosen or k.span
        edits = (Edit(at, str(near)),) if at.text.replace("_", "") == str(groups) else ()
        fail(
            "E404", f"{heads} heads do not divide into {groups} kv_heads", at,
            help=f"kv_heads may be {', '.join(map(str, fits))}", edits=edits,
            notes=(Note(f"the {heads} heads come from here", q.chosen or q.span),),
        )  # fmt: skip


# ---- positions


def rotate(x: Tensor, options: Mapping[str, Given], node: ast.Call, frame: Frame) -> Tensor:
    """x [B, T, H, D] turned by the position formula, what `attend` does with q and k; itself where there is none."""
    _check_heads("rotate", "x", x, node.span, frame)
    return _turned((("x", x, 0),), options, node, frame)[0]


def _rotate(sides: Sides, options: Mapping[str, Given], node: ast.Call, frame: Frame) -> tuple[Tensor, Tensor]:
    """q and k turned by the position formula, where there is one (arXiv:2104.09864)."""
    shift = sides["k"].type.shape[1] - sides["q"].type.shape[1]
    q, k = _turned((("q", sides["q"], shift), ("k", sides["k"], 0)), options, node, frame)
    return q, k


def _turned(
    sequences: Sequence[tuple[str, Tensor, Size]], options: Mapping[str, Given], node: ast.Call, frame: Frame
) -> list[Tensor]:
    """Sequences of one head_dim, each with its name and what is added to its positions, turned by one formula."""
    given, last = options.get("position"), sequences[0][1].type.last
    if given is None or given.value is NOTHING:
        return [x for _, x, _ in sequences]
    dims = last
    if "rotated" in options:
        dims = whole(options["rotated"].value, "`rotated`", frame.at(options["rotated"].span))
    if not isinstance(dims, int) or dims < 0 or dims % 2 or not isinstance(last, int) or dims > last:
        where = options["rotated"].span if "rotated" in options else node.span
        fail("E402", f"{dims} channels of {last} cannot turn in pairs", frame.at(where))
    pairing = options["pairing"].value if "pairing" in options else "half"
    if pairing not in ("half", "interleaved"):
        fail(
            "E305", f'`pairing` is "half" or "interleaved", not {describe(pairing)}', frame.at(options["pairing"].span)
        )
    formula = formula_of(given.value, given.span, frame)
    formula = replace(formula, expr=substitute(formula.expr, {Var("pairs", Kind.INT): Const(dims // 2)}))
    made = []
    for name, x, offset in sequences:
        op, operands = _turn(formula, x, offset, dims, str(pairing), frame)
        made.append(frame.emit(op, (x, *operands), node.span, name, x.fields)[0])
    return made


def _turn(
    formula: Formula, x: Tensor, offset: Size, dims: int, pairing: str, frame: Frame
) -> tuple[Rotate, tuple[Tensor, ...]]:
    """The rotation of one sequence, and its operands: what the angle reads, else the positions where they are given."""
    pos = positions_of(x)
    if any(isinstance(node, Field | Read) for node in walk(formula.expr)) and pos is not None:
        given = substitute(formula.expr, {Var("pos", Kind.INT): Field("q", "pos")})
        formula, offset = replace(formula, expr=given), 0
    bound = bind("position", formula, {"q": x}, x.type.shape[2], frame)
    angle = _real(bound.expr)
    if bound.captured:
        return Rotate(angle=angle, dims=dims, pairing=pairing, offset=offset), bound.captured
    if pos is None:
        return Rotate(angle=angle, dims=dims, pairing=pairing, offset=offset), ()
    return Rotate(angle=angle, dims=dims, pairing=pairing), (_rows(pos, x, frame),)


def _rows(pos: Tensor, x: Tensor, frame: Frame) -> Tensor:
    """Positions as [B, N]: the same for every row where they have one axis."""
    if pos.type.rank == 2:
        return pos
    spread = Index(axes=(("b", x.type.shape[0]), ("t", x.type.shape[1])), expr=Read(0, (Var("t", Kind.INT),), Kind.INT))
    return frame.emit(spread, (pos,), pos.span, "pos")[0]
