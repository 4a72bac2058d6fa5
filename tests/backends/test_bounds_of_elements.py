"""Masks that read elements of fields: the tiles of traced arrays against those of known ones, and against the truth."""

from typing import Any

import jax
import numpy as np
import pytest

from tfc.backends.bounds import visited_ranges
from tfc.formula.expr import Const, Expr, FormulaError, Kind, Load, Read, Reduce, Token, Var, apply
from tfc.formula.scalar import Env, evaluate, pair

B, I = Kind.BOOL, Kind.INT  # noqa: E741  # the kinds' own initials
Q, K, H, T = Token("q"), Token("k"), Var("h", I), Var("t", I)
N, M, HEADS, BLOCK_Q, BLOCK_K = 8, 12, 2, 2, 3
RNG = np.random.default_rng(0)
FIELDS: list[np.ndarray] = [
    np.stack([np.arange(N) // 4, RNG.integers(0, 3, N)], 1).astype(np.int32),  # [N, 2]
    np.stack([np.stack([np.arange(M) // (6 - b), RNG.integers(0, 3, M)], 1) for b in range(2)]).astype(np.int32),
    np.repeat(RNG.random((M // 3, 3)) < 0.6, 3, 0),  # [M, 3], whole key tiles alike
    RNG.random((2, N, M)) < 0.5,
    np.asarray([1, 0], np.int32),
]
MASKS: dict[str, Expr] = {
    "constant index": apply("eq", Load(0, "q", I, (Const(0),)), Load(1, "k", I, (Const(0),))),
    "head": apply("le", Load(0, "q", I, (H,)), Load(1, "k", I, (H,))),
    "a table's element": apply("le", Load(0, "q", I, (Const(0),)), Load(1, "k", I, (Read(4, (H,), I),))),
    "own token": apply("le", Load(1, "k", I, (apply("mod", K, Const(2)),)), Const(0)),
    "a field of a field": Load(2, "k", B, (Load(1, "k", I, (Const(0),)),)),
    "beyond the ends": apply("or", Load(2, "k", B, (Const(7),)), Load(2, "k", B, (Const(-3),))),
    "the other token": Load(3, "q", B, (K,)),
    "any": apply("and", apply("le", K, Q), Reduce("any", ("t",), Load(2, "k", B, (T,)))),
}
KNOWN = ("constant index", "head", "a table's element", "a field of a field", "beyond the ends")


def classes(counts: Any, ranges: Any) -> np.ndarray:
    """[Br, Hr, Tq, Tk]: 0 empty, 1 partial, 2 full."""
    counts, ranges = np.asarray(counts), np.asarray(ranges)
    out = np.zeros((*counts.shape, M // BLOCK_K), int)
    for at in np.ndindex(*counts.shape):
        for start, end, full in ranges[at][: counts[at]]:
            out[(*at, slice(start, end))] = 1 + full
    return out


def truth(mask: Expr) -> np.ndarray:
    """[B, H, N, M], pair by pair."""
    lists: dict[int, Any] = {slot: x.tolist() for slot, x in enumerate(FIELDS)}
    out = np.zeros((2, HEADS, N, M), bool)
    for b, h, i, j in np.ndindex(*out.shape):
        env = pair(i, j, n=N, m=M, b=b, loads=lists, reads=lists, h=h)
        out[b, h, i, j] = evaluate(mask, Env(env.variables, env.tokens, env.loads, env.reads, {"t": 3}))
    return out


@pytest.mark.parametrize("name", MASKS)
def test_elements_of_fields(name: str):
    """Never wrong, traced or known; decided where what one token holds decides it."""
    mask, seen = MASKS[name], truth(MASKS[name])
    parts = seen.reshape(2, HEADS, N // BLOCK_Q, BLOCK_Q, M // BLOCK_K, BLOCK_K)
    some, every = parts.any((3, 5)), parts.all((3, 5))
    sizes = {"n": N, "m": M, "block_q": BLOCK_Q, "block_k": BLOCK_K, "batch": 2, "heads": HEADS}
    for found in (visited_ranges(mask, FIELDS, **sizes), jax.jit(lambda *x: visited_ranges(mask, x, **sizes))(*FIELDS)):
        tiles = np.broadcast_to(classes(*found), some.shape)
        assert (some <= (tiles > 0)).all() and ((tiles == 2) <= every).all()
        assert (tiles != 1).any() == (name != "the other token")
        if name in KNOWN and name != "head":
            assert ((tiles == 1) <= (some & ~every)).mean() > 0.9


def test_a_field_of_too_few_axes_is_refused():
    sizes = {"n": N, "m": M, "block_q": BLOCK_Q, "block_k": BLOCK_K, "batch": 1, "heads": 1}
    with pytest.raises(FormulaError, match="reads an array of shape"):
        jax.jit(lambda x: visited_ranges(Load(0, "q", B, (H,)), [x], **sizes))(np.ones(N, bool))
