"""Registered array functions: what one system needs and no equation says; each has a definition and no kernel."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from tfc.ir.op import Op
from tfc.ir.types import DType, IRError, TensorType

__all__ = ["FUNCTIONS", "ArrayFunction", "Registered"]

Setting = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Registered:
    """A row of the table: the name, its settings with their types, the types it gives, and where it comes from."""

    name: str
    settings: Mapping[str, type]
    infer: Callable[[Mapping[str, Setting], tuple[TensorType, ...]], TensorType]
    doc: str


def _apportion(settings: Mapping[str, Setting], operands: tuple[TensorType, ...]) -> TensorType:
    (norms,) = operands
    if norms.rank != 1 or not norms.dtype.floating:
        raise IRError(f"apportion: {norms} is not one number for each kv head")
    return TensorType(norms.shape, DType.I32)


FUNCTIONS: Mapping[str, Registered] = {
    f.name: f
    for f in (
        Registered(
            "apportion", {"total": int}, _apportion,
            "`total` query heads shared out to kv heads in proportion to norms [G] -> int [G] (key-driven GQA, "
            "arXiv:2408.08454): rounded half to even, then one at a time from the largest or to the smallest; "
            "equal norms share equally",
        ),
    )
}  # fmt: skip
"""At most ten; a test counts them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayFunction(Op):
    """One of the registered functions.   settings: in the table's order"""

    name: ClassVar[str] = "function"
    fn: str
    settings: tuple[tuple[str, Setting], ...] = ()

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        if self.fn not in FUNCTIONS:
            raise IRError(f"`{self.fn}` is no registered function")
        return (FUNCTIONS[self.fn].infer(dict(self.settings), operands),)
