"""Visited ranges from arrays: constants on the host, traced ones on the device, the same ranges from both."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfc.backends import bounds
from tfc.backends.bounds import TRACED, Traced, visited_ranges
from tfc.formula.arithmetic import HOST, NOTHING_KNOWN
from tfc.formula.expr import (
    PRIMITIVES,
    Apply,
    Const,
    Expr,
    FormulaError,
    Kind,
    Load,
    Read,
    Token,
    Var,
    apply,
    slots,
    walk,
)
from tfc.formula.interval import compiled
from tfc.formula.scalar import INT_MAX, INT_MIN, evaluate, pair
from tfc.testing.formulas import NAMED_MASKS, both, causal, disc, documents, fields, masks
from tfc.testing.published import PUBLISHED, REACH

B, I, R = Kind.BOOL, Kind.INT, Kind.REAL  # noqa: E741
DTYPES = {B: np.bool_, I: np.int32, R: np.float32}


def captured(mask: Expr, values: dict) -> list[np.ndarray]:
    """The slots' values as arrays, in order."""
    kinds = {node.slot: node.kind for node in walk(mask) if isinstance(node, Load | Read)}
    return [np.asarray(values[slot], DTYPES[kinds[slot]]) for slot in slots(mask)]


def traced(mask: Expr, arrays: list, **sizes: int) -> tuple[np.ndarray, np.ndarray]:
    """The ranges when no array is known before the call."""
    counts, ranges = jax.jit(lambda *a: visited_ranges(mask, a, **sizes))(*arrays)
    return np.asarray(counts), np.asarray(ranges)


def classes(counts: np.ndarray, ranges: np.ndarray, tiles: int) -> np.ndarray:
    """[Br, Hr, Tq, Tk]: 0 empty, 1 partial, 2 full; and the form that the arrays promise."""
    out = np.zeros((*counts.shape, tiles), int)
    for at in np.ndindex(counts.shape):
        rows, end = ranges[at], 0
        for start, stop, full in rows[: counts[at]]:
            assert end <= start < stop <= tiles
            out[at][start:stop] = 2 if full else 1
            end = stop
        assert not rows[counts[at] :].any()
    return out


def seen(mask: Expr, values: dict, n: int, m: int, batch: int, heads: int) -> np.ndarray:
    """[batch, heads, n, m]: what the mask says of each pair."""
    out = np.zeros((batch, heads, n, m), bool)
    for b, h, i, j in np.ndindex(out.shape):
        out[b, h, i, j] = evaluate(mask, pair(i, j, n=n, m=m, b=b, h=h, loads=values, reads=values))
    return out


def sound(found: np.ndarray, truth: np.ndarray, block_q: int, block_k: int) -> bool:
    """No empty tile with a visible pair, no full tile with an invisible or a missing one."""
    found = np.broadcast_to(found, (*truth.shape[:2], *found.shape[2:]))
    for b, h, i, j in np.ndindex(found.shape):
        tile = truth[b, h, i * block_q : (i + 1) * block_q, j * block_k : (j + 1) * block_k]
        if found[b, h, i, j] == 0 and tile.any():
            return False
        if found[b, h, i, j] == 2 and not (tile.all() and (j + 1) * block_k <= truth.shape[3]):
            return False
    return True


