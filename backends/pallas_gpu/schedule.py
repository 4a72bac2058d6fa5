"""Visited tiles turned into the turns of blocks: one query tile each, or lists for blocks that stay where they are.

A block that ends leaves its multiprocessor idle while it stores its last tile and the next one starts and loads its
first. One that stays loads the next query tile beside the last products of the one before. What the hardware does
without such lists, giving the next tile to whoever is free, is done here beforehand, by the tiles' costs.
"""

from collections.abc import Sequence
from heapq import heapify, heapreplace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.bounds import traced, visited_ranges, visited_tiles
from tfc.formula.expr import Expr

__all__ = ["MOST", "OVERHEAD", "compact", "lists", "packed", "ranges"]

OVERHEAD = 1
"""What a query tile costs besides its visits, in visits: its output's division and store."""


Array = jax.Array

MOST = 2**15 - 1
"""Key tiles that a packed range can number."""
RANKED = 256
"""Key tiles of a row up to which traced runs are numbered by comparing each tile with each."""


def ranges(mask: Expr, captured: Sequence[Any], **tiles: int) -> tuple[Any, Any]:
    """`packed` of what `visited_ranges` finds, whose arguments these are: numpy arrays where it is known now, and then
    it costs nothing when the call runs."""
    if not traced(mask, captured):
        return packed(*visited_ranges(mask, captured, **tiles))
    classes = visited_tiles(mask, captured, **tiles)
    return compact(classes) if 0 < classes.shape[3] <= RANKED else packed(*visited_ranges(mask, captured, **tiles))


def packed(counts: Any, triples: Any) -> tuple[Any, Any]:
    """(int32 [Br, Hr, Tq, C], int32 [Br, Hr, Tq, R]): of each query tile how many ranges it has, in the first of the C;
    and its ranges, each in one number, start + 2^15 end + 2^31 full, as they are visited, from the last one on. What
    comes after is anything.

    counts: int32 [Br, Hr, Tq], triples: int32 [Br, Hr, Tq, R, 3], as `visited_ranges` gives them, numpy or traced.
    """
    xp: Any = np if isinstance(counts, np.ndarray) and isinstance(triples, np.ndarray) else jnp
    one = triples[..., 0] | triples[..., 1] << 15 | triples[..., 2] << 31
    at = xp.maximum(counts[..., None] - 1 - np.arange(triples.shape[3], dtype=np.int32), 0)
    return counts[..., None], xp.take_along_axis(one, at, axis=3)


def compact(classes: Array) -> tuple[Array, Array]:
    """The same of classes, int32 [Br, Hr, Tq, Tk], 0 never visited, 1 with the mask, 2 without: by reductions alone,
    of which XLA makes four kernels, each a few microseconds that nothing runs beside."""
    tiles = classes.shape[3]
    at = jnp.arange(tiles, dtype=jnp.int32)
    changes = classes[..., 1:] != classes[..., :-1]
    edge = jnp.ones((*classes.shape[:3], 1), bool)
    first = jnp.concatenate([edge, changes], 3) & (classes > 0)
    last = jnp.concatenate([changes, edge], 3) & (classes > 0)
    # a run's turn is how many end at its end or after; what its first tile and its last one know is summed up
    turn = jnp.sum(last[..., None, :] & (at >= at[:, None]), 4, dtype=jnp.int32)
    known = jnp.where(first, at | (classes == 2).astype(jnp.int32) << 31, 0) + jnp.where(last, at + 1 << 15, 0)
    chosen = (turn[..., None, :] == at[:, None] + 1) & (first | last)[..., None, :]
    return turn, jnp.sum(jnp.where(chosen, known[..., None, :], 0), 4, dtype=jnp.int32)


def lists(counts: Any, packed: Any, *, batch: int, heads: int, blocks: int, together: int) -> Any:
    """int32 [blocks, L, 6]: each block's query tiles, as many as the first one's last number says: batch row, head,
    tile; how many ranges it visits, and the first of them; then how many tiles are left with it.

    counts, packed: numpy arrays, as `packed` gives them.
    together: how many heads are worked on at once, so that their keys and values stay in the cache: their tiles come
    first, the longest before the others, each for the block that is free first.
    """
    counts, tiles = counts[..., 0], counts.shape[2]
    there = np.arange(packed.shape[3]) < counts[..., None]
    visits = (((packed >> 15 & 0xFFFF) - (packed & MOST)) * there).sum(axis=-1)
    cost = np.maximum(np.broadcast_to(visits, (batch, heads, tiles)), 1).reshape(-1, tiles) + OVERHEAD
    taken: list[list[int]] = [[] for _ in range(blocks)]
    free = [(0, block) for block in range(blocks)]
    heapify(free)
    for start in range(0, len(cost), together):
        group = cost[start : start + together].ravel()
        for item in np.argsort(-group, kind="stable"):
            busy, block = free[0]
            taken[block].append(start * tiles + int(item))
            heapreplace(free, (busy + int(group[item]), block))
    first = np.broadcast_to(np.stack([counts, packed[..., 0]], axis=-1), (batch, heads, tiles, 2)).reshape(-1, 2)
    out = np.zeros((blocks, max(map(len, taken)), 6), np.int32)
    for block, items in enumerate(taken):
        row, end = out[block], len(items)
        row[:end, :3] = np.stack(np.unravel_index(items, (batch, heads, tiles)), axis=-1)
        row[:end, 3:5] = first[items]
        row[:end, 5] = np.arange(end, 0, -1)
    return out
