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


def _legendre(settings: Mapping[str, Setting], operands: tuple[TensorType, ...]) -> TensorType:
    () = operands
    order, window, steps = (settings[name] for name in ("order", "window", "steps"))
    if not (isinstance(order, int) and isinstance(steps, int) and isinstance(window, float)):
        raise IRError("legendre: order and steps are whole numbers, window a number")
    if order < 1 or steps < 1 or not window > 0:
        raise IRError(f"legendre: order {order}, window {window}, steps {steps} must be positive")
    return TensorType((steps, order), DType.F32)


FUNCTIONS: Mapping[str, Registered] = {
    f.name: f
    for f in (
        Registered(
            "apportion", {"total": int}, _apportion,
            "`total` query heads shared out to kv heads in proportion to norms [G] -> int [G] (key-driven GQA, "
            "arXiv:2408.08454): rounded half to even, then one at a time from the largest or to the smallest; "
            "equal norms share equally",
        ),
        Registered(
            "legendre", {"order": int, "window": float, "steps": int}, _legendre,
            "what a Legendre memory of `order` polynomials over `window` steps holds after an impulse, step by step -> "
            "real [steps, order] (LMUFormer, arXiv:2402.04882)",
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
