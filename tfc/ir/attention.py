"""The operations of attention: rotations, scores, their formulas, weights and mixes, and all of them as one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from tfc.formula.expr import (
    Apply,
    Const,
    Expr,
    FormulaError,
    Kind,
    Load,
    Read,
    Reduce,
    Token,
    Var,
    kind_of,
    slots,
    walk,
)
from tfc.formula.guard import partial
from tfc.formula.ranges import ranges
from tfc.ir.dropout import check_dropped
from tfc.ir.op import Op
from tfc.ir.types import DType, IRError, Size, TensorType, bind

__all__ = [
    "ROW",
    "YES",
    "Attention",
    "Masked",
    "Mix",
    "P",
    "Rotate",
    "S",
    "Score",
    "Scores",
    "Weigh",
    "check_slots",
    "follows_mask",
    "reads_row",
]

S = Var("s", Kind.REAL)
"""The score so far, in score and weigh formulas."""
P = Var("p", Kind.REAL)
"""The softmax of the score over the keys that the mask leaves, in weigh formulas."""

ROW: Mapping[str, Kind] = {
    "row.count": Kind.INT,
    "row.rank": Kind.INT,
    "row.mean": Kind.REAL,
    "row.deviation": Kind.REAL,
    "row.max": Kind.REAL,
    "row.lse": Kind.REAL,
}
"""Statistics of a query's row, over the keys that it sees: those whose score is not -inf. Of s in a score formula,
where the mask has been applied already; of the final score in a weigh formula, which alone knows `row.lse`.

