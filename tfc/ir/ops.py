"""Every operation of the IR: its static attributes, its meaning, and the types it gives (`infer`)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from tfc.formula.expr import PRIMITIVES, Apply, Const, Expr, Kind, Read, Reduce, Var, kind_of, substitute, walk
from tfc.ir.attention import (
    ROW,
    YES,
    Attention,
    Masked,
    Mix,
    P,
    Rotate,
    S,
    Score,
    Scores,
    Weigh,
    follows_mask,
    reads_row,
)
from tfc.ir.caching import CacheRead, CacheWrite
from tfc.ir.dropout import Dropout
from tfc.ir.formats import Rounded
from tfc.ir.functions import ArrayFunction
from tfc.ir.norm import ResidualNorm
from tfc.ir.op import Op, broadcast, promote
from tfc.ir.program import Program
from tfc.ir.recurrence import Recurrence
from tfc.ir.routing import Calibrated, Route, Top
from tfc.ir.types import DType, IRError, Size, TensorType, bind, product

__all__ = [
    "OPS",
    "REMAT",
    "ROW",
    "YES",
    "ArrayFunction",
    "Attention",
    "CacheRead",
    "CacheWrite",
    "Calibrated",
    "Cast",
    "Concat",
    "Constant",
    "Dropout",
    "Elementwise",
    "FeedForward",
    "Index",
    "Linear",
    "Masked",
    "Mix",
    "Op",
    "P",
    "Recurrence",
    "Reduction",
    "Repeat",
    "Reshape",
    "ResidualNorm",
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
    "follows_mask",
    "reads_row",
]  # fmt: skip


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
    remat: what a turn computes again for its gradients instead of keeping it: `none`, `full` (all but the carries) or
    `dots` (all but the carries and the products with weights); arXiv:1604.06174. Values are the same.
    """

    name: ClassVar[str] = "repeat"
    count: int
    label: str
    carries: int
    body: Program
    remat: str = "none"

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


REMAT = ("none", "full", "dots")
"""What `Repeat.remat` may be."""

OPS: Mapping[str, type[Op]] = {
    op.name: op
    for op in (
        Constant, Elementwise, Reduction, Index, Take, Linear, Reshape, Slice, Concat, Cast, Rotate,
        Scores, Score, Masked, Weigh, Mix, Attention, FeedForward, Repeat,
        Recurrence, Top, Route, Calibrated, Rounded, ArrayFunction,
        CacheRead, CacheWrite, Dropout, ResidualNorm,
    )
}  # fmt: skip
"""Every operation by its name. Lists that depend on it (text form, kernels, README tables) are tested against it."""
