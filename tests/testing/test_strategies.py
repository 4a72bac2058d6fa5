"""What is drawn: equations that verify, arrays that fit them, sizes within their bounds, and every sort of case."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfc.formula.expr import Kind, Load, Read, Token, Var, apply, walk
from tfc.ir.ops import Attention, S
from tfc.ir.types import DType
from tfc.testing import float64
from tfc.testing.cases import (
    FLAVOURS,
    FORMULAS,
    STANDARD,
    Case,
    Sizes,
    attention_eqn,
    named_op,
    operands,
    shaped,
    sizes_of,
    standard_cases,
)
from tfc.testing.strategies import attention_cases, lengths, sizes

H = Var("h", Kind.INT)


def tiles(of: Sizes, tile: tuple[int, int]) -> int:
    return of.batch * of.heads * -(-of.n // tile[0]) * -(-of.m // tile[1])


@given(case=attention_cases())
def test_equations_infer_and_arrays_fit(case: Case):
    types = case.eqn.op.infer(*(a.type for a in case.eqn.args))
    assert types == tuple(o.type for o in case.eqn.outs)
    arrays = case.operands()
    assert shaped(case.eqn, arrays) == case.eqn
    for value, x in zip(case.eqn.args, arrays, strict=True):
        assert x.shape == value.type.ints and x.dtype == float64.DTYPES[value.type.dtype]
        assert np.isfinite(x.astype(np.float64)).all()


@pytest.mark.parametrize("most", [1, 2, 4, 12])
def test_tiles_are_bounded(most: int):
    @settings(max_examples=60)
    @given(of=sizes(max_tiles=most, tile=(128, 64), most=500))
    def check(of: Sizes) -> None:
        assert 1 <= tiles(of, (128, 64)) <= most
        assert of.heads % of.kv_heads == 0 and 1 <= of.n <= 500 and 1 <= of.m <= 500

    check()


def test_what_is_drawn_is_varied():
    """One query, one key, more queries than keys and fewer, ragged tiles, every grouping, type and formula."""
    seen: set[str] = set()

    @settings(max_examples=300)
    @given(case=attention_cases())
    def look(case: Case) -> None:
        of = sizes_of(case.eqn)
        order = "N < M" if of.n < of.m else "N > M" if of.n > of.m else "N = M"
        grouped = "MQA" if of.heads > of.kv_heads == 1 else "GQA" if of.heads > of.kv_heads else "MHA"
        seen.update((case.name, str(of.dtype), str(case.flavour), order, grouped))
        seen.update(
            f"{what} = {n}" for what, n in (("N", of.n), ("M", of.m), ("D", of.head_dim)) if n in (1, 32, 64, 128)
        )
        nodes = [n for e in (case.eqn.op.score, case.eqn.op.mask) for n in walk(e)]  # type: ignore[attr-defined]
        seen.update(f"{type(n).__name__} {n.kind}" for n in nodes if isinstance(n, Load | Read))
        seen.update("common" for a in case.eqn.args[3:] if a.type.rank == 1)

    look()
    expected = {*FORMULAS, "drawn", "f32", "bf16", "f16", *FLAVOURS, "N < M", "N = M", "N > M", "MHA", "GQA", "MQA"}
    expected |= {"N = 1", "M = 1", "N = 64", "D = 32", "D = 64", "D = 128", "common"}
    expected |= {f"{x} {k}" for x in ("Load", "Read") for k in Kind}
    assert expected <= seen, expected - seen


@given(length=lengths(130, 64))
def test_lengths_are_within_bounds(length: int):
    assert 1 <= length <= 130


def test_a_slot_that_both_sides_read_is_split_where_lengths_differ():
    both = apply("eq", Load(0, "q", Kind.INT), Load(0, "k", Kind.INT))
    op = Attention(scale=1.0, mask=both)
    same = attention_eqn(op, Sizes(2, 5, 5, 2, 1, 8))
    assert same.op == op and len(same.args) == 4
    other = attention_eqn(op, Sizes(2, 5, 7, 2, 1, 8))
    assert [str(a.type) for a in other.args[3:]] == ["int[2, 5]", "int[2, 7]"]
    *_, q, k = operands(other, 3, "documents")
    assert (q == k[:, -5:]).all(), "aligned at the end, as positions are"


def test_tables_reach_as_far_as_their_indices():
    far = apply("min", apply("abs", apply("sub", Token("q"), Token("k"))), apply("add", H, H))
    op = Attention(scale=1.0, score=apply("add", S, Read(0, (far, H), Kind.REAL)))
    eqn = attention_eqn(op, Sizes(1, 9, 9, 4, 2, 8))
    assert str(eqn.args[3].type) == "f32[7, 4]"


def test_flavours_are_what_they_say():
    of = Sizes(3, 40, 40, 2, 1, 32, DType.F32)
    documents, padding = (attention_eqn(named_op(name, of), of) for name in ("documents", "padding"))
    segments = operands(documents, 1, "documents")[3]
    assert (np.diff(segments, axis=1) >= 0).all() and len(np.unique(segments)) > 2
    real = operands(padding, 1, "blind")[3]
    assert (~real.any(1)).sum() == 1 and operands(padding, 1, "documents")[3].any(1).all()
    large = attention_eqn(named_op("full", of), of)
    assert isinstance(large.op, Attention)
    assert np.abs(float64.attention(large.op, *operands(large, 1, "large")).z).max() > 200
    ties = float64.attention(large.op, *operands(large, 1, "ties")).z
    assert len(np.unique(ties)) < ties.size / 10


def test_standard_cases_cover_types_flavours_and_sizes():
    cases = list(standard_cases(tuple(FORMULAS), (DType.F32, DType.BF16)))
    assert len(cases) == len(FORMULAS) * len(STANDARD)
    assert {c.flavour for c in cases} == set(FLAVOURS)
    for name in FORMULAS:
        mine = [sizes_of(c.eqn) for c in cases if c.name == name]
        assert {s.dtype for s in mine} == {DType.F32, DType.BF16}
        assert [s.elements for s in mine] == sorted(s.elements for s in mine)


@given(case=attention_cases(), seed=st.integers(0, 10))
@settings(max_examples=20)
def test_seeds_decide_arrays(case: Case, seed: int):
    first, again = (operands(case.eqn, seed, case.flavour) for _ in range(2))
    other = operands(case.eqn, seed + 1, case.flavour)
    assert all((x == y).all() for x, y in zip(first, again, strict=True))
    assert any((x != y).any() for x, y in zip(first, other, strict=True))
