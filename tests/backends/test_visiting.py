"""Which query tiles visit each key tile, beside a look at every pair, with fields known and traced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.backends.bounds import visited_ranges, visiting_ranges
from tfc.formula.expr import Const, Expr, Kind, Load, Token, Var, apply

Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)
CAUSAL = apply("le", K, Q)
IDS = apply("eq", Load(0, "q", Kind.INT), Load(1, "k", Kind.INT))
LENGTH = Load(0, "k", Kind.BOOL)

MASKS: dict[str, Expr] = {
    "full": Const(True),
    "causal": CAUSAL,
    "window": apply("and", CAUSAL, apply("lt", apply("sub", Q, K), Const(9))),
    "dilated": apply("and", CAUSAL, apply("eq", apply("mod", Q, Const(16)), apply("mod", K, Const(16)))),
    "by head": apply("le", apply("add", K, apply("mul", H, Const(7))), Q),
    "documents": apply("and", CAUSAL, IDS),
    "padding": LENGTH,
}


def captured(name: str, rng: np.random.Generator, b: int, n: int, m: int) -> list[Any]:
    if name == "documents":
        return [np.sort(rng.integers(0, 3, (b, t)), axis=1).astype(np.int32) for t in (n, m)]
    return [np.arange(m) < rng.integers(0, m + 1, (b, 1))] if name == "padding" else []


def dense(name: str, x: list[Any], n: int, m: int) -> Any:
    """bool [B or 1, H or 1, N, M]"""
    q, k, h = np.arange(n)[:, None] + m - n, np.arange(m)[None], np.arange(2)[:, None, None]
    found = {
        "full": lambda: q == q,
        "causal": lambda: k <= q,
        "window": lambda: (k <= q) & (q - k < 9),
        "dilated": lambda: (k <= q) & (q % 16 == k % 16),
        "by head": lambda: k + 7 * h <= q,
        "documents": lambda: (k <= q) & (x[0][:, None, :, None] == x[1][:, None, None, :]),
        "padding": lambda: x[0][:, None, None, :],
    }[name]()
    wide = np.asarray(found).reshape((1,) * (4 - np.ndim(found)) + np.shape(found))
    return np.broadcast_to(wide, (*wide.shape[:2], n, m))


@given(
    name=st.sampled_from(sorted(MASKS)),
    n=st.integers(1, 70),
    m=st.integers(1, 70),
    blocks=st.sampled_from([(8, 16), (16, 8), (8, 8)]),
    traced=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_visible_pair_is_visited(name: str, n: int, m: int, blocks: tuple[int, int], traced: bool, seed: int):
    x = captured(name, np.random.default_rng(seed), 2, n, m)
    block_q, block_k = blocks
    sizes = dict(n=n, m=m, block_q=block_q, block_k=block_k, batch=2, heads=2)

    def find(*x: Any) -> Any:
        return visiting_ranges(MASKS[name], x, **sizes), visited_ranges(MASKS[name], x, **sizes)

    (counts, triples), (_, other) = jax.jit(find)(*map(jnp.asarray, x)) if traced and x else find(*x)
    counts, triples = np.asarray(counts), np.asarray(triples)
    mask = dense(name, x, n, m)
    assert counts.shape[2] == -(-m // block_k)
    pairs = 0
    for b, h, j in np.ndindex(counts.shape):
        part = mask[min(b, mask.shape[0] - 1), min(h, mask.shape[1] - 1), :, j * block_k : (j + 1) * block_k]
        visited, end = np.zeros(n, bool), 0
        for start, stop, full in triples[b, h, j, : counts[b, h, j]]:
            assert end <= start < stop, "sorted and disjoint"
            end = stop
            visited[start * block_q : stop * block_q] = True
            pairs += stop - start
            if full:
                assert stop * block_q <= n and part[start * block_q : stop * block_q].all()
        assert not part[~visited].any(), "what is visible is visited"
        assert not triples[b, h, j, counts[b, h, j] :].any()
    theirs = np.asarray(other).astype(np.int64)
    assert pairs == (theirs[..., 1] - theirs[..., 0]).sum(), "the pairs of tiles that query tiles visit, no more"


@pytest.mark.parametrize("n", [0, 20])
def test_no_tokens(n: int):
    counts, triples = visiting_ranges(CAUSAL, [], n=n, m=20 - n, block_q=8, block_k=8, batch=1, heads=1)
    assert not counts.any() and not triples.any() and triples.shape[3] >= 1
