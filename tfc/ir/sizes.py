"""Arithmetic of lengths that only a call tells -> sizes in a normal form: `B * (T // 2)`, `(T + 1) // 2`.

A size is an int, or a Dim: a polynomial with integer coefficients over *atoms*, which are named lengths and quotients
rounded down. Two Dims are equal where their normal forms are. The laws that the normal form knows, x // n standing for
floor(x / n), R for terms and k for a number:

    (n * P + R) // n        =  P + R // n                         what divides evenly goes out
    (g * R + k) // (g * n)  =  (R + k // g) // n
    (-R + k) // n           =  -((R + n - 1 - k) // n)            so -(-T // n) is (T + n - 1) // n
    (x // m + k) // n       =  (x + k * m) // (m * n)
    (R + k + n) // (2 * n)  =  (R + k) // n - (R + k) // (2 * n)  so T // 2 + (T + 1) // 2 is T

They are complete for halves of halves of one length; of other quotients, equal ones may have two forms.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import gcd

__all__ = ["Dim", "Quotient", "Size", "bind", "product"]


@dataclass(frozen=True, slots=True)
class Quotient:
    """floor(numerator / divisor), divisor >= 2: an atom of its own, made by `Dim.__floordiv__` in normal form."""

    numerator: "Dim"
    divisor: int

    def __str__(self) -> str:
        return _quotient_text(self.numerator, "//", self.divisor)


Atom = str | Quotient
Monomial = tuple[Atom, ...]  # the atoms multiplied, sorted; () for the constant
Terms = tuple[tuple[Monomial, int], ...]


@dataclass(frozen=True, slots=True)
class Dim:
    """A symbolic size: a polynomial with integer coefficients over named lengths and quotients, in normal form.

    `terms` is sorted by monomial, without zero coefficients, and never a constant alone: arithmetic
    gives back a plain int where no length is left, so `isinstance(size, int)` tells static from symbolic.
    """

    terms: Terms

    @staticmethod
    def named(name: str) -> "Dim":
        return Dim((((name,), 1),))

    @property
    def names(self) -> frozenset[str]:
        """The named lengths that the size depends on, those within quotients too."""
        return frozenset(a for a in _atoms(self) if isinstance(a, str))

    @property
    def weight(self) -> int:
        """How much there is to it: its atoms, those within quotients too."""
        return sum(1 for _ in _atoms(self))

    def __add__(self, other: "Size") -> "Size":
        return _normal([*self.terms, *_terms(other)])

    __radd__ = __add__

    def __mul__(self, other: "Size") -> "Size":
        return _normal([(tuple(sorted(a + b, key=_order)), x * y) for a, x in self.terms for b, y in _terms(other)])

    __rmul__ = __mul__

    def __neg__(self) -> "Size":
        return self * -1

    def __sub__(self, other: "Size") -> "Size":
        return self + -other

    def __rsub__(self, other: "Size") -> "Size":
        return -self + other

    def __floordiv__(self, n: int) -> "Size":
        """Rounded down, also of negative numbers, as Python does. Raises ZeroDivisionError."""
        if n == 0:
            raise ZeroDivisionError(f"{self} // 0")
        return _floor(self, n) if n > 0 else _floor(-self, -n)

    def __mod__(self, n: int) -> "Size":
        """With the sign of n, as Python does. Raises ZeroDivisionError."""
        return self - n * (self // n)

    def __str__(self) -> str:
        return _text(self)


Size = int | Dim


def bind(size: Size, lengths: Mapping[str, int]) -> Size:
    """The size with named lengths replaced by numbers where `lengths` has them."""
    if isinstance(size, int):
        return size
    out: Size = 0
    for atoms, n in size.terms:
        term: Size = n
        for atom in atoms:
            if isinstance(atom, Quotient):
                term = term * (bind(atom.numerator, lengths) // atom.divisor)
            else:
                term = term * (lengths[atom] if atom in lengths else Dim.named(atom))
        out = out + term
    return out


def product(sizes: Iterable[Size]) -> Size:
    out: Size = 1
    for size in sizes:
        out = out * size
    return out


# ---- the normal form


def _terms(size: Size) -> Terms:
    return size.terms if isinstance(size, Dim) else (((), size),)


def _atoms(size: Dim) -> Iterator[Atom]:
    stack = [size]
    while stack:
        for atoms, _ in stack.pop().terms:
            yield from atoms
            stack.extend(a.numerator for a in atoms if isinstance(a, Quotient))


def _order(atom: Atom) -> tuple[object, ...]:
    """Names before quotients."""
    if isinstance(atom, str):
        return (0, atom)
    return (1, atom.divisor, tuple((*map(_order, atoms), (2, n)) for atoms, n in atom.numerator.terms))


def _normal(terms: Iterable[tuple[Monomial, int]]) -> Size:
    total: dict[Monomial, int] = {}
    for atoms, n in terms:
        total[atoms] = total.get(atoms, 0) + n
    kept = tuple(sorted(((m, n) for m, n in total.items() if n), key=lambda t: tuple(map(_order, t[0]))))
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    return Dim(kept)


def _floor(size: Size, n: int) -> Size:
    """floor(size / n), n >= 1."""
    if isinstance(size, int):
        return size // n
    whole: list[tuple[Monomial, int]] = []
    rest: list[tuple[Monomial, int]] = []
    constant = 0
    for atoms, c in size.terms:
        if not atoms:
            above, constant = divmod(c, n)
        else:
            above = abs(c) // n * (1 if c > 0 else -1)
            rest.append((atoms, c - above * n))
        whole.append((atoms, above))
    left = _normal(rest)
    if isinstance(left, int):
        return _normal(whole)
    negative = -left
    assert isinstance(negative, Dim)
    if _as_quotient(left) is None and (all(c < 0 for _, c in left.terms) or _as_quotient(negative) is not None):
        return _normal(whole) - _quotient(negative, n - 1 - constant, n)
    return _normal(whole) + _quotient(left, constant, n)


def _quotient(terms: Dim, k: int, n: int) -> Size:
    """floor((terms + k) / n) for 0 <= k < n and coefficients between -n and n; `terms` holds no constant."""
    common = gcd(n, *(c for _, c in terms.terms))
    if common > 1:
        return _floor(_normal((m, c // common) for m, c in terms.terms) + k // common, n // common)
    if (inner := _as_quotient(terms)) is not None:
        numerator, divisor = inner
        return _floor(numerator + k * divisor, divisor * n)
    half = n // 2
    if n % 2 == 0 and k >= half:
        return _floor(terms + (k - half), half) - _quotient(terms, k - half, n)
    made = terms + k
    assert isinstance(made, Dim)
    return Dim((((Quotient(made, n),), 1),))


def _as_quotient(size: Dim) -> tuple[Size, int] | None:
    """(x, m) where the size is x // m as a whole."""
    for atoms, n in size.terms:
        if len(atoms) == 1 and isinstance(atom := atoms[0], Quotient):
            if n == 1 and len(size.terms) == 1:
                return atom.numerator, atom.divisor
            if n == -1 and atom.divisor % 2 == 0:
                upper = atom.numerator + atom.divisor // 2
                if _floor(upper, atom.divisor) == size:
                    return upper, atom.divisor
    return None


