"""Visited tiles turned into lists of query tiles, one list for each block that stays on its multiprocessor.

A block that ends leaves its multiprocessor idle while it stores its last tile and the next one starts and loads its
first. One that stays loads the next query tile beside the last products of the one before. What the hardware does
without such lists, giving the next tile to whoever is free, is done here beforehand, by the tiles' costs.
"""

from heapq import heapify, heapreplace
from typing import Any

import numpy as np

__all__ = ["OVERHEAD", "lists"]

OVERHEAD = 1
"""What a query tile costs besides its visits, in visits: its output's division and store."""


def lists(counts: Any, triples: Any, *, batch: int, heads: int, blocks: int, together: int) -> Any:
    """int32 [blocks, 1 + R]: how many query tiles a block takes, then their numbers (b * heads + h) * Tq + tile.

    counts: int32 [Br, Hr, Tq], triples: int32 [Br, Hr, Tq, R, 3]: the visited ranges, as numpy arrays.
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
    out = np.zeros((blocks, 1 + max(map(len, taken))), np.int32)
    for block, items in enumerate(taken):
        out[block, 0] = len(items)
        out[block, 1 : 1 + len(items)] = items
    return out
