"""Nested and flat trees, and complaints about names, shapes and element types."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.diagnostics import TfcError
from tfc.ir.text import parse
from tfc.params.tree import check, flatten, nest

PROGRAM = parse("""
program p(%x: f32[B]) {
  %e: f32[10, 4] = param embed.table normal(1.0)
  %f: bf16[4] = param frozen zeros frozen
  %y: f32[B] = repeat(count=6, label=layer, carries=1) %x
    program layer(%i: int[], %x: f32[B]) {
      %w: f32[4, 8] = param layer.up.weight glorot
      return %x
    }
  return %y
}
""")


def leaf(*shape: int, dtype: str = "float32") -> SimpleNamespace:
    return SimpleNamespace(shape=shape, dtype=dtype)


def right() -> dict[str, SimpleNamespace]:
    return {"embed.table": leaf(10, 4), "frozen": leaf(4, dtype="bfloat16"), "layer.up.weight": leaf(6, 4, 8)}


def test_what_is_stored_is_accepted():
    check(right(), PROGRAM.stored())


FAULTS = {
    "missing": (
        {"embed.table": None},
        "error[E601]: the parameter `embed.table`, f32[10, 4], is missing\nhelp: give an array of f32[10, 4]",
    ),
    "misspelt": (
        {"embed.table": None, "embed.tables": leaf(10, 4)},
        "error[E601]: the parameter `embed.table`, f32[10, 4], is missing\n"
        "help: there is `embed.tables`, which the model does not have\n\n"
        "error[E602]: the model has no parameter `embed.tables`\nhelp: did you mean `embed.table`?",
    ),
    "unknown": ({"zzz": leaf(1)}, "error[E602]: the model has no parameter `zzz`\nhelp: leave it out"),
    "transposed": (
        {"embed.table": leaf(4, 10)},
        "error[E603]: the parameter `embed.table` has the shape [4, 10], not [10, 4]\nhelp: swap its last two axes",
    ),
    "transposed stack": (
        {"layer.up.weight": leaf(6, 8, 4)},
        "error[E603]: the parameter `layer.up.weight` has the shape [6, 8, 4], not [6, 4, 8]\n"
        "help: swap its last two axes",
    ),
    "unstacked": (
        {"layer.up.weight": leaf(4, 8)},
        "error[E603]: the parameter `layer.up.weight` has the shape [4, 8], not [6, 4, 8]\n"
        "help: its leading axes are 6 turns of `layer`",
    ),
    "too long": (
        {"frozen": leaf(5, dtype="bfloat16")},
        "error[E603]: the parameter `frozen` has the shape [5], not [4]\nhelp: give an array of bf16[4]",
    ),
    "type": (
        {"frozen": leaf(4)},
        "error[E605]: the parameter `frozen` is float32, not bfloat16\nhelp: convert it: `.astype('bfloat16')`",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_is_refused(name: str):
    changes, message = FAULTS[name]
    tree = {path: x for path, x in {**right(), **changes}.items() if x is not None}
    with pytest.raises(TfcError) as e:
        check(tree, PROGRAM.stored())
    assert str(e.value) == message


def test_every_fault_is_told_at_once():
    with pytest.raises(TfcError) as e:
        check({"embed.table": leaf(1), "frozen": leaf(4), "other": leaf(1)}, PROGRAM.stored())
    assert [d.code for d in e.value.diagnostics] == ["E601", "E602", "E603", "E605"]


NAMES = st.sampled_from(["a", "b", "look", "0"])
NESTED = st.recursive(st.integers(), lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3), max_leaves=8)


@given(tree=st.dictionaries(NAMES, NESTED, max_size=3))
def test_nested_and_flat_are_one(tree: dict[str, object]):
    flat = flatten(tree)
    assert all(isinstance(x, int) for x in flat.values())
    assert nest(flat) == tree
    assert flatten(flat) == flat


def test_paths_that_clash_are_refused():
    with pytest.raises(TfcError) as e:
        flatten({"a": {"b": 1}, "a.b": 2})
    assert str(e.value) == (
        "error[E604]: the parameter `a.b` is given twice\nhelp: give each array under one path of its own"
    )
    with pytest.raises(TfcError) as e:
        nest({"a": 1, "a.b.c": 2})
    assert str(e.value) == (
        "error[E604]: the parameter `a.b.c` lies inside another\nhelp: give each array under one path of its own"
    )