# ---- text


def _quotient_text(numerator: Size, sign: str, divisor: int) -> str:
    plain = not isinstance(numerator, Dim) or (len(numerator.terms) == 1 and numerator.terms[0][1] > 0)
    return f"{numerator} {sign} {divisor}" if plain else f"({numerator}) {sign} {divisor}"


def _text(size: Dim) -> str:
    """As the language writes it, and so that `-(T // 2) + T` comes out as `(T + 1) // 2`."""
    pieces: list[tuple[list[str], int]] = []  # factors, coefficient
    rest: Size = size
    while isinstance(rest, Dim) and (found := _shorter(rest)) is not None:
        rest, factors, n = found
        pieces.append((factors, n))
    for atoms, n in _terms(rest):
        if n:
            pieces.append(([str(a) for a in atoms], n))
    pieces.sort(key=lambda p: (-len(p[0]), p[0]))
    first_positive = next((i for i, (_, n) in enumerate(pieces) if n > 0), 0)
    pieces.insert(0, pieces.pop(first_positive))
    out = ""
    for factors, n in pieces:
        first = not out
        alone = len(factors) == 1 and abs(n) == 1 and not (first and n < 0)  # -T // 2 would be (-T) // 2
        shown = [f if alone or " " not in f else f"({f})" for f in factors]
        number = [str(abs(n))] if abs(n) != 1 or not factors else []
        sign = ("-" if first else " - ") if n < 0 else ("" if first else " + ")
        out += sign + " * ".join([*number, *shown])
    return out


def _shorter(size: Dim) -> tuple[Size, list[str], int] | None:
    """A rounded quotient or a remainder that several terms make up: what is left, its factors, how often it occurs."""
    best: tuple[Size, list[str], int] | None = None
    least = len(size.terms) - 1  # terms that may be left: one fewer altogether
    for atoms, n in size.terms:
        for i, atom in enumerate(atoms):
            if not isinstance(atom, Quotient) or n > 0:
                continue
            others = atoms[:i] + atoms[i + 1 :]
            x, m = atom.numerator, atom.divisor
            tries: list[tuple[Size, str, int]] = []
            if m % 2 == 0:
                tries.append((_floor(x + m // 2, m), _quotient_text(x + m // 2, "//", m), -n))
            if n % m == 0:
                tries.append((x % m, _quotient_text(x, "%", m), -n // m))
            for value, text, times in tries:
                left = size - value * _normal([(others, times)])
                count = len(left.terms) if isinstance(left, Dim) else int(left != 0)
                if count < least:
                    least, best = count, (left, [*map(str, others), text], times)
    return best