@settings(max_examples=settings().max_examples // 3)  # a compilation each
@given(data=st.data())
def test_both_ways_are_sound_and_agree(data):
    """Drawn masks with fields of every kind: never wrong, and what is traced is as exact as what is known,
    but for formulas of `q - k`, of which the host knows more, and tables, of which it reads parts."""
    square = data.draw(st.booleans())
    n, m = (7, 7) if square else data.draw(st.sampled_from(((1, 7), (7, 1), (5, 7))))
    mask = data.draw(masks(shared=square, real=True))
    values = data.draw(fields(mask, n=n, m=m, batch=2, heads=2))
    sizes = {"n": n, "m": m, "block_q": 3, "block_k": 2, "batch": 2, "heads": 2}
    arrays = captured(mask, values)
    truth = seen(mask, values, n, m, 2, 2)
    tiles = -(-m // 2)
    here = classes(*visited_ranges(mask, arrays, **sizes), tiles)
    there = classes(*traced(mask, arrays, **sizes), tiles)
    assert here.shape == there.shape
    assert sound(here, truth, 3, 2)
    assert sound(there, truth, 3, 2)
    assert ((there == here) | (there == 1)).all()


@pytest.mark.parametrize("n, m", [(64, 64), (61, 61), (40, 64), (64, 37), (1, 9)])
@pytest.mark.parametrize("name", NAMED_MASKS)
def test_named_masks_agree_exactly(name, n, m):
    """Traced as known, for every named mask: the same counts and the same ranges. Globals may hang on both tokens."""
    if n != m and name in ("documents", "packed", "globals", "shifted", "disc"):
        m = n
    mask = NAMED_MASKS[name](0)
    values = {}
    for node in walk(mask):
        if isinstance(node, Load):
            t = np.arange(n if node.side == "q" else m)
            rows = [t // 7, t % 11]
            values[node.slot] = np.stack([r % 2 == 0 for r in rows] if node.kind is B else rows)
        elif isinstance(node, Read):
            values[node.slot] = np.asarray([3, 20])
    arrays = captured(mask, values)
    sizes = {"n": n, "m": m, "block_q": 16, "block_k": 8, "batch": 2, "heads": 2}
    counts, ranges = visited_ranges(mask, arrays, **sizes)
    assert isinstance(counts, np.ndarray) and counts.dtype == ranges.dtype == np.int32
    again, more = traced(mask, arrays, **sizes)
    assert again.dtype == more.dtype == np.int32
    if name == "globals":
        here, there = classes(counts, ranges, -(-m // 8)), classes(again, more, -(-m // 8))
        assert ((there == here) | (there == 1)).all()
        return
    np.testing.assert_array_equal(counts, again)
    np.testing.assert_array_equal(ranges, more[..., : ranges.shape[3], :])


CONJOINED = {
    "causal, but whole images",
    "other documents",
    "disc",
    "disc in patches",
    "disc and text (CLEAR)",
    "square",
    "shifted windows (arXiv:2103.14030)",
    "long distance (CrossFormer, arXiv:2108.00154)",
}
"""Masks of which a tile may hang on two conditions at once; where the fields are known, the host looks into it."""


@pytest.mark.parametrize("n, m, block_q, block_k", [(100, 100, 16, 12), (97, 97, 7, 13), (40, 64, 16, 8)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_masks_traced(name, n, m, block_q, block_k):
    """Never wrong, never more than the host knows, and as exact as that where one condition decides each tile."""
    case = PUBLISHED[name]
    mask = both(case.mask, Load(REACH + 1, "k", B))  # something is traced, if only what hides nothing
    values = {REACH: [3, 7], REACH + 1: [True] * m, **case.loads(n, m)}
    arrays = [np.asarray(values.get(slot, 0)) for slot in range(REACH + 2)]
    sizes = {"n": n, "m": m, "block_q": block_q, "block_k": block_k, "batch": 1, "heads": 2}
    tiles = -(-m // block_k)
    here = classes(*visited_ranges(mask, arrays, **sizes), tiles)
    there = classes(*traced(mask, arrays, **sizes), tiles)
    assert ((there == here) | (there == 1)).all()
    assert (there == here).all() or name in CONJOINED


def test_known_arrays_give_constants_inside_jit():
    """An array closed over is known: the kernel that is being traced sees numbers, not tracers."""
    lengths = jnp.arange(12) < 7

    @jax.jit
    def f(x):
        counts, ranges = visited_ranges(Load(0, "k", B), [lengths], n=12, m=12, block_q=4, block_k=4, batch=3, heads=2)
        assert isinstance(counts, np.ndarray)
        return x + counts.sum() + ranges[..., 1].max()

    assert f(0) == 3 * 2 + 2  # a full and a partial range a query tile; the last ends at 2


def test_a_traced_slot_that_the_mask_does_not_read_is_no_matter():
    found = jax.jit(lambda x: visited_ranges(causal(), [x], n=8, m=8, block_q=4, block_k=4, batch=1, heads=1)[0])(1.0)
    np.testing.assert_array_equal(found, [[[1, 2]]])


def test_axes():
    """Br is 1 where no field has a batch axis, Hr where the mask does not read the head."""
    sizes = {"n": 8, "m": 8, "block_q": 4, "block_k": 4, "batch": 3, "heads": 2}
    one, rows = np.ones(8, bool), np.ones((3, 8), bool)
    reach = np.asarray([1, 5], np.int32)
    for mask, arrays, shape in (
        (Load(0, "k", B), [one], (1, 1, 2)),
        (Load(0, "k", B), [rows], (3, 1, 2)),
        (NAMED_MASKS["by_head"](0), [reach], (1, 2, 2)),
        (both(Load(0, "q", B), NAMED_MASKS["by_head"](1)), [rows, reach], (3, 2, 2)),
    ):
        assert visited_ranges(mask, arrays, **sizes)[0].shape == shape
        assert traced(mask, arrays, **sizes)[0].shape == shape


def test_vmap_gives_each_row_its_own():
    """One row at a time under vmap as all rows at once."""
    mask = both(causal(), documents())
    segments = np.asarray([[0] * 5 + [1] * 7, [0] * 12, [0, 1] * 6], np.int32)
    sizes = {"n": 12, "m": 12, "block_q": 4, "block_k": 4, "heads": 1}
    f = jax.vmap(lambda s: visited_ranges(mask, [s], **sizes, batch=1))
    counts, ranges = jax.jit(f)(segments[:, None])
    expected, triples = visited_ranges(mask, [segments], **sizes, batch=3)
    np.testing.assert_array_equal(counts[:, 0], expected)
    np.testing.assert_array_equal(ranges[:, 0, ..., : triples.shape[3], :], triples)


def test_the_tail_of_the_last_tile_widens_nothing():
    """5 tokens in tiles of 4: the last tile's one token decides, whatever the missing three might be."""
    mask = apply("ge", Load(0, "q", I), Load(0, "k", I))
    field = np.asarray([1, 1, 1, 1, 9], np.int32)
    sizes = {"n": 5, "m": 5, "block_q": 4, "block_k": 4, "batch": 1, "heads": 1}
    found = classes(*traced(mask, [field], **sizes), 2)
    np.testing.assert_array_equal(found[0, 0], [[2, 0], [2, 1]])  # a key tile that lacks keys is never full


@pytest.mark.parametrize("n, m", [(0, 4), (4, 0), (0, 0)])
def test_lengths_of_zero(n, m):
    """Nothing to visit, whether the field is known or not."""
    sizes = {"n": n, "m": m, "block_q": 4, "block_k": 4, "batch": 1, "heads": 1}
    field = np.ones(m, bool)
    for counts, ranges in (
        visited_ranges(Load(0, "k", B), [field], **sizes),
        traced(Load(0, "k", B), [field], **sizes),
    ):
        assert counts.shape == (1, 1, -(-n // 4)) and not counts.any()
        assert ranges.shape[3] == 1 and not ranges.any()


def test_refusals_say_what_is_wrong():
    sizes = {"n": 4, "m": 4, "block_q": 2, "block_k": 2, "batch": 1, "heads": 1}
    with pytest.raises(FormulaError, match=r"reads slot \$1 of 1"):
        visited_ranges(Load(1, "k", B), [np.ones(4)], **sizes)
    with pytest.raises(FormulaError, match="there are 4 tokens"):
        traced(Load(0, "k", B), [np.ones(5, bool)], **sizes)
    with pytest.raises(FormulaError, match="a mask is a boolean"):
        traced(Load(0, "k", I), [np.ones(4, np.int32)], **sizes)


def test_the_disc_in_a_batch_of_grids():
    """Two maps of 8 x 8 tokens, one in rows, one in patches: each batch row its own ranges, sound and agreeing."""
    t = np.arange(64)
    y = np.stack([t // 8, t // 32 * 4 + t % 16 // 4])
    x = np.stack([t % 8, t // 16 % 2 * 4 + t % 4])
    mask = disc(radius=3)
    sizes = {"n": 64, "m": 64, "block_q": 16, "block_k": 16, "batch": 2, "heads": 1}
    found = classes(*traced(mask, [y, x], **sizes), 4)
    truth = seen(mask, {0: y.tolist(), 1: x.tolist()}, 64, 64, 2, 1)
    assert sound(found, truth, 16, 16)
    np.testing.assert_array_equal(found, classes(*visited_ranges(mask, [y, x], **sizes), 4))


def test_float32_decides_as_the_mask_in_float32_does():
    """Verdicts on reals hold for values computed in float32, near ties too: 0.1 * n against n / 10."""
    n = 24
    tenth = apply("mul", Token("q"), Const(0.1))
    mask = apply("ge", apply("add", tenth, Load(0, "k", R)), apply("div", Token("q"), Const(10.0)))
    bias = np.asarray([0.0] * 8 + [1e-3] * 8 + [-1e-3] * 8, np.float32)
    sizes = {"n": n, "m": n, "block_q": 1, "block_k": 4, "batch": 1, "heads": 1}
    positions = jnp.arange(n, dtype=jnp.float32)[:, None]
    single = np.asarray(positions * jnp.float32(0.1) + bias >= positions / jnp.float32(10))
    double = seen(mask, {0: bias.tolist()}, n, n, 1, 1)
    for counts, ranges in (visited_ranges(mask, [bias], **sizes), traced(mask, [bias], **sizes)):
        found = classes(counts, ranges, 6)
        assert sound(found, single[None, None], 1, 4) and sound(found, double, 1, 4)
        np.testing.assert_array_equal(found[0, 0], [[2, 2, 2, 2, 0, 0]] + [[1, 1, 2, 2, 0, 0]] * 23)


@pytest.mark.parametrize("fn", PRIMITIVES)
def test_rules_agree_on_both_arithmetics(fn):
    """The same rule on Python numbers and on arrays: integers and booleans alike, reals within their width."""
    takes = PRIMITIVES[fn].takes
    kinds = [B, R, R] if takes == "where" else [{"int": I, "bool": B}.get(takes, R)] * PRIMITIVES[fn].arity
    for of in [kinds, [I if k is R else k for k in kinds]]:
        variables = [Var(f"x{i}", kind) for i, kind in enumerate(of)]
        formula = apply(fn, *variables)
        leaves: dict[Expr, int] = {v: i for i, v in enumerate(variables)}
        ends = {
            B: [(False, True), (True, True)],
            I: [(-3, 2), (1, 5), (7, 7)],
            R: [(-0.5, 2.0), (0.25, 0.75), (3.0, 3.0)],
        }
        for shift in range(3):
            args = [ends[k][(shift + i) % len(ends[k])] for i, k in enumerate(of)]
            here = compiled(formula, leaves, HOST)(args)
            arrays = [(TRACED.constant(lo), TRACED.constant(hi)) for lo, hi in args]
            there = compiled(formula, leaves, TRACED)(arrays)
            np.testing.assert_allclose(np.asarray(there, float), np.asarray(here, float), rtol=1e-3, atol=1e-3)


def test_traced_integers_saturate():
    """int32 would wrap around; the bounds say that nothing is known instead."""
    ns = Traced()
    large = jnp.asarray([INT_MAX - 1, 2**30, INT_MIN + 1, 50000], jnp.int32)
    for found in (ns.add(large, jnp.abs(large)), ns.mul(large, 50000)):
        assert set(np.asarray(found).tolist()) <= {INT_MAX, INT_MIN, 0, 100000, INT_MIN + 1, -1}
    formula = apply("floordiv", apply("mul", Load(0, "k", I), Const(2**20)), Const(2**20))
    rule = compiled(formula, {Load(0, "k", I): 0}, TRACED)
    lo, hi = rule([(jnp.int32(4096), jnp.int32(4096))])
    assert (int(lo), int(hi)) == NOTHING_KNOWN[I]
    assert [int(x) for x in rule([(jnp.int32(5), jnp.int32(6))])] == [5, 6]


def test_a_field_at_the_ends_of_int32_decides_nothing():
    """-2^31 as a sentinel: its negation is no int32, so no verdict rests on it."""
    mask = apply("lt", apply("neg", Load(0, "k", I)), Const(0))
    field = np.asarray([INT_MIN] * 4 + [5] * 4, np.int32)
    sizes = {"n": 4, "m": 8, "block_q": 4, "block_k": 4, "batch": 1, "heads": 1}
    for counts, ranges in (visited_ranges(mask, [field], **sizes), traced(mask, [field], **sizes)):
        np.testing.assert_array_equal(classes(counts, ranges, 2)[0, 0], [[1, 2]])


def test_the_mask_is_never_materialized():
    """No array of a whole [N, M] score tile appears in the traced program: only tokens, and tiles against tiles; those
    once more by tiles, inside reductions, where runs are numbered."""
    mask = both(causal(), documents())
    sizes = {"n": 4096, "m": 4096, "block_q": 64, "block_k": 64, "batch": 1, "heads": 1}
    jaxpr = jax.make_jaxpr(lambda s: visited_ranges(mask, [s], **sizes))(np.zeros((1, 4096), np.int32))
    largest = max(np.prod(np.shape(v.aval)) for eqn in jaxpr.jaxpr.eqns for v in eqn.outvars)  # type: ignore[arg-type]
    assert largest <= 64 * 64 * 64


@pytest.mark.parametrize("ranked", [0, 64])
def test_runs_are_found_both_ways(monkeypatch, ranked):
    """By sorting, and by comparing each tile with each: runs of equal classes, empty ones dropped."""
    monkeypatch.setattr(bounds, "RANKED", ranked)
    drawn = np.random.default_rng(5).integers(0, 3, (2, 3, 20, 13)).astype(np.int32)
    counts, ranges = jax.jit(bounds._ranges)(drawn)
    for at in np.ndindex(2, 3, 20):
        edges = [0, *(np.flatnonzero(np.diff(drawn[at])) + 1), 13]
        runs = [[a, b, int(drawn[at][a] == 2)] for a, b in pairwise(edges) if drawn[at][a]]
        assert counts[at] == len(runs)
        np.testing.assert_array_equal(ranges[at], runs + [[0, 0, 0]] * (13 - len(runs)))


def test_every_real_function_is_traced():
    """A mask with each primitive of one number runs traced, erf among them; all in one program."""
    functions = [fn for fn, row in PRIMITIVES.items() if row.arity == 1 and row.takes == "number"]
    masks_ = [apply("le", Apply(fn, (Load(0, "k", R),)), Apply(fn, (Load(1, "q", R),))) for fn in functions]
    field = np.linspace(0.05, 0.95, 8, dtype=np.float32)
    sizes = {"n": 8, "m": 8, "block_q": 2, "block_k": 2, "batch": 1, "heads": 1}
    found = jax.jit(lambda *a: [visited_ranges(mask, a, **sizes) for mask in masks_])(field, field)
    for fn, mask, (counts, ranges) in zip(functions, masks_, found, strict=True):
        tiles = classes(np.asarray(counts), np.asarray(ranges), 4)
        truth = seen(mask, {0: field.tolist(), 1: field.tolist()}, 8, 8, 1, 1)
        assert sound(tiles, truth, 2, 2), fn
        assert (tiles != 1).any(), fn
