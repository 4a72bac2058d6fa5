"""Visited tiles turned into the turns of blocks: one query tile each, or lists for blocks that stay where they are.

A block that ends leaves its multiprocessor idle while it stores its last tile and the next one starts and loads its
first. One that stays loads the next query tile beside the last products of the one before. What the hardware does
without such lists, giving the next tile to whoever is free, is done here beforehand, by the tiles' costs.
"""

from heapq import heapify, heapreplace
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["OVERHEAD", "grid", "lists"]

OVERHEAD = 1
"""What a query tile costs besides its visits, in visits: its output's division and store."""


def grid(counts: Any, triples: Any) -> Any:
    """[Br, Hr, Tq, 4]: each count with the last triple, where a visit begins, so that a block reads both at once.

    counts: int32 [Br, Hr, Tq], triples: int32 [Br, Hr, Tq, R, 3]: the visited ranges. Of numpy arrays a numpy array:
    what is known when the call is traced costs nothing when it runs.
    """
    xp: Any = np if isinstance(counts, np.ndarray) and isinstance(triples, np.ndarray) else jnp
    last = xp.maximum(counts - 1, 0)[..., None, None]
    return xp.concatenate([counts[..., None], xp.take_along_axis(triples, last, axis=3)[..., 0, :]], axis=-1)


def lists(counts: Any, triples: Any, *, batch: int, heads: int, blocks: int, together: int) -> Any:
    """int32 [blocks, L, 8]: each block's query tiles, as many as the first one's last number says: batch row, head,
    tile, then its `grid` (count, start, end, full), and how many are left with it.

    counts, triples: as in `grid`, numpy arrays.
    together: how many heads are worked on at once, so that their keys and values stay in the cache: their tiles come
    first, the longest before the others, each for the block that is free first.
    """
    tiles = counts.shape[2]
    there = np.arange(triples.shape[3]) < counts[..., None]
    visits = ((triples[..., 1] - triples[..., 0]) * there).sum(axis=-1)
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
    first = np.broadcast_to(grid(counts, triples), (batch, heads, tiles, 4)).reshape(-1, 4)
    out = np.zeros((blocks, max(map(len, taken)), 8), np.int32)
    for block, items in enumerate(taken):
        row, end = out[block], len(items)
        row[:end, :3] = np.stack(np.unravel_index(items, (batch, heads, tiles)), axis=-1)
        row[:end, 3:7] = first[items]
        row[:end, 7] = np.arange(end, 0, -1)
    return out
