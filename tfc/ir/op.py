"""What every operation of the IR is: static attributes and `infer`; and the types that operands have in common."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from tfc.ir.types import DType, IRError, Size, TensorType

__all__ = ["Op", "broadcast", "promote"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """Static attributes of an operation. An `Eqn` binds operands to its results."""

    name: ClassVar[str]

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        """The types of the results. Raises IRError where the operands do not fit."""
        raise NotImplementedError

    def bind(self, lengths: Mapping[str, int]) -> "Op":
        """The operation with named lengths in its attributes replaced by numbers."""
        return self


def broadcast(types: Iterable[TensorType], what: str) -> tuple[Size, ...]:
    """The common shape by numpy's rule (aligned at the last axis, 1 stretches)."""
    types = list(types)
    if types and all(t.shape == types[0].shape for t in types):
        return types[0].shape
    shape: list[Size] = []
    for t in types:
        if len(t.shape) > len(shape):
            shape[:0] = [1] * (len(t.shape) - len(shape))
        for i in range(1, len(t.shape) + 1):
            if shape[-i] == 1:
                shape[-i] = t.shape[-i]
            if t.shape[-i] not in (1, shape[-i]):
                raise IRError(f"{what}: {' and '.join(map(str, types))} do not broadcast")
    return tuple(shape)


_WIDTH = {DType.BOOL: 0, DType.I32: 1, DType.BF16: 2, DType.F16: 2, DType.F32: 3, DType.F64: 4}


def promote(dtypes: Iterable[DType]) -> DType:
    """The wider of the element types; bf16 with f16 gives f32, an integer takes the other's float."""
    out = DType.BOOL
    for d in dtypes:
        if d is out:
            continue
        if out is DType.BOOL:  # narrower than all others
            out = d
            continue
        if {d, out} == {DType.BF16, DType.F16}:
            out = DType.F32
        elif _WIDTH[d] > _WIDTH[out]:
            out = d
    return out
