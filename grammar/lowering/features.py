"""`feature = ..` and `decay = ..` of a recurrence -> index equations: features of vectors, logarithms of decays."""

import math

from tfc.diagnostics import Note
from tfc.formula.expr import Apply, Const, Expr, Field, Kind, Load, Read, Reduce, Token, Var, rewrite, substitute, walk
from tfc.formula.interval import compiled
from tfc.formula.scalar import INT_MAX
from tfc.grammar import ast
from tfc.grammar.lowering.algebra import formula_of
from tfc.grammar.lowering.bound import Bound, bind
from tfc.grammar.lowering.roles import LEADING, VECTOR
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import NOTHING, Formula, Given, Tensor
from tfc.ir.ops import Cast, Index
from tfc.ir.types import DType, Size
from tfc.source import Span

__all__ = ["apply_decay", "apply_feature"]

H, C = Var("h", Kind.INT), Var("c", Kind.INT)
B, T = Var("b", Kind.INT), Var("t", Kind.INT)


def apply_feature(given: Given | None, x: Tensor, node: ast.Call, frame: Frame) -> Tensor:
    """x [B, T, H, D] -> [B, T, H, F] by the feature formula, one operation; x itself where there is none.

    given: what `feature = ..` was given: a formula over `u` (the vector's element, `u[d]` the element d), `c` (the
    feature's own index) and `h`. F is the size of what `c` reads plainly, else D. x's fields are kept.
    """
    if given is None or given.value is NOTHING:
        return x
    if x.type.rank != 4 or not x.type.dtype.floating:
        fail(
            "E401", f"a feature is of [batch, time, heads, head_dim]; this is {x.type}", frame.at(node.span),
            help="`split(x, heads)` makes heads of channels", notes=(Note("it is made here", x.span),),
        )  # fmt: skip
    formula = formula_of(given.value, given.span, frame)
    whole = substitute(formula.expr, {Var("u", Kind.REAL): Field("q", VECTOR, (LEADING, C))})
    formula = Formula(whole, formula.kind, formula.span)
    b, t, heads, width = x.type.shape
    owner = Tensor(x.value, x.home, x.span, {VECTOR: x})
    bound = bind("feature", formula, {"q": owner}, heads, frame, open=("c",))
    features = bound.sizes["c"][0] if "c" in bound.sizes else width
    axes = (("b", b), ("t", t), ("h", heads), ("c", features))
    return _equation(bound, axes, "features", given.span, frame, x)


def apply_decay(given: Given | None, q: Tensor, k: Tensor, node: ast.Call, frame: Frame) -> tuple[str, Tensor | None]:
    """What `decay = ..` was given as (kind, operand) of `Recurrence`: the logarithm, <= 0, of each step's factor.

    ("none", None) without one; ("head", [H]), ("token", [B, T, H]) or ("channel", [B, T, H, K]) by what the formula
    reads: `h` alone; `q` or its fields; `c`, the key channel. A tensor of one of these shapes is taken as it is.
    q, k: [B, T, H, K], after their features. The result is float32 or wider.
    """
    if given is None or given.value is NOTHING:
        return "none", None
    b, t, heads, width = q.type.shape
    if isinstance(given.value, Tensor) and given.value.type.shape:
        return _as_given(given.value, q, given.span, frame)
    formula = formula_of(given.value, given.span, frame)
    bound = bind("decay", formula, {"q": q}, heads, frame, open=("c",))
    found, held = bound.sizes.get("c", (width, q))
    if found != width:
        notes = (Note(f"{width} is a size of {q.type}, from here", q.span),
                 Note(f"{found} is a size of {held.type}, from here", held.span))  # fmt: skip
        fail("E403", f"the key channel `c` ranges over {width} and over {found}", frame.at(given.span), notes=notes)
    _check_sign(bound, heads, width, given.span, frame)
    every, nodes = (("b", b), ("t", t), ("h", heads), ("c", width)), list(walk(bound.expr))
    if C in nodes:
        return "channel", _equation(bound, every, "decay", given.span, frame, None)
    if any(isinstance(n, Token | Load) for n in nodes):
        return "token", _equation(bound, every[:3], "decay", given.span, frame, None)
    return "head", _equation(bound, every[2:3], "decay", given.span, frame, None)


