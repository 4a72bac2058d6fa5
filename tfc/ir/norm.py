"""A residual and the normalization of the sum along its last axis, as one operation."""

from dataclasses import dataclass
from typing import ClassVar

from tfc.ir.op import Op, promote
from tfc.ir.types import DType, IRError, TensorType

__all__ = ["ResidualNorm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidualNorm(Op):
    """z = x (+ y),   d = z - mean(z) if `centered`, else z,   out = d * rsqrt(mean(d^2) + eps) (* scale) (+ bias)

    x: [..., C]   y if `residual`: x's type   scale [C] if `scaled`   bias [C] if `biased`
    results: out [..., C] in `dtype`; z if `keeps`, in x's type

    Means run over the last axis. The sum has x's type; from the mean on every step has `reduce`, no narrower than x,
    and the last is rounded to `dtype`. Layer normalization arXiv:1607.06450, the root mean square 1910.07467.
    """

    name: ClassVar[str] = "norm"
    centered: bool
    eps: float
    residual: bool = False
    scaled: bool = False
    biased: bool = False
    keeps: bool = False
    reduce: DType = DType.F32
    dtype: DType = DType.F32

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        labels = ["residual"] * self.residual + ["scale"] * self.scaled + ["bias"] * self.biased
        if len(operands) != len(labels) + 1:
            raise IRError(f"norm: {len(operands)} operands, {' and '.join(['x', *labels])} expected")
        x, *rest = operands
        if x.rank < 1 or not x.dtype.floating:
            raise IRError(f"norm of {x}")
        if promote((x.dtype, self.reduce)) is not self.reduce or not self.dtype.floating:
            raise IRError(f"norm of {x} in {self.reduce}, as {self.dtype}")
        if self.keeps and not self.residual:
            raise IRError("norm: without a residual x is the sum, and no result of it")
        for label, t in zip(labels, rest, strict=True):
            if not (t == x if label == "residual" else t.shape == x.shape[-1:] and t.dtype.floating):
                raise IRError(f"norm: {label} {t} does not fit x {x}")
        return (x.with_dtype(self.dtype), *([x] if self.keeps else []))
