"""Types of values: data types, symbolic sizes, tensor types."""

from collections.abc import Mapping
from enum import Enum

from tfc.formula.expr import Kind
from tfc.ir.sizes import Dim, Quotient, Size, bind, product
from tfc.record import record

__all__ = ["DType", "Dim", "IRError", "Quotient", "Size", "TensorType", "bind", "product"]


class IRError(Exception):
    """A program that breaks an invariant of the IR. After lowering this is tfc's fault, not the user's."""


class DType(Enum):
    """Element types; the value is both the word of the language and the text form."""

    BOOL = "bool"
    I32 = "int"
    BF16 = "bf16"
    F16 = "f16"
    F32 = "f32"
    F64 = "f64"

    @property
    def floating(self) -> bool:
        return self in (DType.BF16, DType.F16, DType.F32, DType.F64)

    @property
    def bytes(self) -> int:
        return {DType.BOOL: 1, DType.I32: 4, DType.BF16: 2, DType.F16: 2, DType.F32: 4, DType.F64: 8}[self]

    @property
    def kind(self) -> Kind:
        """What a formula sees when it reads an array of this type."""
        return Kind.BOOL if self is DType.BOOL else Kind.INT if self is DType.I32 else Kind.REAL

    def __str__(self) -> str:
        return self.value


@record(frozen=True, slots=True)
class TensorType:
    """`f32[B, T, 384]`: sizes outermost first, and the element type."""

    shape: tuple[Size, ...]
    dtype: DType

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def static(self) -> bool:
        return all(isinstance(n, int) for n in self.shape)

    @property
    def last(self) -> Size:
        return self.shape[-1]

    def with_last(self, size: Size) -> "TensorType":
        return TensorType((*self.shape[:-1], size), self.dtype)

    def with_dtype(self, dtype: DType) -> "TensorType":
        return TensorType(self.shape, dtype)

    def bind(self, lengths: Mapping[str, int]) -> "TensorType":
        return TensorType(tuple(bind(n, lengths) for n in self.shape), self.dtype)

    @property
    def ints(self) -> tuple[int, ...]:
        """The shape as numbers. Raises IRError where a length is still symbolic."""
        out = tuple([n for n in self.shape if isinstance(n, int)])
        if len(out) != len(self.shape):
            raise IRError(f"{self} still has symbolic lengths")
        return out

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"
