"""Turns of query tiles: ranges packed as they are visited, and lists that give every tile once, the longest first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.backends import bounds
from tfc.backends.pallas_gpu.schedule import MOST, OVERHEAD, compact, lists, packed


def tiles(rng: np.random.Generator, shape: tuple[int, int, int], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts and ranges: up to two for each query tile, of up to `most` key tiles, and rubbish after them."""
    counts = rng.integers(0, 3, shape).astype(np.int32)
    starts = rng.integers(0, 5, (*shape, 2))
    full = rng.integers(0, 2, starts.shape)
    triples = np.stack([starts, starts + rng.integers(1, most + 1, starts.shape), full], axis=-1)
    return counts, triples.astype(np.int32)


def opened(x: np.ndarray) -> tuple[int, int, int]:
    return int(x) & MOST, int(x) >> 15 & 0xFFFF, int(x < 0)


@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    count=st.integers(1, 9),
    shared=st.tuples(st.booleans(), st.booleans()),
    blocks=st.integers(1, 12),
    together=st.integers(1, 12),
    most=st.integers(1, 20),
)
def test_every_tile_once_and_balanced(
    seed: int, batch: int, heads: int, count: int, shared: tuple[bool, bool], blocks: int, together: int, most: int
) -> None:
    shape = (1 if shared[0] else batch, 1 if shared[1] else heads, count)
    counts, triples = tiles(np.random.default_rng(seed), shape, most)
    blocks = min(blocks, batch * heads * count)
    column, ranges = packed(counts, triples)
    made = lists(column, ranges, batch=batch, heads=heads, blocks=blocks, together=together)
    assert made.dtype == np.int32 and made.shape[0] == blocks and made.shape[2] == 6
    assert made[:, 0, 5].all(), "no block is idle from the start"
    taken = [[tuple(map(int, place)) for place in row[: row[0, 5]]] for row in made]
    assert sorted(x[:3] for row in taken for x in row) == list(np.ndindex(batch, heads, count))
    assert all([x[5] for x in row] == list(range(len(row), 0, -1)) for row in taken), "how many are left"

    def row_of(place: tuple[int, ...]) -> tuple[int, ...]:
        return 0 if shared[0] else place[0], 0 if shared[1] else place[1], place[2]

    assert all((counts[row_of(x)], ranges[(*row_of(x), 0)]) == x[3:5] for row in taken for x in row)

    def cost(place: tuple[int, ...]) -> int:
        at = row_of(place)
        return max(1, sum(int(triples[(*at, i, 1)] - triples[(*at, i, 0)]) for i in range(counts[at]))) + OVERHEAD

    costs = [[cost(x) for x in row] for row in taken]
    sums = [sum(row) for row in costs]
    # whoever is free takes the next: nobody ends later than the first to end plus one tile
    assert max(sums) - min(sums) <= max(max(row) for row in costs)
    if together >= batch * heads:
        assert all(row == sorted(row, reverse=True) for row in costs)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 9), known=st.booleans())
def test_ranges_are_packed_in_the_order_of_visits(seed: int, count: int, known: bool) -> None:
    """The last one first; what they hold is what they were made of."""
    counts, triples = tiles(np.random.default_rng(seed), (2, 1, count), 9)
    column, made = packed(counts, triples) if known else jax.jit(packed)(counts, triples)
    assert isinstance(made, np.ndarray) == known
    assert made.dtype == np.int32 and (column[..., 0] == counts).all()
    for at in np.ndindex(2, 1, count):
        here = [opened(x) for x in np.asarray(made[at])[: counts[at]]]
        assert here == [tuple(map(int, t)) for t in triples[at][: counts[at]][::-1]]


@pytest.mark.parametrize("keys", [1, 13])
def test_classes_are_packed_as_their_ranges_are(keys: int) -> None:
    """Runs of equal classes; those never visited are dropped."""
    drawn = np.random.default_rng(5).integers(0, 3, (2, 3, 20, keys)).astype(np.int32)
    column, made = jax.jit(compact)(jnp.asarray(drawn))
    right = packed(*map(np.asarray, bounds._ranges(jnp.asarray(drawn))))
    counts = np.asarray(column)[..., 0]
    assert (counts == right[0][..., 0]).all()
    for at in np.ndindex(counts.shape):
        assert (np.asarray(made[at])[: counts[at]] == right[1][at][: counts[at]]).all()


def test_as_many_key_tiles_as_can_be_numbered() -> None:
    counts, triples = np.ones((1, 1, 1), np.int32), np.array([MOST - 1, MOST, 1], np.int32).reshape(1, 1, 1, 1, 3)
    assert opened(packed(counts, triples)[1][0, 0, 0, 0]) == (MOST - 1, MOST, 1)
