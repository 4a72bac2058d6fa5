"""Choices of Hypothesis turned into attention equations and cases: formulas, lengths, heads and types of every sort.

Arrays are not drawn element by element: a case holds a seed, and shrinks to smaller sizes and simpler formulas.
"""

from collections.abc import Sequence

from hypothesis import strategies as st

from tfc.formula.expr import slots
from tfc.ir.ops import Attention
from tfc.ir.program import Eqn
from tfc.ir.types import DType
from tfc.testing import formulas
from tfc.testing.cases import FLAVOURS, FORMULAS, Case, Sizes, attention_eqn, named_op

__all__ = ["attention_cases", "attention_eqns", "lengths", "sizes"]

DTYPES = (DType.F32, DType.BF16, DType.F16)


def lengths(most: int, tile: int = 64) -> st.SearchStrategy[int]:
    """1 to `most`, often a whole number of tiles, or one more or less."""
    edges = [n for t in range(tile, most + 2, tile) for n in (t - 1, t, t + 1) if 1 <= n <= most]
    plain = st.integers(1, most)
    return st.one_of(plain, st.sampled_from(edges)) if edges else plain


@st.composite
def sizes(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[DType] = DTYPES,
    head_dims: Sequence[int] = (32, 64, 128),
    most: int = 80,
    max_batch: int = 2,
    max_tiles: int | None = None,
    tile: tuple[int, int] = (64, 64),
) -> Sizes:
    """Sizes of attention: N = M in half of the cases, heads one to one, grouped, or all over one.

    most: the longest N and M. max_tiles: bounds B * H * tiles of queries * tiles of keys, for kernels that are
    interpreted; tile: queries and keys of a tile.
    """
    left = max_tiles if max_tiles is not None else 10**9
    group, groups = draw(
        st.sampled_from([(r, g) for r, g in ((1, 1), (2, 1), (1, 2), (2, 2), (3, 1)) if r * g <= left])
    )
    left //= group * groups
    batch = draw(st.integers(1, max(1, min(max_batch, left))))
    left //= batch
    m = draw(lengths(min(most, left * tile[1]), tile[1]))
    left //= -(-m // tile[1])
    n = draw(lengths(min(most, left * tile[0]), tile[0]))
    if draw(st.booleans()):
        n = m = min(n, m)
    return Sizes(
        batch, n, m, group * groups, groups, draw(st.sampled_from(list(head_dims))), draw(st.sampled_from(list(dtypes)))
    )


@st.composite
def _drawn_op(draw: st.DrawFn, of: Sizes) -> Attention:
    """A mask and a score that nobody named."""
    shared = of.n == of.m
    mask = draw(formulas.masks(shared=shared))
    score = draw(formulas.scores(first=len(slots(mask)), shared=shared))
    scale = draw(st.sampled_from((of.head_dim**-0.5, 1.0, 0.05)))
    return Attention(scale=scale, score=score, mask=mask)


@st.composite
def _named(draw: st.DrawFn, names: Sequence[str] | None, of: st.SearchStrategy[Sizes]) -> tuple[str, Eqn]:
    drawn = draw(of)
    name = draw(st.sampled_from([*FORMULAS, "drawn", "drawn"] if names is None else list(names)))
    op = draw(_drawn_op(drawn)) if name == "drawn" else named_op(name, drawn)
    return name, attention_eqn(op, drawn, common=draw(st.booleans()))


def attention_eqns(
    names: Sequence[str] | None = None, of: st.SearchStrategy[Sizes] | None = None
) -> st.SearchStrategy[Eqn]:
    """Equations of attention. names: of `cases.FORMULAS`, or "drawn"; by default all of them. of: their sizes."""
    return _named(names, of if of is not None else sizes()).map(lambda found: found[1])


def attention_cases(
    names: Sequence[str] | None = None,
    of: st.SearchStrategy[Sizes] | None = None,
    flavours: Sequence[str] = FLAVOURS,
) -> st.SearchStrategy[Case]:
    """Cases: an equation, the seed of its arrays, and what they are like."""
    return st.builds(
        lambda found, seed, flavour: Case(found[0], found[1], seed, flavour),
        _named(names, of if of is not None else sizes()),
        st.integers(0, 2**31 - 1),
        st.sampled_from(list(flavours)),
    )