count: how many. mean, max: of their scores. deviation: the root of the sum of squared differences from the mean, over
count - 1; 0 where count < 2. rank, of each key: how many seen keys have a larger score, or the same and come before it.
lse: log of the sum of exp. All are 0 in a row that sees no key."""

_MASK = ("h",)
_SCORE = (*_MASK, "s", *(name for name in ROW if name != "row.lse"))
_WEIGH = (*_SCORE, "p", "row.lse")

YES = Const(True)
"""The mask that leaves every pair."""


def reads_row(formula: Expr) -> bool:
    """Whether a formula reads statistics of its row (`ROW`): then it needs all scores of the row at once."""
    return any(isinstance(node, Var) and node.name in ROW for node in walk(formula))


def follows_mask(formula: Expr) -> bool:
    """Whether a score formula comes after the mask: one that reads its row, whose statistics speak of the keys that
    the mask leaves; and one that is not finite for every pair, whose gradients ask which pairs are seen."""
    return reads_row(formula) or partial(formula)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotate(Op):
    """Rotary position (arXiv:2104.09864): pairs of channels turned by angle(pos, c).

    x: [B, N, H, D]   then what the angle's slots hold, or, where it reads none, positions: int [B, N], optional
    -> x's type
    angle: over Var("pos", INT) and Var("c", INT), the pair 0..D_rot/2-1; x's fields (`Load` of side "q": [B, N, ...]
    or [N, ...]) and tables (`Read`). dims: how many leading channels turn.
    pairing: "half" pairs (c, c + dims/2), "interleaved" pairs (2c, 2c+1).
    offset: added to 0..N-1 where no positions are given (M - N for queries).
    """

    name: ClassVar[str] = "rotate"
    angle: Expr
    dims: int
    pairing: str = "half"
    offset: Size = 0

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        x, *captured = operands
        if not (x.rank == 4 and isinstance(x.last, int) and self.dims <= x.last):
            raise IRError(f"rotate {self.dims} channels of {x}")
        if not (self.dims % 2 == 0 and self.pairing in ("half", "interleaved")):
            raise IRError(f"rotate: {self.dims} {self.pairing}")
        if read := slots(self.angle):
            if any(
                isinstance(node, Token) or (isinstance(node, Load) and node.side == "k") for node in walk(self.angle)
            ):
                raise IRError(f"rotate: the angle `{self.angle}` reads keys")
            if len(captured) != max(read) + 1:
                raise IRError(f"rotate: {len(captured)} operands for the slots of `{self.angle}`")
            check_slots("rotate", tuple(captured), x, x, self.angle, variables=("pos", "c"))
        elif len(captured) > 1 or not all(p.shape == x.shape[:2] and p.dtype is DType.I32 for p in captured):
            raise IRError("rotate: positions do not fit")
        return (x,)

    def bind(self, lengths: Mapping[str, int]) -> "Rotate":
        return replace(self, offset=bind(self.offset, lengths))


def check_slots(
    what: str,
    captured: tuple[TensorType, ...],
    n: TensorType,
    m: TensorType,
    *formulas: Expr,
    variables: Iterable[str] = (),
) -> None:
    """Every slot of the formulas fits its operand, every variable is one of `variables` or reduced over.

    n and m are [B, N, ...] and [B, M, ...]. Each formula's reductions have indices of their own, with known sizes.
    """
    variables = tuple(variables)
    for formula in formulas:
        _check_slots(what, captured, n, m, formula)
        try:
            reduced = ranges(formula, [t.shape for t in captured])
        except FormulaError as error:
            raise IRError(f"{what}: {error}") from None
        for name in (node.name for node in walk(formula) if isinstance(node, Var)):
            if name not in variables and name not in reduced:
                raise IRError(f"{what}: `{name}` means nothing here")
        for name in reduced:
            if name in ("q", "k", *variables):
                raise IRError(f"{what}: `{name}` is no name for an index")


def _check_slots(what: str, captured: tuple[TensorType, ...], n: TensorType, m: TensorType, formula: Expr) -> None:
    for node in walk(formula):
        match node:
            case Load(slot, side, kind, indices):
                if slot >= len(captured):
                    raise IRError(f"{what}: slot ${slot} of {len(captured)} operands")
                t, tokens = captured[slot], (n if side == "q" else m).shape[:2]
                axes = t.rank - len(indices)
                if axes not in (1, 2) or t.shape[:axes] != tokens[-axes:]:
                    raise IRError(f"{what}: {node} reads {t}, the tokens are {tokens}")
                if t.dtype.kind is not kind:
                    raise IRError(f"{what}: {node} is {kind}, its operand {t}")
                if not all(kind_of(i) is Kind.INT for i in indices):
                    raise IRError(f"{what}: {node} has an index that is no integer")
            case Read(slot, indices, kind):
                if slot >= len(captured):
                    raise IRError(f"{what}: slot ${slot} of {len(captured)} operands")
                t = captured[slot]
                if not (len(indices) == t.rank and t.dtype.kind is kind):
                    raise IRError(f"{what}: {node} reads {t}")
                if not all(kind_of(i) is Kind.INT for i in indices):
                    raise IRError(f"{what}: {node} has an index that is no integer")
            case Token() | Const() | Apply() | Var() | Reduce():
                pass
            case _:
                raise IRError(f"{what}: {type(node).__name__} in a formula")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores(Op):
    """scale * q k^T, head by head.   q: [B, N, H, D]   k: [B, M, G, D]   -> [B, H, N, M] in float32 or wider

    Query head i reads key head i // (H // G) (arXiv:2305.13245).
    """

    name: ClassVar[str] = "scores"
    scale: float

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        q, k = operands
        check_qk("scores", q, k)
        dtype = DType.F64 if q.dtype is DType.F64 else DType.F32
        return (TensorType((q.shape[0], q.shape[2], q.shape[1], k.shape[1]), dtype),)


def check_qk(what: str, q: TensorType, k: TensorType) -> None:
    if not (q.rank == k.rank == 4):
        raise IRError(f"{what}: q {q} and k {k} are not [batch, time, heads, head_dim]")
    if (q.shape[0], q.shape[3], q.dtype) != (k.shape[0], k.shape[3], k.dtype):
        raise IRError(f"{what}: q {q} does not fit k {k}")
    h, g = q.shape[2], k.shape[2]
    if not (isinstance(h, int) and isinstance(g, int) and g > 0 and h % g == 0):
        raise IRError(f"{what}: {h} heads over {g} kv_heads")


def _tokens(s: TensorType) -> tuple[TensorType, TensorType]:
    """[B, H, N, M] as the two token shapes [B, N] and [B, M]."""
    b, _, n, m = s.shape
    return TensorType((b, n), s.dtype), TensorType((b, m), s.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score(Op):
    """The score formula, element by element.   s: [B, H, N, M], captured... -> the same

    Where s is -inf already (a key that is not seen) it stays so; row statistics (`ROW`) are of the others.
    """

    name: ClassVar[str] = "score"
    formula: Expr

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        s, *captured = operands
        check_slots("score", tuple(captured), *_tokens(s), self.formula, variables=_SCORE)
        return (s,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Masked(Op):
    """-inf where the mask formula is false.   s: [B, H, N, M], captured... -> the same"""

    name: ClassVar[str] = "masked"
    formula: Expr

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        s, *captured = operands
        if kind_of(self.formula) is not Kind.BOOL:
            raise IRError(f"masked: {self.formula} is no boolean")
        check_slots("masked", tuple(captured), *_tokens(s), self.formula, variables=_MASK)
        return (s,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weigh(Op):
    """Scores to weights: softmax over the keys that are not -inf gives p, then the weigh formula over s and p, and
    row statistics (`ROW`) of s.

    s: [B, H, N, M], captured... -> weights of the same type, and lse [B, H, N]: log of the sum of exp(s), -inf
    where a row sees no key. Such a row's weights are zero.
    """

    name: ClassVar[str] = "weigh"
    formula: Expr = P

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        s, *captured = operands
        check_slots("weigh", tuple(captured), *_tokens(s), self.formula, variables=_WEIGH)
        return s, TensorType(s.shape[:3], s.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix(Op):
    """Weighted sums of values.   w: [B, H, N, M]   v: [B, M, G, Dv]   -> [B, N, H, Dv], v's type"""

    name: ClassVar[str] = "mix"

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        w, v = operands
        b, h, n, m = w.shape
        if not (v.rank == 4 and v.shape[:2] == (b, m)):
            raise IRError(f"mix: weights {w} do not fit values {v}")
        g = v.shape[2]
        if not (isinstance(h, int) and isinstance(g, int) and g > 0 and h % g == 0):
            raise IRError(f"mix: {h} heads over {g} kv_heads")
        return (TensorType((b, n, h, v.last), v.dtype),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention(Op):
    """Streaming attention: mix(weigh(masked(score(scale * q k^T))), v), head by head.

    Where the score formula reads row statistics (`ROW`) the mask is applied before it, score(masked(scale * q k^T)), so
    that they speak of the keys that the mask leaves; what the mask left out stays out.

    q: [B, N, H, D]   k: [B, M, G, D]   v: [B, M, G, Dv]   captured: the formulas' slots, in order
    results: out [B, N, H, Dv] in v's type, lse [B, H, N] in float32 or wider

    Query head i reads key/value head i // (H // G) (arXiv:2305.13245). A query
    that may see no key at all yields zeros and lse = -inf.

    dropout: the rate at which weights are left out between weigh and mix, by `Dropout` with the path `site`; where it
    is not 0, the last of the captured operands are the seed and `turns` turns of loops.
    """

    name: ClassVar[str] = "attention"
    scale: float
    score: Expr = S
    mask: Expr = YES
    weigh: Expr = P
    dropout: float = 0.0
    site: str = ""
    turns: int = 0

    @property
    def seeds(self) -> int:
        """How many of the captured operands, the last ones, say what is dropped."""
        return 1 + self.turns if self.dropout else 0

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        q, k, v, *captured = operands
        check_qk("attention", q, k)
        if not (v.shape[:3] == k.shape[:3] and v.dtype is k.dtype):
            raise IRError(f"attention: k {k} does not fit v {v}")
        if kind_of(self.mask) is not Kind.BOOL:
            raise IRError(f"attention: mask {self.mask} is no boolean")
        for formula, variables in ((self.score, _SCORE), (self.mask, _MASK), (self.weigh, _WEIGH)):
            check_slots("attention", tuple(captured), q, k, formula, variables=variables)
        if not 0 <= self.dropout < 1 or self.turns < 0 or len(captured) < self.seeds:
            raise IRError(f"attention: dropout of {self.dropout}, {self.turns} turns, {len(captured)} captured")
        if self.dropout:
            check_dropped("attention", captured[-self.seeds :])
        lse = DType.F64 if q.dtype is DType.F64 else DType.F32
        return q.with_last(v.last), TensorType((q.shape[0], q.shape[2], q.shape[1]), lse)
