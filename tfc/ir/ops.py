"""Every operation of the IR: its static attributes, its meaning, and the types it gives (`infer`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from tfc.formula.expr import (
    PRIMITIVES,
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
    substitute,
    walk,
)
from tfc.formula.ranges import ranges
from tfc.ir.caching import CacheRead, CacheWrite
from tfc.ir.formats import Rounded
from tfc.ir.functions import ArrayFunction
from tfc.ir.op import Op, broadcast, promote
from tfc.ir.program import Program
from tfc.ir.recurrence import Recurrence
from tfc.ir.routing import Calibrated, Route, Top
from tfc.ir.types import DType, IRError, Size, TensorType, bind, product

__all__ = [
    "OPS",
    "ArrayFunction",
    "Attention",
    "CacheRead",
    "CacheWrite",
    "Calibrated",
    "Cast",
    "Concat",
    "Constant",
    "Elementwise",
    "FeedForward",
    "Index",
    "Linear",
    "Masked",
    "Mix",
    "Op",
    "P",
    "ROW",
    "Recurrence",
    "Reduction",
    "Repeat",
    "Reshape",
    "Rotate",
    "Rounded",
    "Route",
    "S",
    "Score",
    "Scores",
    "Slice",
    "Take",
    "Top",
    "Weigh",
]  # fmt: skip

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
"""Statistics of a query's row, over the keys that it sees: those whose score is not -inf. Of s in a score formula, where
the mask has been applied already; of the final score in a weigh formula, which alone knows `row.lse`.

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant(Op):
    """A number, as a tensor without axes."""

    name: ClassVar[str] = "constant"
    value: bool | int | float
    dtype: DType

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        return (TensorType((), self.dtype),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Elementwise(Op):
    """One primitive of the closed table, element by element, operands broadcast by numpy's rule.

    Text form prints the primitive's name: `%y = mul %x, %scale`.
    """

    name: ClassVar[str] = "elementwise"
    fn: str

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        if self.fn not in PRIMITIVES:
            raise IRError(f"`{self.fn}` is no primitive")
        kind = kind_of(Apply(self.fn, tuple(Var("x", t.dtype.kind) for t in operands)))
        shape = broadcast(operands, self.fn)
        if kind is Kind.BOOL:
            return (TensorType(shape, DType.BOOL),)
        if kind is Kind.INT:
            return (TensorType(shape, DType.I32),)
        wide = promote(t.dtype for t in (operands[1:] if self.fn == "where" else operands))
        return (TensorType(shape, wide if wide.floating else DType.F32),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduction(Op):
    """sum, mean, max or min over the last axis, which stays with size 1.   x: [..., C] -> [..., 1]"""

    name: ClassVar[str] = "reduction"
    fn: str

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        (x,) = operands
        if self.fn not in ("sum", "mean", "max", "min"):
            raise IRError(f"`{self.fn}` is no reduction")
        if x.rank <= 0:
            raise IRError(f"{self.fn} of {x}, which has no axis")
        return (x.with_last(1),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Index(Op):
    """An index equation: a tensor given element by element.

    axes: name and size of each axis of the result, outermost first. reduced: the same for the indices that
    `Reduce` nodes run over. expr: over `Var(index, INT)` and `Read(slot, indices)`, slots being the operands.
    lengths: names of sizes that `expr` reads as numbers, gone when a call binds them.
    A read outside an operand's bounds is clamped to them.
    """

    name: ClassVar[str] = "index"
    axes: tuple[tuple[str, Size], ...]
    reduced: tuple[tuple[str, Size], ...] = ()
    lengths: tuple[tuple[str, Size], ...] = ()
    expr: Expr

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        known = {name for name, _ in (*self.axes, *self.reduced, *self.lengths)}
        for node in walk(self.expr):
            match node:
                case Var(name, _):
                    if name not in known:
                        raise IRError(f"index: `{name}` is no index of this equation")
                case Read(slot, indices, kind):
                    if slot >= len(operands):
                        raise IRError(f"index: slot ${slot} of {len(operands)} operands")
                    if not (len(indices) == operands[slot].rank and kind is operands[slot].dtype.kind):
                        raise IRError(f"index: {node} does not fit {operands[slot]}")
                case Reduce() | Apply() | Const():
                    pass
                case _:
                    raise IRError(f"index: {type(node).__name__} in an index equation")
        kind = kind_of(self.expr)
        wide = promote(t.dtype for t in operands)
        real = wide if wide.floating else DType.F32
        dtype = DType.BOOL if kind is Kind.BOOL else DType.I32 if kind is Kind.INT else real
        return (TensorType(tuple(n for _, n in self.axes), dtype),)

    def bind(self, lengths: Mapping[str, int]) -> "Index":
        read = [(a, bind(n, lengths)) for a, n in self.lengths]
        numbers: dict[Expr, Expr] = {Var(a, Kind.INT): Const(n) for a, n in read if isinstance(n, int)}
        return replace(
            self,
            axes=tuple((a, bind(n, lengths)) for a, n in self.axes),
            reduced=tuple((a, bind(n, lengths)) for a, n in self.reduced),
            lengths=tuple((a, n) for a, n in read if not isinstance(n, int)),
            expr=substitute(self.expr, numbers) if numbers else self.expr,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Take(Op):
    """Rows of a table.   table: [V, ...C], ids: int [...] -> [..., ...C]

    An id outside 0..V-1 is an error that the model's call reports where it can see the ids.
    """

    name: ClassVar[str] = "take"

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        table, ids = operands
        if not (ids.dtype is DType.I32 and table.rank > 0):
            raise IRError(f"take: {ids} does not index {table}")
        return (TensorType((*ids.shape, *table.shape[1:]), table.dtype),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear(Op):
    """x weight (+ bias).   x: [..., K]   weight: [K, O]   bias: [O], optional   -> [..., O], x's type

    Sums are kept in float32 (float64 for float64 operands).
    """

    name: ClassVar[str] = "linear"

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        x, weight, *bias = operands
        if not (weight.rank == 2 and x.rank > 0 and x.last == weight.shape[0]):
            raise IRError(f"linear: {x} by {weight}")
        if not (all(b.shape == (weight.last,) for b in bias) and len(bias) <= 1):
            raise IRError(f"linear: bias {bias} of {weight}")
        return (x.with_last(weight.last),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reshape(Op):
    """The same elements in another shape, row-major; splitting heads and joining them."""

    name: ClassVar[str] = "reshape"
    shape: tuple[Size, ...]

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        (x,) = operands
        if product(x.shape) != product(self.shape):
            raise IRError(f"reshape: {x} to {self.shape}")
        return (TensorType(self.shape, x.dtype),)

    def bind(self, lengths: Mapping[str, int]) -> "Reshape":
        return replace(self, shape=tuple(bind(n, lengths) for n in self.shape))


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice(Op):
    """Elements start..start+size-1 of the last axis, or with axis=1 of the tokens of a [B, T, ...]."""

    name: ClassVar[str] = "slice"
    start: Size
    size: Size
    axis: int = -1

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        (x,) = operands
        at = _axis("slice", x, self.axis)
        length, end = x.shape[at], self.start + self.size
        if isinstance(length, int) and isinstance(end, int) and isinstance(self.start, int):
            if not (0 <= self.start <= end <= length):
                raise IRError(f"slice {self.start}..{end} of {x}")
        return (TensorType((*x.shape[:at], self.size, *x.shape[at + 1 :]), x.dtype),)

    def bind(self, lengths: Mapping[str, int]) -> "Slice":
        return replace(self, start=bind(self.start, lengths), size=bind(self.size, lengths))


def _axis(what: str, x: TensorType, axis: int) -> int:
    """The axis counted from 0: the last, or 1, the tokens."""
    if axis not in (-1, 1) or x.rank < (2 if axis == 1 else 1):
        raise IRError(f"{what}: {x} has no axis {axis}")
    return axis % x.rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Concat(Op):
    """Operands side by side along the last axis, or with axis=1 one after another along the tokens of [B, T, ...]."""

    name: ClassVar[str] = "concat"
    axis: int = -1

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        head = operands[0]
        at = _axis("concat", head, self.axis)
        total: Size = 0
        for t in operands:
            same = t.rank == head.rank and t.shape[:at] == head.shape[:at] and t.shape[at + 1 :] == head.shape[at + 1 :]
            if not (same and t.dtype is head.dtype):
                raise IRError("concat: shapes differ")
            total = total + t.shape[at]
        return (TensorType((*head.shape[:at], total, *head.shape[at + 1 :]), head.dtype),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cast(Op):
    """The same values in another element type, rounded to nearest even."""

    name: ClassVar[str] = "cast"
    dtype: DType

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        return (operands[0].with_dtype(self.dtype),)


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
            if any(isinstance(node, Token) or (isinstance(node, Load) and node.side == "k") for node in walk(self.angle)):
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


def _check_slots(
    what: str, captured: tuple[TensorType, ...], n: TensorType, m: TensorType, formula: Expr
) -> None:
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
    """

    name: ClassVar[str] = "attention"
    scale: float
    score: Expr = S
    mask: Expr = YES
    weigh: Expr = P

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        q, k, v, *captured = operands
        check_qk("attention", q, k)
        if not (v.shape[:3] == k.shape[:3] and v.dtype is k.dtype):
            raise IRError(f"attention: k {k} does not fit v {v}")
        if kind_of(self.mask) is not Kind.BOOL:
            raise IRError(f"attention: mask {self.mask} is no boolean")
        for formula, variables in ((self.score, _SCORE), (self.mask, _MASK), (self.weigh, _WEIGH)):
            check_slots("attention", tuple(captured), q, k, formula, variables=variables)
        lse = DType.F64 if q.dtype is DType.F64 else DType.F32
        return q.with_last(v.last), TensorType((q.shape[0], q.shape[2], q.shape[1]), lse)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedForward(Op):
    """down(activation(up(x), gate(x))): two or three matrix products with an elementwise function between.

    x: [..., C], up [C, F], bias of up [F] if `biased`, gate [C, F] if `gated`, its bias if `biased`,
    down [F, O], bias of down [O] if `biased`   -> [..., O], x's type
    activation: over Var("u", REAL), the product with up, and Var("g", REAL), the product with gate.
    """

    name: ClassVar[str] = "ffn"
    activation: Expr
    gated: bool
    biased: bool

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        names = ["up", *(["up bias"] if self.biased else [])]
        names += [*(["gate"] if self.gated else []), *(["gate bias"] if self.gated and self.biased else [])]
        names += ["down", *(["down bias"] if self.biased else [])]
        if len(operands) != len(names) + 1:
            raise IRError(f"ffn: {len(operands)} operands, x and {', '.join(names)} expected")
        x, hidden = operands[0], operands[1].last
        for label, t in zip(names, operands[1:], strict=True):
            wide = operands[-1 - self.biased].last if label.startswith("down") else hidden
            deep = hidden if label == "down" else x.last
            if t.shape != ((wide,) if "bias" in label else (deep, wide)):
                raise IRError(f"ffn: {label} {t} does not fit x {x}")
        return (x.with_last(operands[-1 - self.biased].last),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeat(Op):
    """The body, `count` times over, with parameters of its own each turn (stacked on a leading axis).

    operands: (carries..., invariants...)   results: the carries after the last turn, then the body's reports,
    stacked: [count, ...]
    body: a Program whose inputs are (index: int[], carries..., invariants...) and whose results are the carries.
    label: the path segment and the index's name in the spec.
    """

    name: ClassVar[str] = "repeat"
    count: int
    label: str
    carries: int
    body: Program

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        index, *rest = (i.value.type for i in self.body.inputs)
        if index != TensorType((), DType.I32):
            raise IRError(f"repeat: the index is {index}")
        if tuple(rest) != operands:
            raise IRError(f"repeat: the body takes {list(map(str, rest))}, not {list(map(str, operands))}")
        out = tuple(v.type for v in self.body.results)
        if out != operands[: self.carries]:
            raise IRError(f"repeat: carries {list(map(str, operands[: self.carries]))} change type")
        reported = (v.type for _, v in self.body.reports)
        return (*out, *(TensorType((self.count, *t.shape), t.dtype) for t in reported))

    def bind(self, lengths: Mapping[str, int]) -> "Repeat":
        return replace(self, body=self.body.bind(lengths))


OPS: Mapping[str, type[Op]] = {
    op.name: op
    for op in (
        Constant, Elementwise, Reduction, Index, Take, Linear, Reshape, Slice, Concat, Cast, Rotate,
        Scores, Score, Masked, Weigh, Mix, Attention, FeedForward, Repeat,
        Recurrence, Top, Route, Calibrated, Rounded, ArrayFunction,
        CacheRead, CacheWrite,
    )
}  # fmt: skip
"""Every operation by its name. Lists that depend on it (text form, kernels, README tables) are tested against it."""
