"""Arithmetic of symbolic sizes is that of the integers they stand for; one normal form; the text reads back."""

from collections.abc import Mapping

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from tfc.ir.scan import Cursor
from tfc.ir.sizes import Dim, Quotient, Size, bind, product
from tfc.ir.types import IRError

B, T, S = Dim.named("B"), Dim.named("T"), Dim.named("S")

# an arithmetic expression: a leaf, or an operator and its operands
Tree = int | str | tuple[str, "Tree", "Tree"]
LEAVES = st.integers(-9, 9) | st.sampled_from("BTS")
DIVISORS = st.integers(1, 12) | st.integers(-6, -1) | st.sampled_from([16, 64])


def grown(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    sums = st.tuples(st.sampled_from("+-*"), inner, inner)
    return sums | st.tuples(st.sampled_from(["//", "%"]), inner, DIVISORS)


TREES: st.SearchStrategy[Tree] = st.recursive(LEAVES, grown, max_leaves=8)
LENGTHS = st.fixed_dictionaries({n: st.integers(-40, 40) for n in "BTS"})


def value(tree: Tree, leaves: Mapping[str, Size]) -> Size:
    match tree:
        case int():
            return tree
        case str():
            return leaves[tree]
        case (op, left, right):
            a, b = value(left, leaves), value(right, leaves)
            match op:
                case "+":
                    return a + b
                case "-":
                    return a - b
                case "*":
                    return a * b
            assert isinstance(b, int)
            return a // b if op == "//" else a % b


def size(tree: Tree) -> Size:
    made = value(tree, {n: Dim.named(n) for n in "BTS"})
    assume(not isinstance(made, Dim) or made.weight < 300)
    return made


@given(TREES, LENGTHS, st.sets(st.sampled_from("BTS")))
def test_binding_is_arithmetic(tree: Tree, lengths: dict[str, int], early: set[str]) -> None:
    """Bound at once, or some lengths first: the number that the expression has."""
    made = size(tree)
    assert bind(made, lengths) == value(tree, lengths)
    some = bind(made, {n: lengths[n] for n in early})
    assert bind(some, lengths) == value(tree, lengths)
    assert not isinstance(some, Dim) or not some.names & early
    if isinstance(made, Dim):
        event("quotients" if any(isinstance(a, Quotient) for m, _ in made.terms for a in m) else "polynomial")


@given(TREES)
def test_the_normal_form_is_stable(tree: Tree) -> None:
    """Taken apart and put together again a size stays the same, all the way down; no number is a Dim."""
    made = size(tree)
    assert bind(made, {}) == made
    if isinstance(made, Dim):
        assert made.terms and all(n for _, n in made.terms)
        assert any(atoms for atoms, _ in made.terms)
        for atoms, _ in made.terms:
            for atom in atoms:
                if isinstance(atom, Quotient):
                    assert atom.divisor >= 2
                    assert atom.numerator // atom.divisor == Dim((((atom,), 1),))


@given(TREES, TREES, TREES)
def test_the_laws_of_arithmetic(x: Tree, y: Tree, z: Tree) -> None:
    a, b, c = size(x), size(y), size(z)
    assert a + b == b + a and (a + b) + c == a + (b + c) and a + b - b == a
    assert a * b == b * a
    if all(isinstance(s, int) or s.weight < 40 for s in (a, b, c)):
        assert a * (b + c) == a * b + a * c and (a * b) * c == a * (b * c)


@given(TREES, DIVISORS)
def test_dividing(tree: Tree, n: int) -> None:
    a = size(tree)
    assert (a * n) // n == a and (a * n) % n == 0
    assert n * (a // n) + a % n == a
    assert (a + 5 * n) // n == a // n + 5


@given(TREES)
def test_the_text_reads_back(tree: Tree) -> None:
    made = size(tree)
    at = Cursor(str(made))
    assert at.size() == made, str(made)
    assert at.now.kind == "end"


@given(TREES)
def test_names_are_what_it_depends_on(tree: Tree) -> None:
    made = size(tree)
    if isinstance(made, Dim):
        assert made.names <= set("BTS")
        assert isinstance(bind(made, dict.fromkeys(made.names, 3)), int)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (T // 2, "T // 2"),
        ((T + 1) // 2, "(T + 1) // 2"),
        (-(-T // 2), "(T + 1) // 2"),
        (T - T // 2, "(T + 1) // 2"),
        (-(-T // 64), "(T + 63) // 64"),
        (B * (-(-T // 64)) * 64, "64 * B * ((T + 63) // 64)"),
        (T % 4, "T % 4"),
        (2 * (T % 3) + B, "B + 2 * (T % 3)"),
        (-(T // 2), "-(T // 2)"),
        (5 - T // 2, "5 - T // 2"),
        (T // 3 - B, "T // 3 - B"),
        (2 * T // 3, "2 * T // 3"),
        ((T - S) // 3, "(T - S) // 3"),
        ((S + T // 3) // 5, "(S + T // 3) // 5"),
        (2 * (T // 3) // 5, "2 * (T // 3) // 5"),
        ((T // 2) * (B // 2), "(B // 2) * (T // 2)"),
        (-B - T, "-B - T"),
    ],
)  # fmt: skip
def test_how_sizes_look(made: Size, text: str) -> None:
    assert str(made) == text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((2 * T) // 2, T),
        ((4 * T + 6) // 2, 2 * T + 3),
        ((4 * T + 1) // 2, 2 * T),
        ((6 * T + 4) // 4, (3 * T + 2) // 2),
        (T // 2 + (T + 1) // 2, T),
        (-(-T // 3), (T + 2) // 3),
        (T // 2 // 3, T // 6),
        (((T + 1) // 2 + 1) // 2, (T + 3) // 4),
        ((-(-T // 2) + 1) // 2, (T + 3) // 4),
        (0 - ((T // 2 - T) // 2), (T + 3) // 4),
        (T // 2 // 2 + (T // 2 + 1) // 2, T // 2),
        (T // -2, -((T + 1) // 2)),
        ((B * T + 3 * B) // 2 * 2, ((B * T + 3 * B) // 2) * 2),
        (T % 1, 0),
        ((T + 3) % 3, T % 3),
        (product([T // 2, 2, B]), 2 * B * (T // 2)),
    ],
)
def test_equal_sizes_are_one(one: Size, other: Size) -> None:
    assert one == other
    assert hash(one) == hash(other)


def test_nothing_is_divided_by_zero() -> None:
    for text in ("T // 0", "T % 0", "4 // 0"):
        with pytest.raises(IRError, match="divided by zero"):
            Cursor(text).size()
    for operate in (T.__floordiv__, T.__mod__):
        with pytest.raises(ZeroDivisionError):
            operate(0)
