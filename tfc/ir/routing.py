"""Operations that choose: the largest elements of a row, weights of one's own per token, statistics frozen once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from tfc.ir.op import Op
from tfc.ir.program import Program
from tfc.ir.types import DType, IRError, Size, TensorType, bind

__all__ = ["Calibrated", "Route", "Top"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Top(Op):
    """Where the `count` largest elements of each row are, largest first; of equal ones the lower index comes first.

    x: [..., N], integers or reals -> int [..., count]. NaN counts as the largest. No gradient.
    """

    name: ClassVar[str] = "top"
    count: Size

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        (x,) = operands
        if x.rank < 1 or x.dtype is DType.BOOL:
            raise IRError(f"top of {x}")
        if isinstance(self.count, int) and isinstance(x.last, int) and not 0 <= self.count <= x.last:
            raise IRError(f"top {self.count} of {x}")
        return (TensorType((*x.shape[:-1], self.count), DType.I32),)

    def bind(self, lengths: Mapping[str, int]) -> "Top":
        return replace(self, count=bind(self.count, lengths))


@dataclass(frozen=True, kw_only=True, slots=True)
class Route(Op):
    """`count` copies of the weights of a body; each token goes through those chosen for it.

    operands: (x [B, T, ...], chosen int [B, T, K], weight [B, T, K], invariants...)
    body: a Program with inputs (index: int[], x, invariants...) and one result y [B, T, ...O]; a token's result
    depends on that token alone.   label: the path segment of the copies.
    result: sum over k of weight[b, t, k] * body_{chosen[b, t, k]}(x)[b, t], y's type. A choice outside
    0..count-1 adds nothing (a token that overflowed). Mixture of experts: arXiv:1701.06538.
    """

    name: ClassVar[str] = "route"
    count: int
    label: str
    body: Program

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        x, chosen, weight, *rest = operands
        if self.count < 1:
            raise IRError(f"route: {self.count} copies")
        if not (x.rank >= 2 and chosen.dtype is DType.I32 and chosen.rank == 3 and chosen.shape[:2] == x.shape[:2]):
            raise IRError(f"route: choices {chosen} do not fit the tokens {x}")
        if not (weight.shape == chosen.shape and weight.dtype.floating):
            raise IRError(f"route: weights {weight} do not fit the choices {chosen}")
        index, *inner = (i.value.type for i in self.body.inputs)
        if index != TensorType((), DType.I32) or tuple(inner) != (x, *rest):
            raise IRError(f"route: the body takes {list(map(str, inner))}, not {list(map(str, (x, *rest)))}")
        if len(self.body.results) != 1 or self.body.results[0].type.shape[:2] != x.shape[:2]:
            raise IRError(f"route: the body gives {[str(v.type) for v in self.body.results]} for the tokens {x}")
        if self.body.reports:
            raise IRError("route: a report within")
        return (self.body.results[0].type,)

    def bind(self, lengths: Mapping[str, int]) -> "Route":
        return replace(self, body=self.body.bind(lengths))


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibrated(Op):
    """A statistic of the call's own tokens that calibration freezes: until then, the value itself.

    x: [B, ...], or [...] for one statistic of the whole call; no axis of tokens -> x's type.
    path: the parameter that a calibrated model has in its place, of x's shape without its rows: the mean over the rows
    and calls of the calibration data.
    """

    name: ClassVar[str] = "calibrated"
    path: str

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        (x,) = operands
        if not x.dtype.floating:
            raise IRError(f"calibrated: {x} is not real")
        return (x,)
