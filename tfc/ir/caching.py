"""Operations on what decoding keeps from call to call: a stack with one row a turn of the loops, written in place."""

from dataclasses import dataclass
from typing import ClassVar

from tfc.ir.op import Op
from tfc.ir.types import DType, IRError, TensorType

__all__ = ["CacheRead", "CacheWrite"]

NUMBER = TensorType((), DType.I32)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheWrite(Op):
    """The stack with new tokens in one of its rows; everything else stays as it is.

    stack: [S, B, L, ...]   new: [B, N, ...], cast to the stack's type   index: int[], the row, within 0..S-1
    at: int[B], the place of the first token, 0 or more   count: int[B]   -> stack's type

    Token i of batch row b goes to place at[b] + i, for i < count[b]; beyond L - 1 it is dropped. Without `at` and
    `count` the row is replaced as a whole: new is [B, L, ...].
    """

    name: ClassVar[str] = "cache_write"

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        stack, new, index, *tokens = operands
        if stack.rank < 3 or index != NUMBER:
            raise IRError(f"cache_write: row {index} of {stack}")
        if len(tokens) not in (0, 2):
            raise IRError("cache_write: a place without a count")
        batch, _, *rest = stack.shape[1:]
        fits = new.rank == stack.rank - 1 and new.shape[0] == batch and new.shape[2:] == tuple(rest)
        if not (fits and (tokens or new.shape == stack.shape[1:]) and new.dtype.kind is stack.dtype.kind):
            raise IRError(f"cache_write: {new} into a row of {stack}")
        if any(t != TensorType((batch,), DType.I32) for t in tokens):
            raise IRError(f"cache_write: places and counts {', '.join(map(str, tokens))} for {new}")
        return (stack,)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRead(Op):
    """One row of a stack.   stack: [S, ...]   index: int[], within 0..S-1   -> [...]"""

    name: ClassVar[str] = "cache_read"

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        stack, index = operands
        if stack.rank < 2 or index != NUMBER:
            raise IRError(f"cache_read: row {index} of {stack}")
        return (TensorType(stack.shape[1:], stack.dtype),)
