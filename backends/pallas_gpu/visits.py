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
    turns: Any
    triples: Any
    captured: tuple[Any, ...]
    row: Any
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
    turn: its place in the block's list, where there is one.
    """

    def __init__(self, plan: Plan, mem: Memory, at: Place, turn: Any = None) -> None:
        self.at, self.mem, self.turn = at, mem, turn
        self.batch, self.head, self.tile, count, start, end, full = at
        self.triples = mem.triples
        shared_batch, shared_head = (size == 1 for size in mem.triples.shape[:2])
        self.row = (0 if shared_batch else self.batch, 0 if shared_head else self.head, self.tile)
        self.some = count > 0
        self.ranges = jnp.maximum(count, 1)
        self.keys = jnp.where(self.some, plan.m, 0)
        self.first: Range = jnp.where(self.some, start, 0), jnp.where(self.some, end, 1), full

    def where(self) -> tuple[Any, Any, Any]:
        """Batch row, head and tile; off a list read once more, so that they take no registers until then."""
        return self.at[:3] if self.turn is None else listed(self.mem, self.turn)[:3]

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


def here(mem: Memory) -> Place:
    """The tile of the block's place in a grid of (batch, head, tile)."""
    # under a causal mask the last query tiles see most: begin with them, so that short ones end the launch
    tile = mem.turns.shape[2] - 1 - lax.axis_index("tile")
    batch, head = lax.axis_index("batch"), lax.axis_index("head")
    shared_batch, shared_head = (size == 1 for size in mem.turns.shape[:2])
    row = (0 if shared_batch else batch, 0 if shared_head else head, tile)
    return (batch, head, tile, *(mosaic_load(mem.turns.at[(*row, i)]) for i in range(4)))


def listed(mem: Memory, turn: Any) -> Place:
    """The tile of a turn in the block's list; any beyond its end."""
    at = lax.axis_index("block"), jnp.minimum(turn, mem.turns.shape[1] - 1)
    return tuple(mosaic_load(mem.turns.at[(*at, i)]) for i in range(7))


def each(plan: Plan, mem: Memory, only: Visits | None, visit: Callable[..., Any], carry: Any) -> Any:
    """visit(visits, following, carry) -> (carry, upcoming) for each query tile of this block.

    only: the one tile of a block without a list, where it has been read. following: a function that gives whether a
    tile comes after this one, and that tile (any, where none comes), to be called once and late: a tile that has been
    read takes registers. None where there is no list.
    """
    if not plan.blocks:
        return visit(only or Visits(plan, mem, here(mem)), None, carry)[0]
    count = mosaic_load(mem.turns.at[lax.axis_index("block"), 0, 7])

    def over(turn: Any, both: tuple[Place, Any]) -> tuple[Place, Any]:
        at, carry = both

        def following() -> tuple[Any, Visits]:
            return turn + 1 < count, Visits(plan, mem, listed(mem, turn + 1), turn + 1)

        carry, upcoming = visit(Visits(plan, mem, at, turn), following, carry)
        return upcoming.at, carry

    return lax.fori_loop(0, count, over, (listed(mem, 0), carry))[1]