def _as_given(decay: Tensor, q: Tensor, span: Span, frame: Frame) -> tuple[str, Tensor]:
    """A tensor that is the logarithm itself, its kind by its axes."""
    shape = q.type.shape
    wanted = {"head": shape[2:3], "token": shape[:3], "channel": shape}
    kind = next((kind for kind, sizes in wanted.items() if decay.type.shape == sizes), None)
    if kind is None or not decay.type.dtype.floating:
        shown = ", ".join(f"[{', '.join(map(str, sizes))}]" for sizes in wanted.values())
        fail(
            "E401", f"a decay is {shown} of reals; `{span.text}` is {decay.type}", frame.at(span),
            notes=(Note("it is made here", decay.span), Note(f"q is {q.type}, from here", q.span)),
        )  # fmt: skip
    return kind, _wide(decay, span, frame)


def _wide(x: Tensor, span: Span, frame: Frame) -> Tensor:
    """In float32 at least: a decay is summed over all steps, and bf16 would round its factor to 1."""
    if x.type.dtype in (DType.BF16, DType.F16):
        return frame.emit(Cast(dtype=DType.F32), (x,), span, "decay")[0]
    return x


def _equation(
    bound: Bound, axes: tuple[tuple[str, Size], ...], hint: str, span: Span, frame: Frame, x: Tensor | None
) -> Tensor:
    """The bound formula as an index equation over batch, time, head and channel, as far as `axes` has them."""
    captured = bound.captured if x is not None else tuple(_wide(t, span, frame) for t in bound.captured)
    expr = rewrite(bound.expr, lambda n: _of_index(n, captured))
    reduced = tuple((n, bound.sizes[n][0]) for r in walk(expr) if isinstance(r, Reduce) for n in r.indices)
    if bound.kind is Kind.INT:
        expr = _real(expr)
    op = Index(axes=axes, reduced=reduced, expr=expr)
    return frame.emit(op, captured, span, hint, x.fields if x is not None else None)[0]


def _real(expr: Expr) -> Expr:
    return Apply("mul", (expr, Const(1.0)))


def _of_index(node: Expr, captured: tuple[Tensor, ...]) -> Expr | None:
    """A field of the token is read by its batch row and time."""
    match node:
        case Load(slot, _, kind, indices):
            axes = captured[slot].type.rank - len(indices)
            return Read(slot, (*(B, T)[2 - axes :], *indices), kind)
        case Token():
            return T
    return None


def _check_sign(bound: Bound, heads: Size, width: Size, span: Span, frame: Frame) -> None:
    """A decay that is positive wherever it is defined would let the state grow: most likely its log was forgotten."""

    def unknown(node: Expr) -> Expr | None:
        return Var("unknown", node.kind) if isinstance(node, Load | Read) else None

    expr = rewrite(bound.expr, unknown)
    leaves: dict[Expr, int] = {H: 0, C: 1, Token("q"): 2}
    ends = [(0, n - 1 if isinstance(n, int) else INT_MAX) for n in (heads, width)]
    lo, hi = compiled(expr, leaves)([*ends, (0, INT_MAX)])
    if lo > 0:
        most = f" to {hi:.3g}" if math.isfinite(hi) and f"{hi:.3g}" != f"{lo:.3g}" else ""
        fail(
            "E303", f"`decay` is the logarithm of a factor, at most 0; `{span.text}` is {lo:.3g}{most}",
            frame.at(span), help=f"a factor per step is written as its logarithm: `log({span.text})`",
        )  # fmt: skip
