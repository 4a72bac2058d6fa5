"""Lists of query tiles: every tile once, the longest first, and no block works much longer than the others."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tfc.backends.pallas_gpu.schedule import OVERHEAD, grid, lists


def tiles(rng: np.random.Generator, shape: tuple[int, int, int], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts and ranges: up to two for each query tile, of up to `most` key tiles, and rubbish after them."""
    counts = rng.integers(0, 3, shape).astype(np.int32)
    starts = rng.integers(0, 5, (*shape, 2))
    triples = np.stack([starts, starts + rng.integers(1, most + 1, starts.shape), starts * 0], axis=-1)
    return counts, triples.astype(np.int32)


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
    made = lists(counts, triples, batch=batch, heads=heads, blocks=blocks, together=together)
    assert made.dtype == np.int32 and made.shape[0] == blocks and made.shape[2] == 8
    assert made[:, 0, 7].all(), "no block is idle from the start"
    taken = [[tuple(map(int, place)) for place in row[: row[0, 7]]] for row in made]
    assert sorted(x[:3] for row in taken for x in row) == list(np.ndindex(batch, heads, count))
    assert all([x[7] for x in row] == list(range(len(row), 0, -1)) for row in taken), "how many are left"

    def row_of(place: tuple[int, ...]) -> tuple[int, ...]:
        return 0 if shared[0] else place[0], 0 if shared[1] else place[1], place[2]

    first = grid(counts, triples)
    assert all(tuple(first[row_of(x)]) == x[3:7] for row in taken for x in row)

    def cost(place: tuple[int, ...]) -> int:
        at = row_of(place)
        return max(1, sum(int(triples[(*at, i, 1)] - triples[(*at, i, 0)]) for i in range(counts[at]))) + OVERHEAD

    costs = [[cost(x) for x in row] for row in taken]
    sums = [sum(row) for row in costs]
    # whoever is free takes the next: nobody ends later than the first to end plus one tile
    assert max(sums) - min(sums) <= max(max(row) for row in costs)
    if together >= batch * heads:
        assert all(row == sorted(row, reverse=True) for row in costs)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 9))
def test_a_visit_begins_with_the_last_range(seed: int, count: int) -> None:
    """Read with the number of ranges; where there is none, anything."""
    counts, triples = tiles(np.random.default_rng(seed), (2, 1, count), 9)
    made = grid(counts, triples)
    for at in np.ndindex(2, 1, count):
        assert made[at][0] == counts[at]
        if counts[at]:
            assert (made[at][1:] == triples[at][counts[at] - 1]).all()
