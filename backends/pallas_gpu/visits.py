"""Ranges of key tiles in global memory turned into the visits of a query tile, and lists of query tiles into turns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tfc.backends.pallas_gpu.plan import Plan
from tfc.compat import mosaic_load

__all__ = ["Memory", "Place", "Range", "Visits", "each"]

Array = jax.Array
Range = tuple[Array, Array, Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """References: arrays in global memory, buffers and barriers in shared memory."""

    q: Any
    k: Any
    v: Any
    heads: Any
    triples: Any
    captured: tuple[Any, ...]
    row: Any
    lists: Any
    row_lse: Any
    out: Any
    lse: Any
    q_tile: Any
    k_ring: Any
    v_ring: Any
    q_ready: Any
    k_ready: Any
    v_ready: Any
    k_free: Any
    v_free: Any
    turn: Any
    lse_tile: Any = None
    out_tile: Any = None
    staging: Any = None


Place = tuple[Any, ...]
"""A query tile: batch row, head, tile; then how many ranges it visits, and the last of them (start, end, full)."""


class Visits:
    """The key tiles that a query tile visits, as each warpgroup of its block reads them, last range first.

    A query tile that sees no key visits key tile 0 as a partial one, and there no key exists. at: which tile it is;
    without it, that of the block's place in a grid of (batch, head, tile).
    """

    def __init__(self, plan: Plan, mem: Memory, at: Place | None = None) -> None:
        if at is None:
            # under a causal mask the last query tiles see most: begin with them, so that short ones end the launch
            tile = mem.heads.shape[2] - 1 - lax.axis_index("tile")
            at = place(mem, lax.axis_index("batch"), lax.axis_index("head"), tile)
        self.at = at
        self.batch, self.head, self.tile, count, start, end, full = at
        self.triples = mem.triples
        shared_batch, shared_head = (size == 1 for size in mem.heads.shape[:2])
        self.row = (0 if shared_batch else self.batch, 0 if shared_head else self.head, self.tile)
        self.some = count > 0
        self.ranges = jnp.maximum(count, 1)
        self.keys = jnp.where(self.some, plan.m, 0)
        self.first: Range = jnp.where(self.some, start, 0), jnp.where(self.some, end, 1), full

    def range(self, turn: Any) -> Range:
        """The range visited at `turn` > 0, counted from the last one; any beyond the end."""
        at = (*self.row, jnp.maximum(self.ranges - 1 - turn, 0))
        start, end, full = (mosaic_load(self.triples.at[(*at, i)]) for i in range(3))
        return start, end, full

    def loop(self, visit: Callable[[Any, Range, Any], Any], carry: Any) -> Any:
        """visit(turn, range, carry) for each range; each is read while the one before it is visited."""

        def over(turn: Any, both: tuple[Range, Any]) -> tuple[Range, Any]:
            here, carry = both
            following = self.range(turn + 1)
            return following, visit(turn, here, carry)

        return lax.fori_loop(0, self.ranges, over, (self.first, carry))[1]


def place(mem: Memory, batch: Any, head: Any, tile: Any) -> Place:
    """The tile with what a visit begins with, read from global memory."""
    shared_batch, shared_head = (size == 1 for size in mem.heads.shape[:2])
    row = (0 if shared_batch else batch, 0 if shared_head else head, tile)
    return (batch, head, tile, *(mosaic_load(mem.heads.at[(*row, i)]) for i in range(4)))


def each(plan: Plan, mem: Memory, only: Visits | None, visit: Callable[..., Any], carry: Any) -> Any:
    """visit(visits, following, carry) -> (carry, upcoming) for each query tile of this block.

    only: the one tile of a block without a list, where it has been read. following: a function that gives whether a
    tile comes after this one, and that tile (any, where none comes), to be called once and late: a tile that has been
    read takes registers. None where there is no list.
    """
    if mem.lists is None:
        return visit(only or Visits(plan, mem), None, carry)[0]
    block = lax.axis_index("block")
    count = mosaic_load(mem.lists.at[block, 0])

    def item(turn: Any) -> Any:
        return mosaic_load(mem.lists.at[block, jnp.minimum(turn + 1, mem.lists.shape[1] - 1)])

    def read(item: Any) -> Visits:
        pair, tile = lax.div(item, plan.tiles), lax.rem(item, plan.tiles)
        return Visits(plan, mem, place(mem, lax.div(pair, plan.heads), lax.rem(pair, plan.heads), tile))

    def over(turn: Any, both: tuple[Place, Any]) -> tuple[Place, Any]:
        here, carry = both
        number = item(turn + 1)
        carry, upcoming = visit(Visits(plan, mem, here), lambda: (turn + 1 < count, read(number)), carry)
        return upcoming.at, carry

    return lax.fori_loop(0, count, over, (read(item(0)).at, carry))[1]
