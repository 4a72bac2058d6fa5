"""Types of values: data types, symbolic sizes, tensor types."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from tfc.formula.expr import Kind

__all__ = ["DType", "Dim", "IRError", "Size", "TensorType", "bind", "product"]


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


Monomial = tuple[str, ...]  # the names multiplied, sorted; () for the constant


@dataclass(frozen=True, slots=True)
class Dim:
    """A symbolic size: a polynomial with integer coefficients over named lengths, in normal form.

    `terms` is sorted by monomial, without zero coefficients, and never a constant alone: arithmetic
    gives back a plain int where no name is left, so `isinstance(size, int)` tells static from symbolic.
    """

    terms: tuple[tuple[Monomial, int], ...]

    @staticmethod
    def named(name: str) -> "Dim":
        return Dim((((name,), 1),))

    @property
    def names(self) -> frozenset[str]:
        return frozenset(n for m, _ in self.terms for n in m)

    def __add__(self, other: "Size") -> "Size":
        return _normal([*self.terms, *_terms(other)])

    __radd__ = __add__

    def __mul__(self, other: "Size") -> "Size":
        return _normal([(tuple(sorted(a + b)), x * y) for a, x in self.terms for b, y in _terms(other)])

    __rmul__ = __mul__

    def __neg__(self) -> "Size":
        return self * -1

    def __sub__(self, other: "Size") -> "Size":
        return self + -other

    def __rsub__(self, other: "Size") -> "Size":
        return -self + other

    def __str__(self) -> str:
        out = ""
        for names, n in sorted(self.terms, key=lambda t: (-len(t[0]), t[0])):
            factors = [str(abs(n))] if abs(n) != 1 or not names else []
            sign = (" - " if out else "-") if n < 0 else (" + " if out else "")
            out += sign + " * ".join([*factors, *names])
        return out


Size = int | Dim


def _terms(size: Size) -> Iterable[tuple[Monomial, int]]:
    return size.terms if isinstance(size, Dim) else [((), size)]


def _normal(terms: Iterable[tuple[Monomial, int]]) -> Size:
    total: dict[Monomial, int] = {}
    for names, n in terms:
        total[names] = total.get(names, 0) + n
    kept = tuple(sorted((m, n) for m, n in total.items() if n))
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    return Dim(kept)


def bind(size: Size, lengths: Mapping[str, int]) -> Size:
    """The size with named lengths replaced by numbers where `lengths` has them."""
    if isinstance(size, int):
        return size
    out: Size = 0
    for names, n in size.terms:
        term: Size = n
        for name in names:
            term = term * lengths[name] if name in lengths else term * Dim.named(name)
        out = out + term
    return out


def product(sizes: Iterable[Size]) -> Size:
    out: Size = 1
    for size in sizes:
        out = out * size
    return out


@dataclass(frozen=True, slots=True)
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
        out = tuple(n for n in self.shape if isinstance(n, int))
        if len(out) != len(self.shape):
            raise IRError(f"{self} still has symbolic lengths")
        return out

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"
