"""Parameter maps as data: two maps one after the other, by hand and on drawn maps; their text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.ir.param_map import (
    IDENTITY,
    Add,
    Concat,
    Expr,
    MatVec,
    NonZero,
    ParamMap,
    Part,
    ScaleRows,
    Source,
    Sub,
    UnscaleRows,
    parts,
    sources,
    substitute,
)

A, B, C, AB = map(Source, ["a", "b", "c", "ab"])
MERGE = ParamMap({"ab": Concat((A, B))}, {"a": Part(AB, 0, 2), "b": Part(AB, 2, 3)}, removed=frozenset(["a", "b"]))
SPLIT = ParamMap(MERGE.backward, MERGE.forward, removed=frozenset(["ab"]))
SCALE = ParamMap(
    {"a": ScaleRows(A, C), "c": C},
    {"a": UnscaleRows(A, C), "c": C},
    kept=frozenset(["c"]),
    guards=(NonZero("c", "s:c"),),
)


def test_scaled_then_merged():
    """Each expression is written over the other end's names; what is kept and guarded stays so."""
    both = SCALE.then(MERGE)
    assert both.forward == {"c": C, "ab": Concat((ScaleRows(A, C), B))}
    assert both.backward == {"a": UnscaleRows(Part(AB, 0, 2), C), "b": Part(AB, 2, 3), "c": C}
    assert both.removed == {"a", "b"}
    assert both.kept == {"c"}
    assert both.guards == SCALE.guards


def test_merged_then_split():
    """A parameter that exists between the two only is in neither tree."""
    both = MERGE.then(SPLIT)
    assert both.forward == {"a": Part(Concat((A, B)), 0, 2), "b": Part(Concat((A, B)), 2, 3)}
    assert both.backward == both.forward
    assert both.removed == frozenset()
    assert both.after(["a", "b", "x"]) == {"a", "b", "x"}


def test_made_then_merged_again():
    """A parameter that the first map made and the second takes up is gone, and was never an old one."""
    make = ParamMap({"b": A})
    both = make.then(MERGE)
    assert both.forward == {"ab": Concat((A, A))}
    assert both.backward == {"a": Part(AB, 0, 2)}
    assert both.removed == {"a"}


def test_a_guard_speaks_of_the_first_tree():
    renamed = ParamMap({"c": Source("d")}, {"d": C}, removed=frozenset(["d"]))
    assert renamed.then(SCALE).guards == (NonZero("d", "s:c"),)
    with pytest.raises(ValueError, match="c, which is computed"):
        ParamMap({"c": Add(C, C)}, {"c": C}).then(SCALE)


def test_the_identity_is_neutral():
    for map in (MERGE, SCALE):
        assert IDENTITY.then(map) == map == map.then(IDENTITY)


@st.composite
def maps(draw: st.DrawFn, tree: frozenset[str]) -> ParamMap:
    """A map of the tree that merges, changes, makes, removes and keeps, as passes do."""
    forward: dict[str, Expr] = {}
    backward: dict[str, Expr] = {}
    removed: set[str] = set()
    for _ in range(draw(st.integers(0, 3))):
        free = sorted(tree - backward.keys())
        if len(free) < 2:
            break
        a, b = draw(st.permutations(free))[:2]
        new = next(n for n in "uvwxyz" if n not in tree | forward.keys())
        match draw(st.sampled_from(["merge", "scale", "make"])):
            case "merge":
                forward[new] = Concat((Source(a), Source(b)))
                backward |= {a: Part(Source(new), 0, 1), b: Part(Source(new), 1, 1)}
                removed |= {a, b}
            case "scale":
                forward |= {a: Add(Source(a), Source(b)), b: Source(b)}
                backward |= {a: Sub(Source(a), Source(b)), b: Source(b)}
            case "make":
                forward[new] = MatVec(Source(a), Source(b))
    return ParamMap(forward, backward, frozenset(removed))


def applied(map: ParamMap, tree: dict[str, Expr]) -> dict[str, Expr]:
    """What `tfc.params.apply.pack` does, on expressions instead of arrays."""
    gone = map.removed | map.forward.keys()
    return {p: e for p, e in tree.items() if p not in gone} | {p: substitute(e, tree) for p, e in map.forward.items()}


def undone(map: ParamMap, tree: dict[str, Expr]) -> dict[str, Expr]:
    gone = map.forward.keys() | map.backward.keys()
    return {p: e for p, e in tree.items() if p not in gone} | {p: substitute(e, tree) for p, e in map.backward.items()}


@given(data=st.data())
def test_two_maps_as_one(data: st.DataObject):
    """`first.then(second)` there and back is one after the other, there and back."""
    tree: dict[str, Expr] = {p: Source(p) for p in "abcde"}
    first = data.draw(maps(frozenset(tree)))
    between = applied(first, tree)
    second = data.draw(maps(frozenset(between)))
    both = first.then(second)
    assert applied(both, tree) == applied(second, between)
    new: dict[str, Expr] = {p: Source(p) for p in applied(both, tree)}
    assert both.after(tree) == new.keys()
    assert undone(both, new) == undone(first, undone(second, new))


TEXTS: dict[str, Expr] = {
    "concat(a, b)": Concat((A, B)),
    "concat(a, b, axis=-2)": Concat((A, B), -2),
    "part(a, 1, 2)": Part(A, 1, 2),
    "part(a, 1, 2, axis=-2)": Part(A, 1, 2, -2),
    "scale_rows(a, b)": ScaleRows(A, B),
    "unscale_rows(a, b)": UnscaleRows(A, B),
    "a + matvec(b, c)": Add(A, MatVec(B, C)),
    "a - b": Sub(A, B),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_sources(text: str):
    expr = TEXTS[text]
    assert str(expr) == text
    assert sources(expr) == {path for path in "abc" if path in re.findall(r"[a-z_]+", text)}


def test_every_expression_has_parts_and_text():
    class Other(Expr):
        pass

    for reader in (parts, str, lambda e: substitute(e, {})):
        with pytest.raises(TypeError, match="Other is no expression over parameters"):
            reader(Other())
